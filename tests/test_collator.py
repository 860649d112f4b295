"""CUECollator: what stands in a batch, what is true of what, and broken rows."""

import pytest
import torch
from samples import make_rows

from modeling_cue.training.collator import CUECollator, row_phrases
from modeling_cue.training.pairs import CaptionPairs
from modeling_cue.training.phrases import hash_id, normalise
from modeling_cue.training.rows import BadRows
from modeling_cue.training.scenes import make_scenes

ALL = ("text", "image", "audio", "video")


def test_a_batch_of_four_modalities(processor):
    rows = CaptionPairs(make_rows(("image", "audio", "video")), every_caption=True)
    batch = CUECollator(processor, ALL, None)([rows[i] for i in range(3)])
    inputs, kinds = batch["model"], batch["rows"]
    phrases = len(kinds["phrase"]["ids"])
    assert len(inputs["text_index"]) == 6 + phrases
    assert inputs["pixel_values"].shape == (3, 3, 32, 32)
    assert inputs["pixel_values_videos"].shape == (3, 3, 3, 32, 32)
    assert len(inputs["input_features"]) == 3
    assert set(kinds) == {*ALL, "phrase", "composed"}
    assert kinds["image"]["ids"].tolist() == [hash_id(f"sample {i}") for i in range(3)]
    # Parts are rows of the phrases, which come after the captions.
    assert inputs["parts"].max() < 6 + phrases
    assert inputs["parts"][inputs["parts"] >= 0].min() == 6
    for kind in kinds.values():
        assert {len(column) for column in kind.values()} == {len(kind["ids"])}
        assert len(kind["key"].unique()) == len(kind["key"])


def test_a_text_that_comes_up_twice_is_embedded_once_and_counts_twice(processor, model):
    rows = CaptionPairs(make_scenes("train", 8), every_caption=True)
    batch = CUECollator(processor, ("text",), None)([rows[i] for i in range(8)])
    inputs = batch["model"]
    texts = [t for i in range(8) for t in rows[i]["caption"]]
    texts += [p for i in range(8) for line in rows[i]["phrases"] for p in line]
    assert len(inputs["text_index"]) == len(texts)
    assert len(inputs["input_ids"]) == len(set(texts)) < len(texts)
    weights = torch.randn(len(texts), generator=torch.Generator().manual_seed(0))
    found = []
    for given in (inputs, {**dict(processor(text=texts)), "parts": inputs["parts"]}):
        model.zero_grad()
        output = model.eval()(**given)
        (output.text_embeds[:, 0] @ weights + output.text_radius @ weights + output.composed_radius.sum()).backward()
        gradients = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
        found.append((output.text_embeds, output.text_radius, output.composed_embeds, torch.cat(gradients)))
    for once, each in zip(*found, strict=True):
        assert (once - each).norm() <= 1e-5 * each.norm()


def test_phrases_and_captions_say_what_they_imply(processor):
    row = CaptionPairs(make_rows(), every_caption=True)[0]
    kinds = CUECollator(processor, ALL, None)([row])["rows"]
    caption = set(kinds["text"]["implies"][0].tolist())
    first = [r for r, key in zip(kinds["phrase"]["requires"], kinds["phrase"]["key"], strict=True) if key < 128]
    assert all(int(r[0]) in caption for r in first)
    assert hash_id(normalise(row["caption"][0])) in caption
    assert set(kinds["text"]["words"][0].tolist()) <= set(kinds["image"]["words"][0].tolist()) | {0}


def test_drawn_phrases_are_few_and_random(processor):
    pairs, collator = CaptionPairs(make_rows()), CUECollator(processor, ALL, 1)

    def drawn(epoch):
        pairs.set_epoch(epoch)
        return int(collator([pairs[0]])["rows"]["phrase"]["requires"][0, 0])

    state = torch.get_rng_state()
    epochs = [drawn(epoch) for epoch in range(30)]
    assert len(set(epochs)) > 1
    # Neither what was drawn before nor the process decides, and the model's own random state stays as it was.
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(1)
    assert [drawn(epoch) for epoch in range(30)] == epochs
    assert "composed" not in collator([pairs[0]])["rows"]
    assert "phrase" not in CUECollator(processor, ALL, 0)([pairs[0]])["rows"]


def test_scenes_bring_their_own_truth_and_parts(processor):
    rows = CaptionPairs(make_scenes("train", 2, parts=True), every_caption=True)
    batch = CUECollator(processor, ALL, 2)([rows[0], rows[1]])
    assert batch["rows"]["text"]["words"].shape[1] == 0
    assert set(rows[0]["caption_requires"][0]) <= set(batch["rows"]["image"]["implies"][0].tolist())
    # The pictures and sounds of single things follow those of the samples.
    assert len(batch["model"]["pixel_values"]) + len(batch["model"]["input_features"]) == 2 + 2 + 2
    assert len(batch["rows"]["image"]["ids"]) == 2
    rows_in_all = sum(
        len(batch["model"][n]) for n in ("text_index", "pixel_values", "input_features", "pixel_values_videos")
    )
    assert batch["model"]["parts"].max() < rows_in_all


def test_compounds_take_phrases_of_other_captions_in_training(processor):
    rows = CaptionPairs(make_scenes("train", 4), every_caption=True)
    torch.manual_seed(0)
    batch = CUECollator(processor, ALL, 2)([rows[i] for i in range(4)])
    parts, composed, phrase = batch["model"]["parts"], batch["rows"]["composed"], batch["rows"]["phrase"]
    assert {int(n) for n in (parts >= 0).sum(1)} >= {2, 3, 4}
    first = len(batch["rows"]["text"]["ids"])  # the rows of phrases follow those of captions
    for line, sample, requires in zip(parts, composed["ids"], composed["requires"], strict=True):
        own = line[line >= 0] - first
        assert len(set(own.tolist())) == len(own)
        assert set(phrase["ids"][own].tolist()) == {int(sample)}
        assert set(phrase["requires"][own].flatten().tolist()) == set(requires.tolist()) - {0}
    # Evaluation takes each caption's own phrases, all of them.
    batch = CUECollator(processor, ALL, None)([rows[0]])
    counts = [len(phrases) for phrases in rows[0]["phrases"] if len(phrases) > 1]
    assert (batch["model"]["parts"] >= 0).sum(1).tolist() == counts


def test_compounds_of_whole_captions_sounds_and_pictures(processor):
    rows = CaptionPairs(make_rows(("image", "audio")), every_caption=True)
    torch.manual_seed(0)
    collator = CUECollator(processor, ALL, 2, whole_parts=1.0)
    batch = collator([rows[i] for i in range(4)])
    kinds, parts = batch["rows"], batch["model"]["parts"]
    texts, phrases = len(kinds["text"]["ids"]), len(kinds["phrase"]["ids"])
    images = len(batch["model"]["pixel_values"])
    samples = torch.cat([kinds[kind]["ids"] for kind in ("text", "phrase", "image", "audio")])
    both = ("composed", "pictured")
    owners = torch.cat([kinds[kind]["ids"] for kind in both])
    required = [set(row.tolist()) - {0} for kind in both for row in kinds[kind]["requires"]]
    pictured = [False] * len(kinds["composed"]["ids"]) + [True] * len(kinds["pictured"]["ids"])
    said = torch.cat([kinds[kind]["requires"] for kind in ("text", "phrase")]).flatten()
    spoken = 0
    assert 0 < sum(pictured) < len(parts) == len(pictured)
    for line, sample, requires, with_picture in zip(parts, owners, required, pictured, strict=True):
        own = line[line >= 0]
        assert set(samples[own].tolist()) == {int(sample)}
        sounds = own >= texts + phrases + images
        pictures = (own >= texts + phrases) & ~sounds
        # The picture that is looked for is no part; where it is one, a phrase stands beside it.
        assert int(pictures.sum()) == int(with_picture)
        assert int(sounds.sum()) <= 1
        spoken += int(sounds.sum())
        assert set(said[own[~sounds & ~pictures]].tolist()) == requires
        if not sounds.any() and not with_picture:
            assert (own < texts).all()
    assert 0 < spoken < len(parts)
    # Evaluation composes phrases.
    batch = CUECollator(processor, ALL, None, whole_parts=1.0)([rows[0]])
    assert "pictured" not in batch["rows"]
    texts, phrases = (len(batch["rows"][kind]["ids"]) for kind in ("text", "phrase"))
    used = batch["model"]["parts"][batch["model"]["parts"] >= 0]
    assert ((used >= texts) & (used < texts + phrases)).all()


def test_captions_that_stand_alone_are_composed_of_their_phrases(processor):
    rows = make_rows(("image",)).map(lambda row: {"caption": row["caption"][:1]})
    collator = CUECollator(processor, ("text", "image"), 2, whole_parts=1.0)
    collator.modalities = ("text",)  # no picture beside it
    kinds = collator([row for row in rows if len(row_phrases(row, 0)) > 1])["rows"]
    assert len(kinds["composed"]["ids"]) == len(kinds["text"]["ids"]) > 0


def test_many_long_captions_keep_a_key_for_every_phrase(processor):
    rows = make_rows(count=2).to_list()
    for index, row in enumerate(rows):
        row |= {
            "index": index,
            "caption": [" and ".join(f"a red dog {k}" for k in range(70)), *["a dog and a cat"] * 70],
        }
    keys = CUECollator(processor, ALL, None)(rows)["rows"]["phrase"]["key"]
    assert len(keys) == 2 * (70 + 70 * 2)
    assert len(keys.unique()) == len(keys)


def test_no_compounds_where_none_are_asked_for(processor):
    rows = CaptionPairs(make_scenes("train", 2, parts=True), every_caption=True)
    batch = CUECollator(processor, ALL, 2, compounds=False)([rows[0], rows[1]])
    assert "parts" not in batch["model"]
    assert "composed" not in batch["rows"]
    assert len(batch["model"]["pixel_values"]) == 2  # nor the picture of a part


def test_a_broken_row_stops_the_run_by_its_id(processor):
    row = CaptionPairs(make_rows())[0]
    row["image"] = {"bytes": b"not an image", "path": None}
    with pytest.raises(ValueError, match="sample 0"):
        CUECollator(processor, ALL)([row])


def test_a_broken_row_is_skipped_and_counted(processor):
    good, bad = (CaptionPairs(make_rows())[i] for i in (0, 2))
    bad["image"] = {"bytes": b"not an image", "path": None}
    bad_rows = BadRows("skip")
    with pytest.raises(ValueError, match="every row of this batch is broken"):
        CUECollator(processor, ALL, bad_rows=BadRows("skip"))([bad])
    collator = CUECollator(processor, ALL, None, bad_rows=bad_rows)
    batch = collator([good, bad])
    assert batch["rows"]["image"]["ids"].tolist() == [hash_id("sample 0")]
    assert len(batch["model"]["pixel_values"]) == 1
    assert bad_rows.count == 1
    # A batch of broken rows only, as the last of an epoch may be: what was read before stands in.
    again = collator([bad])
    assert again["rows"]["image"]["key"].tolist() == batch["rows"]["image"]["key"].tolist()
    assert bad_rows.count == 2


def test_rows_may_lack_a_medium(processor):
    rows = [dict(CaptionPairs(make_rows(("image", "audio")))[i]) for i in (0, 2)]
    rows[1]["audio"] = None
    batch = CUECollator(processor, ALL)(rows)
    assert len(batch["model"]["input_features"]) == 1
    assert len(batch["model"]["pixel_values"]) == 2
