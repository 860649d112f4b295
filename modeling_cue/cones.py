"""Spherical cones and their algebra.

The space is the unit sphere S^{D-1} of R^D with the angle as its distance. A concept is a set of directions: the cone
of all unit vectors within `radius` of a unit vector `axis`. Wide is general, narrow is specific; "is a" is
containment; a radius of 0 is one direction, pi the whole sphere. Cones are ordered by inclusion, and for two of them
whether one contains the other, or meets it, follows from three numbers: the two radii and the angle between the axes.
Cones do not form a lattice of sets: a union or an intersection of cones is in general not a cone. So `join` is the
smallest round both, `meet` the largest inside both, `meet_hull` the smallest round the intersection. An empty set has
no axis: what may be empty is flagged in `Cone.empty`, and everything here that speaks of sets heeds the flag; margins
and probabilities are geometry and read axis and radius alone.

Axes are of unit length and radii in [0, pi]: `check_cone` checks it, and all else takes it for granted, as looking at
values would wait for the device. Every function is pure, broadcasts over batch dimensions, computes in float32 or
better whatever the autocast (half precision comes back as float32) and has finite gradients. Two batches of cones that
broadcast are written (...) below.

Prior art: Disk Embeddings (Suzuki et al., ICML 2019), of which these are the spherical case; order embeddings
(Vendrov et al., ICLR 2016); hyperbolic entailment cones (Ganea et al., ICML 2018); ConE (Zhang et al., NeurIPS 2021);
MERU (Desai et al., ICML 2023).
"""

import math

import torch
from torch import Tensor

from .cone_type import Cone, check_cone, empty_mask, is_whole, widened_axis
from .sphere import angle, between, cap_log_share, pairwise_angle, wide_dtype

__all__ = [
    "Cone",
    "angle",
    "check_cone",
    "complement",
    "containment_margin",
    "containment_probability",
    "contains",
    "join",
    "join_many",
    "log_volume",
    "meet",
    "meet_hull",
    "membership_margin",
    "overlaps",
    "pairwise_angle",
    "pairwise_containment_margin",
    "pairwise_containment_probability",
    "pairwise_contains",
    "pairwise_overlaps",
]


def _widen(*cones: Cone) -> list[Cone]:
    """The cones in one dtype, float32 or better; a radius that is pi in its own dtype is pi in the new one."""
    dtype = wide_dtype(*(tensor for cone in cones for tensor in (cone.axis, cone.radius)))

    def radius(cone: Cone) -> Tensor:
        if cone.radius.dtype == dtype:
            return cone.radius
        return torch.where(is_whole(cone), math.pi, cone.radius.to(dtype))

    return [Cone(widened_axis(cone.axis, cone.axis.to(dtype)), radius(cone), cone.empty) for cone in cones]


def _choose(first: Tensor, a: Cone, b: Cone) -> Cone:
    """a where `first`, else b."""
    empty = None if a.empty is None and b.empty is None else torch.where(first, empty_mask(a), empty_mask(b))
    axis = torch.where(first[..., None], a.axis, b.axis)
    return Cone(axis, torch.where(first, a.radius, b.radius), empty)


# ---------------------------------------------------------------- order


def containment_margin(outer: Cone, inner: Cone) -> Tensor:
    """theta_outer - theta_inner - angle of the axes: (...), radians, in [-2 pi, pi].

    Not negative if and only if `inner` lies inside `outer`, but for an outer radius of pi, which contains everything.
    """
    outer, inner = _widen(outer, inner)
    apart = angle(outer.axis, inner.axis)
    return outer.radius - inner.radius - apart


def contains(outer: Cone, inner: Cone) -> Tensor:
    """Whether every direction of `inner` is one of `outer`: (...) bool. An empty cone is inside every cone."""
    outer, inner = _widen(outer, inner)
    return _inside(containment_margin(outer, inner), outer, inner)


def _inside(margin: Tensor, outer: Cone, inner: Cone) -> Tensor:
    return ((margin >= 0) | is_whole(outer)) & ~empty_mask(outer) | empty_mask(inner)


def overlaps(a: Cone, b: Cone) -> Tensor:
    """Whether some direction lies in both, the rims included: (...) bool. An empty cone overlaps none."""
    a, b = _widen(a, b)
    apart = angle(a.axis, b.axis)
    return (a.radius + b.radius >= apart) & ~(empty_mask(a) | empty_mask(b))


def membership_margin(cone: Cone, point: Tensor) -> Tensor:
    """theta - angle(axis, point), unit vectors (..., D): (...), radians, in [-pi, pi]; >= 0 where it is a member."""
    (cone,) = _widen(cone)
    return cone.radius - angle(cone.axis, point)


def containment_probability(
    outer: Cone, inner: Cone, scale: Tensor | float = 10.0, bias: Tensor | float = 0.0
) -> Tensor:
    """sigmoid(scale * (containment_margin + bias)): (...), in [0, 1].

    Args:
        scale: in 1 / radian. bias: in radians. A trained model has learned both, `_, scale, bias = model.scales()`, so
            that the probability is calibrated on its training pairs, true and false ones equally many.
    """
    return torch.sigmoid(scale * (containment_margin(outer, inner) + bias))


# ---------------------------------------------------------------- all pairs


def pairwise_containment_margin(outer: Cone, inner: Cone) -> Tensor:
    """`containment_margin` of all pairs: cones (..., N) and (..., M) -> (..., N, M), radians.

    To the 2.4e-7 of `pairwise_angle`; a cone with itself has a margin of exactly 0.
    """
    outer, inner = _widen(outer, inner)
    angles = pairwise_angle(outer.axis, inner.axis)
    return outer.radius[..., :, None] - inner.radius[..., None, :] - angles


def pairwise_contains(outer: Cone, inner: Cone) -> Tensor:
    """`contains` of all pairs: cones (..., N) and (..., M) -> (..., N, M) bool; margins as in the function above."""
    outer, inner = _widen(outer, inner)
    margin = pairwise_containment_margin(outer, inner)
    return _inside(margin, outer[..., :, None], inner[..., None, :])


def pairwise_overlaps(a: Cone, b: Cone) -> Tensor:
    """`overlaps` of all pairs: cones (..., N) and (..., M) -> (..., N, M) bool, to the 2.4e-7 of `pairwise_angle`."""
    a, b = _widen(a, b)
    angles = pairwise_angle(a.axis, b.axis)
    empty = empty_mask(a)[..., :, None] | empty_mask(b)[..., None, :]
    return (a.radius[..., :, None] + b.radius[..., None, :] >= angles) & ~empty


def pairwise_containment_probability(
    outer: Cone, inner: Cone, scale: Tensor | float = 10.0, bias: Tensor | float = 0.0
) -> Tensor:
    """`containment_probability` of all pairs: cones (..., N) and (..., M) -> (..., N, M), in [0, 1]."""
    return torch.sigmoid(scale * (pairwise_containment_margin(outer, inner) + bias))


# ---------------------------------------------------------------- operations


def join(a: Cone, b: Cone) -> Cone:
    """The smallest cone that contains both: (...).

    Radius (theta_a + theta_b + d) / 2 round a point of the great circle through the axes, d their angle; the larger
    operand, unchanged, if it contains the other; the whole sphere past pi. The radius is rounded outwards, so that
    `contains(join(a, b), a)` is true in floating point too. At antipodal axes the great circle is a fixed choice.
    """
    a, b = _widen(a, b)
    apart = angle(a.axis, b.axis)
    radius = (a.radius + b.radius + apart) / 2
    axis = between(a.axis, b.axis, (b.radius - a.radius) / 2)
    needed = torch.maximum(a.radius + angle(axis, a.axis), b.radius + angle(axis, b.axis))
    radius = radius + (needed + _slack(needed) - radius).detach().clamp(min=0)
    both = Cone(axis, radius.clamp(max=math.pi))
    return _choose(contains(a, b), a, _choose(contains(b, a), b, both))


def meet(a: Cone, b: Cone) -> Cone:
    """The largest cone inside both: (...).

    Radius (theta_a + theta_b - d) / 2 on the great circle through the axes; the smaller operand, unchanged, if it lies
    in the other. Where the two do not overlap the result is flagged `empty`, has radius 0 and lies between them. The
    radius is rounded inwards, so that `contains(a, meet(a, b))` is true in floating point too while it is above 0.
    """
    a, b = _widen(a, b)
    apart = angle(a.axis, b.axis)
    radius = (a.radius + b.radius - apart) / 2
    axis = between(a.axis, b.axis, (a.radius - b.radius) / 2)
    room = torch.minimum(a.radius - angle(axis, a.axis), b.radius - angle(axis, b.axis))
    radius = radius - (radius - room + _slack(torch.maximum(a.radius, b.radius))).detach().clamp(min=0)
    both = Cone(axis, radius.clamp(min=0), ~overlaps(a, b))
    return _choose(contains(a, b), b, _choose(contains(b, a), a, both))


def _slack(radius: Tensor) -> Tensor:
    # More than the sums in a containment margin can lose to rounding.
    return 4 * torch.finfo(radius.dtype).eps * radius


def meet_hull(a: Cone, b: Cone) -> Cone:
    """The smallest cone that contains the intersection, which itself is no cone: (...).

    In D >= 3, overlapping and not nested: the rims cross in a sphere of dimension D - 3 round p = alpha mu_a +
    beta mu_b with p . mu_a = cos theta_a and p . mu_b = cos theta_b. If alpha, beta >= 0 and |p| < 1, that sphere is
    the widest part and the hull is (p / |p|, arccos |p|); else the hull is the smaller operand. In D = 2 there is no
    rim: the hull is the `meet`, or the smaller operand where the arcs overlap at both ends. Nested operands and empty
    intersections are as in `meet`. Where two operands of one size both qualify, the choice is fixed and does not
    depend on their order.
    """
    a, b = _widen(a, b)
    inscribed = meet(a, b)
    smaller = _choose((a.radius < b.radius) | ((a.radius == b.radius) & _precedes(a.axis, b.axis)), a, b)
    half = angle(a.axis, b.axis) / 2
    mean, lean = (a.radius + b.radius) / 2, (a.radius - b.radius) / 2
    if a.dim == 2:
        hull = _choose(mean + half < math.pi, inscribed, smaller)
    else:
        # On the axes m, n of `between`, with e half the angle, s the mean and t half the difference of the radii:
        # p = (cos s cos t / cos e) m + (sin s sin t / sin e) n, and 1 - |p|^2 falls apart into the factors below.
        sine, cosine = torch.sin(half), torch.cos(half)
        along, across = torch.cos(mean) * torch.cos(lean) * sine, torch.sin(mean) * torch.sin(lean) * cosine
        rim = torch.sin(mean + half) * torch.sin(mean - half) * torch.sin(half + lean) * torch.sin(half - lean)
        wedge = (across.abs() * cosine <= along * sine) & (along > 0) & (rim > 0)
        # Elsewhere the values are not used, but their gradients must be finite.
        along, across = torch.where(wedge, along, 1.0), torch.where(wedge, across, 0.0)
        rim = torch.where(wedge, rim, 1.0)
        axis = between(a.axis, b.axis, torch.atan2(across, along))
        crossing = Cone(axis, torch.atan2(rim.sqrt(), torch.hypot(along, across)))
        hull = _choose(wedge, crossing, smaller)
    nested = contains(a, b) | contains(b, a)
    return _choose(nested | empty_mask(inscribed), inscribed, hull)


def _precedes(a: Tensor, b: Tensor) -> Tensor:
    """Whether the first coordinate in which a and b differ is larger in a: (..., D), (..., D) -> (...) bool."""
    difference = a - b
    first = (difference != 0).int().argmax(-1, keepdim=True)
    return difference.gather(-1, first).squeeze(-1) > 0


def complement(cone: Cone) -> Cone:
    """The closure of the set of all other directions: (-axis, pi - theta), (...).

    Of the whole sphere it is empty, and flagged so; of an empty cone it is the whole sphere. Twice it gives the cone
    back up to rounding, but for radius 0, whose complement is the whole sphere already.
    """
    (cone,) = _widen(cone)
    radius = torch.where(empty_mask(cone), math.pi, (math.pi - cone.radius).clamp(min=0))
    return Cone(-cone.axis, radius, is_whole(cone) & ~empty_mask(cone))


def log_volume(cone: Cone) -> Tensor:
    """Log of the share of the sphere that the cone covers: (...), in [-inf, 0]; see `cap_log_share` for its accuracy.

    -inf at radius 0, where the gradient is defined as 0, and where the cone is empty; 0 at radius pi.
    """
    (cone,) = _widen(cone)
    return cap_log_share(cone.radius, cone.dim).masked_fill(empty_mask(cone), -math.inf)


def join_many(cones: Cone, steps: int = 32) -> Cone:
    """A small cone that contains all cones along the last batch dimension: (..., K) -> (...).

    Where one of them contains the rest it is that one, and for two it is their `join`. Else the centre starts from the
    join of the widest and the cone that reaches farthest from it, and walks `steps` times towards the farthest reach,
    by ever smaller parts (Badoiu and Clarkson, SODA 2003; on manifolds Arnaudon and Nielsen, 2013); the best centre
    is kept. The radius is never more than 2 r - theta_max, r the smallest possible and theta_max the widest radius,
    as the widest cone's own axis is one of the centres; on random groups it is within 2 % of r with 32 steps, and the
    excess falls as 1 / steps. It is rounded outwards as in `join`. Empty cones count for nothing; all empty gives an
    empty one.

    Raises:
        ValueError: no batch dimension, or no cone along it.
    """
    if not isinstance(cones, Cone):
        raise TypeError("join_many takes one Cone of shape (..., K): give Cone.stack(cones)")
    if not cones.shape or not cones.shape[-1]:
        raise ValueError(
            f"join_many joins along the last batch dimension, but the batch shape is {tuple(cones.shape)}; "
            "give (..., K) cones with K >= 1, see Cone.stack"
        )
    (cones,) = _widen(cones)
    # From -pi an empty cone reaches no farther than 0, which every other cone does.
    radius = cones.radius.masked_fill(empty_mask(cones), -math.pi)

    def reach(centre: Tensor) -> tuple[Tensor, Tensor]:
        """How far the cones reach from the centre (...), and the index of the farthest."""
        return (radius + angle(centre[..., None, :], cones.axis)).max(-1)

    widest = _take(cones, radius.argmax(-1))
    best_axis, (best, farthest) = widest.axis, reach(widest.axis)
    nested = contains(widest[..., None], cones).all(-1)
    centre = join(widest, _take(cones, farthest)).axis
    for step in range(steps + 1):
        extent, farthest = reach(centre)
        better = extent < best
        best_axis, best = torch.where(better[..., None], centre, best_axis), torch.where(better, extent, best)
        target = _take(cones, farthest).axis
        # No centre brings the reach below the widest radius: only what is beyond it is to be gained.
        stride = (extent - widest.radius) / (step + 2)
        centre = between(centre, target, stride - angle(centre, target) / 2)
    return _choose(nested, widest, Cone(best_axis, (best + _slack(best)).clamp(max=math.pi)))


def _take(cones: Cone, index: Tensor) -> Cone:
    """One cone along the last batch dimension: (..., K) and indices (...) -> (...)."""
    axis = cones.axis.take_along_dim(index[..., None, None], -2).squeeze(-2)
    radius = cones.radius.take_along_dim(index[..., None], -1).squeeze(-1)
    if cones.empty is None:
        return Cone(axis, radius)
    return Cone(axis, radius, cones.empty.take_along_dim(index[..., None], -1).squeeze(-1))
