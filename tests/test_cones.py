"""Cones one by one: numbers from paper, all pairs against the loop, bad input."""

import math

import pytest
import torch
from cone_cases import cones, degrees, flat

from modeling_cue.cones import (
    Cone,
    complement,
    containment_margin,
    containment_probability,
    contains,
    join,
    join_many,
    log_volume,
    meet,
    meet_hull,
    membership_margin,
    overlaps,
    pairwise_containment_margin,
    pairwise_containment_probability,
    pairwise_contains,
    pairwise_overlaps,
)

# What `pairwise_angle` states, and a few float32 eps of the twin.
PAIRWISE = 2.4e-7 + 8 * torch.finfo(torch.float32).eps


# ---------------------------------------------------------------- numbers from paper


def test_order_by_degrees():
    wide, narrow = flat(0, 50), flat(30, 10)
    assert math.degrees(containment_margin(wide, narrow)) == pytest.approx(10)
    assert math.degrees(containment_margin(narrow, wide)) == pytest.approx(-70)
    assert contains(wide, narrow)
    assert not contains(narrow, wide)
    assert overlaps(narrow, wide)
    assert not overlaps(narrow, flat(60, 19))
    assert math.degrees(membership_margin(wide, flat(60, 0).axis)) == pytest.approx(-10)
    assert containment_probability(wide, narrow, 2.0) == torch.sigmoid(2.0 * containment_margin(wide, narrow))
    assert containment_probability(wide, wide) == 0.5


def test_operations_by_degrees():
    assert degrees(join(flat(0, 10), flat(60, 20))) == pytest.approx((35, 45))
    assert degrees(meet(flat(0, 40), flat(60, 30))) == pytest.approx((35, 5))
    assert degrees(complement(flat(30, 50))) == pytest.approx((-150, 130))
    assert math.degrees(join(flat(0, 100), flat(170, 100)).radius) == pytest.approx(180)
    # cos of the hull's radius is cos 60 / cos 45 for two caps of 60 degrees, 90 apart.
    assert degrees(meet_hull(flat(0, 60), flat(90, 60))) == pytest.approx((45, 45))
    assert degrees(meet_hull(flat(0, 60, dim=2), flat(90, 60, dim=2))) == pytest.approx((45, 15))
    assert log_volume(flat(0, 60)).exp() == pytest.approx(0.25)
    assert log_volume(flat(0, 45, dim=2)).exp() == pytest.approx(0.25)


def test_the_whole_sphere_contains_everything_in_every_dtype():
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        whole, other = flat(0, 180, dtype=dtype), flat(170, 60, dtype=dtype)
        assert contains(whole, other)
        assert contains(whole, other.to(torch.float64))
        assert pairwise_contains(whole[None], other[None]).all()
        assert not contains(other, whole)
        assert is_same(join(whole, other), whole)
        assert is_same(meet(whole, other), other)
        assert is_same(meet_hull(other, whole), other)
        assert complement(whole).empty
        assert log_volume(whole) == 0


def is_same(a, b):
    return bool(contains(a, b) & contains(b, a))


def test_the_empty_set_is_reported_and_obeyed():
    a, b = flat(0, 10), flat(60, 20)
    nothing = meet(a, b)
    assert nothing.empty
    assert degrees(nothing) == pytest.approx((25, 0), abs=1e-9)
    assert meet_hull(a, b).empty
    assert contains(b, nothing)
    assert not contains(nothing, b)
    assert contains(nothing, nothing)
    assert not overlaps(nothing, flat(25, 5))
    assert is_same(join(nothing, b), b)
    assert is_same(join(b, nothing), b)
    for operation in (meet, meet_hull):
        assert operation(nothing, b).empty
        assert operation(b, nothing).empty
    assert join(nothing, nothing).empty
    assert not complement(nothing).empty
    assert contains(complement(nothing), b)
    assert complement(complement(flat(0, 180))).radius == math.pi
    assert log_volume(nothing) == -math.inf
    flagged = Cone(a.axis, torch.tensor(3.0, dtype=torch.float64), torch.tensor(True))
    assert complement(flagged).radius == math.pi
    assert not complement(Cone(a.axis, a.radius + math.pi, flagged.empty)).empty
    for hidden in (nothing, flagged):
        assert join_many(Cone.stack([a, hidden, b])).radius == join(a, b).radius
        assert join_many(Cone.stack([hidden, hidden])).empty
    all_of_it = Cone.stack([a, nothing, b])
    assert pairwise_contains(all_of_it, all_of_it)[:, 1].all()
    assert pairwise_overlaps(all_of_it, all_of_it)[1].sum() == 0


def test_touching_cones_meet_in_a_point():
    # 0.25 + 0.5 = 0.75 holds in binary too; the angle is made to be 0.75 by the rounding of atan2 at most.
    a, b = flat(0, 0), flat(90, 90)
    touching = meet(a, b)
    assert not touching.empty
    assert touching.radius == 0


# ---------------------------------------------------------------- pairs


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("dim", [2, 32, 1024])
def test_pairwise_functions_equal_the_loop(dtype, dim):
    a, b = cones(6, dim=dim, dtype=dtype), cones(5, dim=dim, seed=1, dtype=dtype)
    b = Cone.cat([b, a[:2], Cone(-a.axis[:2], a.radius[:2]), Cone(a.axis[:1], a.radius[:1] * 0 + math.pi)])
    grid = a[:, None], b[None]
    for pairs, single in (
        (pairwise_containment_margin, containment_margin),
        (pairwise_containment_probability, lambda x, y: containment_probability(x, y) / 2.5),
    ):
        # The probability has a slope of at most 10 / 4.
        scale = 1.0 if single is containment_margin else 2.5
        assert (pairs(a, b) - single(*grid) * scale).abs().max() <= PAIRWISE * scale
        assert pairs(a, b).shape == (6, 10)
    assert torch.equal(pairwise_contains(a, b), contains(*grid))
    assert torch.equal(pairwise_overlaps(a, b), overlaps(*grid))
    batched = pairwise_containment_margin(Cone.stack([a, a]), Cone.stack([b, b]))
    assert batched.shape == (2, 6, 10)


def test_pairwise_containment_is_reflexive_to_the_bit():
    a = cones(200, dim=768)
    assert (pairwise_containment_margin(a, a).diagonal() == 0).all()
    assert pairwise_contains(a, a).diagonal().all()


def test_half_precision_comes_back_as_float32_under_autocast():
    a, b = cones(4).to(torch.bfloat16), cones(4, seed=1).to(torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for operation in (join, meet, meet_hull, containment_margin, pairwise_containment_margin):
            result, expected = operation(a, b), operation(a.float(), b.float())
            for value, reference in (
                [(result.radius, expected.radius), (result.axis, expected.axis)]
                if isinstance(result, Cone)
                else [(result, expected)]
            ):
                assert value.dtype == torch.float32
                assert torch.equal(value, reference)
        assert log_volume(a).dtype == torch.float32
        assert complement(a).axis.dtype == torch.float32


# ---------------------------------------------------------------- bad input


def test_operations_refuse_cones_of_different_spaces_and_batches():
    both = (containment_margin, contains, overlaps, join, meet, meet_hull)
    for operation in (*both, pairwise_contains, pairwise_overlaps):
        with pytest.raises(ValueError, match="16 and 8 dimensions"):
            operation(cones(3), cones(3, dim=8))
    for operation in both:
        with pytest.raises(ValueError, match=r"\(3,\) and \(4,\) do not broadcast"):
            operation(cones(3), cones(4))
    with pytest.raises(ValueError, match=r"\(\.\.\., N, D\)"):
        pairwise_contains(cones(), cones(3))
    with pytest.raises(ValueError, match=r"batch shape is \(\)"):
        join_many(cones())
    with pytest.raises(ValueError, match=r"batch shape is \(2, 0\)"):
        join_many(cones(2, 0))


def test_operands_stay_as_they_are():
    a, b = cones(50), cones(50, seed=1)
    before = [x.clone() for x in (a.axis, a.radius, b.axis, b.radius)]
    for operation in (contains, overlaps, containment_margin, join, meet, meet_hull, pairwise_containment_margin):
        operation(a, b)
    for operation in (complement, log_volume, join_many):
        operation(a)
    assert all(torch.equal(x, y) for x, y in zip(before, (a.axis, a.radius, b.axis, b.radius), strict=True))
