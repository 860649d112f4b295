"""Batches of pairs of nodes, drawn from the given edges."""

import numpy as np
from wordnet_data import Taxonomy


class Sampler:
    """Draws pairs (N, 2) of nodes; the stream depends on the seed alone."""

    def __init__(self, taxonomy: Taxonomy, seed: int) -> None:
        self._random = np.random.default_rng(seed)
        self._edges, self._nodes = taxonomy.edges, taxonomy.nodes
        self._known = np.unique(self._keys(taxonomy.edges))
        self._order = self._random.permutation(len(self._edges))
        self._next = 0
        levels = taxonomy.levels
        self._below = _groups(levels[self._edges[:, 1]])
        self._levels = [group for group in _groups(levels) if len(group) > 1]
        steps = taxonomy.steps[np.argsort(taxonomy.steps[:, 1], kind="stable")]
        size = np.bincount(steps[:, 1], minlength=taxonomy.nodes)
        self._steps, self._families = steps, steps[:, 0]
        self._first, self._size = (np.cumsum(size) - size)[steps[:, 1]], size[steps[:, 1]]
        self._siblings = np.flatnonzero(self._size > 1)

    def _keys(self, pairs: np.ndarray) -> np.ndarray:
        return pairs[..., 0] * self._nodes + pairs[..., 1]

    def edges(self, size: int) -> np.ndarray:
        """Child and parent; every given edge once before any comes again."""
        size = min(size, len(self._order))
        if self._next + size > len(self._order):
            self._order, self._next = self._random.permutation(self._order), 0
        rows = self._order[self._next : self._next + size]
        self._next += size
        return self._edges[rows]

    def steps(self, size: int) -> np.ndarray:
        """Child and parent, one level apart: every such edge as likely as any other."""
        return self._steps[self._random.integers(0, len(self._steps), size)]

    def general_edges(self, size: int) -> np.ndarray:
        """Child and parent, every level of the parent as likely as any other."""
        parts = [self._random.choice(group, count) for group, count in self._shares(self._below, size)]
        return self._edges[np.concatenate(parts)]

    def siblings(self, size: int) -> np.ndarray:
        """Two children, one level down, of one parent: every child as likely as any other."""
        if not len(self._siblings):
            return np.empty((0, 2), dtype=np.int64)
        one = self._random.choice(self._siblings, size)
        other = self._first[one] + self._random.integers(0, self._size[one])
        return self._different(np.stack([self._families[one], self._families[other]], 1))

    def peers(self, size: int) -> np.ndarray:
        """Two nodes of one level, which cannot contain one another: every level as likely as any other."""
        if not self._levels:
            return np.empty((0, 2), dtype=np.int64)
        parts = [self._random.choice(group, (count, 2)) for group, count in self._shares(self._levels, size)]
        return self._different(np.concatenate(parts))

    def corrupted(self, edges: np.ndarray, count: int) -> np.ndarray:
        """(N, count, 2): for each edge, `count` pairs with a random node in place of child or parent, by turns.

        One that is a given edge, or a node with itself, is drawn once more, and then kept.
        """
        pairs = np.repeat(edges[:, None], count, 1)
        column = np.broadcast_to(np.arange(count) % 2, pairs.shape[:2])
        # The first time round all are given edges.
        for _ in range(2):
            keys = self._keys(pairs)
            place = np.searchsorted(self._known, keys).clip(max=len(self._known) - 1)
            rows = np.nonzero((self._known[place] == keys) | (pairs[..., 0] == pairs[..., 1]))
            pairs[(*rows, column[rows])] = self._random.integers(0, self._nodes, len(rows[0]))
        return pairs

    def _shares(self, groups: list[np.ndarray], size: int) -> zip:
        counts = self._random.multinomial(size, [1 / len(groups)] * len(groups))
        return zip(groups, counts, strict=True)

    @staticmethod
    def _different(pairs: np.ndarray) -> np.ndarray:
        return pairs[pairs[:, 0] != pairs[:, 1]]


def _groups(labels: np.ndarray) -> list[np.ndarray]:
    """The indices of every label that occurs."""
    order = np.argsort(labels, kind="stable")
    return [group for group in np.split(order, np.cumsum(np.bincount(labels))[:-1]) if len(group)]
