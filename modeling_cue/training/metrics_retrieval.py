"""Retrieval by cosine: ranks, recall, median rank and mAP@R, in memory that does not grow with queries times items."""

from itertools import pairwise

import torch
from torch import Tensor

from .relations import Embedded, relation

RECALL_AT = (1, 5, 10)
# Scores are counted in tiles of so many rows and columns: large enough for a matrix product, and still in a core's
# cache when they are compared.
TILE = (512, 1024)
MANY_POSITIVES = 16  # with more of them, sorting the items costs less than comparing them with each
CHUNK_SCORES = 2**21  # scores of a ranking by relation that are held at a time


def ranks_of_positives(scores: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
    """Where each query's positives stand, by counting: (N, M) -> (N, P) int64, ascending from 1, padded with 0.

    P is the largest number of positives of a query. The rule for ties is pessimistic: a negative with the score of a
    positive stands before it, so that equal embeddings give the worst rank and not the best. What is in neither mask
    is left out of the ranking.

    Args:
        scores: (N, M), larger is better, not NaN. positive, negative: (N, M) bool, disjoint.
    """
    count = positive.sum(dim=1)
    row, column = positive.nonzero(as_tuple=True)
    own = scores.new_full((len(scores), _most(count)), float("-inf"))
    own[row, torch.arange(len(row), device=scores.device) - (count.cumsum(0) - count)[row]] = scores[row, column]
    own = own.sort(dim=1, descending=True).values
    ahead = torch.zeros(own.shape, dtype=torch.long, device=own.device)
    _count_ahead(ahead, scores.masked_fill(~(positive | negative), float("-inf")), own, count, dim=1)
    return _places(ahead, own, count)


def _most(count: Tensor) -> int:
    return int(count.max()) if len(count) else 0


def _count_ahead(ahead: Tensor, scores: Tensor, own: Tensor, count: Tensor, dim: int) -> None:
    """Adds to `ahead` (N, P) how many of the scores along `dim` are at least as high as each of `own` (N, P)."""
    most = _most(count)
    if most > MANY_POSITIVES:
        falling = scores.neg().movedim(dim, 1).contiguous().sort(dim=1).values
        ahead += torch.searchsorted(falling, own.neg(), right=True)
        return
    # To compare all items with each of a few positives costs far less than to sort the items. As 0.0 and 1.0 the
    # answers are written and added up four times as fast as bools, and exactly so below 2**24 of them.
    is_ahead = torch.empty_like(scores)
    for place in range(most):
        ahead[:, place] += torch.ge(scores, own[:, place].unsqueeze(dim), out=is_ahead).sum(dim=dim).long()


def _places(ahead: Tensor, own: Tensor, count: Tensor) -> Tensor:
    """Ranks (N, P) of the `count` (N,) positives of each query, from what is ahead of them and their scores `own`."""
    falling = own.neg()
    rivals = ahead - torch.searchsorted(falling, falling, right=True)  # positives are no one's rivals
    place = torch.arange(1, own.shape[1] + 1, device=own.device)
    return torch.where(place <= count[:, None], rivals + place, 0)


class _Side:
    """The rows of one side of a retrieval, in the order of their ids, and what is found of them as queries."""

    def __init__(self, axis: Tensor, ids: Tensor, others: Tensor, tile: int) -> None:
        self.ids, self.order = ids.sort(stable=True)
        self.axis = axis.float()[self.order]
        # The positives of a query stand together among the others, which are in the order of ids as well.
        known = others.sort().values
        self.first = torch.searchsorted(known, self.ids)
        self.count = torch.searchsorted(known, self.ids, right=True) - self.first
        self.own = self.axis.new_full((len(ids), _most(self.count)), float("-inf"))
        self.ahead = torch.zeros(self.own.shape, dtype=torch.long, device=axis.device)
        # Tiles of nearly one size: none is so narrow that its product takes another kernel, with other rounding.
        count = max(1, -(-len(ids) // tile))
        ends = [len(ids) * number // count for number in range(count + 1)]
        self.tiles = [slice(start, end) for start, end in pairwise(ends)]

    def tile_of(self, rows: Tensor) -> Tensor:
        """The number of the tile of each row."""
        ends = torch.tensor([tile.stop for tile in self.tiles], device=rows.device)
        return torch.bucketize(rows, ends, right=True)

    def count_ahead(self, tile: slice, scores: Tensor, dim: int) -> None:
        _count_ahead(self.ahead[tile], scores, self.own[tile], self.count[tile], dim)

    def ranks(self) -> Tensor:
        return torch.empty_like(self.ahead).index_copy_(0, self.order, _places(self.ahead, self.own, self.count))


def retrieval_ranks(
    a: Tensor, b: Tensor, a_ids: Tensor, b_ids: Tensor, tile: tuple[int, int] = TILE
) -> tuple[Tensor, Tensor]:
    """Ranks of the rows with a query's id, by cosine, both ways: (N, P) and (M, Q) int64; see `ranks_of_positives`.

    The first are those of `b` for the rows of `a` as queries, the second those of `a` for the rows of `b`. Both come
    from one product of the two, tile by tile.

    Args:
        a, b: (N, D) and (M, D), unit vectors. a_ids, b_ids: (N,) and (M,).
        tile: how many rows of `a` and of `b` are compared at a time.
    """
    left, right = _Side(a, a_ids, b_ids, tile[0]), _Side(b, b_ids, a_ids, tile[1])
    place = torch.arange(left.own.shape[1], device=a.device)
    row, at = (place < left.count[:, None]).nonzero(as_tuple=True)  # every positive pair, once
    column = left.first[row] + at
    # A score is compared with scores of positives to the bit, so these come from the same product of the same tile.
    numbers, order = (left.tile_of(row) * len(right.tiles) + right.tile_of(column)).sort(stable=True)
    numbers, sizes = numbers.unique_consecutive(return_counts=True)
    for number, pairs in zip(numbers.tolist(), order.split(sizes.tolist()), strict=True):
        rows, columns = left.tiles[number // len(right.tiles)], right.tiles[number % len(right.tiles)]
        scores = left.axis[rows] @ right.axis[columns].T
        r, c = row[pairs], column[pairs]
        found = scores[r - rows.start, c - columns.start]
        left.own[r, at[pairs]] = found
        right.own[c, r - right.first[c]] = found
    for side in (left, right):
        side.own = side.own.sort(dim=1, descending=True).values
    for rows in left.tiles:
        for columns in right.tiles:
            scores = left.axis[rows] @ right.axis[columns].T
            left.count_ahead(rows, scores, dim=1)
            right.count_ahead(columns, scores, dim=0)
    return left.ranks(), right.ranks()


def relation_ranks(queries: Embedded, items: Embedded) -> Tensor:
    """As `ranks_of_positives`, where positives are the items that a query is true of; unknown ones are left out."""
    step = max(1, CHUNK_SCORES // max(1, len(items)))
    columns = items.cone.axis.float().T
    ranks = torch.zeros(len(queries), 0, dtype=torch.long, device=columns.device)
    for start in range(0, len(queries), step):
        some = queries[start : start + step]
        related = relation(some, items)
        found = ranks_of_positives(some.cone.axis.float() @ columns, related == 1, related == 0)
        ranks = torch.nn.functional.pad(ranks, (0, max(0, found.shape[1] - ranks.shape[1])))
        ranks[start : start + step, : found.shape[1]] = found
    return ranks


def summarise_ranks(name: str, ranks: Tensor) -> dict[str, float]:
    """Recall, median rank and mAP@R over the queries that have a positive; {} if none has.

    Args:
        name: what the keys start with. ranks: (N, P), as `ranks_of_positives` gives them.

    Returns:
        `{name}_R@{1,5,10}`: the share of queries with a positive among the first k, in [0, 1];
        `{name}_median_rank`: of the first positive, from 1;
        `{name}_mAP@R`: mean average precision among the first R, R the query's number of positives (Musgrave et al.,
        "A metric learning reality check", ECCV 2020), in [0, 1].
    """
    ranks = ranks[(ranks > 0).any(dim=1)]
    if not len(ranks):
        return {}
    first = ranks[:, 0].double()
    found = {f"{name}_R@{k}": (first <= k).double().mean().item() for k in RECALL_AT}
    count = (ranks > 0).sum(dim=1, keepdim=True)
    place = torch.arange(1, ranks.shape[1] + 1, device=ranks.device)
    within = (ranks > 0) & (ranks <= count)
    precision = torch.where(within, place / ranks.clamp(min=1).double(), 0.0)
    found[f"{name}_median_rank"] = first.quantile(0.5).item()
    found[f"{name}_mAP@R"] = (precision.sum(dim=1) / count.squeeze(1)).mean().item()
    return found


def chance_recall(ranks: Tensor, items: int) -> dict[int, float]:
    """Recall at k of a random order: {k: fraction}, the mean of 1 - C(n, k) / C(n + p, k) over the queries.

    Args:
        ranks: (N, P); a query with p ranks has p positives. items: n + p, the items of each ranking.
    """
    count = (ranks > 0).sum(dim=1)
    count = count[count > 0].double()
    chance = {}
    for k in RECALL_AT:
        missed = torch.ones_like(count)
        for drawn in range(min(k, items)):
            missed = missed * ((items - count - drawn) / (items - drawn)).clamp(min=0)
        chance[k] = (1 - missed).mean().item() if len(count) else 0.0
    return chance
