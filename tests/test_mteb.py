"""mteb runs a CUE on tasks of real photographs and captions, and finds what CUE's own evaluation finds."""

import sys
from pathlib import Path

import pytest

from modeling_cue.training.data import load_rows

ROOT = Path(__file__).resolve().parents[1]
NEEDS = "needs mteb: pip install cue-embedder[mteb]"


@pytest.mark.filterwarnings("ignore")  # mteb's and its requirements' own
def test_mteb_finds_our_recall(_model, processor, shared, tmp_path, monkeypatch):
    pytest.importorskip("sentence_transformers", "6.2", reason=NEEDS)
    pytest.importorskip("mteb", "2.26", reason=NEEDS)
    monkeypatch.setattr(sys, "path", [str(ROOT / "benchmarks"), *sys.path])
    import mteb_cue

    _model.save_pretrained(tmp_path / "cue")
    processor.save_pretrained(tmp_path / "cue")
    rows = list(load_rows(str(shared / "data" / "flickr8k"), "test", max_samples=50))
    for row in rows:
        row["caption"] = [text.replace(",", "") for text in row["caption"]]  # the tiny tokenizer's last token
    encoder = mteb_cue.CUEEncoder(str(tmp_path / "cue"), device="cpu")
    assert encoder.mteb_model_meta.modalities == ["text", "image", "audio", "video"]
    tasks = mteb_cue.local_tasks(rows)
    assert [(task.metadata.type, task.metadata.category) for task in tasks] == [
        ("Any2AnyRetrieval", "i2t"), ("Any2AnyRetrieval", "t2i"), ("Retrieval", "t2t"),
    ]  # fmt: skip
    found, own = mteb_cue.scores(encoder, tasks, batch_size=16), mteb_cue.own_recall(encoder, rows)
    assert set(found) == set(own) == {"LocalI2T", "LocalT2I", "LocalT2T"}
    for name, recall in own.items():
        for k, share in recall.items():
            assert found[name][f"hit_rate_at_{k}"] == pytest.approx(share, abs=1e-6)
        assert 0 < recall[1] < recall[10] < 1
