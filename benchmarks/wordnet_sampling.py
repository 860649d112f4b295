"""Batches of pairs of nodes, drawn from the given edges."""

import numpy as np
from wordnet_data import Taxonomy


class Sampler:
    """Draws pairs (N, 2) of nodes; the stream depends on the seed alone."""

    def __init__(self, taxonomy: Taxonomy, seed: int) -> None:
        self._random = np.random.default_rng(seed)
        self._edges, self._nodes = taxonomy.edges, taxonomy.nodes
        self._known = np.unique(taxonomy.edges @ [taxonomy.nodes, 1])
        self._order = self._random.permutation(len(self._edges))
        self._next = 0
        steps = taxonomy.steps[np.argsort(taxonomy.steps[:, 1], kind="stable")]
        self._families = steps[:, 0]
        size = np.bincount(steps[:, 1], minlength=taxonomy.nodes)
        self._first, self._size = (np.cumsum(size) - size)[steps[:, 1]], size[steps[:, 1]]
        self._siblings = np.flatnonzero(self._size > 1)
        level = taxonomy.levels[self._edges[:, 1]]
        self._below = [np.flatnonzero(level == number) for number in np.unique(level)]
        by_level = np.argsort(taxonomy.levels, kind="stable")
        count = np.bincount(taxonomy.levels)
        self._levels = [level for level in np.split(by_level, np.cumsum(count)[:-1]) if len(level) > 1]

    def edges(self, size: int) -> np.ndarray:
        """Child and parent; every given edge once before any comes again."""
        if self._next + size > len(self._order):
            self._order, self._next = self._random.permutation(self._order), 0
        rows = self._order[self._next : self._next + size]
        self._next += size
        return self._edges[rows]

    def general_edges(self, size: int) -> np.ndarray:
        """Child and parent, every level of the parent as likely as any other: few edges carry most of the closure."""
        return self._edges[self._by_level(self._below, size)]

    def _by_level(self, groups: list[np.ndarray], size: int) -> np.ndarray:
        """Members of groups, every group as likely as any other."""
        counts = self._random.multinomial(size, [1 / len(groups)] * len(groups))
        return np.concatenate([self._random.choice(group, count) for group, count in zip(groups, counts, strict=True)])

    def siblings(self, size: int) -> np.ndarray:
        """Two children, one level down, of one parent: every child as likely as any other."""
        if not len(self._siblings):
            return np.empty((0, 2), dtype=np.int64)
        one = self._random.choice(self._siblings, size)
        other = self._first[one] + self._random.integers(0, self._size[one])
        return self._different(np.stack([self._families[one], self._families[other]], 1))

    def peers(self, size: int) -> np.ndarray:
        """Two nodes of one level, which cannot contain one another: every level as likely as any other."""
        parts = [
            level[self._random.integers(0, len(level), (count, 2))]
            for level, count in zip(
                self._levels, self._random.multinomial(size, [1 / len(self._levels)] * len(self._levels)), strict=True
            )
        ]
        return self._different(np.concatenate(parts))

    def corrupted(self, edges: np.ndarray, count: int) -> np.ndarray:
        """(N, count, 2): for each edge, `count` pairs with a random node in place of child or parent, by turns.

        Those that are given edges, or a node with itself, become the root of all evil for nobody: they are drawn again
        once, and then kept.
        """
        pairs = np.repeat(edges[:, None], count, 1)
        column = np.broadcast_to(np.arange(count) % 2, pairs.shape[:2])
        for _ in range(2):
            keys = pairs @ [self._nodes, 1]
            place = np.searchsorted(self._known, keys).clip(max=len(self._known) - 1)
            wrong = (self._known[place] == keys) | (pairs[..., 0] == pairs[..., 1])
            rows = np.nonzero(wrong)
            pairs[(*rows, column[rows])] = self._random.integers(0, self._nodes, len(rows[0]))
        return pairs

    @staticmethod
    def _different(pairs: np.ndarray) -> np.ndarray:
        return pairs[pairs[:, 0] != pairs[:, 1]]
