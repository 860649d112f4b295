"""Containment by concept: each of them once, and each by itself, so that common ones do not weigh more than others.

Among all pairs a phrase counts as often as it is said, and its true pairs as often again as it is true. Whatever tells
common phrases from rare ones, as their radius may, then orders most pairs rightly without a look at the inner item.
These figures take that away, one step after the other.
"""

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from ..cones import pairwise_angle
from .metrics_counts import Counts
from .metrics_hard import VectorSimilarity, WordSimilarity, hardest_negatives
from .relations import Embedded, Level


def distinct_places(phrases: Embedded) -> Tensor:
    """The place of the first of each distinct `requires`, ascending, but of those that have none: (M,) int64."""
    places = (phrases.requires != 0).any(dim=1).nonzero().flatten()
    unique, group = phrases.requires[places].unique(dim=0, return_inverse=True)
    first = torch.full((len(unique),), len(phrases), device=places.device)
    return first.scatter_reduce_(0, group, places, "amin").sort().values


def query_auroc(scores: Tensor, labels: Tensor) -> Tensor:
    """AUROC of each row of scores (N, M) by labels 1 and 0, others left out: (N,) float64, NaN without both."""
    negative = scores.masked_fill(labels != 0, float("inf")).sort(dim=1).values
    true = labels == 1
    most = int(true.sum(dim=1).max()) if true.numel() else 0
    positive = scores.masked_fill(~true, float("inf")).topk(most, dim=1, largest=False).values.contiguous()
    # Ties count half: the mean of how many lie strictly below and how many lie below or level.
    below, level = (torch.searchsorted(negative, positive, right=right) for right in (False, True))
    hits = ((below + level).double() / 2).masked_fill(positive.isinf(), 0).sum(dim=1)
    return hits / (true.sum(dim=1) * (labels == 0).sum(dim=1))


@dataclass(frozen=True)
class ConceptScores:
    """AUROCs in [0, 1] of one level, NaN where there is none: `_cosine` by minus the angle, `_radius` by radii alone.

    `all`: the pairs of distinct outer items in one ranking. `query`: the mean over outer items of the AUROC among each
    one's own pairs, for which only its axis and the radii of inner items matter. `query_hard`: the same with its
    hardest wrong ones alone.
    """

    all: float
    all_cosine: float
    all_radius: float
    query: float
    query_cosine: float
    query_hard: float
    query_hard_cosine: float

    def named(self, level: str) -> dict[str, float]:
        """What is defined, as metrics: `containment_concepts_{name}_{level}`."""
        values = {f"containment_concepts_{f.name}_{level}": getattr(self, f.name) for f in fields(self)}
        return {name: value for name, value in values.items() if value == value}


def concept_scores(
    outer: Embedded, inner: Embedded, level: Level, similarity: WordSimilarity | VectorSimilarity | None = None,
    pairs: int = 2**22,
) -> ConceptScores:  # fmt: skip
    """Scores outer items that are distinct; hard negatives by `similarity`, or by words where both sides have them.

    `pairs`: how many are held at a time.
    """
    counts = [Counts.nothing(outer.ids.device)] * 3
    queries: list[Tensor] = []
    if similarity is None and outer.words.any() and inner.words.any():
        similarity = WordSimilarity(outer, inner)
    step = max(1, pairs // max(1, len(inner)))
    for start in range(0, len(outer), step):
        part = outer[start : start + step]
        labels = level.relation(part, inner)
        cosine = -pairwise_angle(part.cone.axis, inner.cone.axis)
        radius = part.cone.radius[:, None] - inner.cone.radius[None]
        ways = (radius + cosine, cosine, radius)
        counts = [count + Counts.of(way, labels) for count, way in zip(counts, ways, strict=True)]
        hard = torch.full_like(labels, -1)
        if similarity is not None:
            hard = hardest_negatives(similarity.rows(start, start + len(part)), labels)
        queries.append(torch.stack([query_auroc(way, chosen) for chosen in (labels, hard) for way in ways[:2]], 1))
    overall = [count.auroc() if count.defined else float("nan") for count in counts]
    means = torch.cat(queries).nanmean(0).tolist() if queries else [float("nan")] * 4
    return ConceptScores(*overall, *means)
