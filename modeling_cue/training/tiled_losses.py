"""The pairwise losses as sums over strips of rows: no matrix of all pairs is ever held, forward or backward.

A strip is some of this process' rows against the columns of all processes. A strip's sums are scalars, so that their
gradients are known up to a factor as soon as the sums are: they are taken at once, and nothing of a strip outlives it.
What comes back are sums and counts, which add up over strips and over processes. `contrastive` and `losses` hold the
plain forms.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..cones import Cone, pairwise_containment_margin
from ..contrastive import anchor_losses, scaled_cosines
from ..sphere import without_autocast
from .relations import Embedded

# Pairs of one strip: some ten matrices of this size exist at a time, most of them of 4 or 8 bytes a pair.
STRIP_PAIRS = 2**22

Related = Callable[[Embedded, Embedded], Tensor]
Strip = Callable[..., "Sums"]  # of rows, columns and learned scalars


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

    def matrices(first: Embedded, second: Embedded, scale: Tensor) -> tuple[Tensor, Tensor]:
        return scaled_cosines(first.cone.axis, second.cone.axis, scale), related(first, second)

    def forth(rows: Embedded, columns: Embedded, scale: Tensor) -> Sums:
        return _anchored(*matrices(rows, columns, scale))

    def back(rows: Embedded, columns: Embedded, scale: Tensor) -> Sums:
        logits, relation = matrices(columns, rows, scale)
        return _anchored(logits.T, relation.T)

    with without_autocast(logit_scale.device):
        if _alone(a) and _alone(b) and len(a.local) * len(b.local) <= STRIP_PAIRS:
            logits, relation = matrices(a.local, b.local, logit_scale)
            parts = [_anchored(logits, relation), _anchored(logits.T, relation.T)]
        else:
            parts = [
                _over_strips(forth, a.local, b.everywhere, [logit_scale]),
                _over_strips(back, b.local, a.everywhere, [logit_scale]),
            ]
    return Sums(torch.cat([part.total for part in parts]), torch.cat([part.count for part in parts]))


def _anchored(logits: Tensor, relation: Tensor) -> Sums:
    positive = relation == 1
    return Sums(anchor_losses(logits, positive, relation == 0).sum()[None], positive.any(1).sum()[None])


def containment_sums(
    outer: Side, inner: Side, related: Related, scale: Tensor, bias: Tensor, axes_gradient: bool
) -> Sums:
    """The sums of `losses.containment_loss`, the pairs of relation 1 and those of relation 0 as the two parts."""

    def strip(rows: Embedded, columns: Embedded, scale: Tensor, bias: Tensor) -> Sums:
        relation = related(rows, columns)
        cones = (_fixed(x.cone, axes_gradient) for x in (rows, columns))
        return logistic_sums(scale * (pairwise_containment_margin(*cones) + bias), relation)

    return _over_strips(strip, outer.local, inner.everywhere, [scale, bias])


def logistic_sums(z: Tensor, relation: Tensor) -> Sums:
    """The sums of softplus(-z) over pairs of relation 1 and of softplus(z) over those of relation 0."""
    inside, outside = relation == 1, relation == 0
    value = torch.nn.functional.softplus(torch.where(inside, -z, z))
    totals = [value.masked_fill(~inside, 0.0).sum(), value.masked_fill(~outside, 0.0).sum()]
    return Sums(torch.stack(totals), torch.stack([inside.sum(), outside.sum()]))


def _fixed(cone: Cone, axes_gradient: bool) -> Cone:
    return cone if axes_gradient else Cone(cone.axis.detach(), cone.radius)


def _alone(side: Side) -> bool:
    return side.local is side.everywhere


def _over_strips(strip: Strip, rows: Embedded, columns: Embedded, scalars: Sequence[Tensor]) -> Sums:
    leaves = (rows.cone.axis, rows.cone.radius, columns.cone.axis, columns.cone.radius, *scalars)
    total, count = _Strips.apply(strip, rows, columns, *leaves)
    return Sums(total, count)


class _Strips(torch.autograd.Function):
    """The sums over all strips of `rows`, and on the way the gradient of every part's total."""

    @staticmethod
    def forward(ctx: Any, strip: Strip, rows: Embedded, columns: Embedded, *leaves: Tensor) -> tuple[Tensor, Tensor]:
        wanted = [i for i, needed in enumerate(ctx.needs_input_grad[3:]) if needed]
        shared = [leaf.detach().requires_grad_(i in wanted) for i, leaf in enumerate(leaves)][2:]
        columns = columns.with_cone(Cone(shared[0], shared[1]))
        size = max(1, STRIP_PAIRS // max(1, len(columns)))
        sums: list[Sums] = []
        slopes: dict[tuple[int, int], Tensor] = {}  # by part and leaf
        for start in range(0, max(1, len(rows)), size):
            here = slice(start, start + size)
            own = [leaf[here].detach().requires_grad_(i in wanted) for i, leaf in enumerate(leaves[:2])]
            with torch.enable_grad():
                part = strip(rows[here].with_cone(Cone(own[0], own[1])), columns, *shared[2:])
                totals = list(part.total.unbind()) if wanted else []
            sums.append(Sums(part.total.detach(), part.count))
            del part
            for number in range(len(totals)):
                ends = [(*own, *shared)[i] for i in wanted]
                more = number + 1 < len(totals)
                found = torch.autograd.grad(totals[number], ends, retain_graph=more, allow_unused=True)
                for i, slope in zip(wanted, found, strict=True):
                    if slope is not None:
                        whole = slopes.setdefault((number, i), torch.zeros_like(leaves[i]))
                        (whole[here] if i < 2 else whole).add_(slope)
        ctx.slopes, ctx.count = slopes, len(leaves)
        total, count = (torch.stack([getattr(s, name) for s in sums]).sum(0) for name in ("total", "count"))
        ctx.mark_non_differentiable(count)
        return total, count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, total: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        gradients: list[Tensor | None] = [None] * ctx.count
        for (number, i), slope in ctx.slopes.items():
            share = slope * total[number]
            gradients[i] = share if gradients[i] is None else gradients[i] + share
        return None, None, None, *gradients
