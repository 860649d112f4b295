import math

import pytest
import torch
from embedded import items, world
from scipy.stats import spearmanr
from sklearn.metrics import average_precision_score, roc_auc_score

from modeling_cue.cones import Cone, pairwise_containment_margin, pairwise_contains
from modeling_cue.training import metrics_cones
from modeling_cue.training.metrics_cones import (
    best_pooled_auroc,
    containment_metrics,
    distinct_phrases,
    pooled_auroc,
    radius_metrics,
    transitivity_metrics,
    true_of,
)
from modeling_cue.training.metrics_counts import PER_RADIAN, Counts
from modeling_cue.training.relations import LEVELS, UNKNOWN, Embedded, relation


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


def brute_auroc(scores, labels):
    pairs = [(p > n) + 0.5 * (p == n) for p in scores[labels == 1].tolist() for n in scores[labels == 0].tolist()]
    return sum(pairs) / len(pairs)


@pytest.mark.parametrize("levels", [4, 1000])
def test_auroc_and_ap_equal_brute_force_and_sklearn(generator, levels):
    # Scores on the grid, so that ties are those of the reference.
    scores = torch.randint(-levels, levels, (6, 30), generator=generator) * (64 / PER_RADIAN)
    labels = torch.randint(-1, 2, (6, 30), generator=generator).to(torch.int8)
    counts = Counts.of(scores, labels)
    assert counts.auroc() == pytest.approx(brute_auroc(scores, labels), rel=1e-12)
    known = labels >= 0
    assert counts.auroc() == pytest.approx(roc_auc_score(labels[known], scores[known]), rel=1e-12)
    assert counts.average_precision() == pytest.approx(
        average_precision_score(labels[known], scores[known]), rel=1e-12
    )


def test_the_grid_holds_every_margin_and_adds_up_over_chunks(generator):
    scores = torch.tensor([-2 * math.pi, -1.0, 0.0, math.pi])
    labels = torch.tensor([0, 1, 0, 1])
    counts = Counts.of(scores, labels)
    assert (counts.positive.sum(), counts.negative.sum()) == (2, 2)
    assert counts.auroc() == 3 / 4
    assert (Counts.of(scores[:1], labels[:1]) + Counts.of(scores[1:], labels[1:])).auroc() == 3 / 4


def test_containment_equals_brute_force_over_all_pairs_in_any_chunks(generator, monkeypatch):
    embedded = world(generator)
    found = containment_metrics(embedded)
    for level in LEVELS:
        outer, inner = embedded[level.outer], embedded[level.inner]
        labels = level.relation(outer, inner)
        known = labels >= 0
        margins = pairwise_containment_margin(outer.cone, inner.cone)
        # Not on the grid: scores nearer than 1.5e-5 rad tie.
        assert found[f"containment_auroc_{level.name}"] == pytest.approx(brute_auroc(margins, labels), abs=1e-3)
        expected = average_precision_score(labels[known], margins[known])
        assert found[f"containment_ap_{level.name}"] == pytest.approx(expected, abs=2e-3)
        cosine = outer.cone.axis @ inner.cone.axis.T
        expected = brute_auroc(cosine, labels)
        assert found[f"containment_auroc_cosine_{level.name}"] == pytest.approx(expected, abs=1e-3)
    for name in ("auroc", "ap", "auroc_cosine"):
        mean = (found[f"containment_{name}_p2c"] + found[f"containment_{name}_c2i"]) / 2
        assert found[f"containment_{name}"] == pytest.approx(mean)
    monkeypatch.setattr(metrics_cones, "CHUNK_PAIRS", 30)
    assert containment_metrics(embedded) == pytest.approx(found, rel=1e-12)


def test_constant_radii_order_a_level_as_the_cosine_does(generator):
    embedded = world(generator)
    flat = {
        kind: Embedded(Cone(rows.cone.axis, torch.full_like(rows.cone.radius, radius)), *(
            rows.ids, rows.requires, rows.implies, rows.words))
        for (kind, rows), radius in zip(embedded.items(), (1.0, 0.1, 0.1, 0.1, 1.3, 1.0, 1.0), strict=True)
    }  # fmt: skip
    found, cosine = containment_metrics(flat), containment_metrics(embedded)
    assert found["containment_auroc"] == pytest.approx(cosine["containment_auroc_constant_radius"], abs=1e-3)
    # In one ranking of both levels no constant radii do better than the best ones.
    assert found["containment_pooled_auroc"] <= cosine["containment_pooled_auroc_constant_radius"] + 1e-3


def level_scores(level, labels):
    return Counts.of(torch.tensor(level), torch.tensor(labels))


def test_pooled_levels_have_equal_mass_and_the_baseline_its_best_shift():
    # Level a separates at -0.4, level b at -1.2: alone perfect, together not, with a shift of 0.8 again perfect.
    a = level_scores([-0.3, -0.5, -0.55, -0.6], [1, 0, 0, 0])
    b = level_scores([-1.1, -1.3], [1, 0])
    assert (a.auroc(), b.auroc()) == (1, 1)
    # Of the four combinations of a level's positives with a level's negatives only (b's positives, a's negatives) is
    # wrong, though a has three times the negatives.
    assert pooled_auroc(a, b) == pytest.approx(3 / 4)
    assert best_pooled_auroc(a, b) == pytest.approx(1)


def test_without_true_and_false_pairs_there_is_no_figure():
    axis = torch.eye(2)
    assert containment_metrics({"text": items(axis, [1, 1]), "image": items(axis, [1, 1])}) == {}


# ---------------------------------------------------------------------- transitivity and radii


def test_transitivity_equals_brute_force_over_triples(generator, monkeypatch):
    embedded = world(generator)
    for kind, radius in (("phrase", 2.4), ("text", 1.5), ("image", 0.2)):
        embedded[kind].cone.radius.fill_(radius).sub_(torch.rand(len(embedded[kind]), generator=generator) / 5)
    phrases, text, image = distinct_phrases(embedded["phrase"]), embedded["text"], embedded["image"]
    p2c, c2i = LEVELS[0].relation(phrases, text) == 1, relation(text, image) == 1
    in_pc, in_ci = pairwise_contains(phrases.cone, text.cone), pairwise_contains(text.cone, image.cone)
    in_pi = pairwise_contains(phrases.cone, image.cone)
    triples = [(p, c, i) for p in range(len(phrases)) for c in range(len(text)) for i in range(len(image))
               if p2c[p, c] and c2i[c, i]]  # fmt: skip
    chains = [(p, i) for p, c, i in triples if in_pc[p, c] and in_ci[c, i]]
    assert 0 < len(chains) < len(triples)
    expected = {
        "transitivity_chains": len(chains) / len(triples),
        "transitivity_violations": sum(not in_pi[p, i] for p, i in chains) / len(chains),
        "transitivity_false_pairs": float(in_pi[relation(phrases, image, UNKNOWN) == 0].double().mean()),
    }
    assert 0 < expected["transitivity_false_pairs"] < 1
    assert transitivity_metrics(embedded) == pytest.approx(expected)
    assert expected["transitivity_violations"] == 0
    monkeypatch.setattr(metrics_cones, "CHUNK_PAIRS", 50)
    assert transitivity_metrics(embedded) == pytest.approx(expected)


def test_a_violation_is_counted(monkeypatch):
    # Cones as sets cannot violate transitivity: a containment that denies one pair stands in for rounding.
    axis = torch.eye(2)[:1]
    embedded = {
        "phrase": items(axis, [1], 1.0, requires=[[10]]),
        "text": items(axis, [1], 0.5, implies=[[10]]),
        "image": items(axis, [1], 0.1),
    }
    assert transitivity_metrics(embedded) == {"transitivity_chains": 1, "transitivity_violations": 0}
    monkeypatch.setattr(
        metrics_cones, "pairwise_contains", lambda a, b: (a.radius[:, None] < 1) | (b.radius[None] > 0.1)
    )
    assert transitivity_metrics(embedded) == {"transitivity_chains": 1, "transitivity_violations": 1}


def test_phrases_count_once_by_what_they_require():
    axis = torch.eye(2)[[0] * 5]
    phrases = items(
        axis, [1, 2, 3, 4, 5], [0.1, 0.2, 0.3, 0.4, 0.5], requires=[[7, 0], [3, 7], [0, 0], [7, 0], [3, 0]]
    )
    assert distinct_phrases(phrases).ids.tolist() == [1, 2, 5]


def test_generality_counts_samples_and_not_items():
    axis = torch.eye(2)[[0] * 4]
    phrase = items(axis[:1], [1], requires=[[7]])
    # Its own sample, sample 2 by both captions and by its image, sample 3 by its image alone.
    text = items(axis, [1, 2, 2, 3], implies=[[7], [7], [7], [5]])
    image = items(axis[:3], [2, 3, 4], implies=[[7], [7], [8]])
    assert true_of(phrase, [text, image]).tolist() == [3]


def test_radius_statistics_and_specificity(generator):
    embedded = world(generator)
    found = radius_metrics(embedded)
    for kind, rows in embedded.items():
        assert found[f"radius_mean_{kind}"] == pytest.approx(rows.cone.radius.mean().item(), rel=1e-5)
        assert found[f"radius_std_{kind}"] == pytest.approx(rows.cone.radius.std(correction=0).item(), rel=1e-5)
    phrases = distinct_phrases(embedded["phrase"])
    truth = true_of(phrases, [embedded[kind] for kind in ("text", "image", "audio", "video")])
    expected = spearmanr(phrases.cone.radius, truth).statistic
    assert found["radius_specificity_spearman"] == pytest.approx(expected)
    # Wider the more it is true of: 1. All alike: 0, without a warning.
    phrases.cone.radius.copy_(truth / 100)
    assert radius_metrics({**embedded, "phrase": phrases})["radius_specificity_spearman"] == pytest.approx(1)
    phrases.cone.radius.fill_(0.5)
    assert radius_metrics({**embedded, "phrase": phrases})["radius_specificity_spearman"] == 0
