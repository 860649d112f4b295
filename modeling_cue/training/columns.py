"""The columns of a batch that losses and metrics read beside the cones."""

from collections.abc import Iterable

import torch
from torch import Tensor


class Columns:
    """What is known of the items of one kind, item by item; see `relations.Embedded`."""

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.keys: list[int] = []
        self.sets: dict[str, list[list[int]]] = {"requires": [], "implies": [], "words": []}

    def add(self, sample: int, key: int, **sets: Iterable[int]) -> None:
        """One item more."""
        self.ids.append(sample)
        self.keys.append(key)
        for name, column in self.sets.items():
            column.append(sorted(sets.get(name, ())))

    def tensors(self) -> dict[str, Tensor]:
        """Every column, int64, with a row for each item."""
        columns = {name: padded(column, 0) for name, column in self.sets.items()}
        return {"ids": torch.tensor(self.ids), "key": torch.tensor(self.keys), **columns}


def padded(lines: list[list[int]], value: int) -> Tensor:
    """(N, longest) int64 of N lists, filled up with `value`."""
    width = max((len(line) for line in lines), default=0)
    return torch.tensor([line + [value] * (width - len(line)) for line in lines], dtype=torch.long)
