"""Gradients of the algebra: finite at every hard place, and those of differences elsewhere."""

import math

import pytest
import torch
from torch.nn.functional import normalize

from modeling_cue.cones import (
    Cone,
    complement,
    containment_margin,
    containment_probability,
    join,
    join_many,
    log_volume,
    meet,
    meet_hull,
    membership_margin,
    pairwise_containment_margin,
    pairwise_containment_probability,
)

OPERATIONS = {
    "containment_margin": containment_margin,
    "containment_probability": containment_probability,
    "join": join,
    "meet": meet,
    "meet_hull": meet_hull,
    "complement": lambda a, b: complement(a),
    "join_many": lambda a, b: join_many(Cone.stack([a, b, Cone(-b.axis, a.radius / 2)], -1)),
    "log_volume": lambda a, b: log_volume(a),
    "membership_margin": lambda a, b: membership_margin(a, b.axis),
    "pairwise_containment_margin": pairwise_containment_margin,
    "pairwise_containment_probability": pairwise_containment_probability,
}
HARD_ANGLES = [0.0, 1e-12, 1e-7, 1e-3, 1.0, math.pi / 2, 3.0, math.pi - 1e-6, math.pi]
HARD_RADII = [0.0, 1e-7, 0.5, 1.0, math.pi / 2, 2.5, math.pi]


def outputs(result):
    return [result.axis, result.radius] if isinstance(result, Cone) else [result]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("dim", [2, 3, 20])
@pytest.mark.parametrize("name", OPERATIONS)
def test_gradients_are_finite_at_every_hard_place(name, dim, dtype):
    rows = [(apart, a, b) for apart in HARD_ANGLES for a in HARD_RADII for b in HARD_RADII]
    apart, a, b = torch.tensor(rows, dtype=torch.float64).T
    axis = torch.zeros(len(rows), dim, dtype=torch.float64)
    axis[:, 0] = 1
    other = axis.clone()
    other[:, 0], other[:, 1] = apart.cos(), apart.sin()
    other[apart == math.pi] = -axis[0]
    leaves = [x.to(dtype).requires_grad_() for x in (axis, a, other, b)]
    result = OPERATIONS[name](Cone(*leaves[:2]), Cone(*leaves[2:]))
    flagged = [Cone(leaves[i], leaves[i + 1], torch.ones(len(rows), dtype=torch.bool)) for i in (0, 2)]
    of_empty = outputs(OPERATIONS[name](*flagged))
    for output in (*outputs(result), *of_empty):
        finite = output.isfinite()
        assert finite.all() or name == "log_volume"
        if not output.requires_grad:
            continue
        gradients = torch.autograd.grad(output[finite].sum(), leaves, retain_graph=True, allow_unused=True)
        assert all(gradient.isfinite().all() for gradient in gradients if gradient is not None)


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize(
    ("apart", "first", "second"), [(1.0, 0.7, 0.6), (1.2, 0.2, 0.9), (0.3, 1.0, 0.4), (2.5, 1.3, 2.2)]
)
def test_gradients_are_those_of_differences(name, apart, first, second):
    axis = normalize(torch.tensor([[1.0, 0.2, -0.3, 0.1]], dtype=torch.float64), dim=-1)
    side = torch.tensor([[-0.2, 1.0, 0.5, 0.3]], dtype=torch.float64)
    side = normalize(side - (side * axis).sum() * axis, dim=-1)
    other = math.cos(apart) * axis + math.sin(apart) * side
    radii = torch.tensor([[first], [second]], dtype=torch.float64)

    def function(x, y, r, s):
        # The functions speak of unit vectors only, and so do the differences.
        a, b = Cone(normalize(x, dim=-1), r), Cone(normalize(y, dim=-1), s)
        return tuple(outputs(OPERATIONS[name](a, b)))

    inputs = [x.clone().requires_grad_() for x in (axis, other, *radii)]
    assert torch.autograd.gradcheck(function, inputs)
