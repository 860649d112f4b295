"""Cones to test with: random ones, ones in a plane by degrees, and generated cases with the tolerances of the laws.

The tolerances follow from the dtype: a margin is a sum of at most three numbers in [0, pi]; rounding the axes moves
each of them by eps / 2, a radius or an angle is off by a few eps of at most pi, and a constructed cone adds as much
again. `tolerance` is 32 eps: 3 * pi * eps for the numbers, twice, and the rest for the norms of long vectors.
"""

import math
from typing import NamedTuple

import torch
from hypothesis import settings
from hypothesis import strategies as st
from torch.nn.functional import normalize

from modeling_cue.cones import Cone, containment_margin, contains


def cones(*shape, dim=16, seed=0, dtype=torch.float32, widest=math.pi):
    generator = torch.Generator().manual_seed(seed)
    axis = normalize(torch.randn(*shape, dim, generator=generator, dtype=torch.float64), dim=-1)
    radius = widest * torch.rand(shape, generator=generator, dtype=torch.float64)
    return Cone(axis.to(dtype), radius.to(dtype))


def flat(degrees, radius, dim=3, dtype=torch.float64):
    """A cone whose axis lies at `degrees` in the plane of the first two coordinates; the radius is in degrees too."""
    axis = torch.zeros(dim, dtype=torch.float64)
    axis[0], axis[1] = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return Cone(axis.to(dtype), torch.tensor(math.radians(radius), dtype=dtype))


def degrees(cone):
    """(place in the plane, radius), both in degrees."""
    return math.degrees(math.atan2(cone.axis[1], cone.axis[0])), math.degrees(cone.radius)


law = settings(max_examples=50, deadline=None, derandomize=True, database=None)
angles = st.one_of(st.sampled_from([0.0, 1e-6, math.pi / 2, math.pi - 1e-4, math.pi]), st.floats(0.0, math.pi))
dims = st.one_of(st.sampled_from([2, 3, 4, 128, 1024]), st.integers(2, 64))
dtypes = st.sampled_from([torch.float32, torch.float64])
seeds = st.integers(0, 2**31 - 1)


class Case(NamedTuple):
    a: Cone
    b: Cone
    c: Cone
    apart: float  # the angle between the axes of a and b
    random: torch.Generator

    def noise(self, *shape):
        return torch.randn(*shape, generator=self.random, dtype=torch.float64)

    def cone(self, axis, radius):
        return Cone(axis.to(self.a.axis.dtype), torch.as_tensor(radius, dtype=torch.float64).to(self.a.axis.dtype))

    def near(self, axis, by):
        """A unit vector at the angle `by` from `axis`, in a random direction."""
        axis = normalize(axis.double(), dim=-1)
        tangent = self.noise(*axis.shape)
        for _ in range(2):
            tangent = normalize(tangent - (tangent * axis).sum(-1, keepdim=True) * axis, dim=-1)
        return math.cos(by) * axis + math.sin(by) * tangent


@st.composite
def cases(draw):
    dim, dtype, seed, apart = draw(dims), draw(dtypes), draw(seeds), draw(angles)
    random = torch.Generator().manual_seed(seed)
    case = Case(*[Cone(torch.zeros(dim, dtype=dtype), torch.zeros((), dtype=dtype))] * 3, apart, random)
    axis = normalize(case.noise(dim), dim=-1)
    axes = axis, case.near(axis, apart), normalize(case.noise(dim), dim=-1)
    a, b, c = (case.cone(x, draw(angles)) for x in axes)
    return Case(a, b, c, apart, random)


def tolerance(cone):
    return 32 * torch.finfo(cone.radius.dtype).eps


def is_whole(cone):
    return bool(cone.radius >= torch.full_like(cone.radius, math.pi))


def within(outer, inner):
    """Containment up to rounding."""
    margin = containment_margin(outer, inner)
    return (
        bool(contains(outer, inner)) or bool(margin >= -tolerance(outer)) or outer.radius >= math.pi - tolerance(outer)
    )


def same(a, b):
    """One set up to rounding: each inside the other."""
    return within(a, b) and within(b, a)


def emptied(cone):
    return bool(cone.empty) if cone.empty is not None else False


def rim_tolerance(cone):
    # The rims cross at a height that is the root of a product of gaps: an error of eps in a gap near 0 moves it by
    # the root of eps.
    return 4 * tolerance(cone) ** 0.5
