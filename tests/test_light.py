"""Light checkpoints: what they hold, that they answer as whole ones, and what loading and saving refuse."""

import copy
import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from tiny import TOWERS, make_encoder
from trainers import make_trainer
from transformers import AutoModel
from transformers.utils import logging

from modeling_cue import CUEModel
from modeling_cue.tower_sources import fingerprint
from modeling_cue.training.lora import add_lora, load_lora

pytestmark = pytest.mark.filterwarnings("ignore:.*radii have gone to one value")
WEIGHTS = "model.safetensors"


def settings(folder):
    return json.loads((folder / "config.json").read_text())


def write(folder, config):
    (folder / "config.json").write_text(json.dumps(config))


def cones(model, processor):
    with torch.no_grad():
        return model.eval()(**processor(text=["a red dog", "the cat"])).cones["text"]


def same_weights(one, other):
    one, other = one.state_dict(), other.state_dict()
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


@pytest.fixture
def own(tmp_path):
    """A CUE over a text tower of its own, whose folder a test may change; its light checkpoint."""
    tower = make_encoder("bert", tmp_path / "tower")
    model = CUEModel.from_encoders(text=str(tower), projection_dim=8, composition_dim=16)
    model.save_pretrained(tmp_path / "light", towers="reference")
    return model, tmp_path / "light"


# ---------------------------------------------------------------------- what it holds, and what it answers


@pytest.mark.parametrize("family", TOWERS)
def test_a_light_checkpoint_loads_as_the_whole_one_does(encoders, family, tmp_path):
    name = {TOWERS[family].modality: str(encoders[family])}
    model = CUEModel.from_encoders(**name, projection_dim=8, composition_dim=16)
    model.save_pretrained(tmp_path / "whole")
    model.save_pretrained(tmp_path / "light", towers="reference")
    for dtype in (None, torch.bfloat16):
        kwargs = {"dtype": dtype} if dtype else {}
        whole, light = (AutoModel.from_pretrained(tmp_path / kind, **kwargs) for kind in ("whole", "light"))
        assert same_weights(whole, light)
        assert {w.dtype for name, w in light.named_parameters() if "_tower." in name} == {dtype or torch.float32}


def test_it_holds_no_tower_and_names_each_once(model, names, processor, tmp_path):
    model.save_pretrained(tmp_path, towers="reference")
    assert not any("_tower." in name for name in load_file(tmp_path / WEIGHTS))
    assert any(name.startswith("video_head.") for name in load_file(tmp_path / WEIGHTS))
    config = settings(tmp_path)
    assert config["towers_by_reference"] == ["text", "image", "audio"]  # video shares the image's
    for modality, source in config["tower_sources"].items():
        assert source["name"] == str(Path(names[modality]).resolve())
        assert source["fingerprint"] == fingerprint(getattr(model, f"{modality}_tower").state_dict().values())
    loaded = CUEModel.from_pretrained(tmp_path, attn_implementation="eager")
    assert loaded.text_tower.config._attn_implementation == "eager"
    loaded = CUEModel.from_pretrained(tmp_path)
    found, expected = cones(loaded, processor), cones(model, processor)
    assert torch.equal(found.axis, expected.axis)
    assert torch.equal(found.radius, expected.radius)


def test_what_was_loaded_light_saves_whole_and_light_again(own, tmp_path):
    model, light = own
    loaded = CUEModel.from_pretrained(light)
    loaded.save_pretrained(tmp_path / "again", towers="reference")
    assert settings(tmp_path / "again")["towers_by_reference"] == ["text"]
    loaded.save_pretrained(tmp_path / "whole")
    assert settings(tmp_path / "whole")["towers_by_reference"] == []
    whole = CUEModel.from_pretrained(tmp_path / "whole")
    whole.save_pretrained(tmp_path / "third", towers="reference")
    assert settings(tmp_path / "third")["tower_sources"] == settings(light)["tower_sources"]
    assert same_weights(CUEModel.from_pretrained(tmp_path / "third"), model)
    shutil.rmtree(tmp_path / "tower")  # a whole checkpoint needs no tower
    assert same_weights(CUEModel.from_pretrained(tmp_path / "whole"), model)


def test_a_trained_tower_is_stored_whole_with_a_warning(encoders, tmp_path, caplog):
    names = {"text": str(encoders["bert"]), "image": str(encoders["vit"])}
    model = CUEModel.from_encoders(**names, projection_dim=8, composition_dim=16)
    with torch.no_grad():
        model.image_tower.layernorm.bias[0] += 1e-3
    model.save_pretrained(tmp_path, towers="reference")
    assert settings(tmp_path)["towers_by_reference"] == ["text"]
    assert "the image tower is stored whole: it was trained" in caplog.text
    assert same_weights(CUEModel.from_pretrained(tmp_path), model)


def test_a_fingerprint_is_of_content_not_of_names_or_order():
    a, b = torch.arange(6.0), torch.ones(2, 3)
    expected = fingerprint([a, b])
    assert fingerprint([b.clone(), a.clone()]) == expected
    others = ([a, b + 1e-6], [a], [a.bfloat16(), b], [a.reshape(3, 2), b], [a, a, b])
    assert len({expected, *(fingerprint(other) for other in others)}) == 1 + len(others)


# ---------------------------------------------------------------------- what is refused


def test_saving_refuses_what_cannot_be_named(own, tmp_path):
    model, _ = own
    with pytest.raises(ValueError, match="towers='light' is not valid; it must be whole or reference"):
        model.save_pretrained(tmp_path / "no", towers="light")
    for push in (
        lambda: model.push_to_hub("org/cue", towers="reference"),
        lambda: model.save_pretrained(tmp_path / "no", push_to_hub=True, towers="reference"),
    ):
        with pytest.raises(ValueError, match="text tower cannot be shared by reference: it came from the folder"):
            push()
    with pytest.raises(ValueError, match="text tower cannot be saved by reference: it has no known origin"):
        CUEModel(type(model.config)(text_config=model.config.text_config)).save_pretrained(
            tmp_path / "no", towers="reference"
        )
    assert not (tmp_path / "no").exists()


def test_a_tower_with_other_weights_is_refused(own, tmp_path):
    _, light = own
    file = tmp_path / "tower" / WEIGHTS
    weights = load_file(file)
    name = next(name for name in weights if "query.weight" in name)
    weights[name][0, 0] += 1e-3
    save_file(weights, file, {"format": "pt"})
    with pytest.raises(ValueError, match=r"not the one that this light checkpoint.*fingerprint.*force_download=True"):
        CUEModel.from_pretrained(light)


def test_a_tower_that_is_gone_is_named(own, tmp_path):
    _, light = own
    shutil.rmtree(tmp_path / "tower")
    with pytest.raises(ValueError, match=rf"needs its text tower from '{tmp_path}/tower'.*could not be fetched"):
        CUEModel.from_pretrained(light)


def test_a_half_downloaded_checkpoint_is_refused(own):
    _, light = own
    data = (light / WEIGHTS).read_bytes()
    (light / WEIGHTS).write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match=r"model.safetensors cannot be read: it is damaged or half-downloaded"):
        CUEModel.from_pretrained(light)
    (light / WEIGHTS).unlink()
    with pytest.raises(OSError, match="no file named model.safetensors"):
        CUEModel.from_pretrained(light)


def test_a_light_checkpoint_without_all_heads_is_refused(own):
    _, light = own
    weights = load_file(light / WEIGHTS)
    del weights["text_head.projection.weight"]
    save_file(weights, light / WEIGHTS, {"format": "pt"})
    with pytest.raises(ValueError, match=r"no fitting weights for 1 tensors.*text_head.projection.weight"):
        CUEModel.from_pretrained(light)


def test_a_newer_checkpoint_says_which_version(own):
    _, light = own
    config = settings(light)
    config["tower_sources"]["text"]["fingerprint"] = "2:abc"
    write(light, config)
    with pytest.raises(ValueError, match="newer CUE.*of version 2, and this CUE reads version 1"):
        CUEModel.from_pretrained(light)


# ---------------------------------------------------------------------- training


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft's own
def test_an_adapter_over_a_light_base(model, processor, tmp_path):
    model.freeze(["text"])
    model.save_towers = "reference"
    adapted = add_lora(model, rank=2, alpha=4, dropout=0.0, base=tmp_path / "base")
    assert settings(tmp_path / "base")["towers_by_reference"] == ["text", "image", "audio"]
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:  # zero at the start: an adapter that does nothing would test nothing
            torch.nn.init.normal_(weight)
    adapted.save_pretrained(tmp_path)
    expected = {k: v.clone() for k, v in adapted.merge_and_unload().state_dict().items()}
    base = CUEModel.from_pretrained(tmp_path / "base")
    query = "image_tower.encoder.layers.0.self_attn.q_proj"
    before = base.get_submodule(query).weight.clone()
    for merged in (load_lora(tmp_path), PeftModel.from_pretrained(base, tmp_path).merge_and_unload()):
        found = merged.state_dict()
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    loaded = AutoModel.from_pretrained(tmp_path)
    assert torch.equal(loaded.get_submodule(query).base_layer.weight, before)
    assert not torch.equal(expected[f"{query}.weight"], before)


@pytest.fixture
def told(caplog):
    """What `transformers` logs, which keeps it from others otherwise."""
    logging.enable_propagation()
    yield caplog
    logging.disable_propagation()


def test_training_keeps_light_checkpoints_and_goes_on_from_them(model, processor, tmp_path, told):
    model.freeze(["text", "image"])
    model.save_towers = "reference"
    arguments = {
        "eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1, "max_steps": 2,
        "load_best_model_at_end": True, "save_total_limit": 3, "warmup_steps": 0,
    }  # fmt: skip
    start = copy.deepcopy(model)
    make_trainer(model, processor, tmp_path, **arguments).train()
    # The audio tower takes gradients: it is there to come back to, though this data leaves it as it was.
    assert settings(tmp_path / "checkpoint-1")["towers_by_reference"] == ["text", "image"]
    assert "missing keys" not in told.text
    again = make_trainer(start, processor, tmp_path, **arguments | {"load_best_model_at_end": False})
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    reference = CUEModel.from_pretrained(tmp_path / "checkpoint-2").state_dict()
    for name, tensor in again.model.state_dict().items():
        torch.testing.assert_close(tensor, reference[name], rtol=1e-5, atol=1e-6)
    assert "missing keys" not in told.text
    start.config.tower_sources["text"]["fingerprint"] = "1:other"
    with pytest.raises(ValueError, match=r"checkpoint-1 was trained over the text tower.*which has other weights"):
        again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
