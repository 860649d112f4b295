"""The laws of order, join and meet over generated cases: D from 2 to 1024, float32 and float64."""

import math

import torch
from cone_cases import cases, emptied, is_whole, law, tolerance, within
from hypothesis import assume, given
from hypothesis import strategies as st
from torch.nn.functional import normalize

from modeling_cue.cones import (
    angle,
    complement,
    containment_margin,
    contains,
    join,
    meet,
    meet_hull,
    membership_margin,
    overlaps,
    pairwise_containment_margin,
)

# ---------------------------------------------------------------- order


@law
@given(cases())
def test_containment_is_reflexive(case):
    for cone in case[:3]:
        assert containment_margin(cone, cone) == 0
        assert contains(cone, cone)
        assert pairwise_containment_margin(cone[None], cone[None]) == 0


@law
@given(cases())
def test_containment_is_transitive(case):
    a, b, c = case[:3]
    # Margins add up along a chain, whether or not the cones are nested.
    assert containment_margin(a, c) >= containment_margin(a, b) + containment_margin(b, c) - tolerance(a)
    if contains(a, b) and contains(b, c):
        assert within(a, c)


@law
@given(cases(), st.floats(0, 1), st.floats(0, 1))
def test_containment_is_transitive_along_built_chains(case, first, second):
    a = case.a
    b = case.cone(case.near(a.axis, float(a.radius) * first), float(a.radius) * (1 - first) * 0.999)
    c = case.cone(case.near(b.axis, float(b.radius) * second), float(b.radius) * (1 - second) * 0.999)
    assert within(a, b)
    assert within(b, c)
    assert within(a, c)


@law
@given(cases())
def test_containment_is_antisymmetric(case):
    a, b = case.a, case.b
    # Each inside the other leaves no room for an angle: the margins add up to -2 d.
    both_ways = containment_margin(a, b) + containment_margin(b, a)
    assert (both_ways + 2 * angle(a.axis, b.axis)).abs() <= tolerance(a)
    if contains(a, b) and contains(b, a) and not is_whole(a):
        assert angle(a.axis, b.axis) <= tolerance(a)
        assert (a.radius - b.radius).abs() <= tolerance(a)


@law
@given(cases())
def test_containment_is_what_its_members_say(case):
    a, b = case.a, case.b
    # Members of b: its rim in random directions, and the one farthest from the axis of a.
    points = [case.near(b.axis, float(b.radius)) for _ in range(8)]
    from_a, to_b = a.axis.double(), b.axis.double()
    away = (from_a @ to_b) * to_b - from_a
    if away.norm() > 1e-3:
        farthest = math.cos(float(b.radius)) * to_b + math.sin(float(b.radius)) * normalize(away, dim=-1)
        points.append(farthest)
        reach = angle(from_a, to_b) + b.radius.double()
        if reach <= math.pi and containment_margin(a, b) < -tolerance(a):
            assert membership_margin(a, farthest.to(a.axis.dtype)) < tolerance(a)
    if contains(a, b):
        assert (membership_margin(a, torch.stack(points).to(a.axis.dtype)) >= -2 * tolerance(a)).all()


@law
@given(cases())
def test_overlap_is_symmetric_and_follows_containment(case):
    a, b = case.a, case.b
    assert overlaps(a, b) == overlaps(b, a)
    assert overlaps(a, b) == (a.radius + b.radius >= angle(a.axis, b.axis))
    if contains(a, b):
        assert overlaps(a, b) or b.radius <= tolerance(a)


# ---------------------------------------------------------------- join and meet


@law
@given(cases(), st.floats(0, math.pi))
def test_join_is_the_smallest_upper_bound(case, elsewhere):
    a, b = case.a, case.b
    both = join(a, b)
    # To the last bit: the radius is rounded outwards.
    assert contains(both, a)
    assert contains(both, b)
    axis = torch.stack([case.near(both.axis, by) for by in (elsewhere, 0.0, 1e-3)]).to(a.axis.dtype)
    needed = torch.maximum(a.radius + angle(axis, a.axis), b.radius + angle(axis, b.axis)).clamp(max=math.pi)
    assert (both.radius <= needed + tolerance(a)).all()


@law
@given(cases(), st.floats(0, math.pi))
def test_meet_is_the_largest_lower_bound(case, elsewhere):
    a, b = case.a, case.b
    both = meet(a, b)
    assert 0 <= both.radius <= torch.minimum(a.radius, b.radius)
    assert emptied(both) == (not overlaps(a, b) and not contains(a, b) and not contains(b, a))
    for cone in (a, b):
        assert contains(cone, both) or both.radius <= tolerance(a)
        assert emptied(both) or within(cone, both)
    axis = torch.stack([case.near(both.axis, by) for by in (elsewhere, 0.0, 1e-3)]).to(a.axis.dtype)
    room = torch.minimum(a.radius - angle(axis, a.axis), b.radius - angle(axis, b.axis))
    assert (room <= both.radius + tolerance(a)).all()


@law
@given(cases())
def test_operations_commute(case):
    a, b = case.a, case.b
    for operation in (join, meet, meet_hull):
        first, second = operation(a, b), operation(b, a)
        assert emptied(first) == emptied(second)
        assert (first.radius - second.radius).abs() <= tolerance(a)
        # (mu, pi) is one set for every mu; a radius of 0 as a result of rounding has an axis as good as any.
        assert is_whole(first) or angle(first.axis, second.axis) <= tolerance(a)


@law
@given(cases())
def test_operations_are_idempotent(case):
    for cone in case[:3]:
        for operation in (join, meet, meet_hull):
            result = operation(cone, cone)
            assert torch.equal(result.axis, cone.axis)
            assert torch.equal(result.radius, cone.radius)
            assert not emptied(result)


@law
@given(cases(), st.floats(0, 1), st.floats(0, 1))
def test_operations_absorb_a_nested_operand(case, shift, shrink):
    a = case.a
    b = case.cone(case.near(a.axis, float(a.radius) * shift), float(a.radius) * (1 - shift) * shrink)
    assume(bool(contains(a, b)) and not contains(b, a))
    for x, y in ((a, b), (b, a)):
        assert torch.equal(join(x, y).axis, a.axis)
        assert torch.equal(join(x, y).radius, a.radius)
        for operation in (meet, meet_hull):
            assert torch.equal(operation(x, y).axis, b.axis)
            assert torch.equal(operation(x, y).radius, b.radius)


@law
@given(cases())
def test_join_and_meet_are_dual(case):
    a, b = case.a, case.b
    # No boundary cases: the complement of a point is the whole sphere.
    assume(0.01 < a.radius < math.pi - 0.01 and 0.01 < b.radius < math.pi - 0.01)
    dual = complement(join(complement(a), complement(b)))
    direct = meet(a, b)
    assert (dual.radius - direct.radius).abs() <= tolerance(a)
    # The great circle is fixed to eps over the distance of the axes from antipodes.
    if direct.radius > tolerance(a) and case.apart < math.pi - 1e-3:
        assert angle(dual.axis, direct.axis) <= 1e3 * tolerance(a)
