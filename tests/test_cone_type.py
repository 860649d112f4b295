"""The value type: shapes, indexing, conversion, and what it refuses."""

import math

import pytest
import torch
from cone_cases import cones

from modeling_cue.cones import Cone, check_cone, complement, contains


def test_a_cone_knows_its_shape_and_dimension():
    cone = cones(3, 5, dim=8)
    assert cone.shape == (3, 5)
    assert cone.dim == 8
    assert cone.empty is None


def test_indexing_goes_over_the_batch_and_keeps_vectors_whole():
    cone = cones(3, 5, dim=8)
    flagged = Cone(cone.axis, cone.radius, cone.radius > 1)
    mask = cone.radius > 2
    simple = (0, -1, slice(1, None), (0, 2), (slice(None), 1), None, mask, torch.tensor([2, 0]), [0, 2])
    for index in (*simple, (..., None), (..., 2), (0, ...), (slice(None), None)):
        part = flagged[index]
        assert torch.equal(part.radius, cone.radius[index])
        assert torch.equal(part.empty, flagged.empty[index])
        assert part.axis.shape == (*part.radius.shape, 8)
        numbers = torch.arange(15).view(3, 5)[index]
        assert torch.equal(part.axis.reshape(-1, 8), cone.axis.view(15, 8)[numbers.reshape(-1)])
    with pytest.raises(IndexError):
        cone[0, 0, 0]
    assert len(list(cones(4))) == 4


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
def test_rows_are_taken_with_gradients_that_are_the_same_in_every_run():
    cone, index = cones(500, dim=128), torch.randint(0, 500, (700, 3), generator=torch.Generator().manual_seed(0))
    weight = torch.randn(700, 3, 128, generator=torch.Generator().manual_seed(1))

    def gradients(take):
        axis, radius = cone.axis.clone().requires_grad_(), cone.radius.clone().requires_grad_()
        taken = take(Cone(axis, radius))
        ((taken.axis * weight).sum() + (taken.radius * weight[..., 0]).sum()).backward()
        return axis.grad, radius.grad

    first = gradients(lambda made: made.take(index))
    for _ in range(30):
        assert all(map(torch.equal, gradients(lambda made: made.take(index)), first))
    torch.testing.assert_close(first, gradients(lambda made: made[index]))
    flagged = Cone(cone.axis, cone.radius, cone.radius > 1)
    assert torch.equal(flagged.take(index).empty, flagged.empty[index])
    assert flagged.take(index[:0]).shape == (0, 3)


def test_cones_convert_detach_and_move():
    cone = cones(3)
    cone = Cone(cone.axis.requires_grad_(), cone.radius.requires_grad_(), torch.tensor([True, False, False]))
    assert cone.to(torch.float64).axis.dtype == cone.to(torch.float64).radius.dtype == torch.float64
    assert cone.to(torch.float64).empty.dtype == torch.bool
    assert cone.to(torch.bfloat16).float().axis.dtype == torch.float32
    assert not cone.detach().axis.requires_grad
    assert not cone.detach().radius.requires_grad
    assert cone.to("meta").empty.device.type == cone.to("meta").device.type == "meta"
    assert cone.to("meta").dtype == torch.float32
    assert cone.cpu().axis.device.type == "cpu"
    assert (len(cone), len(cone[:0])) == (3, 0)
    assert torch.equal(Cone.cat(part[None] for part in cone).axis, cone.axis)


def test_cones_are_saved_as_tensors_are(tmp_path):
    cone = cones(3)
    torch.save({"all": cone}, tmp_path / "cones.pt")
    found = torch.load(tmp_path / "cones.pt")["all"]
    assert torch.equal(found.axis, cone.axis)
    assert torch.equal(found.radius, cone.radius)


@pytest.mark.parametrize("dim", [0, 1, -1, -2])
def test_cat_and_stack_treat_dimensions_as_the_batchs(dim):
    parts = [cones(2, 3, seed=seed) for seed in range(3)]
    for ours, theirs in ((Cone.cat, torch.cat), (Cone.stack, torch.stack)):
        both = ours(parts, dim)
        assert torch.equal(both.radius, theirs([part.radius for part in parts], dim))
        assert both.axis.shape == (*both.radius.shape, 16)
        assert both.empty is None
        assert torch.equal(both[..., -1].axis, both.axis[..., -1, :])
    stacked = Cone.stack(parts, dim)
    for i, part in enumerate(parts):
        where = dim if dim >= 0 else dim + 3
        assert torch.equal(stacked.axis.select(where, i), part.axis)


def test_cat_fills_the_flag_where_it_is_missing():
    plain = cones(2)
    flagged = Cone(plain.axis, plain.radius, torch.tensor([True, False]))
    assert Cone.cat([plain, flagged]).empty.tolist() == [False, False, True, False]


def test_a_cone_refuses_what_does_not_fit():
    axis, radius = torch.ones(3, 4), torch.ones(3)
    with pytest.raises(TypeError, match=r"Cone\.radius.*list"):
        Cone(axis, [1.0, 1.0, 1.0])
    with pytest.raises(ValueError, match=r"Cone\.axis.*D >= 2.*\(3, 1\)"):
        Cone(axis[:, :1], radius)
    with pytest.raises(ValueError, match=r"Cone\.axis"):
        Cone(torch.tensor(1.0), torch.tensor(1.0))
    with pytest.raises(ValueError, match=r"Cone\.radius.*\(3,\).*\(3, 1\)"):
        Cone(axis, radius[:, None])
    with pytest.raises(ValueError, match=r"Cone\.radius must be floating point.*int64"):
        Cone(axis, radius.long())
    with pytest.raises(ValueError, match=r"Cone\.axis must be floating point"):
        Cone(axis.long(), radius)
    with pytest.raises(ValueError, match=r"Cone\.empty.*\(3,\).*\(2,\)"):
        Cone(axis, radius, torch.ones(2, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"Cone\.empty must be bool"):
        Cone(axis, radius, radius)
    with pytest.raises(ValueError, match="at least one cone"):
        Cone.cat([])
    with pytest.raises(ValueError, match=r"different dimensions \[4, 5\]"):
        Cone.stack([cones(2, dim=4), cones(2, dim=5)])
    with pytest.raises(ValueError, match=r"different shapes \[\(1,\), \(2,\)\]: give as many of each"):
        Cone.stack([cones(2, dim=4), cones(1, dim=4)])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_check_cone_takes_what_is_a_cone(dtype):
    cone = cones(100, dim=1024, dtype=dtype)
    check_cone(cone)
    check_cone(Cone(cone.axis, torch.full_like(cone.radius, math.pi)))
    check_cone(Cone(cone.axis, torch.zeros_like(cone.radius)))
    check_cone(cone[:0])


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("axis", 1.01, r"Cone\.axis: 1 of 4.*norm that is not 1, the first 1\.01; normalise"),
        ("axis", math.nan, r"Cone\.axis: 1 of 4.*nan"),
        ("axis", 0.0, r"Cone\.axis: 1 of 4"),
        ("radius", -0.1, r"Cone\.radius: 1 of 4.*not in \[0, pi\] radians, the first -0\.1; convert degrees"),
        ("radius", 45.0, r"Cone\.radius.*45"),
        ("radius", math.nan, r"Cone\.radius.*nan"),
        ("radius", math.inf, r"Cone\.radius.*inf"),
    ],
)
def test_check_cone_names_field_value_and_remedy(field, value, message):
    cone = cones(4)
    wrong = getattr(cone, field).clone()
    wrong[2] = wrong[2] * value if field == "axis" else value
    with pytest.raises(ValueError, match=message):
        check_cone(Cone(**{"axis": cone.axis, "radius": cone.radius, field: wrong}))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_axes_that_were_rounded_are_of_unit_length_again(dtype):
    generator = torch.Generator().manual_seed(0)
    axis = torch.nn.functional.normalize(torch.randn(500, 512, generator=generator), dim=-1)
    half = Cone(axis, torch.full((500,), 0.3)).to(dtype)
    for wide in (half.float(), half.to(torch.float64), complement(half)):
        check_cone(wide)
    # A cone contains itself, however it is written.
    itself = Cone(torch.nn.functional.normalize(half.axis.float(), dim=-1), half.radius.float())
    assert contains(half, itself).all()
