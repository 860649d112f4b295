"""A run that is killed goes on to the bit; a checkpoint is whole or not there; run.json says what ran."""

import copy
import errno
import json
import logging
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from accelerate.data_loader import prepare_data_loader, skip_first_batches
from samples import make_rows
from torch.utils.data import DataLoader, RandomSampler
from trainers import make_trainer

from modeling_cue import CUEModel
from modeling_cue.saving import ASIDE, put_files_in_place
from modeling_cue.training import checkpoints
from modeling_cue.training.arguments import CUETrainingArguments, DataArguments, ModelArguments
from modeling_cue.training.checkpoints import REPLACED, put_in_place, sampler_of, sweep
from modeling_cue.training.fingerprint import model_fingerprint, rows_fingerprint
from modeling_cue.training.pairs import CaptionPairs, GroupedByLength
from modeling_cue.training.run_record import FILE, RunRecord, describe_rows

pytestmark = pytest.mark.filterwarnings("ignore:.*radii have gone to one value")
SCRIPT = Path(__file__).with_name("kill_and_resume.py")
SAVING = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4, "save_total_limit": 1}


def kill(variants, times):
    command = [sys.executable, str(SCRIPT), "--times", str(times), "--variants", *variants]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=3600)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert done.stdout.count(f"{times} of {times} resumed runs ended with the same weights") == len(variants)


def test_a_killed_run_goes_on_to_the_bit():
    kill(["plain", "workers"], 1)


@pytest.mark.skipif("CUE_KILLS" not in os.environ, reason="takes many minutes: set CUE_KILLS=1 to run it")
@pytest.mark.parametrize("variant", ["plain", "workers", "cached", "chunks", "accumulated", "streamed", "lora"])
def test_a_run_killed_at_20_random_moments_goes_on_to_the_bit(variant):
    kill([variant], 20)


# ---------------------------------------------------------------------- whole or not there


def full_disk(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("towers", ["whole", "reference"])
@pytest.mark.parametrize("place", ["_save", "_save_optimizer_and_scheduler", "_save_rng_state"])
def test_a_full_disk_leaves_the_old_checkpoint(model, processor, tmp_path, monkeypatch, place, towers):
    model.freeze(["text", "image"])
    model.save_towers = towers
    trainer = make_trainer(model, processor, tmp_path, **SAVING)
    trainer.train()
    before = CUEModel.from_pretrained(tmp_path / "checkpoint-4").state_dict()
    monkeypatch.setattr(checkpoints.Trainer, place, written_half(getattr(checkpoints.Trainer, place)))
    trainer.args.max_steps = 6
    with pytest.raises(OSError, match="No space left"):
        trainer.train(resume_from_checkpoint="last")
    assert [path.name for path in tmp_path.glob("*checkpoint*")] == ["checkpoint-4"]
    assert not (tmp_path / ASIDE).exists() or not any((tmp_path / ASIDE).iterdir())
    for name, tensor in CUEModel.from_pretrained(tmp_path / "checkpoint-4").state_dict().items():
        assert torch.equal(tensor, before[name])


def written_half(save):
    """Saves as ever, then finds the disk full."""

    def saved(*args, **kwargs):
        save(*args, **kwargs)
        full_disk()

    return saved


def test_machines_without_a_common_folder_are_told_before_training(model, processor, tmp_path, monkeypatch):
    # As another machine would answer, which looks in a folder of its own.
    monkeypatch.setattr(checkpoints, "together", lambda task: [task(), False])
    kept = {"load_best_model_at_end": True, "eval_strategy": "steps", "save_strategy": "steps", "eval_steps": 1,
            "save_steps": 1, "max_steps": 1}  # fmt: skip
    with pytest.raises(ValueError, match="not the same folder on all machines.*load_best_model_at_end"):
        make_trainer(model, processor, tmp_path / "run", **kept).train()
    assert not list((tmp_path / "run").iterdir())
    make_trainer(model, processor, tmp_path / "run", max_steps=1).train()  # nothing is loaded: nothing need be common


@pytest.mark.parametrize("towers", ["whole", "reference"])
def test_a_full_disk_leaves_the_old_model(model, processor, tmp_path, monkeypatch, towers):
    model.freeze(["text", "image"])
    model.save_towers = towers
    trainer = make_trainer(model, processor, tmp_path)
    trainer.save_model()
    files = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    with torch.no_grad():
        model.image_head.projection.weight.zero_()
    monkeypatch.setattr(checkpoints.Trainer, "_save", written_half(checkpoints.Trainer._save))
    with pytest.raises(OSError, match="No space left"):
        trainer.save_model()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == files
    monkeypatch.undo()
    trainer.save_model()
    assert (tmp_path / "model.safetensors").read_bytes() != files["model.safetensors"]
    assert not (tmp_path / ASIDE).exists()
    assert not CUEModel.from_pretrained(tmp_path).image_head.projection.weight.any()


def test_checkpoints_rotate_and_the_best_is_known_by_its_last_name(model, processor, tmp_path):
    more = {"eval_strategy": "steps", "eval_steps": 1, "load_best_model_at_end": True, "save_steps": 1}
    trainer = make_trainer(model, processor, tmp_path, **SAVING | more | {"save_total_limit": 2})
    trainer.train()
    best = Path(trainer.state.best_model_checkpoint)
    assert best.parent == tmp_path
    assert best.is_dir()
    kept = sorted(path.name for path in tmp_path.glob("checkpoint-*"))
    assert len(kept) <= 2
    assert {best.name, "checkpoint-4"} <= set(kept)
    for path in tmp_path.glob("checkpoint-*/trainer_state.json"):
        assert ASIDE not in path.read_text()
    # Once more into the same folder: each takes the place of one of its name.
    trainer.train()
    assert not (tmp_path / REPLACED).exists()
    assert not (tmp_path / ASIDE).exists()


def test_what_a_killed_run_left_is_swept(tmp_path):
    (tmp_path / ASIDE / "checkpoint-6").mkdir(parents=True)
    (tmp_path / REPLACED / "checkpoint-4").mkdir(parents=True)
    (tmp_path / REPLACED / "checkpoint-2").mkdir()
    (tmp_path / "checkpoint-2").mkdir()
    (tmp_path / "checkpoint-2" / "new").touch()
    sweep(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-2", "checkpoint-4"]
    assert (tmp_path / "checkpoint-2" / "new").exists()


def test_a_folder_takes_the_place_of_another_and_files_that_of_stale_weights(tmp_path):
    for name, text in (("aside/checkpoint-2", "new"), ("checkpoint-2", "old")):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "weights").write_text(text)
    put_in_place(tmp_path / "aside" / "checkpoint-2", tmp_path / "checkpoint-2")
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-2"]
    assert (tmp_path / "checkpoint-2" / "weights").read_text() == "new"

    written = tmp_path / "aside" / "model"
    written.mkdir(parents=True)
    for name in ("model-00001-of-00002.safetensors", "config.json"):
        (written / name).write_text("new")
    for name in ("model.safetensors", "config.json", "README.md"):
        (tmp_path / name).write_text("old")
    put_files_in_place(written, tmp_path)
    found = {path.name: path.read_text() for path in tmp_path.iterdir() if path.is_file()}
    assert found == {"model-00001-of-00002.safetensors": "new", "config.json": "new", "README.md": "old"}


# ---------------------------------------------------------------------- the record


def test_the_record_of_a_run(tmp_path):
    token = "hf_" + "x" * 30
    training = CUETrainingArguments(output_dir=str(Path.home() / "runs"), use_cpu=True, hub_token=token, seed=5)
    rows = {"train": describe_rows(make_rows())}
    record = RunRecord(["--hub_tok", token], ModelArguments(), DataArguments(dataset_name="here"), rows)
    record.save(tmp_path, training)
    text = (tmp_path / FILE).read_text()
    assert token not in text
    found = json.loads(text)
    assert found["seed"] == found["training"]["seed"] == 5
    assert found["training"]["output_dir"] == "~/runs"
    assert found["data"]["dataset_name"] == "here"
    assert found["rows"]["train"]["count"] == 6
    assert found["packages"]["torch"] == version("torch")
    assert record.changes(tmp_path, training) == []
    assert record.changes(tmp_path / "elsewhere", training) == []

    training.logging_steps, training.learning_rate = 3, 1e-3
    other = RunRecord(
        [], ModelArguments(freeze=["text"]), record.data, {"train": describe_rows(make_rows(captions=1))}
    )
    changes = other.changes(tmp_path, training)
    names = [change.split()[0] for change in changes]
    assert names == ["model.freeze", "rows.train.fingerprint", "training.learning_rate"]
    assert "training.learning_rate was 5e-05 and is 0.001" in changes


def test_a_fingerprint_of_rows_changes_with_what_they_hold(tmp_path):
    rows = make_rows()
    same = rows.select(range(6)).flatten_indices()
    assert rows_fingerprint(rows) == rows_fingerprint(same)
    rows.to_parquet(tmp_path / "rows.parquet")
    assert rows_fingerprint(type(rows).from_parquet(str(tmp_path / "rows.parquet"))) == rows_fingerprint(rows)
    image = [{"bytes": bytes(len(value["bytes"])), "path": None} for value in rows["image"]]
    others = [
        rows.select([1, 0, 2, 3, 4, 5]),
        rows.select(range(5)),
        rows.map(lambda row: {"caption": [text.upper() for text in row["caption"]]}),
        rows.remove_columns("image").add_column("image", image).cast(rows.features),
        make_rows(("image", "audio")),
    ]
    assert len({rows_fingerprint(other) for other in [rows, *others]}) == 6


def test_a_fingerprint_of_a_model_changes_with_what_changes_its_cones(model, processor):
    before = model_fingerprint(model, processor)
    processor(text=["a dog", "the red cat runs"], max_length=3)
    assert model_fingerprint(model, processor) == before
    found = {before}
    for name, value in (("model_max_length", 5), ("truncation_side", "left"), ("padding_side", "left")):
        other = copy.deepcopy(processor)
        setattr(other.tokenizer, name, value)
        found.add(model_fingerprint(model, other))
    other = copy.deepcopy(processor)
    other.text_prefix = "query: "
    found.add(model_fingerprint(model, other))
    with torch.no_grad():
        model.text_head.projection.bias[0] += 1e-6
    found.add(model_fingerprint(model, processor))
    assert len(found) == 6


def test_going_on_with_another_configuration_says_so(model, processor, tmp_path, caplog):
    make_trainer(model, processor, tmp_path, **SAVING).train()
    assert json.loads((tmp_path / "checkpoint-4" / FILE).read_text())["training"]["max_steps"] == 4
    caplog.set_level(logging.WARNING, logger=checkpoints.__name__)
    again = make_trainer(model, processor, tmp_path, **SAVING | {"max_steps": 5, "seed": 1, "logging_steps": 2})
    again.train(resume_from_checkpoint="last")
    (said,) = [record.getMessage() for record in caplog.records if record.name == checkpoints.__name__]
    assert "training.seed was 0 and is 1" in said
    assert "training.max_steps was 4 and is 5" in said
    assert "logging" not in said
    with pytest.raises(ValueError, match="no checkpoint"):
        make_trainer(model, processor, tmp_path / "empty").train(resume_from_checkpoint="last")


def test_draws_depend_on_the_epoch_and_the_item_only():
    pairs, again = CaptionPairs(make_rows(), seed=1), CaptionPairs(make_rows(), seed=1)
    first = [item["draw"] for item in map(pairs.__getitem__, range(len(pairs)))]
    assert len(set(first)) == len(pairs)
    assert again[3]["draw"] == first[3]
    again.set_epoch(1)
    assert again[3]["draw"] != first[3]
    assert CaptionPairs(make_rows(), seed=2)[3]["draw"] != first[3]


@pytest.mark.parametrize("make", [lambda rows: RandomSampler(rows), lambda rows: GroupedByLength(2, rows, seed=0)])
@pytest.mark.parametrize("processes", [1, 2])
def test_a_loader_that_skips_batches_hears_of_the_epoch(make, processes):
    rows = list(range(24))

    def loader():
        torch.manual_seed(0)
        plain = DataLoader(rows, batch_size=2, sampler=make(rows))
        prepared = prepare_data_loader(plain, None, processes, 0, put_on_device=False, use_seedable_sampler=True)
        sampler_of(prepared).set_epoch(1)
        return prepared

    def order(batches, epoch=1):
        batches.set_epoch(epoch)
        return [batch.tolist() for batch in batches]

    assert order(skip_first_batches(loader(), 2)) == order(loader())[2:]
    assert order(loader()) != order(loader(), epoch=2)
