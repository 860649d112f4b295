"""meet_hull and join_many beside slow twins that try centres on circle and sphere."""

import math

import pytest
import torch
from cone_cases import cones, degrees, flat
from torch.nn.functional import normalize

from modeling_cue.cones import Cone, contains, join, join_many, meet_hull, membership_margin


def ring(dim, count):
    """Points of the circle of the first two coordinates: (count, dim)."""
    turn = torch.arange(count, dtype=torch.float64) * (2 * math.pi / count)
    return torch.nn.functional.pad(torch.stack([turn.cos(), turn.sin()], -1), (0, dim - 2))


def lattice(count):
    """Points spread evenly over S^2, a Fibonacci lattice: (count, 3)."""
    height = 1 - (2 * torch.arange(count, dtype=torch.float64) + 1) / count
    turn = torch.arange(count) * (math.pi * (3 - math.sqrt(5)))
    wide = (1 - height**2).sqrt()
    return torch.stack([wide * turn.cos(), wide * turn.sin(), height], -1)


def rim(cone, count):
    """Points of a rim: both ends of an arc, or `count` on a circle."""
    side = torch.zeros_like(cone.axis)
    side[0], side[1] = -cone.axis[1], cone.axis[0]
    turn = torch.tensor([0, math.pi]) if cone.dim == 2 else torch.arange(count) * (2 * math.pi / count)
    sides = turn.cos()[:, None] * side
    if cone.dim > 2:
        sides[:, 2] = turn.sin()
    return torch.cos(cone.radius) * cone.axis + torch.sin(cone.radius) * sides


@pytest.mark.parametrize(("dim", "between_samples"), [(2, 1e-6), (3, math.pi / 180)])
def test_meet_hull_is_the_smallest_cone_round_the_common_points(dim, between_samples):
    # Centres off the plane of the axes too. Distances between centres only make the smallest found larger.
    centres = torch.cat([ring(dim, 900), lattice(900)]) if dim == 3 else ring(dim, 1800)
    seen = {"rim": 0, "smaller": 0}
    # No angles that touch: whether a single common point is one hangs on rounding.
    for apart in (21, 61, 101, 173):
        for first in (15, 50, 85, 95, 130, 165):
            for second in (25, 70, 110, 160):
                a, b = flat(10, first, dim), flat(10 + apart, second, dim)
                hull = meet_hull(a, b)
                if hull.empty or contains(a, b) or contains(b, a):
                    continue
                points = torch.cat([rim(a, 360), rim(b, 360), centres])
                common = points[(membership_margin(a, points) >= -1e-9) & (membership_margin(b, points) >= -1e-9)]
                assert (membership_margin(hull, common) >= -1e-6).all()
                smallest = torch.arccos((centres @ common.T).clamp(-1, 1)).max(1).values.min()
                assert hull.radius <= smallest + between_samples
                seen["smaller" if hull.radius == torch.minimum(a.radius, b.radius) else "rim"] += 1
    assert min(seen.values()) >= 5


@pytest.mark.parametrize("dim", [4, 300])
def test_meet_hull_depends_on_the_plane_of_the_axes_only(dim):
    for first, second, apart in ((60, 50, 80), (20, 70, 60), (100, 95, 40), (30, 85, 62)):
        low, high = (meet_hull(flat(0, first, d), flat(apart, second, d)) for d in (3, dim))
        assert degrees(low) == pytest.approx(degrees(high), abs=1e-9)
        # Two common points on the rim, opposite each other as seen from the axis, leave no room for a smaller cone.
        if low.radius < min(math.radians(first), math.radians(second)):
            side = torch.zeros(dim, dtype=torch.float64)
            side[-1] = 1
            for sign in (-1, 1):
                corner = torch.cos(high.radius) * high.axis + sign * torch.sin(high.radius) * side
                assert membership_margin(flat(0, first, dim), corner).abs() < 1e-12
                assert membership_margin(flat(apart, second, dim), corner).abs() < 1e-12


def test_meet_hull_takes_one_of_two_equal_operands_whatever_their_order():
    a, b = flat(20, 120), flat(70, 120)
    assert torch.equal(meet_hull(a, b).axis, meet_hull(b, a).axis)
    assert torch.equal(meet_hull(a, b).axis, a.axis)


def test_antipodal_axes_have_a_fixed_great_circle_for_both_orders():
    for dim in (2, 3, 64):
        a, b = flat(30, 40, dim), flat(210, 60, dim)
        b = Cone(-a.axis, b.radius)
        both = join(a, b)
        assert math.degrees(both.radius) == pytest.approx(140)
        assert torch.equal(both.axis, join(b, a).axis)
        assert contains(both, a)
        assert contains(both, b)


@pytest.mark.parametrize(("count", "dim"), [(3, 3), (8, 16), (40, 64)])
def test_join_many_is_near_the_smallest(count, dim):
    centre = normalize(torch.ones(dim, dtype=torch.float64), dim=0)
    loose = cones(30, count, dim=dim, seed=3, dtype=torch.float64, widest=0.4)
    group = Cone(normalize(centre + loose.axis * 0.9, dim=-1), loose.radius)
    result = join_many(group)
    assert contains(result[:, None], group).all()
    # Thirty times the steps come within 1e-3 of the smallest.
    assert (result.radius / join_many(group, steps=1000).radius).max() < 1.02
