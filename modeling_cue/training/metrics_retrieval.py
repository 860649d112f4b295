"""Retrieval by cosine: ranks, recall, median rank and mAP@R, in memory that does not grow with queries times items."""

from collections.abc import Callable

import torch
from torch import Tensor

from .relations import Embedded, relation

RECALL_AT = (1, 5, 10)
# Scores that are held at a time; rows are never cut, so that equal embeddings get equal scores to the bit.
CHUNK_SCORES = 2**21
CHUNK_QUERIES = 128  # at least: of many items, few queries at a time would keep a matrix product from being one


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
    place = torch.arange(len(row), device=scores.device) - (count.cumsum(0) - count)[row]
    own = scores.new_full((len(scores), int(count.max()) if len(count) else 0), float("-inf"))
    own[row, place] = scores[row, column]
    return _places(scores.masked_fill(~(positive | negative), float("-inf")), own, count)


def _places(scores: Tensor, own: Tensor, count: Tensor) -> Tensor:
    """Ranks of the `count` (N,) positives of each query by their scores `own` (N, P), padded, among all `scores`."""
    if not own.shape[1]:
        return torch.zeros(own.shape, dtype=torch.long, device=own.device)
    own = own.sort(dim=1, descending=True).values
    # Queries have few positives: to compare all items with each of them costs far less than to sort the items.
    ahead = torch.stack([torch.count_nonzero(scores >= score[:, None], dim=1) for score in own.T], dim=1)
    ahead -= (own[:, None] >= own[..., None]).sum(dim=2)  # positives are no one's rivals
    place = torch.arange(1, own.shape[1] + 1, device=own.device)
    return torch.where(place <= count[:, None], ahead + place, 0)


def retrieval_ranks(
    queries: Tensor, items: Tensor, query_ids: Tensor, item_ids: Tensor, chunk: int | None = None
) -> Tensor:
    """Ranks of the items with a query's id among all items, by cosine: (N, P) int64; see `ranks_of_positives`.

    Args:
        queries, items: (N, D) and (M, D), unit vectors. query_ids, item_ids: (N,) and (M,).
        chunk: queries that are ranked at a time; by default as many as give `CHUNK_SCORES` scores, or `CHUNK_QUERIES`.
    """
    # The items of a query stand together in the order of ids: no mask of all pairs is needed.
    known, order = item_ids.sort()
    first = torch.searchsorted(known, query_ids.contiguous())
    count = torch.searchsorted(known, query_ids.contiguous(), right=True) - first
    offsets = torch.arange(int(count.max()) if len(count) else 0, device=items.device)

    def rank(rows: slice, scores: Tensor) -> Tensor:
        column = order[(first[rows, None] + offsets).clamp_(max=len(order) - 1)]
        own = scores.gather(1, column).masked_fill_(offsets >= count[rows, None], float("-inf"))
        return _places(scores, own, count[rows])

    return _ranks(queries, items, rank, chunk, len(offsets))


def relation_ranks(queries: Embedded, items: Embedded, chunk: int | None = None) -> Tensor:
    """As `retrieval_ranks`, where positives are the items that a query is true of; unknown ones are left out."""

    def rank(rows: slice, scores: Tensor) -> Tensor:
        related = relation(queries[rows], items)
        return ranks_of_positives(scores, related == 1, related == 0)

    return _ranks(queries.cone.axis, items.cone.axis, rank, chunk, 0)


def _ranks(
    queries: Tensor, items: Tensor, rank: Callable[[slice, Tensor], Tensor], chunk: int | None, most: int
) -> Tensor:
    """The ranks of all queries, chunk by chunk; `most` is the number of columns that is known to be needed."""
    step = chunk or max(CHUNK_QUERIES, CHUNK_SCORES // max(1, len(items)))
    columns = items.float().T
    # What lasts is made first: small results between large ones that are freed would leave a heap full of holes.
    ranks = torch.zeros(len(queries), most, dtype=torch.long, device=queries.device)
    buffer = columns.new_empty(min(step, len(queries)), len(items))
    for start in range(0, len(queries), step):
        rows = slice(start, start + step)
        some = queries[rows].float()
        found = rank(rows, torch.mm(some, columns, out=buffer[: len(some)]))
        ranks = torch.nn.functional.pad(ranks, (0, max(0, found.shape[1] - ranks.shape[1])))
        ranks[rows, : found.shape[1]] = found
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
