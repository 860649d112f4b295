"""Cones trained on the given edges of a taxonomy, with the package's own algebra and loss.

Containment is transitive: where every given edge nests and siblings lie apart, the closure follows, and nobody has to
compute it. That siblings lie apart is containment too: one inside the other's complement.
"""

import math
import sys
from collections.abc import Callable
from pathlib import Path

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
# The widest radius of a root, and the part of what would just fit that a child's radius starts with.
ROOT_RADIUS = 1.5
FILL = 0.6
REL = 0.
APART = 1.
PW = 0.
RATE = 0.02
# Per radian, from the first step to four fifths of the way: soft margins first, sharp ones last.
SCALES = (10.0, 200.0)


class ConeTable(nn.Module):
    """A free cone for every node: `dim` - 1 degrees of freedom of the axis and one of the radius."""

    def __init__(self, axis: Tensor, radius: Tensor) -> None:
        super().__init__()
        self.register_buffer("anchor", axis)
        self.register_buffer("reach", radius[:, None] ** REL)
        self.axis = nn.Parameter(torch.zeros_like(axis))
        self.radius_logit = nn.Parameter(torch.logit(radius / math.pi))

    def forward(self) -> Cone:
        return Cone(F.normalize(self.anchor + self.reach * self.axis, dim=-1), math.pi * torch.sigmoid(self.radius_logit))


def initial_cones(taxonomy: Taxonomy, dim: int, generator: torch.Generator) -> Cone:
    """From the roots down, level by level: a child at a random place inside its parent.

    Its radius is the parent's, over the number of children to the power 1 / (dim - 1), by volume, times `FILL`.
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


def train_cones(
    taxonomy: Taxonomy, dim: int, seed: int, steps: int, batch: int, leave_out: tuple[str, ...] = ()
) -> Scores:
    """Given edges nest, siblings and other nodes of one level lie apart. Scores are margins, in radians.

    `leave_out`, for measuring what each part does: "training", "start", "siblings", "peers".
    """
    generator = torch.Generator().manual_seed(seed)
    start = initial_cones(taxonomy, dim, generator)
    if "start" in leave_out:
        axis = torch.randn(taxonomy.nodes, dim, generator=generator)
        start = Cone(F.normalize(axis, dim=-1), torch.full((taxonomy.nodes,), ROOT_RADIUS / 2))
    table = ConeTable(start.axis, start.radius)
    sampler = Sampler(taxonomy, seed)
    optimizer = torch.optim.Adam(table.parameters(), lr=RATE, betas=(0.9, 0.99), fused=True)
    for step in range(0 if "training" in leave_out else steps):
        done = step / steps
        optimizer.param_groups[0]["lr"] = RATE * min(1.0, 2 * (1 - done))
        scale = SCALES[0] * (SCALES[1] / SCALES[0]) ** min(1.0, done / 0.8)
        # Each relation as two columns of nodes, the outer and the inner.
        nested = np.concatenate([sampler.edges(batch // 2), sampler.general_edges(batch // 2)])[:, ::-1]
        apart = []
        if "siblings" not in leave_out:
            apart.append(sampler.siblings(batch))
        if "peers" not in leave_out:
            apart.append(sampler.peers(batch))
        cones = take(table(), np.concatenate([nested, *apart]))
        outer, inner = cones[: len(nested), 0], cones[: len(nested), 1]
        loss = pair_loss(outer, inner, 1, scale)
        first = len(nested)
        for pairs in apart:
            one, other = cones[first : first + len(pairs), 0], cones[first : first + len(pairs), 1]
            loss = loss + APART * pair_loss(complement(one), other, 1, scale, (one.radius+other.radius).detach())
            first += len(pairs)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return margins(table)


def take(cones: Cone, nodes: np.ndarray) -> Cone:
    """The cones of `nodes`, of any shape: one gather for axes and radii, which is what a step mostly costs."""
    packed = torch.cat([cones.axis, cones.radius[:, None]], 1)
    rows = F.embedding(torch.from_numpy(np.ascontiguousarray(nodes)), packed)
    return Cone(rows[..., :-1], rows[..., -1])


def pair_loss(outer: Cone, inner: Cone, relation: int, scale: float, size=None) -> Tensor:
    """`containment_loss` of (N,) pairs, none across: the mean over them."""
    size = outer.radius.detach() if relation == 1 and size is None else size
    scale = scale * size.clamp(min=1e-4)[:, None, None] ** -PW
    outer, inner = outer[:, None], inner[:, None]
    known = torch.full((len(outer.radius), 1, 1), relation)
    # One half is the other label's, which has no pairs here.
    return 2 * containment_loss(outer, inner, known, scale, 0.0, axes_gradient=True)


def margins(table: ConeTable) -> Scores:
    with torch.no_grad():
        cones = table()

    def scores(pairs: np.ndarray) -> np.ndarray:
        child, parent = (torch.from_numpy(pairs[:, column].copy()) for column in (0, 1))
        return containment_margin(cones[parent], cones[child]).numpy()

    return scores
