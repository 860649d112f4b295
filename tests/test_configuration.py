"""CUEConfig: validation, JSON round trip, registration."""

import json
import math
import subprocess
import sys

import pytest
from transformers import AutoConfig, BertConfig, ViTConfig

import modeling_cue  # noqa: F401  (registers CUE with AutoConfig)
from configuration_cue import CUEConfig

TEXT = {"model_type": "bert", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
IMAGE = {"model_type": "vit", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}


def test_round_trip_through_json(tmp_path):
    config = CUEConfig(
        text_config=TEXT,
        image_config=IMAGE,
        video_uses_image_tower=True,
        projection_dim=24,
        poolers={"text": "attention"},
        radius_init={"image": 0.2},
    )
    config.save_pretrained(tmp_path)
    again = AutoConfig.from_pretrained(tmp_path)
    assert isinstance(again, CUEConfig)
    assert again.to_diff_dict() == config.to_diff_dict()
    assert isinstance(again.text_config, BertConfig)
    assert isinstance(again.image_config, ViTConfig)
    assert again.audio_config is None
    assert again.modalities == ("text", "image", "video")
    assert again.radius_init == {"text": 1.0, "image": 0.2, "audio": 0.1, "video": 0.1}
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "cue"


def test_defaults_are_loadable():
    assert CUEConfig().modalities == ()
    assert CUEConfig().logit_scale_init_value == pytest.approx(math.log(1 / 0.07))


@pytest.mark.parametrize(
    ("field", "value", "valid"),
    [
        ("projection_dim", 1, "at least 2"),
        ("projection_dim", 2.5, "projection_dim"),
        ("num_frames", 0, "at least 1"),
        ("head_dropout", 1.0, r"\[0, 1\)"),
        ("token_dropout", -0.1, r"\[0, 1\)"),
        ("min_radius", 0.0, r"\(0, pi\)"),
        ("logit_scale_init_value", 5.0, "ln 100"),
        ("containment_scale_init_value", math.inf, "finite"),
        ("poolers", {"text": "maximum"}, "pooler_output, cls, mean, attention"),
        ("poolers", "mean", "a dict from text, image, audio, video to"),
        ("poolers", {"smell": "mean"}, "text, image, audio, video"),
        ("radius_init", {"text": 4.0}, r"\(0, pi\)"),
        ("composition_dim", 30, "multiple of composition_heads=4"),
        ("video_uses_image_tower", True, "no image_config"),
        ("tower_sources", {"text": {"name": "org/text"}}, "dtype, fingerprint, name, revision"),
        ("towers_by_reference", ["text"], "that tower_sources names"),
    ],
)
def test_a_bad_field_is_named_with_its_value_and_the_valid_ones(field, value, valid):
    with pytest.raises((ValueError, TypeError), match=valid) as error:
        CUEConfig(text_config=TEXT, **{field: value})
    assert field in str(error.value)


def test_two_video_towers_are_refused():
    with pytest.raises(ValueError, match="video_uses_image_tower"):
        CUEConfig(image_config=IMAGE, video_config=IMAGE, video_uses_image_tower=True)


def test_the_configuration_needs_no_torch():
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from configuration_cue import CUEConfig\n"
        "print(CUEConfig(text_config={'model_type': 'bert'}).modalities)"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "('text',)"


def test_a_checkpoint_of_a_newer_version_is_refused_by_name(tmp_path):
    CUEConfig(text_config={"model_type": "bert"}).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    written = json.loads(path.read_text())
    assert written["checkpoint_format"] == 1
    path.write_text(json.dumps(written | {"checkpoint_format": 2}))
    with pytest.raises(ValueError, match="format 2, of a newer CUE.*up to 1: update the package"):
        AutoConfig.from_pretrained(tmp_path)
    # One of before formats were counted.
    del written["checkpoint_format"]
    path.write_text(json.dumps(written))
    assert AutoConfig.from_pretrained(tmp_path).checkpoint_format == 1


@pytest.mark.parametrize(
    ("field", "value"),
    [("average_mirror", "false"), ("crop_audio", 1), ("min_radius", "0.1"), ("logit_scale_init_value", None)],
)
def test_values_of_another_type_are_named(field, value):
    with pytest.raises(ValueError, match=f"CUEConfig: {field}={value!r} is not valid; it must be (True|a number)"):
        CUEConfig(**{field: value})
