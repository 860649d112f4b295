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


@pytest.fixture(params=["few", "many"])
def positives(request, monkeypatch):
    """Both ways of counting what stands ahead of a query's positives."""
    monkeypatch.setattr(metrics_retrieval, "MANY_POSITIVES", {"few": 100, "many": 0}[request.param])


@pytest.mark.parametrize("levels", [3, 10**6])
def test_ranks_equal_sorting_with_ties_and_unknown_items(generator, positives, levels):
    scores = torch.randint(0, levels, (40, 15), generator=generator) / 7
    drawn = torch.rand(40, 15, generator=generator)
    positive, negative = drawn < 0.2, drawn > 0.3
    ranks = ranks_of_positives(scores, positive, negative)
    assert [[r for r in row if r] for row in ranks.tolist()] == slow_ranks(scores, positive, negative)


def test_equal_embeddings_get_the_worst_rank(positives):
    same = torch.eye(2)[[0] * 6]
    ids = torch.arange(6)
    for ranks in retrieval_ranks(same, same, ids, ids):
        assert ranks.flatten().tolist() == [6] * 6


@pytest.mark.parametrize("tile", [(1, 1), (5, 3), (3, 30), (100, 100)])
def test_ranks_of_both_ways_equal_sorting_whatever_the_tile(generator, positives, tile):
    # Ids of one side are missing on the other, repeat, and come in any order.
    a, b = unit(17, 8, generator), unit(23, 8, generator)
    a_ids, b_ids = torch.randint(0, 12, (17,), generator=generator), torch.randint(3, 15, (23,), generator=generator)
    scores, positive = a @ b.T, a_ids[:, None] == b_ids[None]
    there, back = retrieval_ranks(a, b, a_ids, b_ids, tile)
    assert [[r for r in row if r] for row in there.tolist()] == slow_ranks(scores, positive, ~positive)
    assert [[r for r in row if r] for row in back.tolist()] == slow_ranks(scores.T, positive.T, ~positive.T)


@pytest.mark.parametrize("dim", [7, 64, 515])
def test_equal_embeddings_tie_in_other_tiles_too(generator, dim):
    # Ten axes, each 31 and 97 times: all that equals a query's positives stands before the first of them.
    axis = unit(10, dim, generator)
    a_ids, b_ids = torch.arange(310), torch.arange(970).remainder(310)
    there, back = retrieval_ranks(axis.repeat(31, 1), axis.repeat(97, 1), a_ids, b_ids, (32, 100))
    assert there[:, 0].tolist() == [97 - n + 1 for n in (a_ids[:, None] == b_ids).sum(dim=1).tolist()]
    assert back.flatten().tolist() == [31] * 970


def test_ranks_of_a_side_without_rows_or_matches(generator):
    some, none = unit(3, 4, generator), torch.zeros(0, 4)
    there, back = retrieval_ranks(some, none, torch.arange(3), torch.arange(0))
    assert (there.shape, back.shape) == ((3, 0), (0, 0))
    there, back = retrieval_ranks(some, some, torch.arange(3), torch.arange(3) + 3)
    assert (there.shape, back.shape) == ((3, 0), (3, 0))


def test_memory_is_bounded_by_tiles(generator, monkeypatch):
    seen = []
    real = metrics_retrieval._count_ahead
    monkeypatch.setattr(
        metrics_retrieval, "_count_ahead", lambda a, s, *m, **k: seen.append(s.numel()) or real(a, s, *m, **k)
    )
    retrieval_ranks(unit(50, 4, generator), unit(20, 4, generator), torch.arange(50), torch.arange(20), (10, 10))
    assert max(seen) <= 100
    assert sum(seen) == 2 * 50 * 20  # each score once for its row and once for its column


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
