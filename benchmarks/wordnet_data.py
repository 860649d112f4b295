"""The files of a taxonomy for link prediction, checked, and what the given edges alone say about its levels.

Nothing here, nor in what builds on it, forms the transitive closure: a level is the longest way up to a root, and
siblings are read off single edges.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet

NAMED = 8


@dataclass(frozen=True)
class Taxonomy:
    """Edges (E, 2), each child and parent, over the nodes 0 .. `nodes` - 1; duplicates are dropped."""

    nodes: int
    edges: np.ndarray
    names: tuple[str, ...] = ()

    @cached_property
    def levels(self) -> np.ndarray:
        """(nodes,): the edges of the longest way from a root down to the node; 0 for roots and lone nodes.

        Raises:
            ValueError: a cycle, with the nodes on it.
        """
        children, parents = self.edges.T
        order = np.argsort(parents, kind="stable")
        children_of = np.split(children[order], np.searchsorted(parents[order], np.arange(1, self.nodes)))
        waiting = np.bincount(children, minlength=self.nodes)
        levels = np.zeros(self.nodes, dtype=np.int64)
        ready = np.flatnonzero(waiting == 0)
        while len(ready):
            below = [children_of[node] for node in ready]
            counts = [len(group) for group in below]
            reached = np.concatenate(below)
            np.maximum.at(levels, reached, np.repeat(levels[ready] + 1, counts))
            np.subtract.at(waiting, reached, 1)
            ready = np.unique(reached[waiting[reached] == 0])
        if (waiting > 0).any():
            raise ValueError(f"the taxonomy has a cycle: {self._cycle(waiting > 0)}; remove one of these edges")
        return levels

    def _cycle(self, stuck: np.ndarray) -> str:
        # Every stuck node has a stuck parent, so a walk upwards must come back to where it was.
        children, parents = self.edges[stuck[self.edges].all(1)].T
        above = dict(zip(children.tolist(), parents.tolist(), strict=True))
        walk = [int(children[0])]
        while walk.count(walk[-1]) < 2:
            walk.append(above[walk[-1]])
        loop = [self.name(node) for node in walk[walk.index(walk[-1]) :]]
        shown = loop if len(loop) <= NAMED else [*loop[: NAMED // 2], "...", *loop[-NAMED // 2 :]]
        return " is a ".join(shown)

    def name(self, node: int) -> str:
        return f"{node} ({self.names[node]})" if self.names else str(node)

    @cached_property
    def steps(self) -> np.ndarray:
        """(S, 2): the edges that span one level. Each node that has a parent has one of these."""
        children, parents = self.edges.T
        return self.edges[self.levels[children] == self.levels[parents] + 1]


def read_edges(path: Path, columns: tuple[str, ...], nodes: int) -> np.ndarray:
    """(E, len(columns)) int64. Raises ValueError or FileNotFoundError that say what is missing."""
    table = read_table(path, columns)
    if len(table) == 0:
        raise ValueError(f"{path} has no rows")
    for name in columns:
        if table[name].null_count:
            raise ValueError(
                f"{path}: the column {name} has {table[name].null_count} empty cells; leave these rows out"
            )
    given = np.stack([table[name].to_numpy() for name in columns], 1)
    found = given.astype(np.int64)
    if (found != given).any():
        row, column = np.argwhere(found != given)[0]
        raise ValueError(f"{path}: the column {columns[column]} holds {given[row, column]}; whole numbers are needed")
    ends = found[:, :2]
    if ends.min() < 0 or ends.max() >= nodes:
        raise ValueError(
            f"{path} names node {ends.min() if ends.min() < 0 else ends.max()}, but nodes are 0 to {nodes - 1}"
        )
    return found


def read_table(path: Path, columns: tuple[str, ...]) -> pa.Table:
    """The columns of a parquet file, or what is wrong with it."""
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is not there; --data is a folder with mammals/ and nouns/, --test a parquet file, see --help"
        )
    missing = [name for name in columns if name not in parquet.read_schema(path).names]
    if missing:
        raise ValueError(
            f"{path} has no column {', '.join(missing)}; its columns are {', '.join(parquet.read_schema(path).names)}"
        )
    return parquet.read_table(path, columns=list(columns))


def read_taxonomy(folder: Path, percent: int) -> Taxonomy:
    """The training edges with `percent` of the edges that are not basic."""
    table = read_table(folder / "nodes.parquet", ("node", "lemma"))
    nodes = table["node"].to_numpy()
    if not np.array_equal(np.sort(nodes), np.arange(len(nodes))):
        raise ValueError(f"{folder / 'nodes.parquet'}: the column node must hold 0 to {len(nodes) - 1}, each once")
    names = np.empty(len(nodes), dtype=object)
    names[nodes] = table["lemma"].to_pylist()
    edges = read_edges(folder / f"train_{percent:02d}.parquet", ("child", "parent"), len(nodes))
    taxonomy = Taxonomy(len(nodes), np.unique(edges, axis=0), tuple(names))
    _ = taxonomy.levels
    return taxonomy


def read_pairs(path: Path, nodes: int) -> np.ndarray:
    """(P, 3): child, parent, label, 1 or 0, with both labels present."""
    pairs = read_edges(path, ("child", "parent", "label"), nodes)
    if set(np.unique(pairs[:, 2])) != {0, 1}:
        raise ValueError(f"{path}: labels must be 0 and 1, both present; got {np.unique(pairs[:, 2]).tolist()[:5]}")
    if np.bincount(pairs[:, 2]).min() < 2:
        raise ValueError(f"{path}: two pairs of each label are needed, one for either half")
    return pairs


def best_threshold(scores: np.ndarray, labels: np.ndarray) -> float:
    """The threshold with the best F1 of `score >= threshold`."""
    order = np.argsort(-scores, kind="stable")
    hits = np.cumsum(labels[order])
    f1 = 2 * hits / (np.arange(1, len(scores) + 1) + labels.sum())
    # Among equal scores only the last counts: a threshold takes all of them.
    last = np.append(np.diff(scores[order]) != 0, True)
    best = int(np.argmax(np.where(last, f1, 0.0)))
    if best + 1 == len(scores):
        return float(scores[order][best])
    return float(scores[order][best : best + 2].mean())


def f1_score(scores: np.ndarray, labels: np.ndarray, threshold: float) -> float:
    said = scores >= threshold
    return float(2 * (said & (labels == 1)).sum() / max(1, said.sum() + labels.sum()))


def cross_f1(scores: np.ndarray, labels: np.ndarray) -> float:
    """F1 of each half with the threshold of the other, the mean; the halves have equal shares of both labels."""
    half = np.empty(len(labels), dtype=bool)
    for label in (0, 1):
        rows = np.flatnonzero(labels == label)
        half[np.random.default_rng(0).permutation(rows)] = np.arange(len(rows)) % 2 == 0
    found = [
        f1_score(scores[other], labels[other], best_threshold(scores[one], labels[one]))
        for one, other in ((half, ~half), (~half, half))
    ]
    return float(np.mean(found))
