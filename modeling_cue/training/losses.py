"""The losses of training. They see tensors only: neither the model nor processes.

`compute_losses` gives every term by its name, without weights; `total_loss` weighs and adds them.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations

import torch
from torch import Tensor

from ..cones import Cone, pairwise_containment_margin
from ..contrastive import symmetric_info_nce
from .relations import LETTERS, LEVELS, MEDIA, Embedded, relation, said_of_sample, same_sample
from .tiled_losses import Side, Sums, containment_sums, info_nce_sums

# Radii nearer to 0 or pi than this have gone to the bound; quartiles nearer to each other are one value (radians).
NEAR_BOUND = 0.01
ONE_VALUE = 0.001
# Fewer radii than this may be alike by chance.
ENOUGH_RADII = 8


@dataclass(frozen=True)
class LossWeights:
    """Weights of the three groups of terms, each >= 0; each group counts by the mean of its terms.

    `containment_moves_axes` lets the gradient of containment reach the axes too. `phrase_containment` is the weight of
    "phrase contains caption" within the mean of its group, where "caption contains medium" has 1.
    """

    contrastive: float = 1.0
    containment: float = 0.1
    composition: float = 0.1
    containment_moves_axes: bool = False
    phrase_containment: float = 1.0

    def of_group(self, name: str) -> float:
        """The weight of the group that a term belongs to."""
        groups = {
            "info_nce": self.contrastive, "containment": self.containment, "composition": self.composition,
        }  # fmt: skip
        return next(weight for group, weight in groups.items() if name.startswith(group))

    def in_group(self, name: str) -> float:
        """The weight of a term within the mean of its group."""
        return self.phrase_containment if name == "containment_p2c" else 1.0

    def counts(self, name: str) -> bool:
        """Whether a term changes anything."""
        return self.of_group(name) * self.in_group(name) > 0

    @property
    def all_count(self) -> bool:
        """Whether every term does."""
        return min(self.contrastive, self.containment, self.composition, self.phrase_containment) > 0


def containment_loss(
    outer: Cone,
    inner: Cone,
    relation: Tensor,
    scale: Tensor | float,
    bias: Tensor | float,
    axes_gradient: bool = False,
) -> Tensor:
    """Pairwise logistic loss of "outer contains inner": scalar >= 0.

    With z = scale * (margin + bias): half the mean of softplus(-z) over the pairs of relation 1, plus half the mean
    of softplus(z) over those of relation 0, so that both have equal mass however many there are; a side without pairs
    adds 0. All other pairs are unknown and get no gradient. (The pairwise logistic form with learned scale and bias
    is that of SigLIP, Zhai et al., ICCV 2023; there positives and negatives are not balanced.)

    Args:
        outer, inner: (N,) and (M,) cones. relation: (N, M), 1, 0, or -1 for unknown.
        scale, bias: scalars, per radian (positive) and in radians.
        axes_gradient: by default the gradient reaches radii, scale and bias only.
    """
    if not axes_gradient:
        outer = Cone(outer.axis.detach(), outer.radius)
        inner = Cone(inner.axis.detach(), inner.radius)
    z = scale * (pairwise_containment_margin(outer, inner) + bias)
    softplus = torch.nn.functional.softplus
    return (_masked_mean(softplus(-z), relation == 1) + _masked_mean(softplus(z), relation == 0)) / 2


def _masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    return values.masked_fill(~mask, 0.0).sum() / mask.sum().clamp(min=1)


def composition_loss(composed: Embedded, wholes: Sequence[Embedded], logit_scale: Tensor | float) -> Tensor:
    """InfoNCE between compounds and the wholes that they are true of, both ways: scalar >= 0, the mean over `wholes`.

    A compound is true of its own sample and of every whole of which all its parts are true (relation 1); where that is
    unknown the pair is left out.
    """
    losses = []
    for whole in wholes:
        related = relation(composed, whole)
        losses.append(symmetric_info_nce(composed.cone.axis, whole.cone.axis, logit_scale, related == 1, related == 0))
    return torch.stack(losses).mean()


@dataclass(frozen=True)
class World:
    """How many processes share a batch, and how a tensor is summed over them; alone, nothing is to be done."""

    size: int = 1
    total: Callable[[Tensor], Tensor] = lambda tensor: tensor


def compute_losses(
    embedded: dict[str, Embedded],
    logit_scale: Tensor,
    containment_scale: Tensor,
    containment_bias: Tensor,
    weights: LossWeights,
    everywhere: dict[str, Embedded] | None = None,
    world: World = World(),
) -> dict[str, Tensor]:
    """Every term of a weight above 0 that the kinds at hand allow, by name, each a scalar without its weight.

    `info_nce_t2i` and the like for every two modalities (both directions); `containment_p2c` (phrase, caption),
    `containment_c2i`, `_c2a`, `_c2v` (caption; image, audio, video); `composition` (compound; image, audio, video, and
    of one that holds its picture, text).
    Terms of weight 0 are not computed, unless a batch allows no others. All that was embedded still gets a gradient,
    of 0 where no term compares it: every parameter takes part in every step, as DistributedDataParallel asks.

    With several processes each computes the pairs of its own rows with the rows of all. The value of a term is that of
    the global batch; its gradient is `world.size` times this process' share of it, so that the mean over processes,
    which DistributedDataParallel takes, is the gradient of the global batch.

    Args:
        embedded: the rows of this process, of the same kinds in every process.
        everywhere: the rows of all processes, gathered with gradient; None: there is but one.

    Raises:
        ValueError: no term at all. FloatingPointError: a term is not finite; the message names it.
    """
    gathered = embedded if everywhere is None else everywhere
    sides = {kind: Side(embedded[kind], gathered[kind]) for kind in gathered}
    possible: dict[str, list[Callable[[], Sums]]] = {}
    present = [kind for kind in LETTERS if kind in sides]
    for first, second in combinations(present, 2):
        name = f"info_nce_{LETTERS[first]}2{LETTERS[second]}"
        possible[name] = [partial(info_nce_sums, sides[first], sides[second], logit_scale, same_sample)]
    for level in LEVELS:
        if level.outer in sides and level.inner in sides:
            outer, inner, scales = sides[level.outer], sides[level.inner], (containment_scale, containment_bias)
            moves_axes = weights.containment_moves_axes
            compare = partial(containment_sums, outer, inner, level.relation, *scales, moves_axes)
            possible[f"containment_{level.name}"] = [compare]
    compounds = [("composed", kind, relation) for kind in MEDIA] + [("pictured", "text", said_of_sample)]
    for compound, whole, related in compounds:
        if compound in sides and whole in sides:
            compare = partial(info_nce_sums, sides[compound], sides[whole], logit_scale, related)
            possible.setdefault("composition", []).append(compare)
    if not possible:
        raise ValueError(
            f"nothing to learn from a batch with only {', '.join(embedded) or 'nothing'}: a loss needs two of "
            f"{', '.join(LETTERS)}, or phrases and text"
        )
    # A batch that has only terms of weight 0, as the last of an epoch may, is a step all the same.
    counting = [name for name in possible if weights.counts(name)] or list(possible)
    terms = _terms({name: [compare() for compare in possible[name]] for name in counting}, world)
    if not weights.all_count:
        given = {kind: rows.cone.axis.sum() + rows.cone.radius.sum() for kind, rows in embedded.items()}
        check_finite({f"the sum over the cones of {kind}": value for kind, value in given.items()})
        name = counting[0]
        terms[name] = terms[name] + 0.0 * sum([*given.values(), logit_scale, containment_scale, containment_bias])
    return terms


def _terms(sums: dict[str, list[Sums]], world: World) -> dict[str, Tensor]:
    total = torch.cat([part.total for parts in sums.values() for part in parts])
    count = torch.cat([part.count for parts in sums.values() for part in parts])
    all_totals, all_counts = world.total(torch.stack([total.detach(), count]))
    all_counts = all_counts.clamp(min=1)
    share = world.size * total / all_counts
    # The value is global, the gradient that of the share.
    values = share + (all_totals / all_counts - share).detach() if world.size > 1 else share
    lengths = [sum(len(part.total) for part in parts) for parts in sums.values()]
    terms = {name: value.mean() for name, value in zip(sums, values.split(lengths), strict=True)}
    check_finite(terms)
    return terms


def check_finite(terms: dict[str, Tensor]) -> None:
    """Looks at all terms with one wait for the device; raises `FloatingPointError` that names those not finite."""
    values = torch.stack([term.detach() for term in terms.values()])
    if not torch.isfinite(values).all():
        named = zip(terms, values.tolist(), strict=True)
        bad = ", ".join(f"{name} = {value}" for name, value in named if not math.isfinite(value))
        raise FloatingPointError(
            f"the loss is not finite: {bad}. Look at the batch's inputs for NaN, lower the learning rate, clip the "
            f"gradient (max_grad_norm), or train in bf16 or fp32 in place of fp16"
        )


def total_loss(terms: dict[str, Tensor], weights: LossWeights) -> Tensor:
    """The weighted sum over groups of the mean of a group's terms (that of phrases by its weight): scalar.

    The mean keeps the balance of the groups, and the learning rate, whatever the number of modalities.
    """
    groups: dict[str, list[str]] = {}
    for name in terms:
        groups.setdefault(name.split("_")[0], []).append(name)
    parts = []
    for members in groups.values():
        shares = [weights.in_group(name) for name in members]
        whole = torch.stack([share * terms[name] for share, name in zip(shares, members, strict=True)]).sum()
        parts.append(weights.of_group(members[0]) * whole / max(sum(shares), 1e-12))
    return torch.stack(parts).sum()


def radius_alarm(embedded: dict[str, Embedded]) -> list[str]:
    """One message for each kind whose radii have gone to a bound or to one value, with what to change; else [].

    They have where a quarter of them are at the bound, or where the middle half of them are equal. Compounds are left
    out: their radius goes to its floor where parts have nothing in common, which is reported there.
    """
    alarms = []
    for kind, rows in embedded.items():
        radius = rows.cone.radius.detach().float()
        if kind not in (*LETTERS, "phrase") or len(radius) < ENOUGH_RADII:
            continue
        ordered = radius.sort().values  # `quantile` takes no more than 16 M values
        last, quarter = len(ordered) - 1, (len(ordered) - 1) // 4
        low, median, high = (ordered[place].item() for place in (quarter, last // 2, last - quarter))
        told = f"(quartiles {low:.3g}, {median:.3g}, {high:.3g} rad)"
        if low < NEAR_BOUND:
            alarms.append(
                f"{kind} radii have gone to 0 {told}: lower containment_weight, or start them wider (radius_init of "
                f"CUEModel.from_encoders)"
            )
        elif high > math.pi - NEAR_BOUND:
            alarms.append(
                f"{kind} radii have gone to pi {told}, where a cone contains everything: lower containment_weight or "
                f"head_learning_rate, or use batches with more negatives"
            )
        elif high - low < ONE_VALUE:
            alarms.append(
                f"{kind} radii have gone to one value {told}: raise containment_weight or head_learning_rate, and see "
                f"that captions of the batch have phrases"
            )
    return alarms
