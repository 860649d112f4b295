"""The vectors of an index: searched all through torch, or by lists of neighbours through FAISS.

A cone is stored as (mu, cos theta, sin theta), D + 2 numbers. Its inner product with (mu_q, -cos theta_q,
-sin theta_q) is cos(angle) - cos(theta_q - theta): not negative if and only if angle <= |theta_q - theta|. So one
range search with a fixed bound finds whatever lies inside a query or contains it, though the angle that is allowed
differs from pair to pair. With (mu_q, 0, 0) the inner product is the cosine of the angle.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .cones import Cone

# How many inner products are held at once.
_PRODUCTS = 2**24
# Points per list that k-means sees: FAISS warns below 39.
_POINTS_PER_LIST = 64


def rows_of(cones: Cone) -> np.ndarray:
    """What is stored of float32 cones (N,): (N, D + 2) float32."""
    return _extended(cones, _columns(cones))


def cosine_queries(cones: Cone) -> np.ndarray:
    """Queries (N, D + 2) whose inner product with a row is the cosine of the angle."""
    return _extended(cones, torch.zeros(len(cones.radius), 2))


def containment_queries(cones: Cone, all_rows: Tensor) -> np.ndarray:
    """Queries (N, D + 2): no row below 0, but for rounding, lies in the query or contains it.

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
    lists = probes = None

    def __init__(self, vectors: np.ndarray, read_only: bool = False) -> None:
        self._blocks, self.read_only = [vectors], read_only

    @property
    def array(self) -> np.ndarray:
        """(N, D + 2) float32."""
        if len(self._blocks) > 1:
            self._blocks = [np.concatenate(self._blocks)]
        return self._blocks[0]

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

    def nearest(self, queries: np.ndarray, count: int, probes: int | None) -> tuple[np.ndarray, np.ndarray]:
        """The greatest inner products (B, count), falling, and the positions; `probes` is for lists."""
        best, found = torch.empty(len(queries), 0), torch.empty(len(queries), 0, dtype=torch.long)
        for start, products in self._products(queries):
            values, positions = products.topk(min(count, products.shape[1]))
            best, found = torch.cat([best, values], 1), torch.cat([found, positions + start], 1)
            best, kept = best.topk(min(count, best.shape[1]))
            found = found.gather(1, kept)
        return best.numpy(), found.numpy()

    def above(self, queries: np.ndarray, bound: float, probes: int | None) -> tuple[np.ndarray, np.ndarray]:
        """All pairs whose inner product is above `bound`: which query (M,), which position (M,)."""
        pairs = [
            (products > bound).nonzero() + torch.tensor([0, start]) for start, products in self._products(queries)
        ]
        found = torch.cat(pairs).numpy()
        return found[:, 0], found[:, 1]

    def save(self, folder: Path) -> None:
        np.save(folder / self.file, self.array)

    @classmethod
    def load(cls, folder: Path, memory_map: bool) -> "FlatVectors":
        # Copy on write: torch refuses arrays that cannot be written, and nothing here writes.
        return cls(np.load(folder / cls.file, mmap_mode="c" if memory_map else None), read_only=memory_map)

    @property
    def shape(self) -> tuple[int, int]:
        return sum(len(block) for block in self._blocks), self._blocks[0].shape[1]


class ListedVectors:
    """FAISS's inverted lists round centres of k-means: a search visits `probes` of them."""

    kind = "approximate"
    file = "vectors.faiss"

    def __init__(self, index: Any, read_only: bool = False) -> None:
        index.make_direct_map()
        self.index, self.read_only = index, read_only

    @classmethod
    def build(cls, vectors: np.ndarray, lists: int | None) -> "ListedVectors":
        faiss = import_faiss()
        count, width = vectors.shape
        lists = lists or min(round(2 * count**0.5), count // _POINTS_PER_LIST) or 1
        index = faiss.IndexIVFFlat(faiss.IndexFlatIP(width), width, lists, faiss.METRIC_INNER_PRODUCT)
        index.cp.max_points_per_centroid = _POINTS_PER_LIST
        chosen = np.random.default_rng(0).permutation(count)[: _POINTS_PER_LIST * lists]
        sample = vectors[np.sort(chosen)]
        # Neighbours by axis share a list, whatever their radii.
        sample[:, -2:] = 0
        index.train(sample)
        index.add(vectors)
        return cls(index)

    @property
    def lists(self) -> int:
        return self.index.nlist

    @property
    def probes(self) -> int:
        """How many lists `nearest` visits unless told: a sixteenth of them, at least 8."""
        return min(self.index.nlist, max(8, self.index.nlist // 16))

    @property
    def shape(self) -> tuple[int, int]:
        return self.index.ntotal, self.index.d

    def _visit(self, probes: int | None):
        return import_faiss().SearchParametersIVF(nprobe=probes or self.index.nlist)

    def add(self, vectors: np.ndarray) -> None:
        self.index.add(vectors)

    def axes(self, positions: np.ndarray) -> Tensor:
        return torch.from_numpy(self.index.reconstruct_batch(positions)[:, :-2]).contiguous()

    def nearest(self, queries: np.ndarray, count: int, probes: int | None) -> tuple[np.ndarray, np.ndarray]:
        """As of flat vectors, among the lists visited (all if None); -1 where these hold fewer."""
        return self.index.search(queries, count, params=self._visit(probes))

    def above(self, queries: np.ndarray, bound: float, probes: int | None) -> tuple[np.ndarray, np.ndarray]:
        """As of flat vectors, among the lists visited (all if None)."""
        limits, _, positions = self.index.range_search(queries, bound, params=self._visit(probes))
        return np.repeat(np.arange(len(queries)), np.diff(limits.astype(np.int64))), positions

    def save(self, folder: Path) -> None:
        import_faiss().write_index(self.index, str(folder / self.file))

    @classmethod
    def load(cls, folder: Path, memory_map: bool) -> "ListedVectors":
        faiss = import_faiss()
        return cls(faiss.read_index(str(folder / cls.file), faiss.IO_FLAG_MMAP_IFC if memory_map else 0), memory_map)


Vectors = FlatVectors | ListedVectors


def import_faiss() -> Any:
    try:
        import faiss
    except ImportError as error:
        raise ImportError(
            "an approximate index needs FAISS: pip install faiss-cpu (or cue-embedder[search]); "
            "an exact index works without it"
        ) from error
    return faiss
