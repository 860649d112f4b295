"""Every family of towers, with its real config and processor classes: CUE's tower says what the bare one says."""

import json
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from tiny import TOWERS, inputs_of

from modeling_cue import CUEConfig, CUEModel, CUEProcessor, encoders_run
from modeling_cue.encoders import FAMILIES, load_tower, run_tower, tower_pooler
from modeling_cue.training.lora import add_lora, load_lora

FIELDS = {"projection_dim": 16, "composition_dim": 16}


def bare_output(family: str, bare, inputs: dict[str, torch.Tensor]):
    """What the family's own model says of our input, called by its own habits."""
    values = next(iter(inputs.values()))
    if family == "siglip_text":  # trained on texts of one length, padding included
        return bare(input_ids=torch.nn.functional.pad(values, (0, 24 - 7), value=1))
    if TOWERS[family].modality == "text":
        return bare(**inputs)
    if family == "ast":
        return bare(input_values=values)
    if family.startswith("clap"):
        return bare(input_features=values, is_longer=torch.tensor([[False], [True]]))
    return bare(pixel_values=values)


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
        if family.startswith("clap"):  # whose audio tower does not find its part of the whole checkpoint
            bare = hf.ClapAudioModelWithProjection.from_pretrained(encoders[family]).audio_model.eval()
        else:
            shown = {"mask_ratio": 0.0} if family == "vit_mae" else {}
            bare = getattr(hf, kind.bare).from_pretrained(encoders[family], **shown).eval()
        pooler = model.pooler_name(kind.modality)
        if kind.bare in ("Wav2Vec2Model", "HubertModel"):
            # One by one, without padding: half of the family was trained without a mask.
            values, mask = inputs.values()
            clips = [clip[None, : int(m.sum())] for clip, m in zip(values, mask, strict=True)]
            expected = torch.cat([bare(input_values=clip).last_hidden_state.mean(1) for clip in clips])
        else:
            output = bare_output(family, bare, inputs)
            if pooler == "mean":
                mask = inputs.get("attention_mask", torch.ones(output.last_hidden_state.shape[:2]))[..., None].float()
                expected = (output.last_hidden_state * mask).sum(1) / mask.sum(1)
            elif pooler == "cls":
                expected = output.last_hidden_state[:, 0]
            else:
                expected = output.pooler_output.flatten(1)
    torch.testing.assert_close(features, expected, rtol=1e-5, atol=1e-6)


def test_padding_changes_nothing(family, encoders):
    modality, inputs = TOWERS[family].modality, inputs_of(family)
    if len(inputs) == 1:
        pytest.skip("nothing is padded here")
    model = CUEModel.from_encoders(**{modality: str(encoders[family])}, **FIELDS).eval()
    get = getattr(model, f"get_{modality}_cones")
    with torch.no_grad():
        together = get(**inputs)
        short = {k: v[1:, ..., : int(list(inputs.values())[1][1].sum())] for k, v in inputs.items()}
        alone = get(**short)
    torch.testing.assert_close(together.axis[1:], alone.axis, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(together.radius[1:], alone.radius, rtol=1e-5, atol=1e-5)


def items_of(modality: str) -> dict[str, Any]:
    """Items of very different length and size, as arguments of a processor."""
    rng = np.random.default_rng(0)
    if modality == "text":
        return {"text": ["a dog", "the red cat runs on a big circle on the left", "a small blue square in the green"]}
    if modality == "audio":  # the last one is longer than AST and CLAP take
        return {"audio": [rng.normal(size=n).astype(np.float32) for n in (300, 9000, 20000)], "sampling_rate": 16000}
    images = [rng.integers(0, 255, (*size, 3), dtype=np.uint8) for size in ((40, 30), (64, 90), (32, 32))]
    if modality == "image":
        return {"images": images}
    return {"videos": [[image] * number for number, image in enumerate(images, 1)]}


@pytest.mark.parametrize("pooler", ["habit", "attention"])
def test_an_item_gets_one_cone_whatever_is_beside_it(family, pooler, encoders, tmp_path):
    modality = TOWERS[family].modality
    poolers = {} if pooler == "habit" else {modality: pooler}
    model = CUEModel.from_encoders(**{modality: str(encoders[family])}, poolers=poolers, **FIELDS).eval()
    processor = CUEProcessor.from_encoders(**{modality: str(encoders[family])}, num_frames=model.config.num_frames)
    processor.save_pretrained(tmp_path)
    again = CUEProcessor.from_pretrained(tmp_path)
    name, items = next(iter((given := items_of(modality)).items()))
    rate = {} if modality != "audio" else {"sampling_rate": given["sampling_rate"]}
    with torch.no_grad():
        together = model(**processor(**given)).cones[modality]
        alone = [model(**again(**{name: [item]}, **rate)).cones[modality] for item in items]
    torch.testing.assert_close(together.axis, torch.cat([cone.axis for cone in alone]), rtol=1e-4, atol=2e-5)
    torch.testing.assert_close(together.radius, torch.cat([cone.radius for cone in alone]), rtol=1e-4, atol=2e-5)
    assert (together.axis[0] - together.axis[1]).norm() > 1e-3


@pytest.mark.filterwarnings("ignore:.*use_reentrant.*")
def test_checkpointing_changes_no_gradient(family, encoders):
    modality, inputs = TOWERS[family].modality, inputs_of(family)
    model = CUEModel.from_encoders(**{modality: str(encoders[family])}, **FIELDS).train()
    tower = model.towers[modality]
    if not tower.supports_gradient_checkpointing:
        pytest.skip("this family knows no checkpointing")
    gradients = []
    for enable in (False, True):
        if enable:
            model.activation_checkpointing_enable()
        model.zero_grad()
        torch.manual_seed(0)
        cones = model(**inputs).cones[modality]
        (cones.axis[:, 0].sum() + cones.radius.sum()).backward()
        gradients.append({n: p.grad for n, p in tower.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    assert gradients[0]
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-4, atol=1e-6, msg=name)


def test_attention_by_name_gives_the_same_cones(family, encoders):
    modality, inputs = TOWERS[family].modality, inputs_of(family)
    cones = []
    for attention in ("eager", "sdpa"):
        kwargs = {"attn_implementation": attention}
        if attention == "sdpa" and not load_tower(str(encoders[family]), modality)._supports_sdpa:
            pytest.skip("this family knows one way only")
        torch.manual_seed(0)
        model = CUEModel.from_encoders(**{modality: str(encoders[family])}, encoder_kwargs=kwargs, **FIELDS).eval()
        assert model.towers[modality].config._attn_implementation == attention
        with torch.no_grad():
            cones.append(model(**inputs).cones[modality])
    torch.testing.assert_close(cones[0].axis, cones[1].axis, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(cones[0].radius, cones[1].radius, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("pooler", ["habit", "mean", "attention"])
@pytest.mark.parametrize("side", ["right", "left"])
def test_texts_run_in_chunks_of_one_length(side, pooler, encoders):
    # SigLIP's texts have one length.
    for family in (name for name, kind in TOWERS.items() if kind.modality == "text" and name != "siglip_text"):
        generator = torch.Generator().manual_seed(3)
        count, longest = 4 * encoders_run.TEXTS_PER_CHUNK + 3, 12
        ids = torch.randint(5, 30, (count, longest), generator=generator)
        mask = (torch.arange(longest) < torch.randint(2, longest + 1, (count, 1), generator=generator)).long()
        if family == "clip_text":
            ids[mask == 0] = 53
            ids[range(count), mask.sum(1) - 1] = 53
        if "roberta" in family:  # which counts places by this token
            ids[mask == 0] = 1
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
            assert len(seen) == encoders_run.TEXT_CHUNKS + 1
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
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, again.state_dict()[name]), name
    # Convolutions of CLAP's fusion round by where their input lies in memory.
    exact = {"rtol": 0, "atol": 1e-6 if family == "clap_fused" else 0}
    torch.testing.assert_close(before.axis, after.axis, **exact)
    torch.testing.assert_close(before.radius, after.radius, **exact)


TIMM = {
    "mobilenetv3_small_050": {},  # a convolution of its head widens what is pooled
    "swin_tiny_patch4_window7_224": {
        "img_size": 32, "embed_dim": 16, "depths": [1, 1], "num_heads": [1, 2], "window_size": 4,
    },  # its tokens have channels last
}  # fmt: skip


@pytest.mark.parametrize("pooler", ["pooler_output", "mean", "attention"])
@pytest.mark.parametrize("architecture", TIMM)
def test_timm_towers_of_other_layouts(architecture, pooler, tmp_path):
    config = hf.TimmWrapperConfig(architecture=architecture, model_args=TIMM[architecture])
    tower = hf.TimmWrapperModel(config).eval()
    tower.save_pretrained(tmp_path / "tower")
    model = CUEModel.from_encoders(image=str(tmp_path / "tower"), poolers={"image": pooler}, **FIELDS).eval()
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert model(pixel_values=pixels).image_embeds.shape == (2, FIELDS["projection_dim"])
        output = tower(pixel_values=pixels)
        found = model.tower_features("image", pixels)[0]
        swin = architecture.startswith("swin")
        mean = output.last_hidden_state.mean((1, 2) if swin else (2, 3))
        expected = output.pooler_output if pooler == "pooler_output" else mean
        torch.testing.assert_close(found.mean(1) if pooler == "attention" else found, expected, rtol=1e-4, atol=1e-5)


def test_a_tower_outside_the_table_needs_no_pooler_of_its_own(tmp_path):
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    whole = hf.CamembertForMaskedLM(hf.CamembertConfig(**sizes, vocab_size=50))  # which has none to save
    whole.save_pretrained(tmp_path / "tower")
    model = CUEModel.from_encoders(text=str(tmp_path / "tower"), poolers={"text": "mean"}, **FIELDS)
    assert model.text_tower.pooler is None
    model.save_pretrained(tmp_path / "cue")
    assert hf.AutoModel.from_pretrained(tmp_path / "cue").text_tower.pooler is None


def test_a_family_of_remote_code_is_refused_before_training(tmp_path):
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "foo_bert", "auto_map": {"AutoConfig": "own.FooConfig"}})
    )
    (tmp_path / "own.py").write_text(
        "from transformers import BertConfig\nclass FooConfig(BertConfig):\n    model_type = 'foo_bert'\n"
    )
    with pytest.raises(ValueError, match="family 'foo_bert', which transformers does not know"):
        CUEModel.from_encoders(text=str(tmp_path), encoder_kwargs={"trust_remote_code": True}, **FIELDS)


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
    tested = {"timm": "timm_wrapper", "ast": "audio-spectrogram-transformer", "clap": "clap_audio_model"}
    tested |= {name: f"{name}_vision_model" for name in ("clip", "siglip")}
    tested |= {name: f"{name}_model" for name in ("clip_text", "siglip_text")}
    variants = {"wav2vec2_layer", "hubert_layer", "clap_fused"}
    assert {tested.get(name, name) for name in TOWERS.keys() - variants} == set(FAMILIES)


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
        tower_pooler(hf.BeitConfig(), "image", None)
    assert tower_pooler(hf.BeitConfig(), "image", "attention") == "attention"


def test_a_checkpoint_without_the_tower_is_refused(encoders, tmp_path):
    from safetensors.torch import load_file, save_file

    hf.BertModel.from_pretrained(encoders["bert"]).save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights = {name: tensor for name, tensor in weights.items() if "layer.1" not in name}
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="has no weights for 16 tensors of its tower"):
        load_tower(str(tmp_path), "text")


@pytest.mark.parametrize(
    ("family", "inputs", "says"),
    [
        ("ast", {"input_features": torch.zeros(1, 40, 16)}, r"takes spectrograms of the shape \(N, 48, 16\); got"),
        ("wav2vec2", {"input_features": torch.zeros(1, 19)}, "a clip of 19 samples is too short"),
        ("videomae", {"pixel_values_videos": torch.zeros(1, 3, 3, 32, 32)}, r"must have the shape \(N, 4, 3, H, W\)"),
    ],
)
def test_input_that_does_not_fit_the_tower(encoders, family, inputs, says):
    model = CUEModel.from_encoders(**{TOWERS[family].modality: str(encoders[family])}, **FIELDS)
    with pytest.raises(ValueError, match=says):
        model(**inputs)


def test_a_hubert_that_lets_padding_in_is_refused(encoders):
    config = hf.AutoConfig.from_pretrained(encoders["hubert"])
    model = CUEModel(CUEConfig(audio_config={**config.to_dict(), "conv_pos_batch_norm": True}, **FIELDS))
    with pytest.raises(ValueError, match="lets padding into its tokens: use one without"):
        model(input_features=torch.zeros(1, 400))


def test_a_tower_of_whole_clips_has_its_number_of_frames(encoders):
    name = str(encoders["videomae"])
    assert CUEModel.from_encoders(video=name, **FIELDS).config.num_frames == 4
    assert CUEProcessor.from_encoders(video=name).num_frames == 4
    with pytest.raises(ValueError, match="num_frames=8 does not fit the video tower .*: set num_frames=4"):
        CUEModel.from_encoders(video=name, num_frames=8, **FIELDS)
    with pytest.raises(ValueError, match="family 'videomae' reads video, not image"):
        CUEModel.from_encoders(image=name)


def test_towers_of_sound_train_every_weight_of_their_clips(encoders):
    # Nothing is masked or skipped by chance, which no replay of a batch would repeat.
    for family in ("wav2vec2", "wav2vec2_layer", "hubert", "whisper"):
        tower = load_tower(str(encoders[family]), "audio").train()
        inputs = tuple(inputs_of(family).values())
        if family == "whisper":  # over 30 s, as the original runs it
            inputs = (torch.randn(2, 20, 3000), None)
        run_tower(tower, "audio", *inputs, crop_audio=family != "whisper").tokens.square().sum().backward()
        assert not [name for name, weight in tower.named_parameters() if weight.grad is None]


def test_too_long_audio_is_refused(encoders):
    model = CUEModel.from_encoders(audio=str(encoders["whisper"]), **FIELDS)
    with pytest.raises(ValueError, match="3100 frames, the tower takes at most 3000"):
        model.get_audio_cones(input_features=torch.randn(1, 20, 3100))


@pytest.mark.parametrize("family", TOWERS)
def test_lora_adapts_every_tower_that_has_attention(family, encoders, tmp_path):
    modality = TOWERS[family].modality
    torch.manual_seed(0)
    model = CUEModel.from_encoders(**{modality: str(encoders[family])}, **FIELDS).eval()
    if family in ("resnet", "timm"):
        with pytest.raises(ValueError, match=f"LoRA finds no attention to adapt in the {modality} tower"):
            add_lora(model, rank=2, alpha=4, dropout=0.0, base=tmp_path / "base")
        return
    adapted = add_lora(model, rank=2, alpha=4, dropout=0.0, base=tmp_path / "base").eval()
    assert sum(".lora_A." in name for name, _ in adapted.named_parameters()) >= 2
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if ".lora_B." in name:
                weight.normal_(std=0.1)
        adapted.save_pretrained(tmp_path)
        expected, found = (one(**inputs_of(family)).cones[modality] for one in (adapted, load_lora(tmp_path).eval()))
    torch.testing.assert_close(found.axis, expected.axis, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found.radius, expected.radius, atol=1e-5, rtol=1e-4)
