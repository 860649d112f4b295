"""Small baselines for link prediction in a taxonomy, trained on the same edges with random corrupted ones.

Each draws `NEGATIVES` corrupted pairs per edge, five of the child and five of the parent, and trains with Adam; the
rates, margins and radii were chosen on the validation pairs of the mammals (10 and 50 % columns).
"""

import math
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from wordnet_data import Taxonomy
from wordnet_methods import Scores, margins
from wordnet_sampling import Sampler

from modeling_cue.cones import Cone, containment_margin

NEGATIVES = 10
# Rate of Adam and hinge margin.
ORDER = (0.1, 0.1)
DISKS = (0.1, 0.03)
ENTAILMENT = (0.01, 0.1)
# Of the ball of Ganea et al.: the aperture's constant, the norm within which there are no cones, and the outer edge.
APERTURE = 0.1
INNER = 2 * APERTURE / (1 + math.sqrt(1 + 4 * APERTURE**2)) + 1e-4
OUTER = 1 - 1e-5

Energy = Callable[[Tensor, Tensor], Tensor]


def _fit(
    table: nn.Parameter, sampler: Sampler, loss: Callable[[Tensor, Tensor], Tensor], rate: float, steps: int,
    batch: int, project: Callable[[], None] = lambda: None,
) -> None:  # fmt: skip
    """`loss` sees rows of edges, (N, 1, 2, width), and of their corrupted ones, (N, NEGATIVES, 2, width)."""
    optimizer = torch.optim.Adam([table], lr=rate, betas=(0.9, 0.99), fused=True)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = rate * min(1.0, 2 * (1 - step / steps))
        edges = sampler.edges(batch)
        pairs = np.concatenate([edges[:, None], sampler.corrupted(edges, NEGATIVES)], 1)
        rows = F.embedding(torch.from_numpy(pairs), table)
        optimizer.zero_grad()
        loss(rows[:, :1], rows[:, 1:]).backward()
        optimizer.step()
        project()


def _hinge(energy: Energy, margin: float) -> Callable[[Tensor, Tensor], Tensor]:
    """Energy of edges, plus what is missing to the margin of the energy of corrupted ones; means per edge."""

    def loss(right: Tensor, wrong: Tensor) -> Tensor:
        good = energy(right[:, :, 0], right[:, :, 1]).clamp(min=0)
        bad = (margin - energy(wrong[:, :, 0], wrong[:, :, 1])).clamp(min=0)
        return good.sum(1).mean() + bad.sum(1).mean()

    return loss


def _scores(table: Tensor, energy: Energy) -> Scores:
    table = table.detach()
    return lambda pairs: -energy(table[pairs[:, 0]], table[pairs[:, 1]]).numpy()


def train_order(taxonomy: Taxonomy, dim: int, seed: int, steps: int, batch: int) -> Scores:
    """Order embeddings (Vendrov et al., ICLR 2016): a child is at least its parent in every coordinate, all >= 0."""
    rate, margin = ORDER
    table = nn.Parameter(0.1 * torch.rand(taxonomy.nodes, dim, generator=torch.Generator().manual_seed(seed)))

    def energy(child: Tensor, parent: Tensor) -> Tensor:
        return (parent.abs() - child.abs()).clamp(min=0).square().sum(-1)

    _fit(table, Sampler(taxonomy, seed), _hinge(energy, margin), rate, steps, batch)
    return _scores(table, energy)


def train_disks(taxonomy: Taxonomy, dim: int, seed: int, steps: int, batch: int) -> Scores:
    """Spherical disks (Suzuki et al., ICML 2019): a hinge on the margin of containment, from a random start."""
    rate, margin = DISKS
    generator = torch.Generator().manual_seed(seed)
    # The last column is the logit of the radius over pi, which starts near 0.5 rad.
    table = nn.Parameter(torch.randn(taxonomy.nodes, dim + 1, generator=generator))
    with torch.no_grad():
        table[:, :dim] = F.normalize(table[:, :dim], dim=-1)
        table[:, dim] = 0.1 * table[:, dim] - 1.6

    def cones(rows: Tensor) -> Cone:
        return Cone(F.normalize(rows[..., :-1], dim=-1), math.pi * torch.sigmoid(rows[..., -1]))

    def energy(child: Tensor, parent: Tensor) -> Tensor:
        return -containment_margin(cones(parent), cones(child))

    _fit(table, Sampler(taxonomy, seed), _hinge(energy, margin), rate, steps, batch)
    return margins(lambda: cones(table))


def train_entailment(taxonomy: Taxonomy, dim: int, seed: int, steps: int, batch: int) -> Scores:
    """Hyperbolic entailment cones (Ganea et al., ICML 2018, eq. 26 to 33), from Poincaré embeddings.

    The first half of the steps trains these (Nickel and Kiela, NeurIPS 2017), the second the cones.
    """
    rate, margin = ENTAILMENT
    generator = torch.Generator().manual_seed(seed)
    table = nn.Parameter(0.01 * torch.randn(taxonomy.nodes, dim, generator=generator))
    sampler = Sampler(taxonomy, seed)

    @torch.no_grad()
    def project(inner: float) -> None:
        norm = table.norm(dim=-1, keepdim=True).clamp(min=1e-9)
        table.mul_(norm.clamp(inner, OUTER) / norm)

    _fit(table, sampler, _poincare_loss, 3 * rate, steps // 2, batch, lambda: project(0.0))
    project(INNER)
    _fit(table, sampler, _hinge(_cone_energy, margin), rate, steps - steps // 2, batch, lambda: project(INNER))
    return _scores(table, _cone_energy)


def _poincare_loss(right: Tensor, wrong: Tensor) -> Tensor:
    child, parent = torch.cat([right, wrong], 1).unbind(2)
    gap = (child - parent).square().sum(-1)
    room = (1 - child.square().sum(-1)) * (1 - parent.square().sum(-1))
    excess = (2 * gap / room).clamp(min=1e-7)
    distance = torch.log1p(excess + (excess * (excess + 2)).sqrt())
    return -torch.log_softmax(-distance, 1)[:, 0].mean()


def _cone_energy(child: Tensor, parent: Tensor) -> Tensor:
    """The angle at the parent between the ray outwards and the child, less half the cone's aperture: radians."""
    own, other = parent.square().sum(-1), child.square().sum(-1)
    product, gap = (parent * child).sum(-1), (parent - child).square().sum(-1).clamp(min=1e-12).sqrt()
    norm = own.sqrt()
    below = norm * gap * (1 + own * other - 2 * product).clamp(min=1e-12).sqrt()
    cosine = (product * (1 + own) - own * (1 + other)) / below
    edge = 1 - 1e-6
    half = torch.asin((APERTURE * (1 - own) / norm).clamp(-edge, edge))
    return torch.acos(cosine.clamp(-edge, edge)) - half
