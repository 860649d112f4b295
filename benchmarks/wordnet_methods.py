"""Cones trained on the given edges of a taxonomy, with the package's own algebra and loss.

Containment is transitive: where every given edge nests and siblings lie apart, the closure follows, and nobody has to
compute it. That siblings lie apart is containment too: one inside the other's complement.
"""

import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from wordnet_data import Taxonomy
from wordnet_sampling import Sampler

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from modeling_cue.cones import Cone, complement, containment_margin
from modeling_cue.training.losses import containment_loss

Scores = Callable[[np.ndarray], np.ndarray]
# A lone root's radius, and a child's: this part of what its share of the parent's volume would give.
ROOT_RADIUS = 1.5
FILL = 0.4


class Schedule(NamedTuple):
    """How cones are trained.

    Args:
        rate: of Adam.
        scales: steepness at the first step and from four fifths of the way on; over the square root of a radius, so
            that small cones are judged more finely than wide ones, yet not by the same measure of their own size.
        apart: the weight of lying apart beside that of nesting. length: how many times the steps it wants.
    """

    rate: float
    scales: tuple[float, float]
    apart: float
    length: int = 1


# Where the data make siblings share a descendant, nesting must win.
NESTED = Schedule(0.005, (50.0, 300.0), 0.3)
# Random cones have far to go, and lie apart only where they are told to.
RANDOM = Schedule(0.05, (10.0, 100.0), 1.0, 4)
SMALLEST = 1e-4
PARTS = ("training", "start", "siblings", "peers")


class ConeTable(nn.Module):
    """A free cone for every node: `dim` - 1 degrees of freedom of the axis and one of the radius.

    The axis is kept as a shift from where it starts, in units of the square root of the radius: one learning rate then
    suits wide and narrow cones.
    """

    def __init__(self, start: Cone) -> None:
        super().__init__()
        self.register_buffer("anchor", start.axis)
        self.register_buffer("reach", start.radius[:, None].sqrt())
        self.shift = nn.Parameter(torch.zeros_like(start.axis))
        self.radius_logit = nn.Parameter(torch.logit(start.radius / math.pi))

    def forward(self) -> Cone:
        axis = F.normalize(self.anchor + self.reach * self.shift, dim=-1)
        return Cone(axis, math.pi * torch.sigmoid(self.radius_logit))


def initial_cones(taxonomy: Taxonomy, dim: int, generator: torch.Generator) -> Cone:
    """From the roots down, level by level: a child at a random place inside one parent, whatever its siblings do.

    Its radius is the parent's times `FILL`, over the number of children to the power 1 / (dim - 1), as by volume.
    """
    levels, steps = taxonomy.levels, taxonomy.steps
    axis = F.normalize(torch.randn(taxonomy.nodes, dim, generator=generator), dim=-1)
    roots = torch.from_numpy(levels == 0)
    radius = torch.where(roots, ROOT_RADIUS * int(roots.sum()) ** (-1 / (dim - 1)), 0.0)
    parent = np.zeros(taxonomy.nodes, dtype=np.int64)
    parent[steps[:, 0]] = steps[:, 1]
    siblings = np.bincount(steps[:, 1], minlength=taxonomy.nodes)[parent].clip(2)
    ratio = torch.from_numpy(FILL * siblings ** (-1 / (dim - 1))).float()
    for level in range(1, levels.max() + 1):
        nodes = torch.from_numpy(np.flatnonzero(levels == level))
        above = torch.from_numpy(parent)[nodes]
        radius[nodes] = radius[above] * ratio[nodes]
        centre = axis[above]
        aside = torch.randn(len(nodes), dim, generator=generator)
        aside = F.normalize(aside - (aside * centre).sum(-1, keepdim=True) * centre, dim=-1)
        share = torch.rand(len(nodes), generator=generator) ** (1 / (dim - 1))
        away = ((radius[above] - radius[nodes]) * share)[:, None]
        axis[nodes] = torch.cos(away) * centre + torch.sin(away) * aside
    return Cone(F.normalize(axis, dim=-1), radius)


def random_cones(taxonomy: Taxonomy, dim: int, generator: torch.Generator) -> Cone:
    axis = F.normalize(torch.randn(taxonomy.nodes, dim, generator=generator), dim=-1)
    return Cone(axis, torch.full((taxonomy.nodes,), ROOT_RADIUS / 2))


def train_cones(
    taxonomy: Taxonomy, dim: int, seed: int, steps: int, batch: int, leave_out: tuple[str, ...] = (),
    corrupted: bool = False,
) -> Scores:  # fmt: skip
    """Given edges nest, siblings and other nodes of one level lie apart. Scores are margins, in radians.

    Half of the edges of a batch are drawn evenly from those that span one level, half from all by the level of the
    parent: the few at the top carry most of the closure. `leave_out`, any of `PARTS`, is for measuring what each part
    does; so is `corrupted`: as the baselines', two random wrong pairs for every edge, which are not to nest.
    """
    generator = torch.Generator().manual_seed(seed)
    start, how = (random_cones, RANDOM) if "start" in leave_out else (initial_cones, NESTED)
    table = ConeTable(start(taxonomy, dim, generator))
    sampler = Sampler(taxonomy, seed)
    optimizer = torch.optim.Adam(table.parameters(), lr=how.rate, betas=(0.9, 0.99), fused=True)
    for step in range(0 if "training" in leave_out else steps):
        done = step / steps
        optimizer.param_groups[0]["lr"] = how.rate * min(1.0, 2 * (1 - done))
        scale = how.scales[0] * (how.scales[1] / how.scales[0]) ** min(1.0, done / 0.8)
        nested = np.concatenate([sampler.steps(batch // 2), sampler.general_edges(batch // 2)])
        apart = [] if "siblings" in leave_out else [sampler.siblings(batch)]
        apart += [] if "peers" in leave_out else [sampler.peers(batch)]
        groups = take(table(), np.concatenate([nested, *apart])).split([len(pairs) for pairs in (nested, *apart)])
        child, parent = _ends(groups[0])
        loss = contain(parent, child, scale / _root(parent.radius))
        for rows in groups[1:]:
            one, other = _ends(rows)
            loss = loss + how.apart * contain(complement(one), other, scale / _root(one.radius + other.radius))
        if corrupted:
            child, parent = _ends(take(table(), sampler.corrupted(nested, 2).reshape(-1, 2)))
            loss = loss + contain(parent, child, scale / _root(parent.radius), holds=False)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return margins(table)


def take(cones: Cone, nodes: np.ndarray) -> Tensor:
    """Axes and radii of `nodes`, of any shape, as (..., D + 1): one gather, which is what a step mostly costs."""
    packed = torch.cat([cones.axis, cones.radius[:, None]], 1)
    return F.embedding(torch.from_numpy(nodes), packed)


def _ends(rows: Tensor) -> tuple[Cone, Cone]:
    return Cone(rows[:, 0, :-1], rows[:, 0, -1]), Cone(rows[:, 1, :-1], rows[:, 1, -1])


def _root(radius: Tensor) -> Tensor:
    return radius.detach().clamp(min=SMALLEST).sqrt()[:, None, None]


def contain(outer: Cone, inner: Cone, scale: Tensor, holds: bool = True) -> Tensor:
    """`containment_loss` of (N,) pairs, all to hold or none, as N relations of one by one: the mean over them."""
    relation = torch.full((len(outer.radius), 1, 1), int(holds))
    # The loss gives half of its mass to pairs of the other kind, of which there are none.
    return 2 * containment_loss(outer[:, None], inner[:, None], relation, scale, 0.0, axes_gradient=True)


def margins(table: Callable[[], Cone]) -> Scores:
    """Scores by `containment_margin` of what the table holds now."""
    with torch.no_grad():
        cones = table()

    def scores(pairs: np.ndarray) -> np.ndarray:
        child, parent = torch.from_numpy(pairs[:, 0].copy()), torch.from_numpy(pairs[:, 1].copy())
        return containment_margin(cones[parent], cones[child]).numpy()

    return scores
