"""CompositionLayer: order, exactness for one part, where it starts from, and what it promises of its radius."""

import math

import pytest
import torch

from modeling_cue import Cone, angle, check_cone
from modeling_cue.composition import CompositionLayer


@pytest.fixture
def layer():
    torch.manual_seed(0)
    layer = CompositionLayer(projection_dim=8, dim=16, heads=2, layers=2, min_radius=0.01)
    for linear in (layer.gate, layer.shift):
        torch.nn.init.normal_(linear.weight, std=0.3)
    return layer.eval()


def cones(batch: int, parts: int) -> Cone:
    generator = torch.Generator().manual_seed(5)
    axis = torch.nn.functional.normalize(torch.randn(batch, parts, 8, generator=generator), dim=-1)
    return Cone(axis, 0.5 + torch.rand(batch, parts, generator=generator))


def roomy(batch, parts):
    """Cones that overlap with room to spare: the radius of a compound is not the smallest that there is."""
    given = cones(batch, parts)
    axis = torch.nn.functional.normalize(given.axis[:, :1] + 0.3 * given.axis, dim=-1)
    return Cone(axis, given.radius + 1.5)


def test_order_does_not_matter(layer):
    given = roomy(3, 4)
    order = torch.tensor([2, 0, 3, 1])
    a, b = layer(given), layer(given[:, order])
    torch.testing.assert_close(a.axis, b.axis)
    torch.testing.assert_close(a.radius, b.radius)


def test_one_part_is_its_own_compound(layer):
    given = cones(3, 1)
    compound = layer(given)
    assert torch.equal(compound.axis, given.axis[:, 0])
    assert torch.equal(compound.radius, given.radius[:, 0])
    assert not compound.empty.any()


def test_a_part_that_is_empty_leaves_nothing_inside(layer):
    given = cones(3, 2)
    given = Cone(given.axis, given.radius + 1.5, torch.tensor([[True, False], [False, False], [False, True]]))
    assert layer(given).empty.tolist() == [True, False, True]
    assert layer(given, torch.tensor([[0, 1], [1, 1], [0, 1]])).empty.tolist() == [False, False, True]
    assert layer(given[:, :1]).empty.tolist() == [True, False, False]


def test_parts_that_cancel_out_give_the_first_axis():
    layer = CompositionLayer(8, 16, 2, 1, 0.01)
    layer.reset_parameters()
    axis = cones(1, 1).axis
    axis = torch.cat([axis, -axis], 1).requires_grad_()
    compound = layer(Cone(axis, torch.full((1, 2), 3.0)))
    torch.testing.assert_close(compound.axis, axis[:, 0])
    (compound.axis.sum() + compound.radius.sum()).backward()
    assert axis.grad.abs().max() < 10


def test_padding_does_not_matter(layer):
    given = roomy(3, 4)
    mask = torch.tensor([[1, 1, 0, 0], [0, 1, 0, 0], [0, 1, 1, 1]]).bool()
    axis = torch.where(mask[..., None], given.axis, -given.axis)
    padded = layer(Cone(axis, given.radius.where(mask, torch.tensor(0.1))), mask)
    for row, real in enumerate(mask):
        alone = layer(given[row : row + 1][:, real])
        torch.testing.assert_close(padded.axis[row], alone.axis[0])
        torch.testing.assert_close(padded.radius[row], alone.radius[0])
        assert padded.radius[row] > 0.1
        assert not padded.empty[row]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_cones_in_half_precision_compose_in_float32(layer, dtype):
    found = layer(roomy(20, 3).to(dtype))
    check_cone(found)
    assert found.axis.dtype == torch.float32
    expected = layer(roomy(20, 3))
    torch.testing.assert_close(found.axis, expected.axis, atol=0.05, rtol=0)


def test_no_compounds_of_no_parts(layer):
    given = roomy(3, 2)
    assert layer(given[:0]).shape == (0,)
    with pytest.raises(ValueError, match="K is 0"):
        layer(given[:, :0])


def test_the_start_is_the_mean_of_the_axes():
    layer = CompositionLayer(8, 16, 2, 1, 0.01)
    layer.reset_parameters()
    given = cones(3, 4)
    mean = torch.nn.functional.normalize(given.axis.mean(1), dim=-1)
    torch.testing.assert_close(layer(given).axis, mean)


def test_gate_and_shift_act_by_dimension_on_the_mean():
    layer = CompositionLayer(8, 16, 2, 1, 0.01).eval()
    layer.reset_parameters()
    given = cones(3, 4)
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [0, 1, 1, 1]], dtype=torch.bool)
    mean = torch.stack([line[kept].mean(0) for line, kept in zip(given.axis, mask, strict=True)])
    with torch.no_grad():
        layer.gate.bias[:3] = torch.tensor([-100.0, 100.0, 1.0])
        layer.shift.bias[4] = 0.3
    total = mean * torch.tensor([0.0, 2.0, 2 / (1 + math.exp(-1)), 1, 1, 1, 1, 1])
    total[:, 4] += 0.3
    torch.testing.assert_close(layer(given, mask).axis, torch.nn.functional.normalize(total, dim=-1))


def test_dropout_is_of_training_only_and_leaves_single_parts_alone():
    layer = CompositionLayer(8, 16, 2, 1, 0.01, dropout=0.5)
    torch.nn.init.normal_(layer.shift.weight)
    given, mask = cones(4, 3), torch.ones(4, 3, dtype=torch.bool)
    mask[0, 1:] = False
    drawn = [layer(given, mask).axis for _ in range(2)]
    assert not torch.equal(drawn[0][1:], drawn[1][1:])
    assert torch.equal(drawn[0][0], drawn[1][0])
    layer.eval()
    assert torch.equal(layer(given, mask).axis, layer(given, mask).axis)


def test_the_compound_lies_in_its_parts_where_there_is_room(layer):
    given = cones(64, 3)
    given = Cone(given.axis, given.radius + 1.0)
    compound = layer(given)
    room = (given.radius - angle(given.axis, compound.axis[:, None])).min(-1).values
    floored = room < 0.01
    assert not floored.all()
    assert (compound.radius[~floored] <= room[~floored] + 1e-6).all()
    # ln K times the temperature is the most that the smooth minimum gives away.
    assert (compound.radius >= (room - layer.temperature * math.log(3) - 1e-6).clamp(min=0.01)).all()


def test_parts_that_are_far_apart_are_reported_not_raised(layer):
    axis = torch.zeros(1, 2, 8)
    axis[0, 0, 0], axis[0, 1, 0] = 1.0, -1.0
    compound = layer(Cone(axis, torch.tensor([[0.3, 0.3]])))
    assert compound.empty.tolist() == [True]
    assert compound.radius.item() == pytest.approx(0.01)
    assert torch.isfinite(compound.axis).all()
    assert layer(Cone(axis, torch.tensor([[2.0, 2.0]]))).empty.tolist() == [False]


def test_gradients_are_finite_and_reach_all_parts(layer):
    given = cones(2, 3)
    axis, radius = given.axis.clone().requires_grad_(), given.radius.clone().requires_grad_()
    compound = layer(Cone(axis, radius), torch.tensor([[1, 1, 1], [1, 0, 0]]).bool())
    (compound.axis.sum() + compound.radius.sum()).backward()
    assert torch.isfinite(axis.grad).all()
    assert torch.isfinite(radius.grad).all()
    assert (axis.grad[0].abs().sum(-1) > 0).all()
    assert all(torch.isfinite(p.grad).all() for p in layer.parameters() if p.grad is not None)


def test_bad_input(layer):
    with pytest.raises(ValueError, match="at least one part"):
        layer(cones(2, 3), torch.tensor([[1, 1, 0], [0, 0, 0]]))
    with pytest.raises(ValueError, match=r"shape \(B, K\)"):
        layer(cones(2, 3)[:, 0])
    with pytest.raises(ValueError, match="mask must have the shape"):
        layer(cones(2, 3), torch.ones(2, 4))
    other = cones(2, 3)
    with pytest.raises(ValueError, match="composes cones of"):
        layer(Cone(torch.nn.functional.pad(other.axis, (0, 1)), other.radius))
