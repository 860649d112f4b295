"""CUEModel: modalities, sharing, freezing, dtype, attention, checkpointing, gradients, and loud failures."""

import copy
import math
import shutil

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModel

from configuration_cue import CUEConfig
from modeling_cue import Cone, CUEModel, heads
from modeling_cue.dropout import ByteDropout
from modeling_cue.heads import AttentionPooler, ProjectionHead


@pytest.fixture
def inputs():
    generator = torch.Generator().manual_seed(3)
    return {
        "input_ids": torch.randint(5, 30, (2, 6), generator=generator),
        "attention_mask": torch.ones(2, 6, dtype=torch.long),
        "pixel_values": torch.randn(2, 3, 32, 32, generator=generator),
        "input_features": torch.randn(2, 20, 60, generator=generator),
        "pixel_values_videos": torch.randn(2, 3, 3, 32, 32, generator=generator),
    }


def test_any_subset_of_modalities(model, inputs):
    with torch.no_grad():
        whole = model(**inputs)
        assert list(whole.cones) == ["text", "image", "audio", "video"]
        for name in ("input_ids", "pixel_values", "input_features", "pixel_values_videos"):
            output = model(**{name: inputs[name]})
            (modality,) = output.cones
            cone = output.cones[modality]
            torch.testing.assert_close(cone.axis, whole.cones[modality].axis)
            torch.testing.assert_close(cone.axis.norm(dim=-1), torch.ones(2))
            assert ((cone.radius > 0) & (cone.radius < math.pi)).all()
            assert output[f"{modality}_embeds"].shape == (2, 16)


def test_features_stand_for_raw_input(model, inputs):
    with torch.no_grad():
        expected = model(**inputs)
        features = {}
        for modality, name in (("text", "input_ids"), ("image", "pixel_values"), ("video", "pixel_values_videos")):
            features[f"{modality}_features"], _ = model.tower_features(modality, inputs[name])
        output = model(**features)
    for modality in ("text", "image", "video"):
        assert torch.equal(output.cones[modality].axis, expected.cones[modality].axis)


def test_get_functions_agree_with_forward(model, inputs):
    with torch.no_grad():
        assert torch.equal(model.get_image_features(pixel_values=inputs["pixel_values"]), model(**inputs).image_embeds)
        cone = model.get_text_cones(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])
        assert torch.equal(cone.radius, model(**inputs).text_radius)


def test_loss_and_logits(model, inputs):
    output = model(input_ids=inputs["input_ids"], pixel_values=inputs["pixel_values"], return_loss=True)
    logits = output.image_embeds @ output.text_embeds.T * output.logit_scale
    torch.testing.assert_close(output.logits_per_image, logits)
    target = torch.arange(2)
    cross = torch.nn.functional.cross_entropy
    torch.testing.assert_close(output.loss, (cross(logits, target) + cross(logits.T, target)) / 2)
    assert model(**inputs).loss is None


def test_no_modality_given(model):
    with pytest.raises(ValueError, match="pass at least one of input_ids, pixel_values, input_features"):
        model()


def test_a_modality_that_the_model_does_not_have(encoders, inputs):
    model = CUEModel.from_encoders(text=str(encoders["bert"]), projection_dim=16, composition_dim=16)
    with pytest.raises(ValueError, match="has no image modality; it has text"):
        model(pixel_values=inputs["pixel_values"])
    with pytest.raises(ValueError, match="no modality given"):
        CUEModel.from_encoders()
    with pytest.raises(TypeError, match="CUEConfig has no field projection_dimension"):
        CUEModel.from_encoders(text=str(encoders["bert"]), projection_dimension=16)
    with pytest.raises(ValueError, match="the configuration has no modality"):
        CUEModel(CUEConfig())


def test_loss_needs_rows_that_match(model, inputs):
    with pytest.raises(ValueError, match="match one to one"):
        model(input_ids=inputs["input_ids"][:1], pixel_values=inputs["pixel_values"], return_loss=True)


def test_wrong_number_of_frames(model):
    with pytest.raises(ValueError, match=r"shape \(N, 3, 3, H, W\)"):
        model(pixel_values_videos=torch.randn(1, 2, 3, 32, 32))


def test_shared_tower_is_stored_once(model, tmp_path):
    model.save_pretrained(tmp_path)
    names = load_file(tmp_path / "model.safetensors")
    assert any(name.startswith("image_tower.") for name in names)
    assert not any(name.startswith("video_tower.") for name in names)
    assert any(name.startswith("video_pooler.") for name in names)


def test_video_knows_the_order_of_its_frames(model):
    torch.nn.init.normal_(model.video_pooler.position)
    clip = torch.randn(1, 3, 3, 32, 32)
    with torch.no_grad():
        there, back = model(pixel_values_videos=clip), model(pixel_values_videos=clip.flip(1))
    assert not torch.allclose(there.video_embeds, back.video_embeds, atol=1e-4)


def test_four_modalities_reload_the_same(model, inputs, tmp_path):
    inputs["parts"] = torch.tensor([[0, 2, -1], [1, 5, 7]])
    model.save_pretrained(tmp_path)
    again = AutoModel.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        before, after = model(**inputs), again(**inputs)
    for kind in before.cones:
        assert torch.equal(before.cones[kind].axis, after.cones[kind].axis), kind
        assert torch.equal(before.cones[kind].radius, after.cones[kind].radius), kind
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name


@pytest.mark.parametrize("damage", ["missing", "shape"])
def test_missing_or_misshapen_heads_fail_loudly(model, damage, tmp_path):
    model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    if damage == "missing":
        del weights["text_head.projection.weight"], weights["scales.logit_scale"]
    else:
        weights["text_head.projection.weight"] = torch.zeros(5, 16)
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises((ValueError, RuntimeError), match=r"text_head\.projection\.weight|scales\.logit_scale"):
        CUEModel.from_pretrained(tmp_path)


def test_from_config_alone_and_on_the_meta_device(model):
    fresh = CUEModel(model.config)
    assert {k: v.shape for k, v in fresh.state_dict().items()} == {k: v.shape for k, v in model.state_dict().items()}
    with torch.device("meta"):
        assert next(CUEModel(model.config).parameters()).is_meta


def test_initial_values(encoders, inputs):
    model = CUEModel.from_encoders(
        text=str(encoders["bert"]), image=str(encoders["vit"]), projection_dim=16, composition_dim=16,
        radius_init={"text": 1.2},
    ).eval()  # fmt: skip
    with torch.no_grad():
        output = model(input_ids=inputs["input_ids"], pixel_values=inputs["pixel_values"])
    torch.testing.assert_close(output.text_radius, torch.full((2,), 1.2), atol=0.02, rtol=0)
    torch.testing.assert_close(output.image_radius, torch.full((2,), 0.1), atol=0.01, rtol=0)
    assert output.logit_scale.item() == pytest.approx(1 / 0.07, rel=1e-5)
    assert output.containment_scale.item() == pytest.approx(10.0, rel=1e-5)
    assert output.containment_bias.item() == 0.0


@pytest.mark.parametrize("value", [math.log(100), 4.6052, 9.0])
def test_logit_scale_is_at_most_100_and_can_come_back(model, inputs, value):
    with torch.no_grad():
        model.scales.logit_scale.fill_(value)
    for leads_back in (1, -1):
        scale = model(**inputs).logit_scale
        assert scale.item() == pytest.approx(100.0, rel=1e-6)
        model.scales.logit_scale.grad = None
        (leads_back * scale).backward()
        assert model.scales.logit_scale.grad.item() == pytest.approx(100.0 if leads_back == 1 else 0.0, rel=1e-6)


def test_logits_are_float32_under_autocast_and_left_out_of_training(model, inputs):
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        output = model(**inputs)
        assert output.logits_per_image.dtype == torch.float32
        expected = output.image_embeds.double() @ output.text_embeds.double().T * output.logit_scale
        torch.testing.assert_close(output.logits_per_image.double(), expected, rtol=1e-5, atol=1e-4)
        # Of captions and phrases together, by the rows of a batch, they mean nothing and take a matrix of all pairs.
        assert model(**inputs, text_index=torch.tensor([0, 1, 1])).logits_per_image is None
        assert model(**inputs, parts=torch.tensor([[0, 1]])).logits_per_image is None


def test_a_misspelt_argument_is_refused(model, inputs):
    both = {name: inputs[name] for name in ("input_ids", "pixel_values")}
    assert model.get_text_cones(**both, token_type_ids=torch.zeros(2, 6)).shape == (2,)
    with pytest.raises(TypeError, match="attention_msk, which it does not accept: pass input_ids and attention_m"):
        model.get_text_cones(input_ids=inputs["input_ids"], attention_msk=inputs["attention_mask"])


def test_a_mask_of_sounds_must_fit(model, inputs):
    features = inputs["input_features"]
    with pytest.raises(ValueError, match=r"input_features_mask has the shape \(2, 30\), input_features"):
        model.get_audio_cones(input_features=features, input_features_mask=torch.ones(2, 30))


def test_frozen_towers_have_no_gradient_and_no_dropout(model, inputs):
    model.freeze("text")
    model.freeze(["image"])
    model.train()
    assert not model.text_tower.training
    assert not model.image_tower.training
    assert model.audio_tower.training
    assert model.text_head.training
    assert model.frozen_modalities == ("text", "image", "video")
    model(**inputs, return_loss=True).loss.backward()
    assert all(p.grad is None for p in model.text_tower.parameters())
    assert model.text_head.projection.weight.grad.abs().sum() > 0
    with pytest.raises(ValueError, match="has no smell modality"):
        model.freeze(["smell"])


def test_containment_gradient_stops_at_the_radius(model, inputs):
    model(**inputs).text_radius.sum().backward()
    assert model.text_head.radius[-1].weight.grad is not None
    assert all(p.grad is None for p in model.text_tower.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_dtype_and_attention_reach_every_tower(model, inputs, dtype, attention, tmp_path):
    model.save_pretrained(tmp_path)
    small = CUEModel.from_pretrained(tmp_path, dtype=dtype, attn_implementation=attention).eval()
    assert set(small.towers) == {"text", "image", "audio"}
    for tower in small.towers.values():
        assert {p.dtype for p in tower.parameters()} == {dtype}
        assert tower.config._attn_implementation == attention
    with torch.no_grad():
        cones, exact = small(**inputs).cones, model(**inputs).cones
    for modality, cone in cones.items():
        assert cone.axis.dtype == torch.float32  # cones are float32 whatever the towers are
        assert (cone.axis * exact[modality].axis).sum(-1).min() > 0.99


def test_attention_implementations_agree(model, inputs, tmp_path):
    model.save_pretrained(tmp_path)
    eager = CUEModel.from_pretrained(tmp_path, attn_implementation="eager").eval()
    with torch.no_grad():
        for modality, cone in eager(**inputs).cones.items():
            torch.testing.assert_close(cone.axis, model(**inputs).cones[modality].axis, atol=1e-5, rtol=1e-4)


@pytest.mark.filterwarnings("ignore:.*use_reentrant.*")
def test_gradient_checkpointing_reaches_every_tower_and_changes_no_gradient(encoders, inputs):
    model = CUEModel.from_encoders(
        text=str(encoders["bert"]), image=str(encoders["timm"]), audio=str(encoders["whisper"]), projection_dim=16,
        composition_dim=16,
    )  # fmt: skip
    for tower in model.towers.values():
        for module in tower.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
    model.audio_tower.dropout = 0.0
    del inputs["pixel_values_videos"]
    model.train()
    checkpointed = copy.deepcopy(model)
    checkpointed.activation_checkpointing_enable()
    assert checkpointed.image_tower.timm_model.stages[0].grad_checkpointing
    for layer in (checkpointed.text_tower.encoder.layer[0], checkpointed.audio_tower.layers[0]):
        assert layer.gradient_checkpointing
    for m in (model, checkpointed):
        torch.manual_seed(0)
        m(**inputs, return_loss=True).loss.backward()
    for (name, a), (_, b) in zip(model.named_parameters(), checkpointed.named_parameters(), strict=True):
        if a.grad is not None:
            torch.testing.assert_close(a.grad, b.grad, msg=name, atol=1e-5, rtol=1e-3)
    checkpointed.activation_checkpointing_disable()
    assert not checkpointed.image_tower.timm_model.stages[0].grad_checkpointing


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # which peft asks for
def test_input_embeddings(model, encoders):
    assert model.get_input_embeddings() is model.text_tower.get_input_embeddings()
    model.set_input_embeddings(torch.nn.Embedding(7, 16))
    assert model.text_tower.get_input_embeddings().num_embeddings == 7
    blind = CUEModel.from_encoders(image=str(encoders["vit"]), projection_dim=16, composition_dim=16)
    with pytest.raises(NotImplementedError, match="has no text modality"):
        blind.get_input_embeddings()
    blind.enable_input_require_grads()  # of its towers, as transformers does then
    adapted = get_peft_model(blind, LoraConfig(target_modules=["q_proj", "v_proj"]))
    adapted(pixel_values=torch.randn(2, 3, 32, 32)).image_embeds[0, 0].backward()
    assert any(p.grad is not None for n, p in adapted.named_parameters() if "lora" in n)


@pytest.mark.parametrize("dtype", ["bfloat16", torch.bfloat16])
def test_towers_have_the_dtype_that_is_named_and_heads_are_float32(encoders, dtype, tmp_path):
    options = {"projection_dim": 16, "composition_dim": 16, "encoder_kwargs": {"dtype": dtype}}
    model = CUEModel.from_encoders(image=str(encoders["vit"]), text=str(encoders["bert"]), **options).eval()
    model.save_pretrained(tmp_path)
    loaded = CUEModel.from_pretrained(tmp_path)
    for one in (model, loaded):
        for name, tensor in one.named_parameters():
            assert tensor.dtype == (torch.bfloat16 if "_tower." in name else torch.float32), name
    pixels = {"pixel_values": torch.randn(2, 3, 32, 32)}
    with torch.no_grad():
        assert torch.equal(loaded(**pixels).image_embeds, model(**pixels).image_embeds)
    half = CUEModel.from_pretrained(tmp_path, dtype=torch.float16)
    assert half.image_tower.dtype == torch.float16
    assert half.scales.logit_scale.dtype == torch.float32


def test_towers_of_several_dtypes_get_one_that_holds_all(encoders, tmp_path):
    CUEModel.from_encoders(text=str(encoders["bert"])).text_tower.half().save_pretrained(tmp_path / "text")
    for path in encoders["bert"].glob("*token*"):
        shutil.copy(path, tmp_path / "text")
    names = {"text": str(tmp_path / "text"), "image": str(encoders["vit"])}
    model = CUEModel.from_encoders(**names, encoder_kwargs={"dtype": "auto"}, projection_dim=16).eval()
    model.save_pretrained(tmp_path / "cue")
    loaded, ids = CUEModel.from_pretrained(tmp_path / "cue"), torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        assert torch.equal(loaded.get_text_cones(input_ids=ids).radius, model.get_text_cones(input_ids=ids).radius)
    assert {tensor.dtype for tensor in loaded.parameters()} == {torch.float32}


def test_fields_that_loading_sets_are_checked_too(model, tmp_path):
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="min_radius=7 is not valid"):
        CUEModel.from_pretrained(tmp_path, min_radius=7)


def test_parts_index_the_rows_of_all_modalities(model, inputs):
    with torch.no_grad():
        output = model(**inputs, parts=torch.tensor([[1, 3, 4], [6, -1, -1]]))
        cones = Cone.cat([output.cones[m] for m in ("text", "image", "audio", "video")])
        expected = model.compose(cones[torch.tensor([[1, 3, 4]])])
    torch.testing.assert_close(output.composed_embeds[0], expected.axis[0])
    assert torch.equal(output.composed_embeds[1], output.video_embeds[0])
    assert torch.equal(output.composed_radius[1], output.video_radius[0])


def test_a_video_tower_of_its_own(encoders, inputs):
    model = CUEModel.from_encoders(
        image=str(encoders["vit"]), video=str(encoders["resnet"]), num_frames=3, projection_dim=16, composition_dim=16
    ).eval()
    assert type(model.video_tower).__name__ == "ResNetModel"
    assert model(pixel_values_videos=inputs["pixel_values_videos"]).video_embeds.shape == (2, 16)


def test_tuple_output(model, inputs):
    output = model(input_ids=inputs["input_ids"], return_dict=False)
    assert isinstance(output, tuple)
    assert torch.equal(output[0], model(input_ids=inputs["input_ids"]).text_embeds)


def test_dropout_reaches_axis_and_radius_of_a_head_in_training_alone():
    torch.manual_seed(0)
    head = ProjectionHead(8, 4, 0, 0.5, 16, 0.5, detach=True)
    features = torch.randn(3, 8)
    for field in ("axis", "radius"):
        first, second = (getattr(head.train()(features), field) for _ in range(2))
        assert not torch.equal(first, second), field
        first, second = (getattr(head.eval()(features), field) for _ in range(2))
        assert torch.equal(first, second), field
    # The radius still passes nothing to what lies below the head.
    features.requires_grad_()
    head.train()(features).radius.sum().backward()
    assert features.grad is None or not features.grad.any()


def test_autocast_does_not_round_cones():
    torch.manual_seed(0)
    head = ProjectionHead(64, 32, 0, 0.0, 16, 1.0, True)
    features = torch.randn(2000, 64)
    plain = head(features)
    with torch.autocast("cpu", torch.bfloat16):
        cone = head(features)
    assert torch.equal(cone.radius, plain.radius)
    assert torch.equal(cone.axis, plain.axis)


def test_pooling_in_chunks_of_one_length_changes_nothing(monkeypatch):
    torch.manual_seed(0)
    pooler = AttentionPooler(6, queries=2)
    tokens = torch.randn(40, 9, 6, requires_grad=True)
    mask = torch.arange(9) < torch.randint(1, 10, (40, 1))
    mask[3] = torch.tensor([False, True, False, True, False, False, False, False, False])  # not padded at the end
    whole = pooler(tokens, mask)
    expected = torch.autograd.grad(whole.square().sum(), (tokens, *pooler.parameters()))
    monkeypatch.setattr(heads, "ROWS_PER_CHUNK", 4)
    widths = []
    pool = AttentionPooler._pool
    monkeypatch.setattr(AttentionPooler, "_pool", lambda self, t, m: widths.append(t.shape[1]) or pool(self, t, m))
    chunked = pooler(tokens, mask)
    torch.testing.assert_close(chunked, whole)
    for one, other in zip(
        torch.autograd.grad(chunked.square().sum(), (tokens, *pooler.parameters())), expected, strict=True
    ):
        torch.testing.assert_close(one, other)
    assert len(widths) == 8
    assert widths == sorted(widths)
    assert widths[0] < 9


@pytest.mark.parametrize("p", [0.1, 0.5, 0.999])
def test_dropout_of_heads_keeps_the_mean_and_drops_its_share(p):
    dropout = ByteDropout(p)
    torch.manual_seed(0)
    given = torch.ones(3, 100_003, requires_grad=True)
    dropped = dropout(given)
    share = min(max(1 - round(256 * (1 - p)) / 256, 1 / 256), 255 / 256)
    assert (dropped == 0).double().mean().item() == pytest.approx(share, abs=0.005)
    assert dropped.double().mean().item() == pytest.approx(1, abs=0.15 if p > 0.9 else 0.01)
    assert len(dropped.unique()) == 2
    # Neighbours are drawn apart, also those that share a random number.
    kept = (dropped != 0).double()
    both = (kept[:, 1:] * kept[:, :-1]).mean().item()
    assert both == pytest.approx((1 - share) ** 2, abs=0.005)
    dropped.sum().backward()
    assert torch.equal(given.grad, dropped.detach())
    assert torch.equal(dropout.eval()(given), given)
    assert torch.equal(ByteDropout(0.0)(given), given)


def test_a_row_of_nothing_but_padding_is_pooled_like_the_mean():
    pooler = AttentionPooler(4, queries=2)
    tokens, mask = torch.randn(2, 3, 4), torch.tensor([[1, 1, 0], [0, 0, 0]])
    pooled = pooler(tokens, mask)
    assert torch.isfinite(pooled).all()
    torch.testing.assert_close(pooled[1, :4], tokens[1].mean(0))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_dynamic_quantisation_of_all_linear_layers(model, inputs):
    whole = {name: inputs[name] for name in ("input_ids", "attention_mask", "pixel_values")}
    with torch.no_grad():
        expected = model(**whole).cones
        quantised = torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear}, dtype=torch.qint8)
        found = quantised(**whole).cones
    for kind, cone in found.items():
        assert (cone.axis * expected[kind].axis).sum(-1).min() > 0.99


def test_towers_are_not_quantised_before_there_is_a_model(names):
    with pytest.raises(ValueError, match="cannot be quantised before there is a CUE"):
        CUEModel.from_encoders(text=names["text"], encoder_kwargs={"quantization_config": {"load_in_8bit": True}})


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_texts_are_exported_with_any_number_and_length(model):
    sizes = {0: torch.export.Dim("texts", min=2, max=64), 1: torch.export.Dim("tokens", min=2, max=30)}
    given = {"input_ids": torch.randint(5, 30, (3, 6)), "attention_mask": torch.ones(3, 6, dtype=torch.long)}
    exported = torch.export.export(model, (), given, dynamic_shapes=dict.fromkeys(given, sizes), strict=False).module()
    more = {"input_ids": torch.randint(5, 30, (9, 11)), "attention_mask": torch.ones(9, 11, dtype=torch.long)}
    with torch.no_grad():
        torch.testing.assert_close(exported(**more)["text_embeds"], model(**more).text_embeds, atol=1e-5, rtol=1e-4)


def test_signed_sqrt_of_the_features():
    torch.manual_seed(0)
    plain, rooted = (ProjectionHead(8, 4, 0, 0.0, 4, 1.0, True, signed_sqrt=on) for on in (False, True))
    rooted.load_state_dict(plain.state_dict())
    features = torch.randn(5, 8)
    found = rooted(features.sign() * features.square()).axis
    torch.testing.assert_close(found, plain(features).axis, atol=1e-3, rtol=0)


def test_compose_takes_a_list_of_parts(model, inputs):
    with torch.no_grad():
        cones = model(**inputs).cones
        listed = model.compose([cones["text"], cones["image"]])
        stacked = model.compose(Cone.stack([cones["text"], cones["image"]], dim=1))
        assert torch.equal(listed.axis, stacked.axis)
        with pytest.raises(ValueError, match=r"compose takes a list of cones \(B,\)"):
            model.compose(cones["text"])


@torch.no_grad()
def test_compose_takes_an_output_its_cones_and_single_cones(model, inputs):
    output = model(**inputs)
    cones = output.cones
    expected = model.compose(list(cones.values()))
    for given in (output, cones, cones.values(), iter(cones.values())):
        assert torch.equal(model.compose(given).axis, expected.axis)
    a, b = cones["text"], cones["image"]
    pairs = model.compose([a, b])
    single = model.compose([a[0], b[0]])
    assert single.shape == ()
    torch.testing.assert_close(single.axis, pairs.axis[0])
    torch.testing.assert_close(single.radius, pairs.radius[0])
    masked = model.compose([a[0], b[0]], torch.tensor([True, False]))
    torch.testing.assert_close(masked.axis, a.axis[0])
    for nothing in ([], {}):
        with pytest.raises(ValueError, match="there are no cones to compose: give at least one"):
            model.compose(nothing)
    with pytest.raises(TypeError, match="a Tensor is no cone"):
        model.compose([a.axis, b.axis])
    with pytest.raises(ValueError, match="different shapes"):
        model.compose([a, b[0]])
