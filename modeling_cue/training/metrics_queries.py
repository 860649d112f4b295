"""Containment by concept: each of them once, and each by itself, so that common ones do not weigh more than others.

Among all pairs a phrase counts as often as it is said, and its true pairs as often again as it is true. Whatever tells
common phrases from rare ones, as their radius may, then orders most pairs rightly without a look at the inner item.
These figures take that away, one step after the other.
"""

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from .metrics_counts import Counts
from .relations import Embedded


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
class ConceptCounts:
    """Pairs of outer items that are distinct, by margin, by minus the angle (`cosines`) and by radii alone.

    `sums` and `numbers`, (4,) float64: the sum of AUROCs among each outer item's own pairs, and of how many items, by
    margin and cosine; by the same two with an item's hardest wrong ones alone.
    """

    margins: Counts
    cosines: Counts
    radii: Counts
    sums: Tensor
    numbers: Tensor

    @staticmethod
    def nothing(device: torch.device) -> "ConceptCounts":
        """Of no pair."""
        none, nothing = torch.zeros(4, dtype=torch.float64, device=device), Counts.nothing(device)
        return ConceptCounts(nothing, nothing, nothing, none, none)

    @staticmethod
    def of(margin: Tensor, cosine: Tensor, labels: Tensor, hard: Tensor) -> "ConceptCounts":
        """Of scores (N, M) in radians by labels 1 and 0, and by labels in which of the wrong only the hardest are."""
        aurocs = torch.stack([query_auroc(way, told) for told in (labels, hard) for way in (margin, cosine)])
        margins, cosines, radii = (Counts.of(way, labels) for way in (margin, cosine, margin - cosine))
        return ConceptCounts(margins, cosines, radii, aurocs.nansum(1), (~aurocs.isnan()).sum(1).double())

    def __add__(self, other: "ConceptCounts") -> "ConceptCounts":
        return ConceptCounts(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def metrics(self, level: str) -> dict[str, float]:
        """AUROCs in [0, 1], those that are defined, as `containment_concepts_{name}_{level}`.

        `all`, `all_cosine`, `all_radius`: all pairs in one ranking, by margin, cosine and radii alone. `query`,
        `query_cosine`: the mean over outer items of the AUROC among each one's own pairs, for which only its axis and
        the radii of inner items matter; `query_hard`, `query_hard_cosine`: with its hardest wrong ones alone.
        """
        ways = {"all": self.margins, "all_cosine": self.cosines, "all_radius": self.radii}
        found = {name: counts.auroc() for name, counts in ways.items() if counts.defined}
        means = zip(("query", "query_cosine", "query_hard", "query_hard_cosine"), self.sums, self.numbers, strict=True)
        found |= {name: (total / number).item() for name, total, number in means if number}
        return {f"containment_concepts_{name}_{level}": value for name, value in found.items()}
