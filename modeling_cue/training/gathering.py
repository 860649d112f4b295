"""Gathering rows across processes, with gradient; and steps that all of them take or none."""

import pickle
from collections.abc import Callable, Container, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from ..cones import Cone
from .losses import World
from .relations import KINDS, Embedded

T = TypeVar("T")


class _AllGather(torch.autograd.Function):
    """All processes' tensors of one shape, stacked.

    Every process computes the loss of its own rows against all rows, so each holds a share of the gradient of what was
    gathered. Backward sums the shares over processes and keeps the own slice.
    """

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        gathered = tensor.new_empty(dist.get_world_size(), *tensor.shape)
        dist.all_gather_into_tensor(gathered.flatten(0, 1), tensor.contiguous())
        return gathered

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        shares = gradients[0].contiguous()
        own = torch.empty_like(shares[0])
        dist.reduce_scatter_tensor(own, shares.flatten(0, 1))
        return own


def gather_rows(tensor: Tensor) -> Tensor:
    """All processes' rows of a tensor (N, ...), in the order of the processes; N may differ, also be 0.

    Integer tensors may differ in their last dimension too and are padded with 0. In one process: the tensor itself.
    """
    if this_process()[1] == 1:
        return tensor
    width = tensor.shape[1] if tensor.ndim == 2 else 0
    shape = torch.tensor([len(tensor), width], device=tensor.device)
    shapes = [torch.empty_like(shape) for _ in range(dist.get_world_size())]
    dist.all_gather(shapes, shape)
    rows = [int(s[0]) for s in shapes]
    widest = max(int(s[1]) for s in shapes)
    if tensor.ndim == 2 and width < widest:
        tensor = torch.nn.functional.pad(tensor, (0, widest - width))
    return _all_rows(tensor, rows)


def agreed(here: Container[str], names: Sequence[str], device: torch.device) -> list[str]:
    """Those of `names` that are among `here` in any process, in the order of `names`: the same in all processes."""
    if this_process()[1] == 1:
        return [name for name in names if name in here]
    there = torch.tensor([name in here for name in names], dtype=torch.int32, device=device)
    dist.all_reduce(there, dist.ReduceOp.MAX)
    return [name for name, anywhere in zip(names, there.tolist(), strict=True) if anywhere]


def gather_kinds(embedded: dict[str, Embedded]) -> tuple[dict[str, Embedded], dict[str, Embedded]]:
    """The rows of this process and of all processes by kind, the latter with gradient.

    A kind that this process lacks and another has is there in both, without rows in the first.
    """
    if this_process()[1] == 1:
        return embedded, embedded
    some = next(iter(embedded.values()))
    # Sizes of all kinds at once: to read them waits for the device. -1 rows: this process has no such kind.
    sizes = torch.tensor(
        [_sizes(embedded[kind]) if kind in embedded else (-1, 0, 0, 0) for kind in KINDS], device=some.ids.device
    )
    told = [torch.empty_like(sizes) for _ in range(dist.get_world_size())]
    dist.all_gather(told, sizes)
    by_kind = dict(zip(KINDS, torch.stack(told, 1).tolist(), strict=True))  # of each process
    by_kind = {kind: found for kind, found in by_kind.items() if any(rows >= 0 for rows, *_ in found)}
    local = {kind: embedded[kind] if kind in embedded else _empty_like(some) for kind in by_kind}
    return local, {kind: _gather_embedded(rows, by_kind[kind]) for kind, rows in local.items()}


def this_world() -> World:
    """The processes of this run, as the losses need them."""
    if this_process()[1] == 1:
        return World()

    def total(tensor: Tensor) -> Tensor:
        tensor = tensor.clone()
        dist.all_reduce(tensor)
        return tensor

    return World(dist.get_world_size(), total)


def _sizes(rows: Embedded) -> tuple[int, int, int, int]:
    return len(rows), rows.requires.shape[1], rows.implies.shape[1], rows.words.shape[1]


def _gather_embedded(rows: Embedded, sizes: list[list[int]]) -> Embedded:
    """All processes' rows of a kind, by their `_sizes`: one message of floats, with gradient, and one of integers."""
    counts = [max(0, count) for count, *_ in sizes]
    widths = [max(size[n] for size in sizes) for n in (1, 2, 3)]
    sets = [
        torch.nn.functional.pad(column, (0, width - column.shape[1]))
        for column, width in zip((rows.requires, rows.implies, rows.words), widths, strict=True)
    ]
    cones = _all_rows(torch.cat([rows.cone.axis, rows.cone.radius[:, None]], 1), counts)
    ids, *sets = _all_rows(torch.cat([rows.ids[:, None], *sets], 1), counts).split([1, *widths], dim=1)
    return Embedded(Cone(cones[:, :-1], cones[:, -1]), ids[:, 0], *sets)


def _all_rows(tensor: Tensor, counts: list[int]) -> Tensor:
    """All processes' rows of a tensor (N, W), of which each process has so many."""
    if len(tensor) < max(counts):
        tensor = torch.cat([tensor, tensor.new_zeros(max(counts) - len(tensor), *tensor.shape[1:])])
    gathered = _AllGather.apply(tensor)
    if min(counts) == max(counts):
        return gathered.flatten(0, 1)
    return torch.cat([block[:count] for block, count in zip(gathered, counts, strict=True)])


def _empty_like(rows: Embedded) -> Embedded:
    # With a gradient of its own: backward of gathering must run on every process.
    cone = Cone(rows.cone.axis[:0].detach().requires_grad_(), rows.cone.radius[:0].detach().requires_grad_())
    return rows[:0].with_cone(cone)


def this_process() -> tuple[int, int]:
    """The number of this process, and how many there are."""
    if not (dist.is_available() and dist.is_initialized()):
        return 0, 1
    return dist.get_rank(), dist.get_world_size()


def together(task: Callable[[], T]) -> list[T]:
    """What `task` returns in each process, in their order. Where it fails in one, all raise its error."""
    rank, world = this_process()
    if world == 1:
        return [task()]
    result: Any = None
    error: Exception | None = None
    try:
        result = task()
    except Exception as raised:
        error = raised
    told: list[Any] = [None] * world
    dist.all_gather_object(told, (result, None if error is None else _portable(error, rank)))
    if error is not None:
        raise error
    for _, other in told:
        if other is not None:
            raise other
    return [value for value, _ in told]


def _portable(error: Exception, rank: int) -> Exception:
    error.add_note(f"in process {rank}")
    try:
        return pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"process {rank} failed: {error!r}")
