"""Batches of captions of about one length: less padding, every item once, another order each epoch."""

import pytest
import torch
from samples import make_rows
from trainers import make_trainer

from modeling_cue.training.arguments import CUETrainingArguments
from modeling_cue.training.pairs import CaptionPairs, GroupedByLength


@pytest.fixture
def pairs():
    rows = make_rows(count=64)
    captions = [[" ".join(["dog"] * (1 + (7 * i + 3 * k) % 23)) for k in range(2)] for i in range(64)]
    return CaptionPairs(rows.remove_columns("caption").add_column("caption", captions))


def batches(model, processor, folder, pairs, strategy):
    trainer = make_trainer(model, processor, folder, per_device_train_batch_size=8, train_sampling_strategy=strategy)
    trainer.train_dataset, trainer.data_collator.phrases_per_caption = pairs, 0
    found = [batch["model"] for batch in trainer.get_train_dataloader()]
    return [inputs["attention_mask"][inputs["text_index"]] for inputs in found]


def test_padding_falls(model, processor, tmp_path, pairs):
    masks = {s: batches(model, processor, tmp_path, pairs, s) for s in ("random", "group_by_length")}
    padding = {s: sum(int((m == 0).sum()) for m in several) for s, several in masks.items()}
    tokens = {s: sum(int(m.sum()) for m in several) for s, several in masks.items()}
    assert tokens["random"] == tokens["group_by_length"]
    assert padding["group_by_length"] < padding["random"] / 2


def test_every_item_once_and_the_same_in_every_process(pairs):
    lengths = pairs.lengths()
    assert lengths == [len(pairs[i]["caption"][pairs[i]["caption_index"][0]]) for i in range(len(pairs))]
    one, other = GroupedByLength(8, lengths, seed=1), GroupedByLength(8, lengths, seed=1)
    first = list(one)
    torch.rand(3)  # what processes draw in between differs
    assert sorted(first) == list(range(128))
    assert first == list(other)
    other.set_epoch(1)
    assert sorted(other) == sorted(first)
    assert list(other) != first


def test_with_all_captions_the_longest_counts(pairs):
    every = CaptionPairs(pairs.rows, every_caption=True)
    assert every.lengths() == [max(map(len, row["caption"])) for row in pairs.rows]


def test_an_order_that_is_not_there(tmp_path):
    with pytest.raises(ValueError, match="'by_size' is not valid; it must be one of random, sequential, group_by_len"):
        CUETrainingArguments(output_dir=str(tmp_path), use_cpu=True, train_sampling_strategy="by_size")
