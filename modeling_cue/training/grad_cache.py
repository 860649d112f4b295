"""Contrastive batches larger than memory: chunks are embedded one by one, and compared all at once.

Gao, Zhang, Han and Callan, "Scaling deep contrastive learning batch size under memory limited setup" (RepL4NLP 2021,
section 3): all chunks are embedded without a graph; the loss over all of them gives the gradient of every cone; then
each chunk is embedded again, from the random state of the first time, and passes its share of that gradient on to the
weights. Activations of one chunk exist at a time, at the price of one more forward pass. The gradient is that of the
whole batch, apart from towers with batch normalisation, which know the statistics of a chunk only.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from ..cones import Cone
from .collator import CUECollator, EveryRowBroken
from .gathering import this_process
from .relations import Embedded, join

Scalars = tuple[Tensor, Tensor, Tensor]  # logit scale, containment scale and bias


class Chunks:
    """The chunks of one step. Opaque to the data loader, so that they stay off the device until their turn."""

    def __init__(self, batches: Sequence[Mapping[str, Any]]):
        self.batches = list(batches)

    def pin_memory(self) -> "Chunks":
        return Chunks([_pinned(batch) for batch in self.batches])


def _pinned(value: Any) -> Any:
    return {name: _pinned(v) for name, v in value.items()} if isinstance(value, Mapping) else value.pin_memory()


class ChunkedCollator:
    """Makes `{"chunks": Chunks}` of batches of `chunk_size` rows; a chunk of broken rows only is left out."""

    def __init__(self, collator: CUECollator, chunk_size: int):
        self.collator, self.chunk_size = collator, chunk_size

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Chunks]:
        batches = []
        for start in range(0, len(rows), self.chunk_size):
            try:
                batches.append(self.collator.batch(rows[start : start + self.chunk_size]))
            except EveryRowBroken:
                continue
        return {"chunks": Chunks(batches or [self.collator.stand_in()])}


def backward_in_chunks(
    model: nn.Module,
    chunks: Chunks,
    device: torch.device,
    embed: Callable[[Mapping[str, Any]], tuple[dict[str, Embedded], Scalars]],
    loss_of: Callable[[dict[str, Embedded], Scalars], Tensor],
    backward: Callable[[Tensor], Any],
) -> Tensor:
    """Adds to every weight's `grad` what the loss over all chunks together gives; returns that loss, detached.

    Args:
        model: the wrapped model, in training mode.
        chunks: used up: each is let go of when its second turn begins, so that pixels make room for gradients.
        embed: runs it on one chunk; returns the cones by kind and the learned scalars of the losses.
        loss_of: the scalar loss of the cones of all chunks, by kind, and of those scalars.
        backward: runs backward from a scalar, such as `Accelerator.backward`.
    """
    batches = chunks.batches
    count = len(batches)
    turns, alike = _agree(batches, device)
    wrapped: Any = getattr(model, "_orig_mod", model)  # a compiled model
    waits = isinstance(wrapped, DistributedDataParallel) and alike
    states: list[list[Tensor]] = []
    held: list[dict[str, Embedded]] = []
    with torch.no_grad(), _statistics_kept(model):
        for turn in range(turns):
            states.append(_random_state(device))
            embedded, scalars = embed(batches[min(turn, count - 1)])
            if turn < count:
                held.append({kind: _leaf(rows) for kind, rows in embedded.items()})
    cached: Any = tuple(value.detach().requires_grad_() for value in scalars)
    loss = loss_of(join(held), cached)
    loss.backward()

    for turn in range(turns):
        # An extra turn repeats the last chunk, without effect, to keep step with the other processes.
        own, weight = min(turn, count - 1), float(turn < count)
        last = turn == turns - 1
        batch = batches.pop(0) if len(batches) > 1 else batches[0]
        _set_random_state(states[turn], device)
        with wrapped.no_sync() if waits and not last else nullcontext():
            embedded, scalars = embed(batch)
            pairs = [pair for kind, rows in embedded.items() for pair in _pairs(rows, held[own][kind])]
            share = [weight * (ours * leaf.grad).sum() for ours, leaf in pairs if leaf.grad is not None]
            share += [
                ours * (leaf.grad if last and leaf.grad is not None else 0.0)
                for ours, leaf in zip(scalars, cached, strict=True)
            ]
            backward(torch.stack(share).sum())
    return loss.detach()


def _leaf(rows: Embedded) -> Embedded:
    cone = Cone(rows.cone.axis.detach().requires_grad_(), rows.cone.radius.detach().requires_grad_())
    return rows.with_cone(cone)


def _pairs(ours: Embedded, leaf: Embedded) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    return (ours.cone.axis, leaf.cone.axis), (ours.cone.radius, leaf.cone.radius)


def _agree(batches: Sequence[Mapping[str, Any]], device: torch.device) -> tuple[int, bool]:
    """The turns that every process takes, and whether all chunks everywhere have the same inputs.

    Only the last chunk's backward lets DistributedDataParallel reduce gradients, which passes over weights that this
    chunk does not use: chunks that differ are reduced one by one.
    """
    alike = len({frozenset(batch["model"]) for batch in batches}) == 1
    if this_process()[1] == 1:
        return len(batches), alike
    agreed = torch.tensor([len(batches), int(not alike)], device=device)
    dist.all_reduce(agreed, dist.ReduceOp.MAX)
    return int(agreed[0]), not agreed[1]


@contextmanager
def _statistics_kept(model: nn.Module) -> Iterator[None]:
    """Batch normalisation sees each chunk twice: the first time leaves its running statistics alone."""
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.training and m.track_running_stats]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True


def _random_state(device: torch.device) -> list[Tensor]:
    state = [torch.get_rng_state()]
    return state if device.type == "cpu" else [*state, torch.get_device_module(device).get_rng_state(device)]


def _set_random_state(state: list[Tensor], device: torch.device) -> None:
    torch.set_rng_state(state[0])
    if device.type != "cpu":
        torch.get_device_module(device).set_rng_state(state[1], device)
