"""The cache of frozen towers' features: the same numbers, each tower once, and never an answer that is out of date."""

import copy
import json
import os
import pickle
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import feature_worker
import pytest
import torch
from datasets import load_from_disk
from samples import make_rows
from trainers import ALL, make_trainer

from modeling_cue import CUEModel, CUEProcessor
from modeling_cue.media_image import load_image
from modeling_cue.training import feature_files, feature_keys
from modeling_cue.training.collator import CUECollator
from modeling_cue.training.feature_filling import FeatureCache, FeatureCacheError
from modeling_cue.training.features import Place
from modeling_cue.training.lora import add_lora
from modeling_cue.training.pairs import CaptionPairs
from modeling_cue.training.phrases import split_phrases
from modeling_cue.training.rows import BadRowError, BadRows
from modeling_cue.training.scenes import make_scenes

HERE = Path(__file__).parent
# A few steps of tiny towers hardly move the radii.
pytestmark = pytest.mark.filterwarnings("ignore:.*radii have gone to one value")


def texts_of(rows):
    return [t for row in rows for c in row["caption"] for t in (c, *split_phrases(c))]


@contextmanager
def rows_seen(model):
    """Counts the rows that each tower is given."""
    seen = dict.fromkeys(ALL[:3], 0)
    parts = {"text": model.text_tower, "image": model.image_tower, "audio": model.audio_tower.conv1}

    def count(modality):
        def hook(module, args, kwargs, output):
            given = [*args, *kwargs.values()][0]
            seen[modality] += len(given)

        return hook

    handles = [part.register_forward_hook(count(m), with_kwargs=True) for m, part in parts.items()]
    yield seen
    for handle in handles:
        handle.remove()


# ---------------------------------------------------------------------- the same numbers


CASES = {
    "all": (ALL, "habit", False, ALL[1:]),
    "all mirrored, of tokens": (ALL, "attention", True, ("image",)),
    "image and video, mirrored": (("image", "video"), "habit", True, ("image",)),
}


@pytest.mark.parametrize(("frozen", "pooler", "mirrored", "media"), CASES.values(), ids=CASES)
def test_cached_features_train_the_same(names, processor, tmp_path, frozen, pooler, mirrored, media):
    torch.manual_seed(0)
    poolers = {m: "attention" for m in ("text", "image", "audio")} if pooler == "attention" else {}
    model = CUEModel.from_encoders(
        **names, projection_dim=16, num_frames=3, composition_dim=16, poolers=poolers, head_dropout=0.1,
        token_dropout=0.1, average_mirror=mirrored,
    )  # fmt: skip
    model.freeze(frozen)
    rows = make_rows(media)
    cache = FeatureCache(model, processor, tmp_path / "cache")
    train = cache.store(rows, texts_of(rows), "random" if mirrored else "off")
    evaluated = cache.store(rows, texts_of(rows), "average" if mirrored else "off")
    assert train.modalities == set(frozen) & {"text", *media}
    losses, rsum, seen = [], [], []
    for stores in ((None, None), (train, evaluated)):
        trained = copy.deepcopy(model)
        trainer = make_trainer(trained, processor, tmp_path, media, max_steps=20)
        for collator, store in zip((trainer.data_collator, trainer.eval_collator), stores, strict=True):
            collator.features = store
        trainer.data_collator.mirror_images = mirrored
        with rows_seen(trained) as counts:
            trainer.train()
            rsum.append(trainer.evaluate()["eval_rsum"])
        losses.append([log["loss"] for log in trainer.state.log_history if "loss" in log])
        seen.append(counts)
    assert len(losses[0]) == 20
    assert losses[1] == pytest.approx(losses[0], abs=1e-4)
    assert rsum[1] == pytest.approx(rsum[0], abs=1e-6)
    for modality in {"text", *media} - {"video"}:
        assert seen[1][modality] == (0 if modality in frozen else seen[0][modality])
        assert seen[0][modality] > 0


def test_towers_that_lora_adapts_run_and_the_others_are_cached(model, processor, tmp_path):
    model.freeze(["text", "audio"])
    adapted = add_lora(model, rank=2, alpha=4, dropout=0.1, base=tmp_path / "base")
    rows = make_rows(("image",))
    store = FeatureCache(adapted, processor, tmp_path / "cache").store(rows, texts_of(rows))
    assert store.modalities == {"text"}
    losses = []
    for features in (None, store):
        trained = copy.deepcopy(adapted)
        trainer = make_trainer(trained, processor, tmp_path, stores=features)
        with rows_seen(trained) as seen:
            trainer.train()
        losses.append([log["loss"] for log in trainer.state.log_history if "loss" in log])
    assert losses[1] == pytest.approx(losses[0], abs=1e-4)
    assert seen["text"] == 0
    assert seen["image"] > 0


def test_parts_of_scenes_are_cached_too(model, processor, tmp_path):
    model.freeze(ALL)
    scenes = make_scenes("train", 3, parts=True)
    texts = [t for row in scenes for t in (*row["caption"], *(p for line in row["phrases"] for p in line))]
    store = FeatureCache(model, processor, tmp_path).store(scenes, texts)
    bare = scenes.remove_columns([c for c in store.modality_of if c in scenes.column_names])
    outputs = []
    for rows, features in ((scenes, None), (bare, store)):
        torch.manual_seed(0)
        pairs = CaptionPairs(rows, every_caption=True)
        batch = CUECollator(processor, ALL, 2, features)([pairs[i] for i in range(3)])
        outputs.append(model(**batch["model"]))
    for name in ("text_embeds", "image_embeds", "audio_embeds", "video_embeds", "composed_embeds"):
        torch.testing.assert_close(outputs[1][name], outputs[0][name], rtol=0, atol=1e-5)


@pytest.mark.parametrize("pooler", ["habit", "attention"])
def test_an_image_and_its_mirror_image_are_one_where_asked(names, processor, tmp_path, pooler):
    poolers = {"image": "attention"} if pooler == "attention" else {}
    model = CUEModel.from_encoders(
        image=names["image"], text=names["text"], projection_dim=16, composition_dim=16, average_mirror=True,
        poolers=poolers,
    ).eval()  # fmt: skip
    model.freeze(["image"])
    rows = make_rows(("image",))
    pixels = processor(images=[load_image(value) for value in rows["image"]])["pixel_values"]
    with torch.no_grad():
        plain, turned = (model.get_image_cones(pixel_values=p) for p in (pixels, pixels.flip(-1)))
        torch.testing.assert_close(plain.axis, turned.axis, rtol=0, atol=1e-5)
        model.train()  # of a step, each view stands for itself
        one, other = (model.get_image_cones(pixel_values=p) for p in (pixels, pixels.flip(-1)))
        assert (one.axis - other.axis).abs().max() > 1e-3
        store = FeatureCache(model, processor, tmp_path).store(rows, ["a dog"], mirror="average")
        batch = CUECollator(processor, ("text", "image"), None, store)
        pairs = CaptionPairs(rows, every_caption=True)
        features = batch([pairs[i] for i in range(6)])["model"]["image_features"]
        cached = model.eval().embed_features("image", features)
    torch.testing.assert_close(cached.axis, plain.axis, rtol=0, atol=1e-5)
    torch.testing.assert_close(cached.radius, plain.radius, rtol=0, atol=1e-5)


def test_mixed_precision_runs_the_towers_as_training_would(model, processor, tmp_path):
    model.freeze(ALL)
    rows = make_rows(("image",))
    store = FeatureCache(model, processor, tmp_path, autocast=torch.bfloat16).store(rows, ["a dog"])
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        expected, _ = model.eval().tower_features("text", *processor(text="a dog").values())
    assert torch.equal(store.text(["a dog"])[0], expected.float())


# ---------------------------------------------------------------------- reused, or made anew


def filled(model, processor, folder, rows=None, texts=("a dog", "a red cat"), **settings):
    """The rows that each tower was given to make the features of `rows`, and these."""
    model.freeze(ALL)
    rows = make_rows(("image",)) if rows is None else rows
    with rows_seen(model) as seen:
        store = FeatureCache(model, processor, folder, **settings).store(rows, texts)
    return (seen["text"], seen["image"]), store


def other_weight(model, processor, rows):
    with torch.no_grad():
        next(model.image_tower.parameters()).add_(1e-3)


def other_heads(model, processor, rows):
    model.text_tower.config.num_attention_heads = 4  # the same weights, other numbers


def other_size(model, processor, rows):
    processor.image_processor.do_normalize = False


def other_draft(model, processor, rows):
    processor.jpeg_draft = 1


def other_pipeline(model, processor, rows):
    processor.fast_images = False


def other_prefix(model, processor, rows):
    processor.text_prefix = "query: "


def other_vocabulary(model, processor, rows):
    processor.tokenizer.add_tokens(["dogs"])


def other_images(model, processor, rows):
    return rows.select([1, 0, 2, 3, 4, 5])


CHANGES = {
    None: (0, 0), other_weight: (0, 6), other_heads: (2, 0), other_size: (0, 6), other_prefix: (2, 0),
    other_vocabulary: (2, 0), other_images: (0, 6), other_draft: (0, 6), other_pipeline: (0, 6),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__ if change else "nothing")
def test_a_change_makes_anew_what_depends_on_it(model, processor, tmp_path, change):
    processor, rows = copy.deepcopy(processor), make_rows(("image",))
    assert filled(model, processor, tmp_path, rows)[0] == (2, 6)
    changed = change(model, processor, rows) if change else None
    assert filled(model, processor, tmp_path, changed or rows)[0] == CHANGES[change]


def test_another_dtype_or_precision_makes_anew(model, processor, tmp_path):
    assert filled(model, processor, tmp_path)[0] == (2, 6)
    assert filled(model, processor, tmp_path, dtype="float16")[0] == (2, 6)
    assert filled(model, processor, tmp_path, autocast=torch.bfloat16)[0] == (2, 6)
    assert filled(model, processor, tmp_path, batch_size=1)[0] == (0, 0)


def test_more_data_makes_only_what_is_new(model, processor, tmp_path, monkeypatch):
    monkeypatch.setattr(feature_keys, "SHARD_ROWS", 4)
    assert filled(model, processor, tmp_path, make_rows(("image",), count=4))[0] == (2, 4)
    (_, images), store = filled(model, processor, tmp_path, make_rows(("image",), count=7))
    assert images == 3  # the first shard holds what the smaller data set held
    assert [table.has(6) for name, table in store.tables.items() if name == "image"] == [True]


def test_the_same_towers_saved_and_loaded_find_their_features(model, processor, tmp_path):
    filled(model, processor, tmp_path / "cache")
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    again = CUEModel.from_pretrained(tmp_path / "model"), CUEProcessor.from_pretrained(tmp_path / "model")
    assert filled(*again, tmp_path / "cache")[0] == (0, 0)


@pytest.fixture
def photos(tmp_path):
    """Rows that name files, and the files."""
    rows = make_rows(("image",))
    folder = tmp_path / "photos"
    folder.mkdir()
    paths = [folder / f"{i}.png" for i in range(6)]
    for path, value in zip(paths, rows["image"], strict=True):
        path.write_bytes(value["bytes"])
    named = [{"bytes": None, "path": str(path)} for path in paths]
    return rows.remove_columns("image").add_column("image", named, feature=rows.features["image"]), paths


def test_files_that_did_not_change_are_not_read_again(model, processor, tmp_path, photos, monkeypatch):
    rows, paths = photos
    monkeypatch.setattr(feature_keys, "SETTLED", -1.0)
    read = []
    content = feature_keys._content
    monkeypatch.setattr(feature_keys, "_content", lambda value: read.append(value) or content(value))
    assert filled(model, processor, tmp_path / "cache", rows)[0] == (2, 6)
    assert sum(isinstance(value, dict) for value in read) == 6
    read.clear()
    assert filled(model, processor, tmp_path / "cache", rows)[0] == (0, 0)
    assert not any(isinstance(value, dict) for value in read)
    # Other content of the same size, put back to the old time: the inode still tells.
    before, old = paths[2].stat(), paths[2].read_bytes()
    paths[2].write_bytes(old[:60] + bytes([old[60] ^ 1]) + old[61:])
    os.utime(paths[2], ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(BadRowError, match="sample 2"):
        filled(model, processor, tmp_path / "cache", rows)
    paths[2].write_bytes(old)
    # The content is what it was, so that its features are still there.
    assert filled(model, processor, tmp_path / "cache", rows)[0] == (0, 0)


def test_files_written_just_now_are_read_again(model, processor, tmp_path, photos):
    filled(model, processor, tmp_path / "cache", photos[0])
    assert not (tmp_path / "cache" / "data").exists()
    # A clock that ticks in seconds would not tell two changes apart.
    assert feature_keys.SETTLED >= 2.0


def test_data_on_disk_are_noted_and_read_once(model, processor, tmp_path, monkeypatch):
    make_rows(("image",)).save_to_disk(tmp_path / "data")
    rows = load_from_disk(str(tmp_path / "data"))
    monkeypatch.setattr(feature_keys, "SETTLED", -1.0)
    assert filled(model, processor, tmp_path / "cache", rows)[0] == (2, 6)
    (note,) = (tmp_path / "cache" / "data").iterdir()
    assert filled(model, processor, tmp_path / "cache", load_from_disk(str(tmp_path / "data")))[0] == (0, 0)
    # Rows in another order, of the same files, are other data.
    assert filled(model, processor, tmp_path / "cache", rows.select([5, 1, 2]))[0] == (0, 3)
    assert len(list((tmp_path / "cache" / "data").iterdir())) == 2
    note.write_text("[")  # a damaged note is as good as none
    assert filled(model, processor, tmp_path / "cache", rows)[0] == (0, 0)


# ---------------------------------------------------------------------- several processes


def run_two(names, folder, fault="none"):
    """Two processes that fill one cache; what each noted, None of one that failed, and what they said."""
    meeting = folder.parent / f"meeting {fault} {time.time_ns()}"
    path = os.pathsep.join([str(HERE), str(HERE.parent)])
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, str(HERE / "feature_worker.py"), json.dumps(names), str(folder), str(meeting)]
    workers = [
        subprocess.Popen([*command, str(rank), fault], env=environment, stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    errors = [worker.communicate(timeout=300)[1] for worker in workers]
    notes = [Path(f"{meeting}-{rank}.json") for rank in range(2)]
    return [json.loads(note.read_text()) if note.exists() else None for note in notes], errors


def test_processes_share_the_work_and_one_that_dies_spoils_nothing(names, tmp_path):
    two = {modality: names[modality] for modality in ("text", "image")}
    store, encoded = feature_worker.fill(two, tmp_path / "alone")
    expected = store.media([Place("image", row) for row in range(feature_worker.ROWS)])[0].double().sum().item()
    assert sum(encoded) == feature_worker.ROWS

    # One process is killed in its third shard; the other ends with an error, and what was finished stays.
    notes, errors = run_two(two, tmp_path / "cache", "dies")
    assert notes == [None, None]
    assert "Error" in errors[0]
    finished = len(list((tmp_path / "cache").glob("image-*/*.arrow")))
    assert 4 <= finished < 10
    (first, second), errors = run_two(two, tmp_path / "cache")
    assert first is not None, errors
    left = feature_worker.ROWS - 4 * finished
    assert first["shared"]["encoded"] + second["shared"]["encoded"] == left
    assert abs(first["shared"]["encoded"] - second["shared"]["encoded"]) <= 4
    # Without a common disk, each fills its own.
    assert first["apart"]["encoded"] == second["apart"]["encoded"] == feature_worker.ROWS
    for note in (*first.values(), *second.values()):
        assert note["sum"] == pytest.approx(expected, abs=1e-6)
        assert note["text"] == pytest.approx(store.text(["a dog"])[0][0].tolist(), abs=1e-6)


# ---------------------------------------------------------------------- bad input


def shard_of(folder, modality):
    (path,) = folder.glob(f"{modality}-*/*.arrow")
    return path


def test_shards_that_are_damaged_or_of_others_are_not_used(model, processor, tmp_path):
    expected = filled(model, processor, tmp_path)[1].text(["a dog"])[0]
    path = shard_of(tmp_path, "text")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])  # cut off
    assert filled(model, processor, tmp_path)[0] == (2, 0)
    path.write_bytes(b"")
    assert filled(model, processor, tmp_path)[0] == (2, 0)
    # The features of another model, and of other data, under this one's name.
    other = copy.deepcopy(model)
    with torch.no_grad():
        next(other.text_tower.parameters()).add_(1.0)
    filled(other, processor, tmp_path / "other model")
    filled(model, processor, tmp_path / "other data", texts=("a cat", "a big cat"))
    for source in ("other model", "other data"):
        path.write_bytes(shard_of(tmp_path / source, "text").read_bytes())
        seen, store = filled(model, processor, tmp_path)
        assert seen == (2, 0)
        assert torch.equal(store.text(["a dog"])[0], expected)


def test_a_checkpoint_of_another_tower_is_refused(model, processor, tmp_path):
    model.freeze(ALL)
    rows = make_rows(("image",))
    store = FeatureCache(model, processor, tmp_path / "cache").store(rows, texts_of(rows))
    trainer = make_trainer(model, processor, tmp_path, stores=store, save_strategy="steps", save_steps=2)
    trainer.train()
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    with torch.no_grad():
        next(model.text_tower.parameters()).add_(1.0)
    trainer.save_model(str(tmp_path / "checkpoint-2"))
    with pytest.raises(ValueError, match="frozen text tower is not the one whose features are cached"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))


def test_a_tower_that_trains_is_not_cached(model, processor, tmp_path):
    model.freeze(["text"])
    with pytest.raises(ValueError, match="image tower is not frozen"):
        FeatureCache(model, processor, tmp_path, modalities=["text", "image"])


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no device that is always full")
def test_a_full_disk(model, processor, tmp_path, monkeypatch):
    filled(model, processor, tmp_path, make_rows(("image",), count=2))
    finished = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.arrow")}

    class OnFullDisk(type(tmp_path)):
        def open(self, mode="r", **kwargs):
            return open("/dev/full", mode) if self.suffix == ".tmp" else super().open(mode, **kwargs)

    with monkeypatch.context() as patch:
        with_name = Path.with_name
        patch.setattr(Path, "with_name", lambda path, name: OnFullDisk(with_name(path, name)))
        with pytest.raises(FeatureCacheError) as error:
            filled(model, processor, tmp_path)
    message = str(error.value)
    for said in (str(tmp_path), " bytes more to write", "free", "--feature_cache DIR", "float16", "what is finished"):
        assert said in message
    assert error.value.__cause__.errno == 28
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()} == finished
    assert filled(model, processor, tmp_path)[0] == (0, 6)  # the two texts were there


def test_a_disk_too_small_is_refused_before_it_is_full(model, processor, tmp_path, monkeypatch):
    monkeypatch.setattr(feature_files.shutil, "disk_usage", lambda folder: SimpleNamespace(free=100))
    with pytest.raises(FeatureCacheError, match=r"about \d+ bytes more to write, 100 bytes free"):
        filled(model, processor, tmp_path)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_folder_that_cannot_be_written(model, processor, tmp_path):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(FeatureCacheError, match="cannot be written to .*file .*name a folder that you may write to"):
        filled(model, processor, tmp_path / "file")
    locked = tmp_path / "locked"
    filled(model, processor, locked, make_rows(("image",)))
    with as_somebody_else(locked):
        with pytest.raises(FeatureCacheError, match="Permission denied.*--feature_cache none"):
            filled(model, processor, locked, texts=["a cat"])
        assert filled(model, processor, locked)[0] == (0, 0)  # reading is enough where all is there


@contextmanager
def as_somebody_else(folder):
    """Takes away the right to write into `folder`, also from an administrator."""
    parents = [path for path in (folder, *folder.parents) if path.stat().st_mode & 0o077 == 0 or path == folder]
    modes = {path: path.stat().st_mode for path in [*parents, *folder.rglob("*")] if path.is_dir()}
    administrator = os.geteuid() == 0
    for path in modes:
        path.chmod(0o555)
    if administrator:
        os.seteuid(65534)
    try:
        yield
    finally:
        if administrator:
            os.seteuid(0)
        for path, mode in modes.items():
            path.chmod(mode)


def test_features_beyond_float16(model, processor, tmp_path):
    with torch.no_grad():
        model.image_tower.post_layernorm.weight.mul_(1e6)
    with pytest.raises(FeatureCacheError, match="image tower reach .*float16 cannot hold.*feature_dtype float32"):
        filled(model, processor, tmp_path, dtype="float16")
    assert filled(model, processor, tmp_path)[1].media is not None


def broken(rows):
    values = [dict(value) for value in rows["image"]]
    values[3] = {"bytes": b"no image", "path": None}
    return rows.remove_columns("image").add_column("image", values, feature=rows.features["image"])


def test_a_broken_row_stops_or_is_left_out_as_without_a_cache(model, processor, tmp_path):
    rows = broken(make_rows(("image",)))
    with pytest.raises(BadRowError, match="sample 3.*no image"):
        filled(model, processor, tmp_path, rows)
    for _ in ("made", "read"):
        _, store = filled(model, processor, tmp_path, rows, texts_of(rows), bad_rows=BadRows("skip"))
        batches = []
        for features in (None, store):
            torch.manual_seed(0)
            bad_rows = BadRows("skip")
            collator = CUECollator(processor, ALL, 2, features, bad_rows)
            pairs = CaptionPairs(rows, every_caption=True)
            batches.append(collator([pairs[i] for i in range(6)]))
            assert bad_rows.count == 1
        assert len(batches[1]["model"]["image_features"]) == 5
        for name, columns in batches[0]["rows"].items():
            for column, values in columns.items():
                assert torch.equal(batches[1]["rows"][name][column], values)


def test_rows_may_lack_a_medium(model, processor, tmp_path):
    rows = make_rows(("image",))
    values = [None if i == 1 else value for i, value in enumerate(rows["image"])]
    rows = rows.remove_columns("image").add_column("image", values, feature=rows.features["image"])
    _, store = filled(model, processor, tmp_path, rows, texts_of(rows))
    pairs = CaptionPairs(rows, every_caption=True)
    batch = CUECollator(processor, ALL, 0, store)([pairs[i] for i in range(3)])
    assert len(batch["model"]["image_features"]) == 2
    assert len(batch["model"]["text_features"]) == 6


def test_worker_processes_get_names_of_files_not_features(model, processor, tmp_path):
    _, store = filled(model, processor, tmp_path, texts=("a dog",))
    sent = pickle.dumps(store)
    assert len(sent) < 3000
    again = pickle.loads(sent)
    assert torch.equal(again.text(["a dog"])[0], store.text(["a dog"])[0])


def test_half_written_files_of_killed_processes_are_swept_up(model, processor, tmp_path):
    filled(model, processor, tmp_path)
    folder = shard_of(tmp_path, "text").parent
    left, busy = folder / ".1.tmp", folder / ".2.tmp"
    for path in (left, busy):
        path.write_bytes(b"half")
    os.utime(left, (time.time() - 2 * feature_files.ABANDONED,) * 2)
    filled(model, processor, tmp_path, texts=("a dog", "a man"))
    assert not left.exists()
    assert busy.exists()
