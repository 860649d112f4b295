"""The pairwise losses as sums over strips of rows: no matrix of all pairs is ever held, forward or backward.

A strip is some of this process' rows against the columns of all processes. Where one strip is not enough, each is
computed again in the backward pass (Chen et al., "Training deep nets with sublinear memory cost", 2016). What comes
back are sums and counts, which add up over strips and over processes. `contrastive` and `losses` hold the plain forms.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..cones import Cone, pairwise_containment_margin
from ..contrastive import anchor_losses
from .relations import Embedded

# Pairs of one strip: some ten matrices of this size exist at a time, most of them of 4 or 8 bytes a pair.
STRIP_PAIRS = 2**22

Related = Callable[[Embedded, Embedded], Tensor]


@dataclass(frozen=True)
class Side:
    """One side of all pairs: the rows of this process, and those of all processes; alone, they are the same object."""

    local: Embedded
    everywhere: Embedded


@dataclass(frozen=True)
class Sums:
    """A loss is the mean over its parts of total / max(count, 1); both (parts,), of this process' rows alone."""

    total: Tensor
    count: Tensor


def info_nce_sums(a: Side, b: Side, logit_scale: Tensor, related: Related) -> Sums:
    """The sums of `contrastive.symmetric_info_nce`, the anchors of a and of b as the two parts.

    Args:
        related: (N, M) of rows of a and of b: 1 for a positive, 0 for a negative, other values for neither.
    """

    def matrices(first: Embedded, second: Embedded) -> tuple[Tensor, Tensor]:
        one, other = first.cone.axis, second.cone.axis
        wide = torch.promote_types(torch.promote_types(one.dtype, other.dtype), torch.float32)
        return logit_scale * (one.to(wide) @ other.to(wide).T), related(first, second)

    def forth(rows: Embedded) -> Tensor:
        return _anchored(*matrices(rows, b.everywhere))

    def back(rows: Embedded) -> Tensor:
        logits, relation = matrices(a.everywhere, rows)
        return _anchored(logits.T, relation.T)

    with torch.autocast(logit_scale.device.type, enabled=False):
        if _alone(a) and _alone(b) and len(a.local) * len(b.local) <= STRIP_PAIRS:
            logits, relation = matrices(a.local, b.local)
            parts = [_anchored(logits, relation), _anchored(logits.T, relation.T)]
        else:
            parts = [_over_strips(forth, a.local, len(b.everywhere)), _over_strips(back, b.local, len(a.everywhere))]
    sums = torch.stack(parts)
    return Sums(sums[:, 0], sums[:, 1].detach())


def _anchored(logits: Tensor, relation: Tensor) -> Tensor:
    positive = relation == 1
    return torch.stack([anchor_losses(logits, positive, relation == 0).sum(), positive.any(1).sum()])


def containment_sums(
    outer: Side, inner: Side, related: Related, scale: Tensor | float, bias: Tensor | float, axes_gradient: bool
) -> Sums:
    """The sums of `losses.containment_loss`, the pairs of relation 1 and those of relation 0 as the two parts."""

    def strip(rows: Embedded) -> Tensor:
        relation = related(rows, inner.everywhere)
        z = scale * (pairwise_containment_margin(*(_fixed(x.cone, axes_gradient) for x in (rows, inner.everywhere))))
        z = z + scale * bias
        return torch.cat([logistic_sums(z, relation), (relation == 1).sum()[None], (relation == 0).sum()[None]])

    sums = _over_strips(strip, outer.local, len(inner.everywhere))
    return Sums(sums[:2], sums[2:].detach())


def logistic_sums(z: Tensor, relation: Tensor) -> Tensor:
    """The sums of softplus(-z) over pairs of relation 1 and of softplus(z) over those of relation 0: (2,)."""
    inside, outside = relation == 1, relation == 0
    value = torch.nn.functional.softplus(torch.where(inside, -z, z))
    return torch.stack([value.masked_fill(~inside, 0.0).sum(), value.masked_fill(~outside, 0.0).sum()])


def _fixed(cone: Cone, axes_gradient: bool) -> Cone:
    return cone if axes_gradient else Cone(cone.axis.detach(), cone.radius)


def _alone(side: Side) -> bool:
    return side.local is side.everywhere


def _over_strips(strip: Callable[[Embedded], Tensor], rows: Embedded, columns: int) -> Tensor:
    size = max(1, STRIP_PAIRS // max(1, columns))
    if len(rows) <= size:
        return strip(rows)
    parts = [
        checkpoint(strip, rows[start : start + size], use_reentrant=False, preserve_rng_state=False)
        for start in range(0, len(rows), size)
    ]
    return torch.stack(parts).sum(0)
