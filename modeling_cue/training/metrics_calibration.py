"""Whether the probability of containment means what it says: reliability, calibration error, and what still learns."""

import torch
from torch import Tensor

from .metrics_counts import Counts

BINS = 15
# Of a logistic loss whose slope is below this share of its largest, a pair teaches next to nothing any more.
ACTIVE = 0.05


def probabilities(counts: Counts, scale: Tensor | float, bias: Tensor | float) -> Tensor:
    """The probability of each score of the grid, sigmoid(scale * (margin + bias)): (bins,) float64."""
    return torch.sigmoid(float(scale) * (counts.scores() + float(bias)))


def reliability(counts: Counts, scale: Tensor | float, bias: Tensor | float, bins: int = BINS) -> Tensor:
    """The reliability curve of containment: (bins, 3) float64, rows by probability in `bins` equal intervals.

    Columns: mass of the interval, mean probability in it, share of true pairs in it (the last two NaN where there is
    no pair). True and false pairs have equal mass, as in the loss that the probability is learned by: among all pairs
    the true ones are so few that every model would look calibrated by saying no.
    """
    balanced, p = counts.balanced(), probabilities(counts, scale, bias)
    place = (p * bins).long().clamp(max=bins - 1)
    mass = (balanced.positive + balanced.negative) / 2
    sums = torch.zeros(bins, 3, dtype=torch.float64, device=p.device)
    sums.index_add_(0, place, torch.stack([mass, mass * p, balanced.positive / 2], dim=1))
    return torch.cat([sums[:, :1], sums[:, 1:] / sums[:, :1]], dim=1)


def calibration_metrics(name: str, counts: Counts, scale: Tensor | float, bias: Tensor | float) -> dict[str, float]:
    """Of one level:

    `containment_ece_{name}`: expected calibration error in [0, 1], the mean distance of probability and share of true
    pairs over the intervals of `reliability`, by their mass (Naeini et al., AAAI 2015; Guo et al., ICML 2017);
    `containment_active_{name}`: the share of pairs, true and false ones of equal mass, on which the containment loss
    is still active: the slope of its logistic loss is at least 5 % of the largest.
    """
    curve = reliability(counts, scale, bias)
    ece = (curve[:, 0] * (curve[:, 1] - curve[:, 2]).abs()).nansum().item()
    balanced, p = counts.balanced(), probabilities(counts, scale, bias)
    active = (balanced.positive[1 - p >= ACTIVE].sum() + balanced.negative[p >= ACTIVE].sum()).item() / 2
    return {f"containment_ece_{name}": ece, f"containment_active_{name}": active}
