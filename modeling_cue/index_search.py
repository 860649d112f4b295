"""How an index answers: candidates by the vectors, with room for rounding, of which the cones' own algebra decides."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from .cones import Cone, angle, containment_margin, contains
from .index_items import Items
from .index_vectors import FlatVectors, containment_queries, cosine_queries, slack

# Pairs judged at once, always a multiple of `_EVEN`: in torch the last bit of an arctangent depends on whether
# its place is in a full vector of the processor, and an answer must not hang on what else is asked.
_PAIRS, _EVEN = 2**14, 64
SHOWN = 5  # hits that are printed
# Candidates beyond k: rounding may have put a neighbour a few places too low.
_MORE = 16
# Which query (M,) and which position in the index (M,).
Pairs = tuple[np.ndarray, np.ndarray]


class Hit(NamedTuple):
    """One item that was found; its fields are those of `Hits`."""

    id: Any
    score: float
    margin: float


@dataclass(frozen=True, eq=False)
class Hits:
    """What one query found, closest axis first; equal angles in the order in which the cones were added.

    `hits[0]`, and each of `for hit in hits`, is a `Hit`: (id, score, margin).

    Args:
        positions: (n,) int64, where the cones stand in the index, counted in the order of adding.
        scores: (n,) float32, cosine of the angle between the axes.
        margins: (n,) float32, radians: `containment_margin` of the query over the item; of the item over the query
            where it was asked what contains the query.
    """

    positions: Tensor
    scores: Tensor
    margins: Tensor
    _items: pa.Table

    def __len__(self) -> int:
        return len(self.positions)

    def __iter__(self) -> Iterator[Hit]:
        return map(Hit, self.ids, self.scores.tolist(), self.margins.tolist())

    def __getitem__(self, place: int) -> Hit:
        position, score, margin = self.positions[place], self.scores[place], self.margins[place]
        return Hit(self._items["id"][int(position)].as_py(), float(score), float(margin))

    def __repr__(self) -> str:
        shown = [f"{hit.id!r} {hit.score:.3f} (margin {hit.margin:+.2f})" for hit in islice(self, SHOWN)]
        return f"Hits({len(self)}: {', '.join(shown)}{', ...' if len(self) > SHOWN else ''})"

    @property
    def ids(self) -> list:
        """The n ids that the cones were added with."""
        return self.metadata("id")["id"]

    def metadata(self, *columns: str) -> dict[str, list]:
        """Columns of the items found, n values each: the named ones, or all, with id, radius and empty.

        Raises:
            KeyError: a column that the index does not have.
        """
        lacking = [name for name in columns if name not in self._items.column_names]
        if lacking:
            raise KeyError(f"the index has no column {lacking}; it has {self._items.column_names}")
        chosen = self._items.select(list(columns)) if columns else self._items
        return chosen.take(pa.array(self.positions.numpy())).to_pydict()


def neighbours(vectors: FlatVectors, cones: Cone, k: int, effort: int | None) -> Pairs:
    """Candidates for the k nearest of each query (B,), all that tie with the last included."""
    queries, doubt, total = cosine_queries(cones), 2 * slack(cones.dim), vectors.shape[0]
    count = min(k + _MORE, total)
    values, positions = vectors.nearest(queries, count, effort)
    few = positions[:, k - 1] < 0
    if few.any():
        # A walk that met fewer than k: compare with all.
        values[few], positions[few] = vectors.nearest(queries[few], count, None)
    # What was not fetched is no greater than the last: where that is clearly below the k-th, nothing is missing.
    tied = (values[:, -1] >= values[:, k - 1] - doubt) & (count < total)
    row, column = np.nonzero((positions >= 0) & ~tied[:, None])
    found = [(row, positions[row, column])]
    again = np.flatnonzero(tied)
    if len(again):
        row, position = vectors.above(queries[again], (values[again, k - 1] - doubt).astype(np.float32))
        found.append((again[row], position))
    return _joined(found)


def related(vectors: FlatVectors, items: Items, cones: Cone, everything: Tensor, inverse: bool) -> Pairs:
    """Candidates for what lies inside each query (B,), or contains it where `inverse`.

    All items are candidates where `everything` (B,) is true.
    """
    queries, special = containment_queries(cones, everything), items.special

    def fits(row: Tensor, position: Tensor) -> Tensor:
        # The vectors do not say which cone of a pair contains the other: it can only be the wider one.
        asked, found = cones.radius[row], items.radius[position]
        return (found >= asked if inverse else found <= asked) | everything[row]

    bound = np.full(len(queries), -slack(cones.dim), np.float32)
    rows, positions = vectors.above(queries, bound, fits)
    # Whole and empty cones contain, or lie inside, whatever the angle.
    plain = ~np.isin(positions, special)
    always = np.repeat(np.arange(len(queries)), len(special)), np.tile(special, len(queries))
    return _joined([(rows[plain], positions[plain]), always])


def ranked(
    vectors: FlatVectors, items: Items, cones: Cone, pairs: Pairs, *, filtered: bool, inverse: bool, k: int | None
) -> Iterator[Hits]:
    """The hits of each query (B,) out of the candidates, of which `contains` alone decides where they are `filtered`.

    The query is the outer cone, the inner one where `inverse`.
    """
    rows, positions, angles, margins = _judged(vectors, items, cones, pairs, filtered, inverse)
    order = np.lexsort((positions, angles, rows))
    ends = np.searchsorted(rows, np.arange(len(cones.radius) + 1), sorter=order)
    for first, last in pairwise(ends):
        best = order[first:last][:k]
        place, apart, margin = (torch.from_numpy(x[best]) for x in (positions, angles, margins))
        yield Hits(place, apart.cos(), margin, items.table)


def _judged(vectors: FlatVectors, items: Items, cones: Cone, pairs: Pairs, filtered: bool, inverse: bool):
    """The pairs that pass, with their angles and margins."""
    judged = []
    for start in range(0, max(1, len(pairs[0])), _PAIRS):
        count = min(len(pairs[0]) - start, _PAIRS)
        row, position = (np.resize(x[start : start + count], count + -count % _EVEN) for x in pairs)
        query, item = cones[torch.from_numpy(row)], items.cones(vectors.axes(position), position)
        outer, inner = (item, query) if inverse else (query, item)
        apart, margin = angle(outer.axis, inner.axis), containment_margin(outer, inner)
        passed = contains(outer, inner) if filtered else torch.ones_like(apart, dtype=torch.bool)
        chosen = passed[:count].nonzero()[:, 0].numpy()
        judged.append(tuple(x[chosen] for x in (row, position, apart.numpy(), margin.numpy())))
    return _joined(judged)


def _joined(parts: Sequence[tuple[np.ndarray, ...]]) -> Any:
    return tuple(map(np.concatenate, zip(*parts, strict=True)))
