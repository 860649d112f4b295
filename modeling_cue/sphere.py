"""Angles, great circles and caps of the unit sphere S^{D-1}: the numbers under the cones.

The space is the set of unit vectors of R^D, D >= 2, with the angle between two vectors, in [0, pi], as its distance.
Everything here is a pure function of unit vectors (..., D), broadcasts over the dimensions before the last, computes
in float32 or better whatever the autocast, and has finite gradients at equal and at antipodal vectors. There is no
arccosine of a dot product: it loses half of the digits near 0 and pi, and clamping it kills the gradient there.
"""

import math
from contextlib import AbstractContextManager, nullcontext
from functools import reduce

import torch
from torch import Tensor

# Squared chords below this one count as 0 in `pairwise_angle`: above the rounding of a float64 dot product of 4,096
# terms (1.4e-14), and as an angle (2.4e-7) two units in the last place of float32.
_SQUARED_CHORD_NOISE = (2 * torch.finfo(torch.float32).eps) ** 2


def wide_dtype(*tensors: Tensor) -> torch.dtype:
    """The dtype to compute in: the widest of the tensors', at least float32."""
    return reduce(torch.promote_types, (x.dtype for x in tensors), torch.float32)


def without_autocast(device: torch.device) -> AbstractContextManager:
    """Keeps autocast from lowering what is computed on this device."""
    # Not every device type has autocast; the meta device has none.
    if torch.amp.is_autocast_available(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()


def _accurate_dtype(device: torch.device) -> torch.dtype:
    # Apple's GPUs have no float64: there `pairwise_angle` and `cap_log_share` have float32's accuracy.
    return torch.float32 if device.type == "mps" else torch.float64


def _check_vectors(name: str, a: Tensor, b: Tensor, least: int) -> None:
    for x in (a, b):
        if not isinstance(x, Tensor):
            raise TypeError(f"{name} takes unit vectors as tensors, got {type(x).__name__}: of a cone, give its axis")
        if x.ndim < least or not x.is_floating_point():
            shape = "(..., N, D)" if least == 2 else "(..., D)"
            raise ValueError(
                f"{name}: expected floating-point vectors {shape}, got {x.dtype} of shape {tuple(x.shape)}"
            )
    if a.shape[-1] != b.shape[-1]:
        raise ValueError(
            f"{name}: the vectors have {a.shape[-1]} and {b.shape[-1]} dimensions; both must come from one space"
        )
    batches = a.shape[:-least], b.shape[:-least]
    try:
        torch.broadcast_shapes(*batches)
    except RuntimeError:
        raise ValueError(
            f"{name}: the batch shapes {tuple(batches[0])} and {tuple(batches[1])} do not broadcast; "
            "add dimensions of size 1, or use the pairwise functions for all pairs"
        ) from None


def angle(a: Tensor, b: Tensor) -> Tensor:
    """Angle between unit vectors: (..., D), (..., D) -> (...), radians, in [0, pi].

    2 atan2(|a - b|, |a + b|) (Kahan, "How futile are mindless assessments of roundoff", 2006): accurate to
    a few units in the last place everywhere, exactly 0 where a equals b, exactly pi where a equals -b. The gradient is
    the unit tangent; 0 at the two places where there is none. Half precision is computed in float32 and returned so.

    Raises:
        ValueError: vectors that are not floating point, of different D, or with batches that do not broadcast.
    """
    _check_vectors("angle", a, b, 1)
    dtype = wide_dtype(a, b)
    with without_autocast(a.device):
        a, b = a.to(dtype), b.to(dtype)
        chord, cochord = torch.linalg.vector_norm(a - b, dim=-1), torch.linalg.vector_norm(a + b, dim=-1)
        return 2 * torch.atan2(chord, cochord)


def pairwise_angle(a: Tensor, b: Tensor) -> Tensor:
    """Angles between all pairs of unit vectors: (..., N, D), (..., M, D) -> (..., N, M), radians, in [0, pi].

    One matrix product, in float64 because |a - b|^2 = |a|^2 + |b|^2 - 2 <a, b> cancels near 0: with a float32 product
    an angle of 0 would read up to 1e-3, with TF32 more. Angles under 2.4e-7 (two float32 eps) and over pi - 2.4e-7
    come out as exactly 0 and pi, with gradient 0; elsewhere the result agrees with `angle` for D up to 4096 to 2.4e-7
    in float64 and to 4.8e-7 in float32 (float64 that must be exact near 0: use `angle` with broadcasting). Memory is
    proportional to N * M, never N * M * D.

    Raises:
        ValueError: as `angle`, and vectors of fewer than two dimensions.
    """
    _check_vectors("pairwise_angle", a, b, 2)
    dtype = wide_dtype(a, b)
    with without_autocast(a.device):
        accurate = _accurate_dtype(a.device)
        a, b = a.to(accurate), b.to(accurate)
        squares = (a * a).sum(-1)[..., :, None] + (b * b).sum(-1)[..., None, :]
        products = 2 * (a @ b.mT)
        # The cancellation is over: what is left of the work needs no more digits than the result.
        chord, cochord = (_chord((squares + sign * products).to(dtype)) for sign in (-1, 1))
        return 2 * torch.atan2(chord, cochord)


def _chord(squared: Tensor) -> Tensor:
    nothing = squared <= _SQUARED_CHORD_NOISE
    return torch.where(nothing, 0.0, torch.where(nothing, 1.0, squared).sqrt())


def between(a: Tensor, b: Tensor, offset: Tensor) -> Tensor:
    """The unit vector on the great circle of a and b, `offset` radians from their midpoint towards b.

    (..., D), (..., D), (...) -> (..., D), all of one dtype; `between(a, b, s)` equals `between(b, a, -s)` to the bit.
    Antipodal vectors have no unique great circle: a fixed one is taken, the same for both orders. Gradients are
    finite everywhere; they grow without bound towards antipodal vectors, where the great circle turns freely.
    """
    near = (a * b).sum(-1, keepdim=True) >= 0
    total, difference = a + b, b - a
    # cos(s) m + sin(s) n, m and n the unit vectors along a + b and b - a. The longer of the two sums is accurate; the
    # shorter is freed from its rounding error along the longer.
    long, short = torch.where(near, total, difference), torch.where(near, difference, total)
    long = _unit(long)
    short = short - (short * long).sum(-1, keepdim=True) * long
    lost = torch.linalg.vector_norm(short, dim=-1, keepdim=True) <= 8 * torch.finfo(a.dtype).eps
    substitute = torch.where(near, torch.zeros_like(long), _orthogonal(long))
    short = torch.where(lost, substitute, _unit(torch.where(lost, substitute, short)))
    middle, direction = torch.where(near, long, short), torch.where(near, short, long)
    return _unit(torch.cos(offset)[..., None] * middle + torch.sin(offset)[..., None] * direction)


def _unit(x: Tensor) -> Tensor:
    # The zero vector stays zero, with a finite gradient.
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return x / torch.where(length > 0, length, 1.0)


def _orthogonal(x: Tensor) -> Tensor:
    """A fixed unit vector orthogonal to the unit vector x, the same for x and -x."""
    index = x.abs().argmin(-1, keepdim=True)
    pole = torch.zeros_like(x).scatter(-1, index, 1.0)
    return _unit(pole - (pole * x).sum(-1, keepdim=True) * x)


def cap_log_share(radius: Tensor, dim: int) -> Tensor:
    """Log of the share of S^{dim-1} that a cap covers: (...), radians in [0, pi] -> (...), in [-inf, 0].

    log(I_{sin^2 r}((dim - 1) / 2, 1 / 2) / 2) for r <= pi / 2, I the regularized incomplete beta function (Li,
    "Concise formulas for the area and volume of a hyperspherical cap", 2011); beyond, the log of 1 minus the opposite
    cap's share. Computed in float64: for dim up to 4096 the error is below 1e-12 * max(1, |value|), before rounding
    to the radius' dtype (at least float32). -inf at 0, and 0 at pi. The gradient is the analytic one (once
    differentiable, relative error below 1e-8); at radius 0, where there is none, it is 0, and it never exceeds the
    largest finite number, so that an optimiser meets no nan. Takes 64 float64 numbers of memory per radius.
    """
    dtype = wide_dtype(radius)
    with without_autocast(radius.device):
        angles = radius.to(_accurate_dtype(radius.device))
        fixed = angles.detach().clamp(0, math.pi)
        # The whole sphere is twice the integral to the equator, in the same arithmetic: the share there is 1/2.
        whole = math.log(2) + _log_integral(fixed.new_full((), math.pi / 2), dim - 2)
        smaller = _log_integral(torch.minimum(fixed, math.pi - fixed), dim - 2) - whole
        value = torch.where(fixed <= math.pi / 2, smaller, torch.log1p(-smaller.exp()))
        slope = torch.exp(torch.xlogy(dim - 2, torch.sin(fixed)) - whole - value)
        slope = torch.where(fixed > 0, slope.clamp(max=torch.finfo(dtype).max), 0.0)
        # `angles - angles.detach()` is 0 and carries the gradient.
        return (value + slope * (angles - angles.detach())).to(dtype)


def _log_integral(end: Tensor, power: int) -> Tensor:
    """Log of the integral of sin(t)^power over t from 0 to `end`, (...) in [0, pi / 2] -> (...).

    Quadrature over the window below `end` where the integrand is more than e^-40 of its largest value: there it is
    smooth and of one shape whatever the power.
    """
    nodes, weights = _fejer(64, end)
    start = torch.asin(torch.sin(end) * (math.exp(-40 / power) if power else 0.0))
    below = (end - start)[..., None] * nodes
    sine = torch.sin(end)[..., None]
    ratio = torch.sin(end[..., None] - below) / torch.where(sine > 0, sine, 1.0)
    mean = (ratio**power * weights).sum(-1)
    return torch.log(end - start) + torch.xlogy(power, sine[..., 0]) + torch.log(mean)


def _fejer(count: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Nodes and weights of Fejér's first rule on [0, 1] (Waldvogel, BIT 46, 2006), each (count,)."""
    angles = (torch.arange(count, dtype=like.dtype, device=like.device) + 0.5) * (math.pi / count)
    k = torch.arange(1, count // 2 + 1, dtype=like.dtype, device=like.device)
    weights = (1 - 2 * (torch.cos(2 * k * angles[:, None]) / (4 * k * k - 1)).sum(-1)) / count
    return (1 - torch.cos(angles)) / 2, weights
