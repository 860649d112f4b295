"""The vectors of an index: compared all through torch, or found by a graph of neighbours through FAISS.

A cone is stored as (mu, cos theta, sin theta), D + 2 numbers. Its inner product with (mu_q, -cos theta_q,
-sin theta_q) is cos(angle) - cos(theta_q - theta): not negative if and only if angle <= |theta_q - theta|. So one
range search with a fixed bound finds whatever lies inside a query or contains it, though the angle that is allowed
differs from pair to pair. With (mu_q, 0, 0) the inner product is the cosine of the angle.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .cones import Cone

# How many inner products are held at once.
_PRODUCTS = 2**24


def rows_of(cones: Cone) -> np.ndarray:
    """What is stored of float32 cones (N,): (N, D + 2) float32."""
    return _extended(cones, _columns(cones))


def cosine_queries(cones: Cone) -> np.ndarray:
    """Queries (N, D + 2) whose inner product with a row is the cosine of the angle."""
    return _extended(cones, torch.zeros(len(cones.radius), 2))


def containment_queries(cones: Cone, all_rows: Tensor) -> np.ndarray:
    """Queries (N, D + 2): a row with a negative product, beyond rounding, neither lies in the query nor contains it.

    Where `all_rows` (N,) is true the query is 0, as is its inner product with every row.
    """
    return _extended(cones, -_columns(cones)) * ~all_rows.numpy()[:, None]


def _columns(cones: Cone) -> Tensor:
    return torch.stack([cones.radius.double().cos(), cones.radius.double().sin()], -1).float()


def _extended(cones: Cone, columns: Tensor) -> np.ndarray:
    return torch.cat([cones.axis, columns], -1).numpy()


def slack(dim: int) -> float:
    """More than an inner product of a query and a row can miss, beside what `contains` and `angle` compute.

    In units of eps of float32: D + 2 for the sum (its terms add up to at most 2 in absolute value), 17 for axes that
    are unit to 8 eps, 2 for the rounded cosine and sine, 16 for the sums of the margin, 2 D for the two norms in
    `angle`.
    """
    return (4 * dim + 64) * float(np.finfo(np.float32).eps)


class FlatVectors:
    """Every vector is compared with every query: exact."""

    kind = "exact"
    file = "vectors.npy"
    effort: int | None = None

    def __init__(self, vectors: np.ndarray, read_only: bool = False) -> None:
        self._blocks, self.read_only = [vectors], read_only

    @property
    def array(self) -> np.ndarray:
        """(N, D + 2) float32."""
        if len(self._blocks) > 1:
            self._blocks = [np.concatenate(self._blocks)]
        return self._blocks[0]

    @property
    def shape(self) -> tuple[int, int]:
        return sum(len(block) for block in self._blocks), self._blocks[0].shape[1]

    def add(self, vectors: np.ndarray) -> None:
        self._blocks.append(vectors)

    def axes(self, positions: np.ndarray) -> Tensor:
        """(M,) -> (M, D)."""
        return torch.from_numpy(np.ascontiguousarray(self.array[positions, :-2]))

    def _products(self, queries: np.ndarray):
        """Yields the position of the first row of a block, and the inner products (B, rows) with it."""
        rows, asked = torch.from_numpy(self.array), torch.from_numpy(queries)
        step = max(1, _PRODUCTS // max(1, len(queries)))
        for start in range(0, len(rows), step):
            yield start, asked @ rows[start : start + step].T

    def nearest(self, queries: np.ndarray, count: int, effort: int | None) -> tuple[np.ndarray, np.ndarray]:
        """The greatest inner products (B, count), falling, and the positions; `effort` is for graphs."""
        best, found = torch.empty(len(queries), 0), torch.empty(len(queries), 0, dtype=torch.long)
        for start, products in self._products(queries):
            values, positions = products.topk(min(count, products.shape[1]))
            best, found = torch.cat([best, values], 1), torch.cat([found, positions + start], 1)
            best, kept = best.topk(min(count, best.shape[1]))
            found = found.gather(1, kept)
        return best.numpy(), found.numpy()

    def above(
        self, queries: np.ndarray, bound: np.ndarray, fits: Callable[[Tensor, Tensor], Tensor] | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """All pairs whose inner product is above the query's `bound` (B,): which query (M,), which position (M,).

        Args:
            fits: of such pairs (query, position), which ones to keep; the others take no memory beyond their block.
        """
        least, pairs = torch.from_numpy(bound)[:, None], []
        for start, products in self._products(queries):
            row, position = (products > least).nonzero(as_tuple=True)
            position = position + start
            if fits is not None:
                kept = fits(row, position)
                row, position = row[kept], position[kept]
            pairs.append((row, position))
        rows, positions = zip(*pairs, strict=True)
        return torch.cat(rows).numpy(), torch.cat(positions).numpy()

    def save(self, folder: Path) -> None:
        np.save(folder / self.file, self.array)

    @classmethod
    def load(cls, folder: Path, memory_map: bool) -> "FlatVectors":
        # Copy on write: torch refuses arrays that cannot be written, and nothing here writes.
        return cls(np.load(folder / cls.file, mmap_mode="c" if memory_map else None), read_only=memory_map)


class GraphVectors(FlatVectors):
    """FAISS's graph of neighbours (HNSW) over the same rows: `nearest` walks it, the rest compares with all rows."""

    kind = "approximate"
    file = "vectors.faiss"
    effort = 128

    def __init__(self, index: Any, read_only: bool = False) -> None:
        self.index, self.read_only = index, read_only

    @classmethod
    def build(cls, vectors: np.ndarray) -> "GraphVectors":
        faiss = import_faiss()
        index = faiss.IndexHNSWFlat(vectors.shape[1], 32, faiss.METRIC_INNER_PRODUCT)
        index.add(vectors)
        return cls(index)

    @property
    def array(self) -> np.ndarray:
        # The rows where FAISS holds them, without a copy: valid until the next `add`.
        faiss = import_faiss()
        rows = faiss.downcast_index(self.index.storage).get_xb()
        return faiss.rev_swig_ptr(rows, self.index.ntotal * self.index.d).reshape(self.shape)

    @property
    def shape(self) -> tuple[int, int]:
        return self.index.ntotal, self.index.d

    def add(self, vectors: np.ndarray) -> None:
        self.index.add(vectors)

    def nearest(self, queries: np.ndarray, count: int, effort: int | None) -> tuple[np.ndarray, np.ndarray]:
        """As of flat vectors, by a walk that keeps `effort` candidates: -1 where it met fewer. None compares all."""
        if effort is None:
            return super().nearest(queries, count, None)
        parameters = import_faiss().SearchParametersHNSW(efSearch=max(effort, count))
        return self.index.search(queries, count, params=parameters)

    def save(self, folder: Path) -> None:
        import_faiss().write_index(self.index, str(folder / self.file))

    @classmethod
    def load(cls, folder: Path, memory_map: bool) -> "GraphVectors":
        faiss = import_faiss()
        return cls(faiss.read_index(str(folder / cls.file), faiss.IO_FLAG_MMAP_IFC if memory_map else 0), memory_map)


def import_faiss() -> Any:
    try:
        import faiss
    except ImportError as error:
        raise ImportError(
            "an approximate index needs FAISS: pip install faiss-cpu; an exact index works without it"
        ) from error
    return faiss
