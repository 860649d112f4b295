"""Data sets of the hub, from a loopback Hub laid out like the real one, read by processes that know no other."""

import importlib.util
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from datasets import Dataset, Features, Image, List, Value

HUBSIM = Path(__file__).parents[2] / "shared" / "tools" / "hubsim.py"
pytestmark = [
    pytest.mark.hub,
    pytest.mark.skipif(not HUBSIM.is_file(), reason="needs ../shared/tools/hubsim.py, a loopback Hub"),
]
FEATURES = Features(
    {
        "image": Image(),
        "caption": List(Value("string")),
        "sentids": List(Value("string")),
        "split": Value("string"),
        "img_id": Value("string"),
        "filename": Value("string"),
    }
)
SPLITS = ("train", "val", "train", "test", "train", "test", "train", "train")


def jpeg(number):
    """Bytes that nobody decodes here."""
    return random.Random(number).randbytes(3000 + number)


def rows(numbers):
    return [
        {
            "image": {"bytes": jpeg(n), "path": f"{n}.jpg"},
            "caption": [f"caption {k} of {n}" for k in range(5)],
            "sentids": [str(5 * n + k) for k in range(5)],
            "split": SPLITS[n % len(SPLITS)],
            "img_id": str(n),
            "filename": f"{n}.jpg",
        }
        for n in numbers
    ]


def lay_out(folder):
    """Real names and layouts: a loading script and its parquet files, one without splits, a ready-made one."""
    script = folder / "nlphuji" / "flickr30k"
    converted = script / "@refs/convert/parquet/TEST/test"
    converted.mkdir(parents=True)
    (script / "flickr30k.py").write_text("raise SystemExit('a loading script was run')\n")
    Dataset.from_list(rows(range(8)), features=FEATURES).to_parquet(converted / "0000.parquet")

    plain = folder / "lmms-lab" / "flickr30k" / "data"
    plain.mkdir(parents=True)
    without = Features({name: feature for name, feature in FEATURES.items() if name != "split"})
    for part in range(2):
        some = [{k: v for k, v in row.items() if k != "split"} for row in rows(range(part * 20, part * 20 + 20))]
        Dataset.from_list(some, features=without).to_parquet(plain / f"test-{part:05d}-of-00002.parquet")

    for name in ("karpathy", "streamed"):
        ready = folder / "org" / name / "data"
        ready.mkdir(parents=True)
        for split, numbers in (("train", range(4)), ("validation", range(4, 6)), ("test", range(6, 8))):
            Dataset.from_list(rows(numbers), features=FEATURES).to_parquet(ready / f"{split}-00000-of-00001.parquet")

    images = folder / "org" / "photos" / "train"
    images.mkdir(parents=True)
    for number in range(3):
        (images / f"{number}.jpg").write_bytes(jpeg(number))
    lines = [json.dumps({"file_name": f"{n}.jpg", "caption": f"photo {n}"}) for n in range(3)]
    (images / "metadata.jsonl").write_text("\n".join(lines))

    paths = folder / "org" / "paths"
    paths.mkdir(parents=True)
    (paths / "train.jsonl").write_text(json.dumps({"image": "/etc/passwd", "caption": "x"}))


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    spec = importlib.util.spec_from_file_location("hubsim", HUBSIM)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    root = tmp_path_factory.mktemp("hub")
    lay_out(root / "seed" / "datasets")
    with module.HubSim(str(root / "store")) as hub:
        hub.store.seed(str(root / "seed"))
        yield hub


PROGRAM = """
import json, logging, os, sys
from modeling_cue.training.data import load_rows
from modeling_cue.training.rows import DataError

logging.basicConfig(level=logging.INFO, stream=sys.stderr)
answers = []
for source, split, options in json.loads(sys.argv[1]):
    try:
        found = [[row["id"], row["caption"], len(row["image"]["bytes"] or open(row["image"]["path"], "rb").read())]
                 for row in load_rows(source, split, **options)]
    except DataError as error:
        found = str(error)
    answers.append(found)
print(json.dumps(answers))
"""


LOOSE = {"check_counts": False}
CUT = LOOSE | {"split_sizes": [5, 10]}
NAMES = ("train", "validation", "test")


def questions(streaming):
    """What is loaded, by what is expected of it."""
    options = {"streaming": streaming}
    return {
        **{f"script {name}": ("nlphuji/flickr30k", name, LOOSE | options) for name in (*NAMES, "dream")},
        "script limited": ("nlphuji/flickr30k", "train", options | {"max_samples": 2}),
        **{f"cut {name}": ("lmms-lab/flickr30k", name, CUT | options) for name in NAMES},
        "ready": ("org/karpathy", "val", options),
        "photos": ("org/photos", "train", options),
        "paths": ("org/paths", "train", options),
        "missing": ("org/missing", "train", options),
    }


@pytest.fixture(scope="module")
def answers(hub, tmp_path_factory):
    """Answers to all questions, by streaming and question, and what was logged: by one process with its own caches."""
    home = tmp_path_factory.mktemp("home")
    asked = {(streaming, name): q for streaming in (False, True) for name, q in questions(streaming).items()}
    asked["streamed"] = ("org/streamed", "test", {"streaming": True, "max_samples": 1})
    asked["counts"] = ("nlphuji/flickr30k", "train", {})
    asked["counts of all"] = ("lmms-lab/flickr30k", "train", {"split_sizes": [5, 10]})
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment |= hub.env(home=home) | {"PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, "-c", PROGRAM, json.dumps(list(asked.values()))]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=home)
    assert ran.returncode == 0, ran.stderr
    return dict(zip(asked, json.loads(ran.stdout), strict=True)) | {"log": ran.stderr}


def expected(numbers):
    return [[row["img_id"], row["caption"], len(row["image"]["bytes"])] for row in rows(numbers)]


both_ways = pytest.mark.parametrize("streaming", [False, True])


@both_ways
def test_a_loading_script_is_read_from_its_parquet_files(answers, streaming):
    assert answers[streaming, "script train"] == expected((0, 2, 4, 6, 7))
    assert answers[streaming, "script validation"] == expected((1,))
    assert answers[streaming, "script test"] == expected((3, 5))
    assert answers[streaming, "script limited"] == expected((0, 2))
    told = "is empty" if streaming else "it has: train, validation, test"
    assert told in answers[streaming, "script dream"]
    assert "nlphuji/flickr30k is a loading script; reading its parquet files (refs/convert/parquet)" in answers["log"]


def test_counts_of_a_known_data_set(answers):
    assert "nlphuji/flickr30k is known to have 31014 images; here it has 8" in answers["counts"]
    assert "lmms-lab/flickr30k is known to have 31783 images; here it has 40" in answers["counts of all"]


@both_ways
def test_a_data_set_without_splits_is_cut(answers, streaming):
    cut = [answers[streaming, f"cut {name}"] for name in NAMES]
    assert [len(found) for found in cut] == [25, 5, 10]
    assert sorted(int(row[0]) for found in cut for row in found) == list(range(40))
    assert cut == [answers[not streaming, f"cut {name}"] for name in NAMES]


def test_streaming_asks_for_no_more_than_it_needs(answers, hub):
    """Parts of files: of the split's own, and of the first one, which tells the columns."""
    assert answers["streamed"] == expected((6,))
    asked = [r for r in hub.requests("GET", "org/streamed/resolve") if "parquet" in r["path"]]
    assert {r["status"] for r in asked} == {206}
    assert {Path(r["path"]).name.split("-")[0] for r in asked} == {"train", "test"}


@both_ways
def test_ready_made_splits_and_image_folders(answers, streaming):
    assert answers[streaming, "ready"] == expected((4, 5))
    photos = [[f"train/{number}.jpg", [f"photo {number}"], 3000 + number] for number in range(3)]
    assert answers[streaming, "photos"] == photos


@both_ways
def test_what_cannot_be_read(answers, streaming):
    assert "in local data only" in answers[streaming, "paths"]
    assert "'org/missing' is no file or folder here and no data set that the hub" in answers[streaming, "missing"]
