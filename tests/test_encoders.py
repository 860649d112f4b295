"""Every family of towers, with its real config and processor classes: CUE's tower says what the bare one says."""

import pytest
import torch
import transformers as hf
from tiny import TOWERS

from modeling_cue import CUEModel
from modeling_cue import encoders as encoders_module
from modeling_cue.encoders import FAMILIES, MODALITIES, load_tower, run_tower, tower_pooler

FIELDS = {"projection_dim": 16, "composition_dim": 16}
TEXTS = {"input_ids": torch.randint(5, 30, (2, 7)), "attention_mask": torch.tensor([[1] * 7, [1] * 4 + [0] * 3])}


def inputs_of(family: str) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    if TOWERS[family].modality == "text":
        ids = torch.randint(5, 30, (2, 7), generator=generator)
        mask = torch.tensor([[1] * 7, [1] * 4 + [0] * 3])
        if family == "clip_text":  # CLIP reads its pooled state at the end-of-text token
            ids[0, -1] = ids[1, 3:] = 53
        return {"input_ids": ids, "attention_mask": mask}
    if TOWERS[family].modality == "image":
        return {"pixel_values": torch.randn(2, 3, 32, 32, generator=generator)}
    mask = torch.tensor([[1] * 101, [1] * 60 + [0] * 41])
    return {"input_features": torch.randn(2, 20, 101, generator=generator), "input_features_mask": mask}


@pytest.fixture(params=list(TOWERS))
def family(request):
    return request.param


def test_tower_gives_what_the_bare_tower_gives(family, encoders):
    kind = TOWERS[family]
    inputs = inputs_of(family)
    model = CUEModel.from_encoders(**{kind.modality: str(encoders[family])}, **FIELDS).eval()
    with torch.no_grad():
        features, _ = model.tower_features(kind.modality, *inputs.values())
        if family == "whisper":
            # The bare encoder takes 30 s only: cropped, it must give what the padded behaviour of ours gives when
            # nothing is padding.
            full = torch.randn(1, 20, 3000, generator=torch.Generator().manual_seed(2))
            bare = hf.WhisperModel.from_pretrained(encoders[family]).eval().encoder(full).last_hidden_state
            ours = run_tower(model.audio_tower, "audio", full, None, crop_audio=True).tokens
            torch.testing.assert_close(ours, bare, rtol=1e-5, atol=1e-5)
            padded = run_tower(model.audio_tower, "audio", full, None, crop_audio=False).tokens
            assert torch.equal(padded, bare)
            return
        bare = getattr(hf, kind.bare).from_pretrained(encoders[family]).eval()
        arguments = inputs if kind.modality == "text" else {"pixel_values": inputs["pixel_values"]}
        output = bare(**arguments)
        pooler = model.pooler_name(kind.modality)
        if pooler == "mean":
            mask = inputs["attention_mask"][..., None].float()
            expected = (output.last_hidden_state * mask).sum(1) / mask.sum(1)
        elif pooler == "cls":
            expected = output.last_hidden_state[:, 0]
        else:
            expected = output.pooler_output.flatten(1)
    torch.testing.assert_close(features, expected, rtol=1e-5, atol=1e-6)


def test_padding_changes_nothing(family, encoders):
    if TOWERS[family].modality == "image":
        pytest.skip("images are not padded")
    modality, inputs = TOWERS[family].modality, inputs_of(family)
    model = CUEModel.from_encoders(**{modality: str(encoders[family])}, **FIELDS).eval()
    get = getattr(model, f"get_{modality}_cones")
    with torch.no_grad():
        together = get(**inputs)
        short = {k: v[1:, ..., : int(list(inputs.values())[1][1].sum())] for k, v in inputs.items()}
        alone = get(**short)
    torch.testing.assert_close(together.axis[1:], alone.axis, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(together.radius[1:], alone.radius, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("pooler", ["habit", "mean", "attention"])
@pytest.mark.parametrize("side", ["right", "left"])
def test_texts_run_in_chunks_of_one_length(side, pooler, encoders):
    for family in (name for name, kind in TOWERS.items() if kind.modality == "text"):
        generator = torch.Generator().manual_seed(3)
        count, longest = 4 * encoders_module.TEXTS_PER_CHUNK + 3, 12
        ids = torch.randint(5, 30, (count, longest), generator=generator)
        mask = (torch.arange(longest) < torch.randint(2, longest + 1, (count, 1), generator=generator)).long()
        if family == "clip_text":
            ids[mask == 0] = 53
            ids[range(count), mask.sum(1) - 1] = 53
        if side == "left":
            ids, mask = ids.flip(1), mask.flip(1)
        poolers = {} if pooler == "habit" else {"text": pooler}
        model = CUEModel.from_encoders(text=str(encoders[family]), poolers=poolers, **FIELDS).eval()
        seen: list[int] = []
        model.text_tower.register_forward_pre_hook(
            lambda _, __, kwargs, seen=seen: seen.append(kwargs["input_ids"].numel()), with_kwargs=True
        )
        with torch.no_grad():
            chunked = model.get_text_cones(input_ids=ids, attention_mask=mask)
            model.text_chunks = 1
            whole = model.get_text_cones(input_ids=ids, attention_mask=mask)
        torch.testing.assert_close(chunked.axis, whole.axis, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(chunked.radius, whole.radius, rtol=1e-5, atol=1e-5)
        assert seen[-1] == ids.numel()
        if side == "right":
            assert len(seen) == encoders_module.TEXT_CHUNKS + 1
            assert sum(seen[:-1]) < 0.75 * ids.numel()
        else:
            assert seen == [ids.numel()] * 2


@pytest.mark.parametrize("pooler", ["habit", "mean", "attention"])
def test_save_and_reload_gives_the_same_cones(family, pooler, encoders, tmp_path):
    modality, inputs = TOWERS[family].modality, inputs_of(family)
    poolers = {} if pooler == "habit" else {modality: pooler}
    model = CUEModel.from_encoders(**{modality: str(encoders[family])}, poolers=poolers, **FIELDS).eval()
    model.save_pretrained(tmp_path)
    again = hf.AutoModel.from_pretrained(tmp_path).eval()
    assert type(again) is CUEModel
    with torch.no_grad():
        before, after = model(**inputs).cones[modality], again(**inputs).cones[modality]
    assert torch.equal(before.axis, after.axis)
    assert torch.equal(before.radius, after.radius)


def test_only_the_half_that_is_needed_is_built(encoders):
    model = CUEModel.from_encoders(image=str(encoders["clip"]), audio=str(encoders["whisper"]), **FIELDS)
    names = [name for name, _ in model.named_parameters()]
    assert not any("text_model" in name or "decoder" in name or "text_projection" in name for name in names)
    assert type(model.image_tower).__name__ == "CLIPVisionModel"
    assert type(model.audio_tower).__name__ == "WhisperEncoder"


def test_pretrained_weights_survive_the_heads(family, encoders):
    # A timm tower holds plain modules, which building the outer model would initialise anew.
    modality = TOWERS[family].modality
    bare = load_tower(str(encoders[family]), modality)
    model = CUEModel.from_encoders(**{modality: str(encoders[family])}, **FIELDS)
    for name, tensor in bare.state_dict().items():
        assert torch.equal(getattr(model, f"{modality}_tower").state_dict()[name], tensor), name


def test_every_family_is_tested():
    tested = {"clip": "clip_vision_model", "clip_text": "clip_text_model", "timm": "timm_wrapper"}
    assert {tested.get(name, name) for name in TOWERS} == set(FAMILIES)


def test_letters_and_inputs_differ():
    assert "".join(spec.letter for spec in MODALITIES.values()) == "tiav"
    assert len({spec.input_name for spec in MODALITIES.values()}) == 4


def test_unknown_encoder_says_what_to_do(tmp_path):
    with pytest.raises(ValueError, match=r"'nobody/nothing' could not be loaded: give the name of a model on the Hub"):
        CUEModel.from_encoders(text="nobody/nothing")


def test_a_family_that_cannot_be_pooled(tmp_path):
    config = hf.T5Config(d_model=16, d_ff=16, num_layers=1, num_heads=2, vocab_size=30, d_kv=8)
    hf.T5Model(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="family 't5' cannot be pooled for text; use a tower of one of bert"):
        CUEModel.from_encoders(text=str(tmp_path))


@pytest.mark.parametrize(("family", "modality"), [("vit", "text"), ("bert", "image"), ("bert", "audio")])
def test_a_tower_of_another_modality(encoders, family, modality):
    reads = TOWERS[family].modality
    with pytest.raises(ValueError, match=f"family '{family}' reads {reads}.*, not {modality}; for {modality} use"):
        CUEModel.from_encoders(**{modality: str(encoders[family])})


def test_a_pooler_that_the_tower_cannot_give():
    with pytest.raises(ValueError, match="'pooler_output' is not possible for text.*valid are mean, cls, attention"):
        tower_pooler(hf.BertConfig(), "text", "pooler_output")


def test_a_family_without_a_habit_asks_for_one():
    with pytest.raises(ValueError, match="no pooling habit that is known here"):
        tower_pooler(hf.Dinov2Config(), "image", None)
    assert tower_pooler(hf.Dinov2Config(), "image", "attention") == "attention"


def test_a_checkpoint_without_the_tower_is_refused(encoders, tmp_path):
    from safetensors.torch import load_file, save_file

    hf.BertModel.from_pretrained(encoders["bert"]).save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights = {name: tensor for name, tensor in weights.items() if "layer.1" not in name}
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="has no weights for 16 tensors of its tower"):
        load_tower(str(tmp_path), "text")


def test_too_long_audio_is_refused(encoders):
    model = CUEModel.from_encoders(audio=str(encoders["whisper"]), **FIELDS)
    with pytest.raises(ValueError, match="3100 frames, the tower takes at most 3000"):
        model.get_audio_cones(input_features=torch.randn(1, 20, 3100))
