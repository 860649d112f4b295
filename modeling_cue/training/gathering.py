"""Gathering rows across processes, with gradient."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ..cones import Cone
from .losses import World
from .relations import KINDS, Embedded


class _AllGather(torch.autograd.Function):
    """All processes' tensors of one shape, stacked.

    Every process computes the loss of its own rows against all rows, so each holds a share of the gradient of what was
    gathered. Backward sums the shares over processes and keeps the own slice.
    """

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        gathered = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
        dist.all_gather(gathered, tensor.contiguous())
        return torch.stack(gathered)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        shares = list(gradients[0].contiguous())
        own = torch.empty_like(shares[0])
        dist.reduce_scatter(own, shares)
        return own


def gather_rows(tensor: Tensor) -> Tensor:
    """All processes' rows of a tensor (N, ...), in the order of the processes; N may differ, also be 0.

    Integer tensors may differ in their last dimension too and are padded with 0. In one process: the tensor itself.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return tensor
    width = tensor.shape[1] if tensor.ndim == 2 else 0
    shape = torch.tensor([len(tensor), width], device=tensor.device)
    shapes = [torch.empty_like(shape) for _ in range(dist.get_world_size())]
    dist.all_gather(shapes, shape)
    rows = [int(s[0]) for s in shapes]
    widest = max(int(s[1]) for s in shapes)
    if tensor.ndim == 2 and width < widest:
        tensor = torch.nn.functional.pad(tensor, (0, widest - width))
    if len(tensor) < max(rows):
        tensor = torch.cat([tensor, tensor.new_zeros(max(rows) - len(tensor), *tensor.shape[1:])])
    gathered = _AllGather.apply(tensor)
    return torch.cat([block[:count] for block, count in zip(gathered, rows, strict=True)])


def gather_kinds(embedded: dict[str, Embedded]) -> tuple[dict[str, Embedded], dict[str, Embedded]]:
    """The rows of this process and of all processes by kind, the latter with gradient.

    A kind that this process lacks and another has is there in both, without rows in the first.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return embedded, embedded
    some = next(iter(embedded.values()))
    here = torch.tensor([kind in embedded for kind in KINDS], dtype=torch.int32, device=some.ids.device)
    dist.all_reduce(here, dist.ReduceOp.MAX)
    kinds = [kind for kind, anywhere in zip(KINDS, here.tolist(), strict=True) if anywhere]
    local = {kind: embedded[kind] if kind in embedded else _empty_like(some) for kind in kinds}
    return local, {kind: _gather_embedded(rows) for kind, rows in local.items()}


def this_world() -> World:
    """The processes of this run, as the losses need them."""
    if not (dist.is_available() and dist.is_initialized()):
        return World()

    def total(tensor: Tensor) -> Tensor:
        tensor = tensor.clone()
        dist.all_reduce(tensor)
        return tensor

    return World(dist.get_world_size(), total)


def _gather_embedded(rows: Embedded) -> Embedded:
    cone = Cone(gather_rows(rows.cone.axis), gather_rows(rows.cone.radius))
    return Embedded(cone, *(gather_rows(column) for column in (rows.ids, rows.requires, rows.implies, rows.words)))


def _empty_like(rows: Embedded) -> Embedded:
    # With a gradient of its own: backward of gathering must run on every process.
    cone = Cone(rows.cone.axis[:0].detach().requires_grad_(), rows.cone.radius[:0].detach().requires_grad_())
    return Embedded(cone, *(column[:0] for column in (rows.ids, rows.requires, rows.implies, rows.words)))
