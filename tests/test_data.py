"""Rows from every kind of source, in one form; splits, limits, streams; and what bad input says."""

import csv
import gc
import io
import itertools
import json
import logging
import re

import numpy as np
import pytest
from datasets import Audio, Dataset, Features, Image, List, Value
from PIL import Image as PILImage
from samples import wav

from modeling_cue.training import data, row_forms
from modeling_cue.training.data import load_rows
from modeling_cue.training.rows import BadRowError, BadRows, DataError
from modeling_cue.training.sources import DataSource
from modeling_cue.training.splits import KnownCounts, made_splits

SHARED = "../shared/data"
FLICKR = Features(
    {
        "image": Image(),
        "caption": List(Value("string")),
        "sentids": List(Value("string")),
        "split": Value("string"),
        "img_id": Value("string"),
        "filename": Value("string"),
    }
)
# The splits of 8 rows, as the `split` column of Flickr30k has them.
KARPATHY = ("train", "val", "train", "test", "restval", "test", "train", "val")


def jpeg(number):
    file = io.BytesIO()
    PILImage.new("RGB", (8, 8), (number * 20 % 256, number, 90)).save(file, "JPEG")
    return file.getvalue()


def row(number, split="train", **changed):
    return {
        "image": {"bytes": jpeg(number), "path": f"{number}.jpg"},
        "caption": [f"caption {k} of {number}" for k in range(5)],
        "sentids": [str(number * 5 + k) for k in range(5)],
        "split": split,
        "img_id": str(number),
        "filename": f"{number}.jpg",
    } | changed


def parquet(folder, name, rows, features=FLICKR):
    folder.mkdir(exist_ok=True, parents=True)
    Dataset.from_list(rows, features=features).to_parquet(folder / name)
    return folder


@pytest.fixture
def load(tmp_path):
    def load_here(source, split, **options):
        return load_rows(str(source), split, cache_dir=str(tmp_path / "cache"), **options)

    return load_here


@pytest.fixture
def one_split(tmp_path):
    """A source like Flickr30k's own: one split of the source, and a column that tells Karpathy's."""
    rows = [row(number, split) for number, split in enumerate(KARPATHY)]
    return parquet(tmp_path / "flickr", "test-00000-of-00001.parquet", rows)


@pytest.fixture
def three_splits(tmp_path):
    for first, split in ((0, "train"), (4, "val"), (6, "test")):
        rows = [row(number, split) for number in range(first, first + (4 if split == "train" else 2))]
        parquet(tmp_path / "ready", f"{split}-00000-of-00001.parquet", rows)
    return tmp_path / "ready"


@pytest.fixture
def read_csv():
    """`datasets` leaves csv files open to the garbage collector: it is called before the next test."""
    yield
    gc.collect()


def reads_csv(test):
    return pytest.mark.usefixtures("read_csv")(
        pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")(test)
    )


both_ways = pytest.mark.parametrize("streaming", [False, True])


def ids(rows):
    return [row["id"] for row in rows]


# ---------------------------------------------------------------------- the form of a row


@both_ways
def test_a_row_has_one_form(load, one_split, streaming):
    rows = load(one_split, "validation", streaming=streaming)
    assert rows.column_names == ["id", "caption", "image"]
    assert list(rows) == [
        {"id": str(number), "caption": row(number)["caption"], "image": row(number)["image"]} for number in (1, 7)
    ]


@both_ways
def test_captions_stay_with_their_image(load, one_split, streaming):
    for found in load(one_split, "train", streaming=streaming):
        number = int(found["id"])
        assert found["image"]["bytes"] == jpeg(number)
        assert found["caption"] == row(number)["caption"]


@both_ways
@pytest.mark.parametrize("count", [1, 7])
def test_any_number_of_captions(load, tmp_path, streaming, count):
    captions = [f"caption {k}" for k in range(count)]
    folder = parquet(tmp_path / "data", "train.parquet", [row(1, caption=captions), row(2)])
    assert [found["caption"] for found in load(folder, "train", streaming=streaming)] == [captions, row(2)["caption"]]


@both_ways
def test_named_columns_and_audio(load, tmp_path, streaming):
    rows = [
        {"picture": jpeg(n), "sound": {"bytes": b"wav", "path": None}, "said": f"says {n}", "key": n} for n in (3, 4)
    ]
    features = Features(
        {
            "picture": Value("binary"),
            "sound": {"bytes": Value("binary"), "path": Value("string")},
            "said": Value("string"),
            "key": Value("int64"),
        }
    )
    folder = parquet(tmp_path / "data", "train.parquet", rows, features)
    names = {"image_column": "picture", "audio_column": "sound", "caption_column": "said", "id_column": "key"}
    found = list(load(folder, "train", streaming=streaming, **names))
    assert ids(found) == ["3", "4"]
    assert [f["caption"] for f in found] == [["says 3"], ["says 4"]]
    assert [f["image"] for f in found] == [{"bytes": jpeg(n), "path": None} for n in (3, 4)]
    assert found[0]["audio"] == {"bytes": b"wav", "path": None}


@both_ways
def test_only_wanted_media_are_looked_for(load, tmp_path, streaming):
    features = Features({"image": Image(), "audio": Audio(), "caption": Value("string")})
    rows = [{"image": {"bytes": jpeg(n), "path": None}, "audio": None, "caption": "x"} for n in (1, 2)]
    folder = parquet(tmp_path / "data", "train.parquet", rows, features)
    found = load(folder, "train", streaming=streaming, modalities=("text", "image"))
    assert set(found.column_names) == {"id", "caption", "image"}
    with pytest.raises(BadRowError, match="it has no audio"):
        list(load(folder, "train", streaming=streaming))


@both_ways
def test_without_ids_the_content_is_the_identity(load, tmp_path, streaming):
    features = Features({"image": Image(), "caption": Value("string")})
    rows = [{"image": {"bytes": jpeg(n), "path": "image.jpg"}, "caption": f"{k}"} for k, n in enumerate((5, 6, 5))]
    found = list(load(parquet(tmp_path / "data", "train.parquet", rows, features), "train", streaming=streaming))
    assert found[0]["id"] != found[1]["id"]
    if streaming:
        assert found[2]["id"] == found[0]["id"]
    else:  # what has the same content is one row
        assert [row["caption"] for row in found] == [["0", "2"], ["1"]]


def test_rows_of_one_id_are_one_row_where_their_media_are_the_same(load, tmp_path):
    features = Features({"id": Value("string"), "image": Image(), "caption": Value("string")})
    rows = [("x", 1, "one"), ("y", 2, "two"), ("x", 1, "uno"), ("x", 3, "three"), ("z", 1, "eins")]
    values = [{"id": i, "image": {"bytes": jpeg(n), "path": None}, "caption": text} for i, n, text in rows]
    found = list(load(parquet(tmp_path / "data", "train.parquet", values, features), "train"))
    assert [(row["id"], row["caption"]) for row in found] == [
        ("x", ["one", "uno"]), ("y", ["two"]), ("x", ["three"]), ("z", ["eins"])
    ]  # fmt: skip
    assert [row["image"]["bytes"] for row in found] == [jpeg(n) for n in (1, 2, 3, 1)]


# ---------------------------------------------------------------------- kinds of source


def write_images(folder, numbers):
    folder.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        (folder / f"{number}.jpg").write_bytes(jpeg(number))


@both_ways
def test_image_folder(load, tmp_path, streaming):
    for split, numbers in (("train", (0, 1)), ("test", (2,))):
        write_images(tmp_path / "images" / split, numbers)
        lines = [json.dumps({"file_name": f"{n}.jpg", "caption": [f"a {n}", f"the {n}"]}) for n in numbers]
        (tmp_path / "images" / split / "metadata.jsonl").write_text("\n".join(lines))
    rows = list(load(tmp_path / "images", "train", streaming=streaming))
    assert ids(rows) == ["train/0.jpg", "train/1.jpg"]
    assert rows[1]["caption"] == ["a 1", "the 1"]
    assert rows[1]["image"] == {"bytes": None, "path": str(tmp_path / "images" / "train" / "1.jpg")}
    assert ids(load(tmp_path / "images", "test", streaming=streaming)) == ["test/2.jpg"]


def write_table(path, header, lines):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *lines])
    return path


@reads_csv
@both_ways
def test_csv_paths_of_sounds(load, tmp_path, streaming):
    (tmp_path / "a.wav").write_bytes(wav(np.random.default_rng(0)))
    path = write_table(tmp_path / "captions.csv", ("audio", "caption"), [("a.wav", "one")])
    rows = list(load(path, "train", streaming=streaming))
    assert [(r["id"], r["audio"]) for r in rows] == [("a.wav", {"bytes": None, "path": str(tmp_path / "a.wav")})]


@reads_csv
@both_ways
def test_csv_paths_are_relative_to_the_file(load, tmp_path, streaming):
    write_images(tmp_path / "photos", (1, 2))
    path = write_table(
        tmp_path / "captions.csv",
        ("image", "caption", "split"),
        [("photos/1.jpg", "one", "train"), ("photos/1.jpg", "uno", "train"), ("photos/2.jpg", "two", "val")],
    )
    rows = list(load(path, "train", streaming=streaming))
    assert ids(rows) == ["photos/1.jpg"] * (2 if streaming else 1)
    assert [r["caption"] for r in rows] == ([["one"], ["uno"]] if streaming else [["one", "uno"]])
    assert rows[0]["image"] == {"bytes": None, "path": str(tmp_path / "photos" / "1.jpg")}
    assert ids(load(path, "dev", streaming=streaming)) == ["photos/2.jpg"]


@both_ways
def test_json_lines(load, tmp_path, streaming):
    write_images(tmp_path / "photos", (1, 2))
    lines = [{"image_path": f"photos/{n}.jpg", "captions": [f"a {n}"], "image_id": n} for n in (1, 2)]
    (tmp_path / "validation.jsonl").write_text("\n".join(map(json.dumps, lines)))
    rows = list(load(tmp_path / "validation.jsonl", "val", streaming=streaming))
    assert [(r["id"], r["caption"]) for r in rows] == [("1", ["a 1"]), ("2", ["a 2"])]


def test_folders_of_one_name_are_not_mixed_up(load, tmp_path):
    """`datasets` keys its cache by the patterns that a README has; and a folder may be written anew."""
    card = "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n    path: part.parquet\n---\n"
    for place, number in (("here", 1), ("there", 2)):
        parquet(tmp_path / place / "same", "part.parquet", [row(number)])
        (tmp_path / place / "same" / "README.md").write_text(card)
    assert ids(load(tmp_path / "here" / "same", "train")) == ["1"]
    assert ids(load(tmp_path / "there" / "same", "train")) == ["2"]
    parquet(tmp_path / "there" / "same", "part.parquet", [row(3), row(4)])
    assert ids(load(tmp_path / "there" / "same", "train")) == ["3", "4"]


# ---------------------------------------------------------------------- splits


@both_ways
def test_splits_of_the_split_column(load, one_split, streaming):
    assert ids(load(one_split, "train", streaming=streaming)) == ["0", "2", "4", "6"]  # 4 is restval
    assert ids(load(one_split, "dev", streaming=streaming)) == ["1", "7"]
    assert ids(load(one_split, "test", streaming=streaming)) == ["3", "5"]


@both_ways
@pytest.mark.parametrize("name", ["validation", "val", "dev"])
def test_splits_of_the_source(load, three_splits, streaming, name):
    assert ids(load(three_splits, name, streaming=streaming)) == ["4", "5"]
    assert len(ids(load(three_splits, "train", streaming=streaming))) == 4


@both_ways
def test_restval_of_the_source_counts_as_train(load, tmp_path, streaming):
    for split, number in (("train", 1), ("restval", 2), ("test", 3)):
        parquet(tmp_path / "coco" / "data", f"{split}-00000-of-00001.parquet", [row(number)])
    assert ids(load(tmp_path / "coco", "train", streaming=streaming)) == ["1", "2"]


@both_ways
def test_made_splits_are_disjoint_whole_and_the_same_either_way(load, tmp_path, streaming):
    rows = [{k: v for k, v in row(n).items() if k != "split"} for n in range(20)]
    features = Features({k: v for k, v in FLICKR.items() if k != "split"})
    folder = parquet(tmp_path / "data", "test.parquet", rows, features)
    cut = {name: ids(load(folder, name, streaming=streaming, split_sizes=(3, 5))) for name in ("train", "val", "test")}
    assert [len(cut[name]) for name in ("train", "val", "test")] == [12, 3, 5]
    assert sorted(itertools.chain(*cut.values()), key=int) == [str(n) for n in range(20)]
    expected = made_splits(map(str, range(20)), (3, 5), 0, "data")
    assert all(expected[name] == "validation" for name in cut["val"])
    assert cut["val"] != ids(load(folder, "val", streaming=streaming, split_sizes=(3, 5), split_seed=1))


@both_ways
def test_splits_of_its_own_are_not_pooled_and_cut_anew(load, tmp_path, streaming):
    for name in ("train", "test"):
        folder = parquet(tmp_path / "data", f"{name}.parquet", [row(n) for n in range(4)], FLICKR)
    with pytest.raises(DataError, match="split_sizes cuts data that comes in one piece, and .* has the splits"):
        load(folder, "train", streaming=streaming, split_sizes=(1, 1))


def test_made_splits_ignore_the_order():
    names = [str(n) for n in range(50)]
    assert made_splits(names, (5, 7), 3, "x") == made_splits(reversed(names), (5, 7), 3, "x")
    with pytest.raises(DataError, match=re.escape("split_sizes=(30, 20) is not valid for x, which has 50 images")):
        made_splits(names, (30, 20), 0, "x")


# ---------------------------------------------------------------------- limited data and streams


@both_ways
def test_limited_data_is_the_first_of_the_split(load, one_split, streaming):
    assert ids(load(one_split, "train", streaming=streaming, max_samples=3)) == ["0", "2", "4"]
    with pytest.raises(DataError, match="max_samples=0 is not valid"):
        load(one_split, "train", streaming=streaming, max_samples=0)


def test_one_of_several_configurations(tmp_path):
    card = "---\nconfigs:\n"
    for name in ("a", "b"):
        parquet(tmp_path / "data", f"{name}.parquet", [row(number) for number in range(2 if name == "a" else 3)])
        card += f"- config_name: {name}\n  data_files:\n  - split: train\n    path: {name}.parquet\n"
    (tmp_path / "data" / "README.md").write_text(f"{card}---\n")
    with pytest.raises(DataError, match=r"several configurations: .* \(--dataset_config_name NAME\)(?s:.)*'a', 'b'"):
        load_rows(str(tmp_path / "data"), "train")
    assert len(load_rows(DataSource(str(tmp_path / "data"), "b"), "train")) == 3
    with pytest.raises(DataError, match="dataset_config_name"):
        load_rows(DataSource(str(tmp_path / "data"), "c"), "train")


@pytest.fixture
def rows_read(monkeypatch):
    """Counts the rows whose content is looked at."""
    seen = []
    plain = row_forms.captions_of

    def spied(value):
        seen.append(value)
        return plain(value)

    monkeypatch.setattr(row_forms, "captions_of", spied)
    return seen


@both_ways
def test_limited_data_reads_no_more_rows_than_it_needs(load, tmp_path, rows_read, streaming):
    folder = parquet(tmp_path / "data", "train.parquet", [row(number) for number in range(40)])
    assert len(list(load(folder, "train", streaming=streaming, max_samples=6))) == 6
    assert len(rows_read) == 6


def test_a_stream_reads_as_it_goes(load, tmp_path, rows_read):
    folder = parquet(tmp_path / "data", "train.parquet", [row(number) for number in range(40)])
    stream = iter(load(folder, "train", streaming=True))
    assert len(rows_read) == 0
    for count in (1, 2, 3):
        next(stream)
        assert len(rows_read) == count


# ---------------------------------------------------------------------- bad input


@both_ways
def test_missing_column(load, one_split, streaming):
    there = "its columns are: image, caption, sentids, split, img_id, filename"
    with pytest.raises(DataError, match=f"has no column 'photo', which image_column names; {there}"):
        load(one_split, "train", streaming=streaming, image_column="photo")
    with pytest.raises(DataError, match=f"no column of images, audio or video .*looked for audio.*{there}"):
        load(one_split, "train", streaming=streaming, modalities=("audio",))


@both_ways
def test_no_captions_column(load, tmp_path, streaming):
    folder = parquet(
        tmp_path / "data",
        "train.parquet",
        [{"image": None, "label": 3}],
        Features({"image": Image(), "label": Value("int64")}),
    )
    with pytest.raises(DataError, match=r"no column of captions .* its columns are: image, label. .*caption_column"):
        load(folder, "train", streaming=streaming)


@both_ways
def test_column_of_another_type(load, one_split, streaming):
    with pytest.raises(DataError, match=r"column 'sentids' holds List.*, not image; name the one"):
        load(one_split, "train", streaming=streaming, image_column="sentids")


@both_ways
def test_missing_split(load, three_splits, streaming):
    with pytest.raises(DataError, match="has no split 'dream'; it has: train, validation, test"):
        load(three_splits, "dream", streaming=streaming)


def test_missing_split_of_a_column(load, one_split):
    with pytest.raises(DataError, match="has no split 'dream'; it has: train, validation, test"):
        load(one_split, "dream")
    with pytest.raises(DataError, match=r"split 'dream' of .* is empty"):
        load(one_split, "dream", streaming=True)


@both_ways
def test_empty_split(load, tmp_path, streaming):
    parquet(tmp_path / "data", "train.parquet", [row(1)])
    Dataset.from_dict({name: [] for name in FLICKR}, features=FLICKR).to_parquet(tmp_path / "data" / "test.parquet")
    with pytest.raises(DataError, match=r"split .*test.* is empty|a split of .* is empty .*\"test\""):
        load(tmp_path / "data", "test", streaming=streaming)


@pytest.mark.parametrize(
    ("twin", "label"),
    [
        (row(9, filename="0.jpg"), "filename '0.jpg'"),
        (row(0, filename="9.jpg"), "id '0'"),
    ],
)
def test_image_in_two_splits(load, three_splits, twin, label):
    parquet(three_splits, "test-00000-of-00001.parquet", [row(6), twin])
    with pytest.raises(DataError, match=f"the image of {label} stands in two splits, train and test"):
        load(three_splits, "validation")


def test_image_in_two_splits_of_a_column(load, tmp_path):
    rows = [row(1, "train"), row(2, "val"), row(1, "restval"), row(2, "test")]
    with pytest.raises(DataError, match="the image of id '2' stands in two splits, validation and test"):
        load(parquet(tmp_path / "data", "train.parquet", rows), "train")


def test_image_in_two_splits_by_content(load, tmp_path):
    features = Features({"image": Image(), "caption": Value("string")})
    for split, numbers in (("train", (1, 2)), ("test", (3, 1))):
        rows = [{"image": {"bytes": jpeg(n), "path": "image.jpg"}, "caption": split} for n in numbers]
        parquet(tmp_path / "data", f"{split}.parquet", rows, features)
    with pytest.raises(DataError, match="stands in two splits"):
        load(tmp_path / "data", "train")
    assert len(load(tmp_path / "data", "train", max_samples=2)) == 2


BROKEN = {
    "empty caption": (row(2, caption=["fine", " "]), "2", "caption 2 of 2 is empty"),
    "null caption": (row(2, caption=[None]), "2", "caption 1 of 1 is empty"),
    "no captions": (row(2, caption=[]), "2", "it has no caption"),
    "null captions": (row(2, caption=None), "2", "it has no caption"),
    "no image": (row(2, image=None), "2", "it has no image"),
    "no id": (row(2, img_id=None), "", "its img_id is empty"),
}


@both_ways
@pytest.mark.parametrize("case", BROKEN)
def test_broken_row(load, tmp_path, streaming, case, caplog):
    broken, name, reason = BROKEN[case]
    folder = parquet(tmp_path / "data", "train.parquet", [row(1), broken, row(3), row(4)])
    with pytest.raises(BadRowError, match=f"row '{name}.*{reason}.*on_bad_row"):
        list(load(folder, "train", streaming=streaming))
    bad_rows = BadRows("skip")
    with caplog.at_level(logging.WARNING):
        assert ids(load(folder, "train", streaming=streaming, max_samples=2, bad_rows=bad_rows)) == ["1", "3"]
    assert bad_rows.count == 1
    assert reason in caplog.text


def test_nothing_but_broken_rows(load, tmp_path):
    folder = parquet(tmp_path / "data", "train.parquet", [row(1, caption=[])])
    with pytest.raises(DataError, match="there is no row in it that can be used"):
        load(folder, "train", bad_rows=BadRows("skip"))


def test_policy_of_broken_rows():
    with pytest.raises(ValueError, match="on_bad_row='ignore' is not valid; it must be raise or skip"):
        BadRows("ignore")


@reads_csv
@both_ways
@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("photos/9.jpg", "its image 'photos/9.jpg' is not there"),
        ("../secret.jpg", "the path of its image, '../secret.jpg', leaves the data folder"),
        ("photos/../../secret.jpg", "leaves the data folder"),
        ("https://example.org/a.jpg", "is not there"),
        ("/etc/passwd", "the path of its image, '/etc/passwd', leaves the data folder"),
        ("file:///etc/passwd", "leaves the data folder"),
        ("zip://a.jpg::/etc/a.zip", "leaves the data folder"),
        ("", "it has no image"),
    ],
)
def test_path_that_leads_nowhere_or_out(load, tmp_path, streaming, path, reason):
    (tmp_path / "secret.jpg").write_bytes(jpeg(1))
    write_images(tmp_path / "data" / "photos", (1,))
    lines = [("photos/1.jpg", "one", "1"), (path, "two", "2")]
    table = write_table(tmp_path / "data" / "captions.csv", ("image", "caption", "id"), lines)
    with pytest.raises(BadRowError, match=re.escape(reason)):
        list(load(table, "train", streaming=streaming))
    bad_rows = BadRows("skip")
    assert ids(load(table, "train", streaming=streaming, bad_rows=bad_rows)) == ["1"]
    assert bad_rows.count == 1


@reads_csv
@both_ways
def test_image_folder_may_not_name_files_outside(load, tmp_path, streaming):
    (tmp_path / "secret.jpg").write_bytes(jpeg(1))
    write_images(tmp_path / "images", (1,))
    write_table(
        tmp_path / "images" / "metadata.csv", ("file_name", "caption"), [("1.jpg", "a"), ("../secret.jpg", "b")]
    )
    with pytest.raises((DataError, ValueError), match=r"Invalid metadata file_name '../secret.jpg'"):
        list(load(tmp_path / "images", "train", streaming=streaming))


@reads_csv
@both_ways
def test_a_folder_of_images_whose_table_would_not_be_read(load, tmp_path, streaming):
    write_images(tmp_path / "data" / "images", (1, 2))
    lines = [("images/1.jpg", "a"), ("images/2.jpg", "b")]
    table = write_table(tmp_path / "data" / "captions.csv", ("image", "caption"), lines)
    message = r"media beside the table 'captions.csv', which would not be read: call it metadata.csv, .*give the table"
    with pytest.raises(DataError, match=message):
        list(load(tmp_path / "data", "train", streaming=streaming))
    assert [row["caption"] for row in load(table, "train", streaming=streaming)] == [["a"], ["b"]]


@pytest.mark.parametrize("name", ["nowhere/", "./nowhere", "nowhere.csv", "/nowhere/at/all", "../up"])
def test_path_that_is_not_there(load, name):
    with pytest.raises(DataError, match=f"there is no file or folder {name!r}"):
        load(name, "train")


def test_file_of_another_kind(load, tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(DataError, match=r"is of no kind that can be read; it must be .csv, .tsv"):
        load(tmp_path / "notes.txt", "train")


def test_folder_without_data(load, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no data that can be read"):
        load(tmp_path / "empty", "train")


# ---------------------------------------------------------------------- known counts


@pytest.mark.parametrize(
    ("known", "message"),
    [
        (KnownCounts(8, {"train": 4, "validation": 2, "test": 2}, 40), None),
        (KnownCounts(9), "is known to have 9 images; here it has 8"),
        (KnownCounts(8, {"train": 5, "validation": 1, "test": 2}), "images by split"),
        (KnownCounts(8, captions=41), "is known to have 41 captions; here it has 40"),
    ],
)
def test_known_counts(load, one_split, monkeypatch, known, message):
    monkeypatch.setitem(data.KNOWN_COUNTS, str(one_split), known)
    assert len(load(one_split, "train", check_counts=False)) == 4
    assert len(load(one_split, "train", max_samples=2)) == 2
    assert len(list(load(one_split, "train", streaming=True))) == 4
    if message is None:
        assert len(load(one_split, "train")) == 4
    else:
        with pytest.raises(DataError, match=message):
            load(one_split, "train")


def test_known_sizes_cut_a_source_without_splits(load, one_split, monkeypatch):
    monkeypatch.setitem(data.KNOWN_COUNTS, str(one_split), KnownCounts(8, sizes=(1, 2)))
    assert [len(load(one_split, split)) for split in ("train", "validation", "test")] == [5, 1, 2]
    assert [len(load(one_split, split, split_sizes=(2, 3))) for split in ("train", "val", "test")] == [3, 2, 3]


def test_flickr30k_counts_add_up():
    karpathy, plain = data.KNOWN_COUNTS["nlphuji/flickr30k"], data.KNOWN_COUNTS["lmms-lab/flickr30k"]
    assert sum(karpathy.splits.values()) == karpathy.images == karpathy.captions // 5
    assert plain.images - karpathy.images == 769


# ---------------------------------------------------------------------- real data


@both_ways
@pytest.mark.parametrize(
    ("name", "media", "captions"), [("flickr8k", {"image"}, 2500), ("flickr8k_spoken", {"image", "audio"}, 315)]
)
def test_shared_data(load, request, name, media, captions, streaming):
    folder = request.config.rootpath / SHARED / name
    if not folder.is_dir():
        pytest.skip(f"needs {SHARED}/{name}")
    rows = load(folder, "val", streaming=streaming)
    assert set(rows.column_names) == {"id", "caption", *media}
    found = list(rows)
    assert sum(len(row["caption"]) for row in found) == captions
    assert len(set(ids(found))) == len(found)
    assert all(row["image"]["bytes"][:2] == b"\xff\xd8" for row in found)
    with PILImage.open(io.BytesIO(found[0]["image"]["bytes"])) as image:
        assert np.asarray(image).std() > 0


def test_a_list_that_was_written_as_text_is_refused(tmp_path):
    write_images(tmp_path, (1, 2))
    lines = [("1.jpg", str(["a dog", "the dog"])), ("2.jpg", "[sic] a cat")]
    path = write_table(tmp_path / "captions.csv", ("image", "caption"), lines)
    with pytest.raises(BadRowError, match="caption 1 of 1 is a list written as text: save lists as parquet"):
        load_rows(str(path), "train")
    rows = load_rows(str(path), "train", bad_rows=BadRows("skip"))
    assert rows[0]["caption"] == ["[sic] a cat"]
