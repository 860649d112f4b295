"""Random draws that depend on the seed, the epoch and the items of a batch, and on nothing else.

Batches are made ahead of the step that takes them, in this process or in others. Drawn from the random state of
whichever process makes them, they would differ with the number of processes, and a run that goes on from a checkpoint
would draw others than the run that was never cut off.
"""

import multiprocessing
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from .phrases import hash_id

UNREAD = "unread"  # the only key of an item whose batch will be skipped
DRAW = "draw"  # the key under which an item carries its number


class Draws:
    """Numbers its items for the draws of each epoch; worker processes that outlive an epoch hear of the next one."""

    def __init__(self, seed: int):
        self.seed = seed
        self._epoch = multiprocessing.get_context("spawn").Value("q", 0)  # for workers started in any way

    @property
    def epoch(self) -> int:
        return self._epoch.value

    @epoch.setter
    def epoch(self, epoch: int) -> None:
        self._epoch.value = epoch

    def of(self, item: object) -> int:
        """A number in (0, 2**63) for an item, named by anything whose text tells it from the others."""
        return hash_id(f"{self.seed}:{self.epoch}:{item}")


@contextmanager
def drawn_for(rows: Sequence[Mapping[str, Any]]) -> Iterator[None]:
    """Within, PyTorch draws on the CPU as these rows say, in their order; after it, as it would have without."""
    if not all(DRAW in row for row in rows):
        yield
        return
    state = torch.get_rng_state()
    # `torch.manual_seed` would seed the accelerators too.
    torch.default_generator.manual_seed(hash_id(" ".join(str(row[DRAW]) for row in rows)))
    try:
        yield
    finally:
        torch.set_rng_state(state)
