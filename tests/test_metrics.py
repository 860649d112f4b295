import math

import pytest
import torch
from embedded import items, unit, world

from modeling_cue.training import metrics_retrieval
from modeling_cue.training.metrics import compute_all, retrieval_metrics
from modeling_cue.training.metrics_retrieval import (
    chance_recall,
    ranks_of_positives,
    relation_ranks,
    retrieval_ranks,
    summarise_ranks,
)


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


def slow_ranks(scores, positive, negative):
    """One query at a time: stable sort, with negatives before positives of the same score."""
    found = []
    for s, own, other in zip(scores.tolist(), positive.tolist(), negative.tolist(), strict=True):
        kept = [(-score, hit) for score, hit, miss in zip(s, own, other, strict=True) if hit or miss]
        found.append([place for place, (_, hit) in enumerate(sorted(kept), start=1) if hit])
    return found


@pytest.mark.parametrize("levels", [3, 10**6])
def test_ranks_equal_sorting_with_ties_and_unknown_items(generator, levels):
    scores = torch.randint(0, levels, (40, 15), generator=generator) / 7
    drawn = torch.rand(40, 15, generator=generator)
    positive, negative = drawn < 0.2, drawn > 0.3
    ranks = ranks_of_positives(scores, positive, negative)
    assert [[r for r in row if r] for row in ranks.tolist()] == slow_ranks(scores, positive, negative)


def test_equal_embeddings_get_the_worst_rank():
    same = torch.eye(2)[[0] * 6]
    ids = torch.arange(6)
    assert retrieval_ranks(same, same, ids, ids).flatten().tolist() == [6] * 6


def test_chunks_change_nothing(generator):
    queries, items_ = unit(17, 8, generator), unit(23, 8, generator)
    ids, item_ids = torch.randint(0, 9, (17,), generator=generator), torch.randint(0, 9, (23,), generator=generator)
    whole = retrieval_ranks(queries, items_, ids, item_ids)
    for chunk in (1, 5, 17, 100):
        assert retrieval_ranks(queries, items_, ids, item_ids, chunk).equal(whole)
    scores, positive = queries @ items_.T, ids[:, None] == item_ids[None]
    assert [[r for r in row if r] for row in whole.tolist()] == slow_ranks(scores, positive, ~positive)


def test_memory_is_bounded_by_chunks(generator, monkeypatch):
    seen = []
    real = metrics_retrieval._places
    monkeypatch.setattr(metrics_retrieval, "CHUNK_SCORES", 100)
    monkeypatch.setattr(metrics_retrieval, "CHUNK_QUERIES", 1)
    monkeypatch.setattr(metrics_retrieval, "_places", lambda s, *m: seen.append(s.numel()) or real(s, *m))
    retrieval_ranks(unit(50, 4, generator), unit(20, 4, generator), torch.arange(50), torch.arange(20))
    assert max(seen) <= 100
    assert sum(seen) == 50 * 20


def test_summary_of_known_ranks():
    # First ranks 1, 2, 11; a query without positives is left out.
    ranks = torch.tensor([[1, 3], [2, 0], [11, 12], [0, 0]])
    found = summarise_ranks("x", ranks)
    assert found["x_R@1"] == pytest.approx(1 / 3)
    assert found["x_R@5"] == found["x_R@10"] == pytest.approx(2 / 3)
    assert found["x_median_rank"] == 2
    # Of two positives one stands first of two: 1/2. Of one, none stands first: 0. None of two: 0.
    assert found["x_mAP@R"] == pytest.approx((1 / 2 + 0 + 0) / 3)
    assert summarise_ranks("x", torch.zeros(3, 2, dtype=torch.long)) == {}


def test_map_at_r_of_a_known_ranking():
    # R = 3, positives at 1, 3, 4: (1/1 + 2/3) / 3.
    assert summarise_ranks("x", torch.tensor([[1, 3, 4]]))["x_mAP@R"] == pytest.approx((1 + 2 / 3) / 3)


def test_chance_is_what_a_random_order_gives():
    # One positive among 4 items: k / 4. Two among 4: 1 - C(2, 1) / C(4, 1) = 1/2 at 1.
    assert chance_recall(torch.tensor([[1]]), 4)[1] == pytest.approx(1 / 4)
    assert chance_recall(torch.tensor([[1, 2]]), 4) == pytest.approx({1: 1 / 2, 5: 1, 10: 1})
    # Two among 12 at 5: 1 - (10 * 9 * 8 * 7 * 6) / (12 * 11 * 10 * 9 * 8) = 1 - 7 / 22.
    assert chance_recall(torch.tensor([[3, 7], [0, 0]]), 12)[5] == pytest.approx(1 - 7 / 22)


def test_retrieval_covers_every_two_modalities_both_ways(generator):
    found = retrieval_metrics(world(generator))
    names = {f"{a}2{b}" for a in "tiav" for b in "tiav" if a != b}
    ends = {"R@1", "R@5", "R@10", "median_rank", "mAP@R"} | {f"chance_R@{k}" for k in (1, 5, 10)}
    assert set(found) == {f"{name}_{end}" for name in names for end in ends} | {"rsum"}
    assert found["rsum"] == pytest.approx(sum(found[f"{way}_R@{k}"] for way in ("t2i", "i2t") for k in (1, 5, 10)))
    assert found["t2i_chance_R@1"] == pytest.approx(1 / 12)
    assert found["i2t_chance_R@1"] == pytest.approx(2 / 24)


def test_a_perfect_model_retrieves_everything(generator):
    axis = unit(20, 16, generator)
    ids = torch.arange(20)
    found = retrieval_metrics({"text": items(axis[ids.repeat_interleave(5)], ids.repeat_interleave(5)),
                               "image": items(axis, ids)})  # fmt: skip
    assert found["rsum"] == 6
    assert found["t2i_median_rank"] == found["i2t_mAP@R"] == 1


def test_a_query_of_which_no_item_is_at_hand_is_left_out(generator):
    axis = unit(4, 8, generator)
    found = retrieval_metrics({"text": items(axis, [1, 2, 3, 4]), "audio": items(axis[:2], [1, 2])})
    assert found["t2a_R@1"] == 1
    assert "rsum" not in found


def test_composition_hits_any_image_that_is_true_and_leaves_out_the_unknown():
    axis = torch.eye(4)
    # The compound lies nearest to image 3 (unknown), then 2 (true of it), then 1 (false), then 0 (its own).
    query = torch.nn.functional.normalize(torch.tensor([[1.0, 2.0, 3.0, 4.0]]), dim=-1)
    composed = items(query, [1], requires=[[10]], words=[[100]])
    images = items(axis, [1, 2, 3, 4], implies=[[0], [0], [10], [0]], words=[[1], [1], [1], [100]])
    assert relation_ranks(composed, images).tolist() == [[1, 3]]
    found = compute_all({"composed": composed, "image": images, "parts_mean": composed})
    assert found["composition_R@1"] == found["composition_mean_R@1"] == 1


# ---------------------------------------------------------------------- all together


def test_compute_all_is_finite_and_does_not_depend_on_the_order_of_rows(generator):
    embedded = world(generator)
    found = compute_all(embedded)
    assert all(isinstance(value, float) and math.isfinite(value) for value in found.values())
    phrases = embedded.pop("phrase")  # of phrases that require the same the first one counts
    mixed = {kind: rows[torch.randperm(len(rows), generator=generator)] for kind, rows in embedded.items()}
    assert compute_all({**mixed, "phrase": phrases}) == pytest.approx(found, rel=1e-6)


def test_kinds_that_are_absent_or_empty_leave_their_figures_out(generator):
    embedded = world(generator)
    assert compute_all({}) == {}
    only = compute_all({"image": embedded["image"]})
    assert set(only) == {"radius_mean_image", "radius_std_image"}
    empty = {kind: rows[:0] for kind, rows in embedded.items()}
    assert compute_all(empty) == {}
    assert "containment_auroc_p2c" in compute_all({kind: embedded[kind] for kind in ("text", "phrase")})
    spoken = compute_all({kind: embedded[kind] for kind in ("text", "phrase", "audio")})
    assert spoken["containment_auroc"] == pytest.approx(
        (spoken["containment_auroc_p2c"] + spoken["containment_auroc_c2a"]) / 2
    )


def test_cones_that_are_not_finite_are_refused_by_kind(generator):
    embedded = world(generator)
    embedded["audio"].cone.axis[0, 0] = float("nan")
    with pytest.raises(FloatingPointError, match="audio cones are not finite"):
        compute_all(embedded)
