"""What travels: saved in any order, loaded with and without the package, pushed and pulled: bit-identical cones."""

import json
import os
import resource
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from samples import make_rows
from strangers import assert_same, stranger
from trainers import make_trainer
from transformers import AutoModel, AutoProcessor

from modeling_cue import CUEModel, CUEProcessor


@pytest.mark.parametrize("order", ["model first", "processor first", "twice"])
def test_saved_in_any_order_it_loads_without_the_package(pair, tmp_path, order):
    model, processor, folder, expected = pair
    saved = tmp_path / "cue"
    steps = {"model first": "mp", "processor first": "pm", "twice": "mpmp"}[order]
    for step in steps:
        (model if step == "m" else processor).save_pretrained(saved)
    assert not any("training" in path.name for path in saved.iterdir())
    for found in stranger(saved, folder, tmp_path, "processor first" if order == "processor first" else "model first"):
        assert_same(found, expected)


def test_saved_by_the_trainer_it_loads_without_the_package(pair, tmp_path):
    model, processor, folder, expected = pair
    trainer = make_trainer(model, processor, tmp_path / "run")
    trainer.save_model(tmp_path / "cue")
    for found in stranger(tmp_path / "cue", folder, tmp_path):
        assert_same(found, expected)


def test_the_package_wins_where_it_is_imported(pair, tmp_path):
    model, processor, _, _ = pair
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    assert type(AutoModel.from_pretrained(tmp_path)) is CUEModel
    loaded = AutoProcessor.from_pretrained(tmp_path)
    assert type(loaded) is CUEProcessor
    assert loaded.text_prefix == "the "
    assert loaded.num_frames == 3
    assert json.loads((tmp_path / "config.json").read_text())["auto_map"]["AutoModel"] == "modeling_cue.CUEModel"


@pytest.mark.hub
def test_pushed_and_pulled(pair, tmp_path, hub_tools, monkeypatch):
    model, processor, folder, expected = pair
    model.save_pretrained(tmp_path / "cue")
    processor.save_pretrained(tmp_path / "cue")
    with hub_tools.HubSim(tmp_path / "hub") as hub:
        environment = hub.env(home=tmp_path / "home")
        push = (
            "import sys; from modeling_cue import CUEModel, CUEProcessor\n"
            "CUEModel.from_pretrained(sys.argv[1]).push_to_hub('org/cue')\n"
            "CUEProcessor.from_pretrained(sys.argv[1]).push_to_hub('org/cue')\n"
            "from huggingface_hub import hf_hub_download\n"
            "print(open(hf_hub_download('org/cue', 'config.json')).read())\n"
        )
        env = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
        here = str(Path(__file__).resolve().parents[1])
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", push, str(tmp_path / "cue")],
            env=env | environment | {"PYTHONPATH": here}, capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        # The folders that its towers came from are nobody's business.
        assert model.config.tower_sources
        assert json.loads(done.stdout[done.stdout.index("{") :])["tower_sources"] == {}
        for found in stranger("org/cue", folder, tmp_path, HF_HUB_OFFLINE="0", **environment):
            assert_same(found, expected)


def test_rows_of_samples_are_real_media():
    row = make_rows(("image", "audio", "video"))[0]
    assert all(row[m]["bytes"] for m in ("image", "audio", "video"))


@contextmanager
def no_room_for_files_beyond(size):
    """The system refuses to write files on, as it does on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def content(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(("part", "size"), [(0, 2000), (0, 20_000), (1, 100)])
def test_what_was_saved_before_survives_a_disk_without_room(pair, tmp_path, part, size):
    for one in pair[:2]:
        one.save_pretrained(tmp_path / "cue")
    before = content(tmp_path / "cue")
    with no_room_for_files_beyond(size), pytest.raises(Exception, match=r"(?i)file too large|os error 27"):
        pair[part].save_pretrained(tmp_path / "cue")
    assert content(tmp_path / "cue") == before
    assert not [path for path in (tmp_path / "cue").rglob("*") if path.is_dir()]
    pair[part].save_pretrained(tmp_path / "cue")
    assert content(tmp_path / "cue").keys() == before.keys()


def test_saving_in_another_way_leaves_no_weights_of_before_and_other_variants(pair, tmp_path):
    model = pair[0]
    model.save_pretrained(tmp_path, variant="fp16")
    model.save_pretrained(tmp_path, max_shard_size="100KB")
    assert "model.fp16.safetensors" in content(tmp_path)
    assert len(list(tmp_path.glob("model-*-of-*.safetensors"))) > 1
    pair[1].save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors.index.json").is_file()
    model.save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.glob("*.safetensors*")) == [
        "model.fp16.safetensors",
        "model.safetensors",
    ]
    model.save_pretrained(tmp_path, variant="fp16", max_shard_size="100KB")
    assert not (tmp_path / "model.fp16.safetensors").exists()
    for variant in (None, "fp16"):
        loaded = CUEModel.from_pretrained(tmp_path, variant=variant)
        assert torch.equal(loaded.image_head.projection.weight, model.image_head.projection.weight)
