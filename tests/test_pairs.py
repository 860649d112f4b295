"""What an epoch goes through, of rows that can be indexed and of streams, by one process and by several."""

from collections import Counter

import numpy as np
import pytest
import torch
from accelerate.data_loader import IterableDatasetShard
from datasets import Dataset
from torch.utils.data import DataLoader

from modeling_cue.training.data import load_rows
from modeling_cue.training.draws import UNREAD
from modeling_cue.training.pairs import CaptionPairs, CaptionStream, caption_pairs
from modeling_cue.training.rows import BadRows
from modeling_cue.training.streams import RowStream

COUNTS = (1, 5, 7, 5, 2, 5)


def rows_of(numbers):
    return [
        {
            "img_id": str(n),
            "image": f"image {n}".encode(),
            "caption": [f"caption {k} of {n}" for k in range(COUNTS[n])],
        }
        for n in numbers
    ]


ALL_PAIRS = Counter((str(n), k) for n, count in enumerate(COUNTS) for k in range(count))


def pairs_of(items):
    """Counts (image, caption), having checked that no item mixes rows."""
    for item in items:
        number = int(item["id"])
        image = item["image"]["bytes"] if isinstance(item["image"], dict) else item["image"]
        assert image == f"image {number}".encode()
        assert item["caption"] == rows_of([number])[0]["caption"]
    return Counter((item["id"], k) for item in items for k in item["caption_index"])


@pytest.fixture
def source(tmp_path):
    """Two files, so that two workers have something to share."""
    (tmp_path / "data").mkdir()
    for part, numbers in enumerate(((0, 1, 2), (3, 4, 5))):
        Dataset.from_list(rows_of(numbers)).to_parquet(tmp_path / "data" / f"train-{part:05d}-of-00002.parquet")
    return tmp_path


@pytest.fixture
def load(source):
    def load_here(**options):
        return load_rows(str(source / "data"), "train", cache_dir=str(source / "cache"), **options)

    return load_here


# More workers than cores are worth a warning, not in a test.
few_cores = pytest.mark.filterwarnings("ignore:This DataLoader will create")
both_ways = pytest.mark.parametrize("streaming", [False, True])


@both_ways
def test_an_epoch_is_every_pair_once(load, streaming):
    pairs = caption_pairs(load(streaming=streaming), 1)
    assert isinstance(pairs, CaptionStream if streaming else CaptionPairs)
    items = list(pairs)
    assert len(items) == sum(COUNTS)
    assert pairs_of(items) == ALL_PAIRS
    assert all(len(item["caption_index"]) == 1 for item in items)


@both_ways
def test_an_epoch_is_every_image_once_with_all_captions(load, streaming):
    items = list(caption_pairs(load(streaming=streaming), "all"))
    assert len(items) == len(COUNTS)
    assert pairs_of(items) == ALL_PAIRS


def test_pairs_can_be_indexed(load):
    pairs = caption_pairs(load(), "1")
    assert len(pairs) == sum(COUNTS)
    assert [(pairs[i]["index"], pairs[i]["caption_index"]) for i in (0, 1, 5, 6, 24)] == [
        (0, [0]), (1, [0]), (1, [4]), (2, [0]), (5, [4]),
    ]  # fmt: skip
    with pytest.raises(IndexError, match="item 25 is not among the 25 of this data"):
        pairs[25]
    assert len(caption_pairs(load(), "all")) == len(COUNTS)


@pytest.mark.parametrize("every", [False, True])
def test_items_of_a_batch_are_those_read_one_by_one(load, every):
    pairs = CaptionPairs(load(), every, images=[f"decoded {n}" for n in range(len(COUNTS))])
    items = np.array([4, 0, 4, len(pairs) - 1], dtype=np.int32)
    assert pairs.__getitems__(items) == [pairs[item] for item in items.tolist()]
    with pytest.raises(IndexError, match=f"item {len(pairs)} is not among the {len(pairs)} of this data"):
        pairs.__getitems__([0, len(pairs)])


def test_pairs_shuffled_by_a_loader_stay_whole(load):
    torch.manual_seed(0)
    loader = DataLoader(caption_pairs(load(), 1), batch_size=4, shuffle=True, collate_fn=list)
    assert pairs_of([item for batch in loader for item in batch]) == ALL_PAIRS


def test_captions_per_image(load):
    with pytest.raises(ValueError, match="captions_per_image=3 is not valid; it must be 1 or all"):
        caption_pairs(load(), 3)


# ---------------------------------------------------------------------- streams


def order(stream):
    return [(item["id"], *item["caption_index"]) for item in stream]


def test_a_stream_is_shuffled_anew_each_epoch_and_the_same_again(load):
    stream = caption_pairs(load(streaming=True), 1, seed=3)
    orders = []
    for epoch in (0, 1, 0):
        stream.set_epoch(epoch)
        orders.append(order(stream))
    assert orders[0] == orders[2] != orders[1]
    assert orders[0] != sorted(orders[0])
    assert orders[0] == order(caption_pairs(load(streaming=True), 1, seed=3))
    assert orders[0] != order(caption_pairs(load(streaming=True), 1, seed=4))


@pytest.mark.parametrize("size", [0, 1])
def test_a_stream_without_a_buffer_keeps_its_order(load, size):
    in_order = order(caption_pairs(load(), 1))
    assert order(caption_pairs(load(streaming=True), 1, shuffle_buffer_size=size)) == in_order


@pytest.mark.parametrize("size", [2, 4, 25, 1000])
def test_a_buffer_loses_nothing(load, size):
    assert pairs_of(list(caption_pairs(load(streaming=True), 1, shuffle_buffer_size=size))) == ALL_PAIRS


@pytest.mark.parametrize("size", [0, 1, 3])
def test_a_small_buffer_reads_no_further_than_it_must(load, monkeypatch, size):
    read = []
    rows = load(streaming=True)
    plain = RowStream._form
    monkeypatch.setattr(RowStream, "_form", lambda self, row, name: read.append(name) or plain(self, row, name))
    stream = iter(CaptionStream(rows, True, shuffle_buffer_size=size))
    next(stream)
    assert len(read) == max(size, 1)


@few_cores
@pytest.mark.parametrize("workers", [1, 2])
def test_workers_share_a_stream(load, workers):
    stream = caption_pairs(load(streaming=True), 1)
    loader = DataLoader(stream, batch_size=4, num_workers=workers, collate_fn=list)
    assert pairs_of([item for batch in loader for item in batch]) == ALL_PAIRS


@few_cores
@pytest.mark.parametrize(("workers", "limit", "expected"), [(2, 4, "0134"), (2, 3, "013"), (1, 4, "0123")])
def test_workers_share_a_limit(load, workers, limit, expected):
    stream = caption_pairs(load(streaming=True, max_samples=limit), "all")
    loader = DataLoader(stream, batch_size=1, num_workers=workers, collate_fn=list)
    assert sorted(item["id"] for (item,) in loader) == list(expected)


@few_cores
def test_rows_left_out_by_workers_are_counted(source):
    Dataset.from_list([{**rows_of([0])[0], "caption": []}]).to_parquet(source / "data" / "train-extra.parquet")
    bad_rows = BadRows("skip")
    rows = load_rows(str(source / "data"), "train", cache_dir=str(source / "cache"), streaming=True, bad_rows=bad_rows)
    loader = DataLoader(caption_pairs(rows, 1), batch_size=4, num_workers=2, collate_fn=list)
    assert pairs_of([item for batch in loader for item in batch]) == ALL_PAIRS
    assert bad_rows.count == 1


def test_processes_share_each_batch_and_take_as_many_steps(load):
    """As Accelerate does it: every process reads all, and takes its part of each global batch."""
    seen, steps = [], []
    for process in range(2):
        shard = IterableDatasetShard(
            caption_pairs(load(streaming=True), 1, seed=1), batch_size=3, num_processes=2, process_index=process
        )
        shard.set_epoch(0)
        items = list(shard)
        steps.append(len(items))
        seen += items
    # 25 pairs in global batches of 6: the last is filled up with the first 5 again.
    assert steps == [15, 15]
    counted = pairs_of(seen)
    assert set(counted) == set(ALL_PAIRS)
    assert sum(counted.values()) == 30


def test_a_stream_that_goes_on_reads_nothing_of_what_is_skipped(load):
    def items(unread):
        stream = caption_pairs(load(streaming=True), 1)
        stream.unread = unread
        return list(stream)

    whole, rest = items((0, 0)), items((2, 2))
    assert [set(item) for item in rest[:4]] == [{UNREAD}] * 4
    assert [item["draw"] for item in rest[4:]] == [item["draw"] for item in whole[4:]]
