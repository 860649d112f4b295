"""Search by cones: what is nearest, what lies inside a concept, what contains it."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from .cone_type import empty_mask, is_whole
from .cones import Cone, check_cone
from .index_files import load_index, save_index
from .index_items import Items, append_items, cones_of, items_of, make_items
from .index_search import Hits, Pairs, neighbours, ranked, related
from .index_vectors import FlatVectors, GraphVectors, rows_of

# How many queries are searched together.
_QUERIES = 1024


class CUEIndex:
    """Cones with ids and metadata, kept in float32 on the CPU, and searched by cones.

    `nearest` goes by the axes alone; `inside` and `containing` answer as `contains` does, `Cone.empty` included. A
    new index is exact: it compares every query with every cone, and its answers are those of brute force, up to the
    last bit of an angle, which in torch depends on the layout of a batch (here it does not). One that `approximate`
    made meets only part of the cones in `nearest`. Queries are batches (B,) of cones, converted to float32
    and validated with `check_cone` like the cones that are added; they give a list of B `Hits`.

    Args:
        dim: D, the dimension of the space, at least 2.
    """

    def __init__(self, dim: int) -> None:
        if dim < 2:
            raise ValueError(f"CUEIndex.dim must be at least 2, got {dim}; take the model's config.projection_dim")
        self._vectors: FlatVectors = FlatVectors(np.empty((0, dim + 2), np.float32))
        self._table = pa.table({})
        # The table made ready by the first search.
        self._ready: Items | None = None

    @classmethod
    def _of(cls, vectors: FlatVectors, table: pa.Table) -> "CUEIndex":
        index = cls(vectors.shape[1] - 2)
        index._vectors, index._table = vectors, table
        return index

    @classmethod
    def from_dataset(cls, dataset: Any, batch_size: int = 10_000) -> "CUEIndex":
        """An exact index of a `datasets.Dataset` or `IterableDataset`.

        Columns: id (string or integer), axis (list of D floats), radius (float), perhaps empty (bool); all others
        become metadata. For a parquet file: `CUEIndex.from_dataset(Dataset.from_parquet(path))`. Of what
        `run_embed.py` wrote, whose captions and media have their sample's id in common, the items are called id/image,
        id/text/0 and so on, and metadata have the sample's id as `sample`.

        Raises:
            ValueError: columns that are missing or malformed, no rows, several splits, and as `add`.
        """
        if isinstance(dataset, Mapping):
            raise ValueError(f"the data set has the splits {list(dataset)}: give one of them, as dataset[split]")
        index = None
        for batch in dataset.with_format("arrow").iter(batch_size):
            cones = cones_of(batch)
            index = index or cls(cones.dim)
            index.add(cones, *items_of(batch))
        if index is None:
            raise ValueError("the data set has no rows: there is nothing to index")
        return index

    def __len__(self) -> int:
        return self._vectors.shape[0]

    @property
    def dim(self) -> int:
        """D, the dimension of the space."""
        return self._vectors.shape[1] - 2

    def __repr__(self) -> str:
        return f"CUEIndex({len(self)} cones, dim={self.dim}, {self._vectors.kind})"

    def add(self, cones: Cone, ids: Sequence, metadata: Any = None) -> None:
        """Adds cones (N,): all, or where something is wrong none. Each call looks through all ids: add in batches.

        Args:
            cones: (N,), of any device and floating-point dtype.
            ids: N strings or N integers that the index does not have yet.
            metadata: columns of N values, of any type that Arrow knows, the same at every call: a dict of columns, an
                Arrow table, a data frame, or a list of N dicts.

        Raises:
            ValueError: cones of another dimension or against `check_cone`, ids that repeat, columns that do not fit, a
                memory-mapped index. TypeError: ids that are neither strings nor integers.
        """
        if self._vectors.read_only:
            raise ValueError("a memory-mapped index is read-only; load it with memory_map=False to add to it")
        cones = self._checked(cones)
        items = make_items(cones, ids, metadata)
        if not len(items):
            return  # Arrow knows no types of columns without a value
        table = append_items(self._table, items)
        self._vectors.add(rows_of(cones))
        self._table, self._ready = table, None

    def approximate(self) -> "CUEIndex":
        """An index of the same cones with FAISS's graph of neighbours (HNSW), which `nearest` walks. Needs FAISS.

        Worth it from some 100,000 cones on: below, an exact search takes a few milliseconds. docs/search.md has the
        figures for time, memory and recall.

        Raises:
            ValueError: an empty or approximate index. ImportError: no FAISS.
        """
        self._check_filled()
        if isinstance(self._vectors, GraphVectors):
            raise ValueError("the index is approximate already; add cones to it, or use it as it is")
        return self._of(GraphVectors.build(self._vectors.array), self._table)

    # ---------------------------------------------------------------- queries

    def nearest(self, cones: Cone, k: int, effort: int | None = None) -> list[Hits]:
        """The k cones (all, where there are fewer) with the axes nearest to each query's (B,), whatever the radii.

        Args:
            effort: for an approximate index, how many candidates its walk keeps (FAISS's efSearch), 128 unless told:
                the more, the slower and the nearer to exact.

        Raises:
            ValueError: an empty index, queries of another dimension or against `check_cone`, k below 1, `effort` for
                an exact index or below 1.
        """
        self._check_filled()
        k = min(_checked_k(k), len(self))
        if effort is not None and (effort < 1 or self._vectors.effort is None):
            raise ValueError(
                f"effort = {effort} must be at least 1, and is for an approximate index, not for an exact one"
            )
        effort = effort or self._vectors.effort
        return self._search(cones, lambda items, part: neighbours(self._vectors, part, k, effort), filtered=False, k=k)

    def inside(self, cones: Cone, k: int | None = None) -> list[Hits]:
        """What lies inside each query (B,): the items x with `contains(query, x)`. Exact on an approximate index too.

        `k`: only the k of them with the nearest axes.

        Nothing but empty cones lies inside a query that is flagged empty, as a compound of parts far apart is; to ask
        by its axis and radius, pass `Cone(compound.axis, compound.radius)`.

        Raises:
            ValueError: an empty index, queries of another dimension or against `check_cone`, k below 1.
        """
        self._check_filled()
        return self._search(cones, lambda items, part: related(self._vectors, items, part, is_whole(part), False), k=k)

    def containing(self, cones: Cone, k: int | None = None) -> list[Hits]:
        """What contains each query (B,): the items x with `contains(x, query)`; of an empty query it is all of them.

        Exact on an approximate index too. `k` as in `inside`.

        Raises:
            ValueError: as `inside`.
        """
        self._check_filled()
        return self._search(
            cones, lambda items, part: related(self._vectors, items, part, empty_mask(part), True), inverse=True, k=k
        )

    def _search(
        self, cones: Cone, find: Callable[[Items, Cone], Pairs], *, filtered=True, inverse=False, k: int | None = None
    ) -> list[Hits]:
        cones, k = self._checked(cones), None if k is None else _checked_k(k)
        hits: list[Hits] = []
        self._ready = items = self._ready or Items.of(self._table)
        self._table = items.table  # whole columns in place of a chunk for each `add`, not beside them
        for start in range(0, len(cones.radius), _QUERIES):
            part = cones[start : start + _QUERIES]
            pairs = find(items, part)
            hits += ranked(self._vectors, items, part, pairs, filtered=filtered, inverse=inverse, k=k)
        return hits

    def _checked(self, cones: Cone) -> Cone:
        if not isinstance(cones, Cone):
            raise TypeError(f"expected a Cone, got {type(cones).__name__}; build one from axes and radii")
        if cones.dim != self.dim:
            raise ValueError(
                f"the index holds cones of {self.dim} dimensions, these have {cones.dim}; "
                "both must come from one model"
            )
        if len(cones.shape) != 1:
            raise ValueError(
                f"expected a batch (B,) of cones, got the shape {tuple(cones.shape)}; one cone: cone[None]"
            )
        cones = cones.detach().to("cpu")
        # Pi in half precision is pi.
        radius = torch.where(cones.radius == torch.full_like(cones.radius, math.pi), math.pi, cones.radius.float())
        if cones.axis.dtype in (torch.float16, torch.bfloat16):
            check_cone(cones)  # of unit length as near as half precision can say it
        cones = Cone(cones.float().axis, radius, cones.empty)
        check_cone(cones)
        return cones

    def _check_filled(self) -> None:
        if not len(self):
            raise ValueError("the index is empty; add cones first")

    # ---------------------------------------------------------------- files

    def save(self, folder: str | Path) -> None:
        """Writes a folder, aside first and then renamed; an index that stands there is replaced.

        index.json: format, kind, dim, count, metric, package version. items.arrow: id, radius, empty, metadata.
        vectors.npy (exact) or vectors.faiss (approximate): rows (axis, cos radius, sin radius), float32.

        Raises:
            ValueError: an empty index, a folder that holds anything else.
        """
        self._check_filled()
        save_index(Path(folder), self._vectors, self._table)

    @classmethod
    def load(cls, folder: str | Path, memory_map: bool = False) -> "CUEIndex":
        """Reads what `save` wrote; memory-mapped, vectors and metadata stay on disk and the index is read-only.

        Raises:
            ValueError: a folder that is no index, is damaged, or comes from a newer version of the format.
            ImportError: an approximate index without FAISS.
        """
        return cls._of(*load_index(Path(folder), memory_map))


def _checked_k(k: int) -> int:
    if not isinstance(k, int | np.integer) or isinstance(k, bool) or k < 1:
        raise ValueError(f"k = {k}: give a whole number of at least 1")
    return int(k)
