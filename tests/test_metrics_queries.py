"""Containment by concept: AUROC of each query by itself, each distinct phrase once, and radii alone."""

import math

import pytest
import torch
from embedded import items, unit
from sklearn.metrics import roc_auc_score

from modeling_cue.cones import pairwise_angle
from modeling_cue.training import metrics_cones
from modeling_cue.training.metrics_cones import containment_metrics, distinct_phrases, level_counts
from modeling_cue.training.metrics_hard import VectorSimilarity, hardest_negatives
from modeling_cue.training.metrics_queries import distinct_places, query_auroc
from modeling_cue.training.relations import LEVELS

P2C = LEVELS[0]


@pytest.fixture
def world():
    """40 phrases, of 9 sorts and some twice, and 30 captions that imply up to 4 of them."""
    generator = torch.Generator().manual_seed(3)
    sorts = torch.randint(1, 10, (40, 1), generator=generator)
    implied = torch.randint(0, 10, (30, 4), generator=generator)
    phrase = items(unit(40, 6, generator), list(range(1, 41)), torch.rand(40, generator=generator), requires=sorts)
    text = items(unit(30, 6, generator), list(range(41, 71)), torch.rand(30, generator=generator) / 5, implies=implied)
    return {"phrase": phrase, "text": text}


def by_query(scores, labels):
    """As scikit-learn says it, row by row."""
    found = []
    for row, truth in zip(scores, labels, strict=True):
        kept = truth >= 0
        both = len(truth[kept].unique()) == 2
        found.append(roc_auc_score(truth[kept], row[kept]) if both else math.nan)
    return torch.tensor(found, dtype=torch.float64)


def test_auroc_of_each_row_equals_brute_force():
    generator = torch.Generator().manual_seed(0)
    scores = torch.randint(0, 6, (50, 20), generator=generator) / 5 - 1  # with ties
    labels = torch.randint(-1, 2, (50, 20), generator=generator).to(torch.int8)
    labels[0], labels[1], labels[2] = 0, 1, -1
    found = query_auroc(scores, labels)
    torch.testing.assert_close(found, by_query(scores, labels), equal_nan=True)
    assert found[:3].isnan().all()
    assert query_auroc(scores[:0], labels[:0]).shape == (0,)


def test_concepts_equal_brute_force(world, monkeypatch):
    phrases, text = distinct_phrases(world["phrase"]), world["text"]
    assert len(phrases) == 9
    labels = P2C.relation(phrases, text)
    cosine = -pairwise_angle(phrases.cone.axis, text.cone.axis)
    radius = phrases.cone.radius[:, None] - text.cone.radius[None]
    generator = torch.Generator().manual_seed(1)
    similarity = VectorSimilarity(unit(40, 5, generator), unit(30, 5, generator))
    hard = hardest_negatives(similarity.rows(0, 40)[distinct_places(world["phrase"])], labels)
    expected = {
        **{name: roc_auc_score(labels.flatten(), way.flatten())
           for name, way in (("all", cosine + radius), ("all_cosine", cosine), ("all_radius", radius))},
        "query": by_query(cosine + radius, labels).nanmean().item(),
        "query_cosine": by_query(cosine, labels).nanmean().item(),
        "query_hard": by_query(cosine + radius, hard).nanmean().item(),
        "query_hard_cosine": by_query(cosine, hard).nanmean().item(),
    }  # fmt: skip
    assert len(set(expected.values())) == 7
    expected = {f"containment_concepts_{name}_p2c": value for name, value in expected.items()}
    for pairs in (2**22, 100):
        monkeypatch.setattr(metrics_cones, "CHUNK_PAIRS", pairs)
        found = level_counts(world["phrase"], text, P2C, similarity).concepts.metrics("p2c")
        assert found == pytest.approx(expected, abs=2e-5)


def test_a_phrase_that_is_said_more_often_weighs_no_more(world):
    found = containment_metrics(world)
    again = world["phrase"][torch.tensor([*range(40), 3, 3, 3])]
    more = containment_metrics({**world, "phrase": again})
    assert more["containment_auroc_p2c"] != found["containment_auroc_p2c"]
    for name in ("all", "all_cosine", "all_radius", "query", "query_cosine"):
        key = f"containment_concepts_{name}_p2c"
        assert more[key] == found[key]
    # Nothing is said of words, so there are no hard negatives.
    assert "containment_concepts_query_hard_p2c" not in found


def test_how_wide_a_query_is_does_not_matter_to_itself(world):
    found = containment_metrics(world)
    world["phrase"].cone.radius.mul_(3)
    wider = containment_metrics(world)
    assert wider["containment_concepts_query_p2c"] == found["containment_concepts_query_p2c"]
    assert wider["containment_concepts_all_p2c"] != found["containment_concepts_all_p2c"]


def test_places_are_of_the_first_of_each():
    axis = torch.eye(2)[[0] * 5]
    phrases = items(axis, [1, 2, 3, 4, 5], requires=[[7, 0], [0, 0], [3, 7], [7, 0], [3, 0]])
    assert distinct_places(phrases).tolist() == [0, 2, 4]
    assert distinct_places(phrases[:0]).tolist() == []
