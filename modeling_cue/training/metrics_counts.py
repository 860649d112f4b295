"""Pairs counted by their score: figures over any number of pairs, in the memory of a grid."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

# Scores lie in [-2 pi, pi] and are counted on a grid of this many points per radian (1.5e-5 rad apart; scores nearer
# than that tie). A count needs the same memory for any number of pairs, and counts of chunks add up.
PER_RADIAN = 2**16
_OFFSET = math.ceil(2 * math.pi * PER_RADIAN)
_BINS = _OFFSET + math.ceil(math.pi * PER_RADIAN) + 1


@dataclass(frozen=True)
class Counts:
    """How many positive and negative pairs have each score of the grid: two (bins,) float64 tensors, ascending."""

    positive: Tensor
    negative: Tensor

    @staticmethod
    def of(scores: Tensor, labels: Tensor) -> "Counts":
        """Counts scores, any shape, radians in [-2 pi, pi], by labels 1 and 0 of that shape; others are left out."""
        bins = (scores * PER_RADIAN).round_().int().add_(_OFFSET).clamp_(0, _BINS - 1)
        # One bin more takes what is left out: faster than picking the many negatives.
        negative = torch.bincount(bins.masked_fill(labels != 0, _BINS).flatten(), minlength=_BINS + 1)[:-1]
        return Counts(torch.bincount(bins[labels == 1], minlength=_BINS).double(), negative.double())

    @staticmethod
    def nothing(device: torch.device) -> "Counts":
        """Of no pair."""
        empty = torch.zeros(_BINS, dtype=torch.float64, device=device)
        return Counts(empty, empty)

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(self.positive + other.positive, self.negative + other.negative)

    def balanced(self) -> "Counts":
        """The same with a mass of 1 for the positives and of 1 for the negatives."""
        return Counts(self.positive / self.positive.sum(), self.negative / self.negative.sum())

    def shifted(self, bins: int) -> "Counts":
        """All scores moved up by so many points of the grid, which must not take them past its end."""
        return Counts(self.positive.roll(bins), self.negative.roll(bins))

    def coarse(self, factor: int) -> "Counts":
        """The same on a grid that is `factor` times coarser."""

        def add_up(counts: Tensor) -> Tensor:
            return torch.nn.functional.pad(counts, (0, -len(counts) % factor)).view(-1, factor).sum(dim=1)

        return Counts(add_up(self.positive), add_up(self.negative))

    def scores(self) -> Tensor:
        """The score of each point of the grid: (bins,) float64, radians."""
        return (torch.arange(_BINS, dtype=torch.float64, device=self.positive.device) - _OFFSET) / PER_RADIAN

    @property
    def defined(self) -> bool:
        """Whether there are positives and negatives, without which no figure means anything."""
        return bool(self.positive.sum() > 0) and bool(self.negative.sum() > 0)

    def auroc(self) -> float:
        """The share of (positive, negative) that the scores order rightly, ties counted half: in [0, 1]."""
        below = self.negative.cumsum(0) - self.negative / 2
        return ((self.positive @ below) / (self.positive.sum() * self.negative.sum())).item()

    def average_precision(self) -> float:
        """The mean over positives of the precision among scores at least as high as its own: in [0, 1]."""
        hits = self.positive.flip(0).cumsum(0)
        drawn = hits + self.negative.flip(0).cumsum(0)
        precision = torch.where(drawn > 0, hits / drawn, 0.0)
        return ((self.positive.flip(0) @ precision) / self.positive.sum()).item()
