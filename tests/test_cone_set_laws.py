"""The laws of complement, volume and hull, symmetry and many cones, over generated cases."""

import math

import torch
from cone_cases import cases, dims, dtypes, emptied, is_whole, law, rim_tolerance, seeds, tolerance, within
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import normalize

from modeling_cue.cones import (
    Cone,
    angle,
    complement,
    containment_margin,
    contains,
    join,
    join_many,
    log_volume,
    meet,
    meet_hull,
    membership_margin,
    overlaps,
    pairwise_contains,
)

# ---------------------------------------------------------------- complement


@law
@given(cases())
def test_complement_reverses_containment(case):
    a, b = case.a, case.b
    reverse = containment_margin(complement(b), complement(a))
    assert (reverse - containment_margin(a, b)).abs() <= tolerance(a)
    if contains(a, b):
        assert within(complement(b), complement(a)) or emptied(complement(a))


@law
@given(cases())
def test_complement_twice_is_the_cone(case):
    a = case.a
    once = complement(a)
    assert emptied(once) == is_whole(a)
    if tolerance(a) < a.radius and not is_whole(a):
        twice = complement(once)
        assert torch.equal(twice.axis, a.axis)
        assert (twice.radius - a.radius).abs() <= tolerance(a)
        assert not emptied(twice)
    point = normalize(case.noise(a.dim), dim=-1).to(a.axis.dtype)
    margins = membership_margin(a, point), membership_margin(once, point)
    assert (margins[0] + margins[1]).abs() <= tolerance(a)


@law
@given(cases())
def test_volume_grows_with_containment_and_complements_to_one(case):
    a, b = case.a, case.b
    if a.radius > b.radius:
        assert log_volume(a) >= log_volume(b)
    total = log_volume(a.to(torch.float64)).exp() + log_volume(complement(a.to(torch.float64))).exp()
    # The radius is rounded to eps / 2 of pi, and the share has a slope of at most sqrt(D / 2 pi).
    assert (total - 1).abs() <= math.sqrt(a.dim) * tolerance(a)


# ---------------------------------------------------------------- hull


@law
@given(cases())
def test_meet_hull_lies_between_the_meet_and_the_smaller_operand(case):
    a, b = case.a, case.b
    inscribed, hull = meet(a, b), meet_hull(a, b)
    assert emptied(hull) == emptied(inscribed)
    assert hull.radius <= torch.minimum(a.radius, b.radius) + rim_tolerance(a)
    if not emptied(hull):
        assert containment_margin(hull, inscribed) >= -rim_tolerance(a) or is_whole(hull)


@law
@given(cases())
def test_meet_hull_contains_every_common_point(case):
    a, b = case.a, case.b
    hull = meet_hull(a, b)
    points = normalize(case.noise(64, a.dim), dim=-1)
    # Random points miss narrow cones: some are drawn round the meet, out to the operands' own radii.
    inscribed = meet(a, b)
    reach = min(float(a.radius), float(b.radius))
    drawn = [case.near(inscribed.axis, reach * share) for share in torch.linspace(0, 1, 32).tolist()]
    points = torch.cat([points, torch.stack(drawn)]).to(a.axis.dtype)
    common = (membership_margin(a, points) >= 0) & (membership_margin(b, points) >= 0)
    if not emptied(hull):
        assert (membership_margin(hull, points)[common] >= -rim_tolerance(a)).all()


# ---------------------------------------------------------------- symmetry


@law
@given(cases())
def test_a_rotation_of_everything_changes_nothing(case):
    # Two reflections make a rotation, in O(D).
    mirrors = [normalize(case.noise(case.a.dim), dim=-1) for _ in range(2)]

    def rotate(cone):
        axis = cone.axis.double()
        for mirror in mirrors:
            axis = axis - 2 * (axis @ mirror) * mirror
        return Cone(axis.to(cone.axis.dtype), cone.radius, cone.empty)

    a, b = case.a, case.b
    turned_a, turned_b = rotate(a), rotate(b)
    slack = tolerance(a)
    assert (containment_margin(turned_a, turned_b) - containment_margin(a, b)).abs() <= slack
    assert log_volume(turned_a) == log_volume(a)
    assert within(rotate(complement(a)), complement(turned_a)) or emptied(complement(a))
    for operation in (join, meet):
        result, turned = operation(a, b), operation(turned_a, turned_b)
        assert (result.radius - turned.radius).abs() <= slack
        # Antipodal axes have no unique great circle; near them it turns with the rounding error.
        if case.apart < math.pi - 1e-3 and not is_whole(result) and nested_alike(a, b, turned_a, turned_b):
            assert angle(rotate(result).axis, turned.axis) <= 1e3 * slack


def nested_alike(a, b, other_a, other_b):
    return contains(a, b) == contains(other_a, other_b) and contains(b, a) == contains(other_b, other_a)


@settings(law, max_examples=12)
@given(dims, dtypes, seeds)
def test_a_batch_equals_the_loop(dim, dtype, seed):
    random = torch.Generator().manual_seed(seed)

    def cones(*shape):
        axis = normalize(torch.randn(*shape, dim, generator=random, dtype=torch.float64), dim=-1)
        radius = math.pi * torch.rand(*shape, generator=random, dtype=torch.float64)
        return Cone(axis.to(dtype), radius.to(dtype))

    a, b = cones(3, 1), cones(4)
    slack = tolerance(a)
    for operation in (join, meet, meet_hull):
        batch = operation(a, b)
        assert batch.shape == (3, 4)
        for i in range(3):
            for j in range(4):
                single = operation(a[i, 0], b[j])
                assert (batch[i, j].radius - single.radius).abs() <= slack
                assert (batch[i, j].axis - single.axis).abs().max() <= slack
                assert emptied(batch[i, j]) == emptied(single)
    for relation in (contains, overlaps):
        loop = torch.stack([torch.stack([relation(a[i, 0], b[j]) for j in range(4)]) for i in range(3)])
        assert torch.equal(relation(a, b), loop)
    assert torch.equal(pairwise_contains(a[:, 0], b), contains(a, b))
    many = join_many(join(a, b))
    for i in range(3):
        assert (many[i].radius - join_many(join(a, b)[i]).radius).abs() <= slack


# ---------------------------------------------------------------- many


@law
@given(cases(), st.integers(1, 9), st.floats(0, 1.5), st.floats(0, 1.5))
def test_join_many_contains_all_within_its_bound(case, count, spread, widest):
    axes = torch.stack([case.near(case.a.axis, spread * share) for share in torch.rand(count, generator=case.random)])
    radii = widest * torch.rand(count, generator=case.random, dtype=torch.float64)
    cones = case.cone(axes, radii)
    result = join_many(cones)
    assert result.shape == ()
    assert contains(result, cones).all()
    # From below: no cone round two of them is smaller than their join.
    pairs = join(cones[:, None], cones[None])
    least = pairs.radius.max()
    assert result.radius >= least - tolerance(result)
    # From above: the stated bound, with any cone round all of them for the smallest.
    known = (cones.radius + angle(cones.axis, case.a.axis)).max()
    assert result.radius <= 2 * known - cones.radius.max() + tolerance(result)
    if count <= 2:
        exact = join(cones[0], cones[-1])
        assert (result.radius - exact.radius).abs() <= tolerance(result)
