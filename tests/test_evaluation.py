"""Evaluation of a whole data set: every row counts once, whoever reads it."""

import pytest
from datasets import Dataset
from samples import make_rows
from torch.utils.data import ConcatDataset
from trainers import make_trainer

from modeling_cue.training.data import load_rows
from modeling_cue.training.pairs import CaptionPairs
from modeling_cue.training.rows import BadRows

# More workers than cores are worth a warning, not in a test; a few steps of tiny towers hardly move the radii.
pytestmark = [
    pytest.mark.filterwarnings("ignore:This DataLoader will create"),
    pytest.mark.filterwarnings("ignore:.*radii have gone to one value"),
]


def test_a_last_batch_of_broken_rows_changes_nothing(model, processor, tmp_path):
    rows = make_rows(("image",)).to_list()
    good, broken = Dataset.from_list(rows[:5]), Dataset.from_list([*rows[:5], {**rows[5], "image": {"bytes": b"no"}}])
    found = []
    for data in (good, broken):
        trainer = make_trainer(model, processor, tmp_path, per_device_eval_batch_size=5)
        trainer.eval_collator.bad_rows = BadRows("skip")
        found.append(trainer.evaluate(CaptionPairs(data, every_caption=True)))
    assert trainer.eval_collator.bad_rows.count == 1
    for name in found[0]:
        if not name.endswith(("runtime", "per_second")):
            assert found[1][name] == pytest.approx(found[0][name], abs=1e-6), name


@pytest.mark.parametrize("wrapped", [list, ConcatDataset])
def test_rows_as_they_were_loaded_are_evaluated_whole(model, processor, tmp_path, wrapped):
    rows = make_rows(("image",))
    trainer = make_trainer(model, processor, tmp_path, per_device_eval_batch_size=2)
    expected, found = trainer.evaluate(), trainer.evaluate(rows)
    assert found["eval_t2i_chance_R@1"] == pytest.approx(1 / 6)
    assert found["eval_rsum"] == pytest.approx(expected["eval_rsum"])
    halves = [CaptionPairs(rows.select(half), every_caption=True) for half in (range(3), range(3, 6))]
    found = trainer.evaluate(ConcatDataset(halves) if wrapped is ConcatDataset else rows.to_list())
    assert found["eval_rsum"] == pytest.approx(expected["eval_rsum"])


def test_no_rows_are_refused(model, processor, tmp_path):
    with pytest.raises(ValueError, match="there are no rows"):
        make_trainer(model, processor, tmp_path).evaluate(make_rows(("image",)).select([]))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_is_evaluated_whole(model, processor, tmp_path, workers):
    rows = make_rows(("image",))
    (tmp_path / "data").mkdir()
    for part in range(2):  # two files, so that two workers have something to share
        rows.shard(2, part).to_parquet(tmp_path / "data" / f"validation-{part:05d}-of-00002.parquet")
    stream = load_rows(str(tmp_path / "data"), "validation", streaming=True, cache_dir=str(tmp_path / "cache"))
    trainer = make_trainer(model, processor, tmp_path, dataloader_num_workers=workers)
    expected, found = trainer.evaluate(), trainer.evaluate(stream)
    assert found["eval_t2i_chance_R@1"] == pytest.approx(1 / 6)
    assert found["eval_rsum"] == pytest.approx(expected["eval_rsum"])
