"""run_embed.py: cones of everything a source holds, in shards that several processes and several goes can fill."""

import csv
import gc
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Image, List, Value, load_dataset
from samples import make_rows, png, wav

from modeling_cue import Cone, CUEIndex, CUEModel, CUEProcessor
from modeling_cue.training.embedder import Embedder, length_batches
from modeling_cue.training.lora import add_lora
from modeling_cue.training.parsing import parse_embed_arguments
from modeling_cue.training.rows import BadRowError, DataError

ROOT = Path(__file__).resolve().parents[1]
MEDIA = ("image", "audio", "video")
LAUNCH = ["-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2", "--num_machines", "1"]
LAUNCH += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]


@pytest.fixture(scope="module")
def text_checkpoint(names, tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    torch.manual_seed(1)
    CUEModel.from_encoders(text=names["text"], projection_dim=16).save_pretrained(folder)
    CUEProcessor.from_encoders(text=names["text"]).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Seven samples of four modalities, in two parquet files of one split."""
    folder = tmp_path_factory.mktemp("data")
    rows = make_rows(MEDIA, captions=2, count=7)
    for number, part in enumerate((range(4), range(4, 7))):
        rows.select(part).to_parquet(folder / f"test-0000{number}-of-00002.parquet")
    return folder


@pytest.fixture(scope="module")
def main():
    spec = importlib.util.spec_from_file_location("run_embed", ROOT / "run_embed.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


@pytest.fixture
def embed(main, checkpoint, tmp_path):
    """Runs `run_embed.py` in this process and returns the rows that it wrote."""

    def run(source, *flags, model=checkpoint, out=tmp_path / "out"):
        main(arguments(model, source, out, *flags))
        return cones(out, tmp_path)

    return run


def arguments(model, source, out, *flags):
    named = {"--model_name_or_path": model, "--dataset_name": source, "--output_dir": out, "--use_cpu": "true"}
    named |= {"--data_cache_dir": Path(out).parent / "cache"}
    return [str(word) for pair in named.items() for word in pair] + list(map(str, flags))


def cones(folder, cache):
    (found,) = load_dataset(str(folder), cache_dir=str(cache / "cones")).values()
    return found


def shards(folder):
    return {path.name: path.read_bytes() for path in sorted((folder / "data").iterdir())}


def command(*words):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
    return {"args": [sys.executable, *map(str, words)], "env": environment}


# ---------------------------------------------------------------------- what is written


def test_every_cone_is_the_models_own(embed, model, processor, data, tmp_path, capsys):
    found = embed(data, "--split", "test", "--shard_size", "3", "--batch_size", "2")
    assert found.features == {
        "id": Value("string"), "modality": Value("string"), "caption": Value("int32"), "text": Value("string"),
        "axis": List(Value("float32"), length=16), "radius": Value("float32"),
    }  # fmt: skip
    assert sorted(shards(tmp_path / "out")) == [f"test-0000{n}-of-00003.parquet" for n in range(3)]
    given = {"text": "text", "image": "images", "audio": "audio", "video": "videos"}
    expected = []
    rows = list(make_rows(MEDIA, captions=2, count=7))
    for start in range(0, 7, 3):
        shard = rows[start : start + 3]
        expected += [(row["id"], "text", k, row["caption"][k], row["caption"][k]) for row in shard for k in (0, 1)]
        expected += [(row["id"], m, None, None, row[m]) for m in MEDIA for row in shard]
    assert len(found) == len(expected) == 35
    for row, (name, modality, caption, text, value) in zip(found, expected, strict=True):
        assert (row["id"], row["modality"], row["caption"], row["text"]) == (name, modality, caption, text)
        with torch.no_grad():
            cone = model(**processor(**{given[modality]: value})).cones[modality]
        np.testing.assert_allclose(row["axis"], cone.axis[0], atol=1e-5)
        np.testing.assert_allclose(row["radius"], cone.radius[0], atol=1e-5)
    printed = capsys.readouterr().out
    assert "text              14 cones  14 in this run at " in printed
    assert printed.splitlines()[-1] == f"result:  {tmp_path / 'out'}"


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_an_index_is_made_of_it(embed, data, dtype):
    found = embed(data, "--split", "test", "--axis_dtype", dtype)
    index = CUEIndex.from_dataset(found)
    assert len(index) == len(found)
    for row in found.select(range(0, len(found), 3)):
        name = f"{row['id']}/{row['modality']}" + ("" if row["caption"] is None else f"/{row['caption']}")
        axis = torch.nn.functional.normalize(torch.tensor(row["axis"])[None], dim=-1)
        hits = index.nearest(Cone(axis, torch.tensor([row["radius"]])), 3)[0]
        assert name in hits.ids
        assert hits.metadata("sample")["sample"][hits.ids.index(name)] == row["id"]


def test_what_training_with_lora_left_is_a_model(embed, model, processor, data, tmp_path):
    model.save_pretrained(tmp_path / "base")
    adapted = add_lora(
        CUEModel.from_pretrained(tmp_path / "base"), rank=2, alpha=4, dropout=0.0, base=tmp_path / "lora" / "base"
    )
    with torch.no_grad():
        for name, tensor in adapted.named_parameters():
            if "lora_B" in name:
                tensor.fill_(0.05)
    adapted.save_pretrained(tmp_path / "lora")
    processor.save_pretrained(tmp_path / "lora")
    found = embed(data, "--split", "test", "--modalities", "text", model=tmp_path / "lora")
    with torch.no_grad():
        expected = adapted.eval().get_text_cones(**processor(text=found["text"])).axis
    torch.testing.assert_close(torch.tensor(found["axis"]), expected, rtol=0, atol=1e-5)


def test_one_modality_is_read_without_the_others(embed, data, tmp_path):
    embed(data, "--shard_size", "3")
    only = load_dataset(
        str(tmp_path / "out"), split="train", filters=[("modality", "==", "image")], cache_dir=str(tmp_path / "only")
    )
    assert only["id"][:] == [f"sample {i}" for i in range(7)]
    assert only.with_format("numpy")["axis"][:].shape == (7, 16)


def test_the_readme_says_what_the_folder_holds(embed, data, checkpoint, tmp_path):
    embed(data, "--split", "test")
    text = (tmp_path / "out" / "README.md").read_text()
    settings = json.loads((tmp_path / "out" / ".run" / "settings.json").read_text())
    assert "| text | 14 |\n| image | 7 |\n| audio | 7 |\n| video | 7 |\n" in text
    assert "left out: 0." in text
    assert f"model: `{checkpoint}`, fingerprint `{settings['model']['fingerprint']}`" in text
    for column in ("id", "modality", "caption", "text", "axis", "radius"):
        assert f"| `{column}` |" in text


def test_half_precision_of_axes_and_of_towers(embed, data, tmp_path):
    whole = embed(data, out=tmp_path / "whole").with_format("numpy")
    half = embed(data, "--axis_dtype", "float16", out=tmp_path / "half")
    assert half.features["axis"] == List(Value("float16"), length=16)
    np.testing.assert_allclose(half.with_format("numpy")["axis"][:], whole["axis"][:], atol=1e-3)
    brain = embed(data, "--bf16", "true", out=tmp_path / "brain").with_format("numpy")
    difference = np.abs(brain["axis"][:] - whole["axis"][:]).max()
    assert 0 < difference < 0.05


# ---------------------------------------------------------------------- what is read


def test_captions_without_media_and_media_without_captions(embed, text_checkpoint, tmp_path):
    rows = make_rows(("image",), captions=2, count=3)
    rows.remove_columns("image").to_parquet(tmp_path / "captions.parquet")
    found = embed(tmp_path / "captions.parquet", model=text_checkpoint, out=tmp_path / "a")
    assert found["modality"][:] == ["text"] * 6
    rows.remove_columns(["caption", "id"]).to_parquet(tmp_path / "images.parquet")
    found = embed(tmp_path / "images.parquet", out=tmp_path / "b")
    assert found["modality"][:] == ["image"] * 3
    assert len(set(found["id"][:])) == 3
    # Both, of which the model reads one.
    rows.to_parquet(tmp_path / "both.parquet")
    assert len(embed(tmp_path / "both.parquet", model=text_checkpoint, out=tmp_path / "c")) == 6


def test_rows_may_lack_what_others_have(embed, tmp_path):
    rows = make_rows(("image", "audio"), captions=1, count=3).cast_column("image", Image(decode=False))
    lacking = [{"image": None}, {"audio": None, "caption": None}, {}]
    rows = rows.map(lambda row, i: lacking[i], with_indices=True)
    rows.to_parquet(tmp_path / "rows.parquet")
    found = embed(tmp_path / "rows.parquet")
    assert list(zip(found["id"][:], found["modality"][:], strict=True)) == [
        ("sample 0", "text"), ("sample 2", "text"), ("sample 1", "image"), ("sample 2", "image"),
        ("sample 0", "audio"), ("sample 2", "audio"),
    ]  # fmt: skip


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
@pytest.mark.parametrize("streaming", ["false", "true"])
def test_rows_of_one_image_are_one_sample(embed, tmp_path, streaming):
    rng = np.random.default_rng(0)
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(png(rng))
    with open(tmp_path / "table.csv", "w", newline="") as file:
        pairs = [("a.png", "a dog"), ("b.png", "a cat"), ("a.png", "a red dog"), ("a.png", "the dog runs")]
        csv.writer(file).writerows([("image", "caption"), *pairs])
    found = embed(tmp_path / "table.csv", "--streaming", streaming, "--shard_size", "2")
    rows = [(row["id"], row["modality"], row["caption"]) for row in found]
    assert rows == [
        ("a.png", "text", 0), ("b.png", "text", 0), ("a.png", "image", None), ("b.png", "image", None),
        ("a.png", "text", 1), ("a.png", "text", 2),
    ]  # fmt: skip
    gc.collect()


@pytest.fixture
def loose(tmp_path):
    rng = np.random.default_rng(0)
    folder = tmp_path / "loose"
    (folder / "test").mkdir(parents=True)
    (folder / ".hidden").mkdir()
    (folder / "test" / "b.PNG").write_bytes(png(rng))
    (folder / "a.wav").write_bytes(wav(rng))
    (folder / "lines.txt").write_text("a dog\n\na red cat\n")
    (folder / "paper.pdf").write_bytes(b"%PDF")
    (folder / ".hidden" / "c.png").write_bytes(b"")
    return folder


def test_loose_files(embed, loose, tmp_path, caplog):
    found = embed(loose)
    assert [(row["id"], row["modality"], row["caption"], row["text"]) for row in found] == [
        ("lines.txt", "text", 0, "a dog"), ("lines.txt", "text", 2, "a red cat"), ("test/b.PNG", "image", None, None),
        ("a.wav", "audio", None, None),
    ]  # fmt: skip
    assert "files of other kinds are left out: 1 of .pdf" in caplog.text
    assert embed(loose, "--split", "test", out=tmp_path / "part")["id"][:] == ["test/b.PNG"]
    (loose / "a.wav.json").write_text('{"taken": "1999"}')  # as many programs put beside each file
    assert embed(loose, out=tmp_path / "again")["id"][:] == found["id"][:]
    assert embed(loose / "lines.txt", out=tmp_path / "file")["text"][:] == ["a dog", "a red cat"]


def test_a_stream_gives_the_rows_of_a_data_set(embed, data, tmp_path):
    by_id = {}
    for flags in ((), ("--streaming", "true"), ("--streaming", "true", "--max_samples", "7")):
        found = embed(data, "--split", "test", "--shard_size", "2", *flags, out=tmp_path / str(len(flags)))
        by_id[flags] = {(r["id"], r["modality"], r["caption"]): (r["text"], r["axis"], r["radius"]) for r in found}
        assert len(by_id[flags]) == len(found) == 35
    whole, *streams = by_id.values()
    for stream in streams:
        assert stream.keys() == whole.keys()
        for key, (text, axis, radius) in whole.items():
            assert stream[key][0] == text
            np.testing.assert_allclose(stream[key][1], axis, atol=1e-5)
            np.testing.assert_allclose(stream[key][2], radius, atol=1e-5)


@pytest.mark.hub
def test_model_and_data_of_a_hub(checkpoint, data, hub_tools, tmp_path):
    for kind, name, folder in (("models", "cue", checkpoint), ("datasets", "samples", data)):
        (tmp_path / "seed" / kind / "org").mkdir(parents=True)
        (tmp_path / "seed" / kind / "org" / name).symlink_to(folder)
    with hub_tools.HubSim(tmp_path / "hub") as hub:
        hub.store.seed(str(tmp_path / "seed"))
        run = command(
            ROOT / "run_embed.py", *words({"--model_name_or_path": "org/cue", "--dataset_name": "org/samples"})
        )
        run["args"] += ["--split", "test", "--output_dir", str(tmp_path / "out"), "--streaming", "true"]
        run["env"] |= {**hub.env(home=tmp_path / "home"), "HF_HUB_OFFLINE": "0"}
        done = subprocess.run(**run, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(cones(tmp_path / "out", tmp_path)) == 35
    settings = json.loads((tmp_path / "out" / ".run" / "settings.json").read_text())
    assert len(settings["data"]["fingerprint"]) == 40  # the commit


# ---------------------------------------------------------------------- several goes, several processes


@pytest.mark.parametrize("streaming", ["false", "true"])
def test_two_processes_write_what_one_writes(main, checkpoint, data, tmp_path, streaming):
    flags = ("--split", "test", "--shard_size", "2", "--streaming", streaming)
    if streaming == "true":  # one file: both processes read it
        data = data / "test-00000-of-00002.parquet"
    main(arguments(checkpoint, data, tmp_path / "one", *flags))
    words = [*LAUNCH, ROOT / "run_embed.py", *arguments(checkpoint, data, tmp_path / "two", *flags)]
    done = subprocess.run(**command(*words), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("result:") == 1
    assert shards(tmp_path / "two") == shards(tmp_path / "one")


def test_a_run_that_was_killed_goes_on(main, checkpoint, tmp_path):
    make_rows(("image",), captions=2, count=80).to_parquet(tmp_path / "rows.parquet")
    out, part = tmp_path / "out", tmp_path / "out" / ".run" / "shards"
    flags = arguments(checkpoint, tmp_path / "rows.parquet", out, "--shard_size", "1")
    running = subprocess.Popen(**command(ROOT / "run_embed.py", *flags), stderr=subprocess.DEVNULL)
    while len(list(part.glob("*.parquet"))) < 3 and running.poll() is None:
        time.sleep(0.005)
    running.send_signal(signal.SIGKILL)
    assert running.wait() == -signal.SIGKILL
    assert not (out / "data").exists()
    kept = {path.stat().st_ino: path.stat().st_mtime_ns for path in part.glob("*.parquet")}
    assert 3 <= len(kept) < 80
    main(flags)
    after = {path.stat().st_ino: path.stat().st_mtime_ns for path in (out / "data").iterdir()}
    assert kept.items() <= after.items()
    assert len(after) == 80
    main(arguments(checkpoint, tmp_path / "rows.parquet", tmp_path / "whole", "--shard_size", "1"))
    assert shards(out) == shards(tmp_path / "whole")


def test_a_run_that_was_killed_while_it_published_goes_on(main, checkpoint, data, tmp_path, capsys):
    flags = arguments(checkpoint, data, tmp_path / "out", "--shard_size", "2")
    main(flags)
    whole, readme = shards(tmp_path / "out"), (tmp_path / "out" / "README.md").read_text()
    # Back to where two of four shards were moved.
    run = tmp_path / "out" / ".run"
    (tmp_path / "out" / "data").rename(run / "data")
    (run / "shards").mkdir()
    for number in (2, 3):
        (run / "data" / f"train-0000{number}-of-00004.parquet").rename(
            run / "shards" / f"00000{number}-000000.parquet"
        )
    (tmp_path / "out" / "README.md").unlink()
    main(flags)
    assert shards(tmp_path / "out") == whole
    assert (tmp_path / "out" / "README.md").read_text() == readme
    main(flags)
    assert "(was finished before)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"--split": "train"}, "data split 'test', here 'train'"),
        ({"--shard_size": "4"}, "shard_size 3, here 4"),
        ({"--axis_dtype": "float16"}, "axis_dtype 'float32', here 'float16'"),
        ({"--bf16": "true"}, "towers 'float32', here 'bfloat16'"),
        ({"--max_samples": "2"}, "data max_samples None, here 2"),
        ({"--model_name_or_path": "text"}, "model fingerprint"),
        ({"--dataset_name": "other"}, "data fingerprint"),
    ],
)
def test_the_folder_of_another_run_is_refused(main, checkpoint, text_checkpoint, data, tmp_path, change, message):
    flags = {"--split": "test", "--shard_size": "3", "--modalities": "text"}
    first = {"--model_name_or_path": checkpoint, "--dataset_name": data, "--output_dir": tmp_path / "out"} | flags
    main(words(first))
    before = shards(tmp_path / "out")
    if change.get("--split") == "train":
        other = shutil.copytree(data, tmp_path / "two", dirs_exist_ok=True)
        (other / "test-00000-of-00002.parquet").rename(other / "train.parquet")
        first["--dataset_name"] = other
    where = {"text": text_checkpoint, "other": shutil.copytree(data, tmp_path / "other")}
    with pytest.raises(DataError, match="holds cones of another run, which had") as error:
        main(words(first | {flag: where.get(value, value) for flag, value in change.items()}))
    assert message in str(error.value)
    assert "Give another output_dir" in str(error.value)
    assert shards(tmp_path / "out") == before


def words(flags):
    return [str(word) for pair in (flags | {"--use_cpu": "true"}).items() for word in pair]


def test_a_shard_of_another_run_is_refused(main, checkpoint, data, tmp_path):
    make_rows(("image",), captions=2, count=1).to_parquet(tmp_path / "rows.parquet")
    flags = arguments(checkpoint, tmp_path / "rows.parquet", tmp_path / "out")
    main(flags)
    main(arguments(checkpoint, data, tmp_path / "other"))
    (tmp_path / "out" / ".run" / "shards").mkdir()
    shutil.rmtree(tmp_path / "out" / "data")
    shard = tmp_path / "out" / ".run" / "shards" / "000000-000000.parquet"
    shutil.copy(tmp_path / "other" / "data" / "train-00000-of-00001.parquet", shard)
    with pytest.raises(DataError, match="is of another model, data set or settings: remove it"):
        main(flags)
    shard.write_bytes(b"PAR1")
    with pytest.raises(DataError, match="is damaged: remove it"):
        main(flags)


# ---------------------------------------------------------------------- bad input


@pytest.fixture
def one_broken(tmp_path):
    rows = make_rows(("image",), captions=2, count=4)
    broken = rows.map(lambda row, i: {"image": {"bytes": b"none", "path": None}} if i == 1 else {}, with_indices=True)
    broken.to_parquet(tmp_path / "rows.parquet")
    return tmp_path / "rows.parquet"


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_row_stops_the_run_or_is_left_out_whole(embed, one_broken, tmp_path, capsys, workers):
    flags = ("--batch_size", "1", "--shard_size", "2", "--num_workers", workers)
    with pytest.raises(BadRowError, match="row 'sample 1': the image is no image that can be read"):
        embed(one_broken, *flags)
    # The same folder goes on: what broken rows do is no matter of the content.
    found = embed(one_broken, *flags, "--on_bad_row", "skip")
    assert sorted(set(found["id"][:])) == ["sample 0", "sample 2", "sample 3"]
    assert found["modality"][:] == ["text"] * 2 + ["image"] + ["text"] * 4 + ["image"] * 2
    assert "broken rows left out: 1" in capsys.readouterr().out
    assert "left out: 1." in (tmp_path / "out" / "README.md").read_text()
    embed(one_broken, *flags, "--on_bad_row", "skip")
    assert "left out" not in capsys.readouterr().out  # it was finished: not all is read again


def test_nothing_but_broken_rows(embed, tmp_path):
    rows = make_rows(("image",), captions=1, count=2)
    rows.map(lambda row: {"image": {"bytes": b"none", "path": None}}).to_parquet(tmp_path / "rows.parquet")
    with pytest.raises(DataError, match="nothing was embedded: every row is broken"):
        embed(tmp_path / "rows.parquet", "--on_bad_row", "skip")
    assert not (tmp_path / "out" / "data").exists()


def test_a_modality_that_the_model_lacks(embed, data, text_checkpoint):
    for flags in (("--modalities", "image"), ("--audio_column", "audio")):
        with pytest.raises(ValueError, match="has no (image|audio) modality: it embeds text; leave"):
            embed(data, *flags, model=text_checkpoint)


def test_a_modality_that_the_data_lack(embed, tmp_path):
    make_rows(("image",), captions=1, count=2).to_parquet(tmp_path / "rows.parquet")
    with pytest.raises(DataError, match="there is no audio in it to embed; it has text, image"):
        embed(tmp_path / "rows.parquet", "--modalities", "text", "image", "audio")
    with pytest.raises(DataError, match=r"has no column of audio or video \(looked for audio, audio_path, video"):
        embed(tmp_path / "rows.parquet", "--modalities", "audio", "video")


def test_unknown_columns_and_splits(embed, data, tmp_path):
    with pytest.raises(DataError, match="has no column 'picture', which image_column names; its columns are: id"):
        embed(data, "--image_column", "picture")
    with pytest.raises(DataError, match="has no split 'validation'; it has: test"):
        embed(data, "--split", "validation")
    (tmp_path / "two").mkdir()
    for split in ("train", "test"):
        make_rows(("image",), count=1).to_parquet(tmp_path / "two" / f"{split}.parquet")
    with pytest.raises(DataError, match="has several splits, train, test: name one of them"):
        embed(tmp_path / "two")


def test_loose_files_have_neither_columns_nor_splits(embed, loose):
    with pytest.raises(DataError, match="no sub-folder .train.: name one, or leave split out"):
        embed(loose, "--split", "train")
    with pytest.raises(DataError, match="have no columns: leave out id_column"):
        embed(loose, "--id_column", "id")


def test_empty_data(embed, tmp_path):
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match="is empty: it holds no table and no file of text or image or audio or video"):
        embed(tmp_path / "none")
    make_rows(("image",), count=1).select([]).to_parquet(tmp_path / "rows.parquet")
    with pytest.raises(DataError, match="is empty"):
        embed(tmp_path / "rows.parquet")
    (tmp_path / "blank.txt").write_text("\n \n")
    with pytest.raises(BadRowError, match="row 'blank.txt': the text file cannot be used: it holds no text"):
        embed(tmp_path / "blank.txt")


def test_a_folder_of_other_files_and_a_model_of_another_kind(embed, data, names, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("years of work")
    with pytest.raises(DataError, match="holds other files: give a new or empty folder"):
        embed(data)
    with pytest.raises(ValueError, match="is no CUE: give a folder or repo"):
        embed(data, model=names["text"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("output_dir: x", "model_name_or_path is needed"),
        ("shard_siz: 3", "no argument is called 'shard_siz'; did you mean shard_size"),
        ("learning_rate: 3", "no argument is called 'learning_rate'"),
        ("shard_size: 0", "shard_size=0 is not valid; it must be 1 or more"),
        ("axis_dtype: int8", "axis_dtype='int8' is not valid"),
        ("on_bad_row: ignore", "it must be raise or skip"),
        ("bf16: true\nfp16: true", "exclude one another"),
    ],
)
def test_bad_arguments(tmp_path, text, message):
    (tmp_path / "c.yaml").write_text(text)
    flags = [] if "is needed" in message else arguments("m", "d", "o")
    with pytest.raises(ValueError) as error:
        parse_embed_arguments([str(tmp_path / "c.yaml"), *flags])
    assert message in str(error.value)


def test_arguments_from_a_file_and_flags_over_it(tmp_path):
    (tmp_path / "c.yaml").write_text("model_name_or_path: org/cue\nshard_size: 5\nbatch_size: 7\nmodalities: [text]\n")
    found = parse_embed_arguments(
        [str(tmp_path / "c.yaml"), "--shard_size", "6", "--dataset_name", "d", "--output_dir", "o"]
    )
    assert (found.model_name_or_path, found.shard_size, found.batch_size) == ("org/cue", 6, 7)
    assert found.modalities == ["text"]


# ---------------------------------------------------------------------- batches


def test_batches_of_one_length():
    lengths = [3] * 9 + [5] * 4 + [4] * 2 + [9]
    batches = length_batches(lengths, 4)
    assert sorted(np.concatenate(batches).tolist()) == list(range(16))
    assert [[lengths[i] for i in batch] for batch in batches] == [
        [3, 3, 3, 3], [3, 3, 3, 3], [3, 4, 4], [5, 5, 5, 5], [9]
    ]  # fmt: skip


def test_texts_of_siglip_keep_the_padding_that_the_tower_reads(encoders):
    folder = str(encoders["siglip_text"])
    model = CUEModel.from_encoders(text=folder, projection_dim=16, composition_dim=16).eval()
    processor = CUEProcessor.from_encoders(text=folder)
    texts = ["a red dog", "cat", "big cat", "red dog"]
    axis, radius = Embedder(model, processor, ["text"]).texts(texts)
    with torch.no_grad():
        own = model.get_text_cones(**processor(text=texts))
    torch.testing.assert_close(axis, own.axis)
    torch.testing.assert_close(radius, own.radius)


def test_tokens_are_those_of_a_call(processor):
    texts = ["a dog", "a small red cat jumps on the big blue square", "dog " * 50]
    called = processor(text=texts)
    for line, ids, mask in zip(processor.token_ids(texts), called["input_ids"], called["attention_mask"], strict=True):
        assert line == ids[mask.bool()].tolist()
    with pytest.raises(ValueError, match="text number 1 is empty"):
        processor.token_ids(["a dog", " "])
