"""Retrieval by cosine: ranks, recall, median rank and mAP@R, in memory that does not grow with queries times items."""

from collections.abc import Callable

import torch
from torch import Tensor

from .relations import Embedded, relation

RECALL_AT = (1, 5, 10)
# Scores that are held at a time.
CHUNK_SCORES = 2**22


def ranks_of_positives(scores: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
    """Where each query's positives stand, by counting: (N, M) -> (N, P) int64, ascending from 1, padded with 0.

    P is the largest number of positives of a query. The rule for ties is pessimistic: a negative with the score of a
    positive stands before it, so that equal embeddings give the worst rank and not the best. What is in neither mask
    is left out of the ranking.

    Args:
        scores: (N, M), larger is better, not NaN. positive, negative: (N, M) bool, disjoint.
    """
    count = positive.sum(dim=1)
    most = int(count.max()) if len(count) else 0
    if not most:
        return torch.zeros(len(scores), 0, dtype=torch.long, device=scores.device)
    lowest = float("-inf")
    own = scores.masked_fill(~positive, lowest).topk(most, dim=1).values
    others = scores.masked_fill(~negative, lowest).sort(dim=1).values
    ahead = scores.shape[1] - torch.searchsorted(others, own)
    place = torch.arange(1, most + 1, device=scores.device)
    return torch.where(place <= count[:, None], ahead + place, 0)


def retrieval_ranks(
    queries: Tensor, items: Tensor, query_ids: Tensor, item_ids: Tensor, chunk: int | None = None
) -> Tensor:
    """Ranks of the items with a query's id among all items, by cosine: (N, P) int64; see `ranks_of_positives`.

    Args:
        queries, items: (N, D) and (M, D), unit vectors. query_ids, item_ids: (N,) and (M,).
        chunk: queries that are ranked at a time; by default as many as give `CHUNK_SCORES` scores.
    """

    def masks(rows: slice) -> tuple[Tensor, Tensor]:
        positive = query_ids[rows, None] == item_ids[None]
        return positive, ~positive

    return _ranks(queries, items, masks, chunk)


def relation_ranks(queries: Embedded, items: Embedded, chunk: int | None = None) -> Tensor:
    """As `retrieval_ranks`, where positives are the items that a query is true of; unknown ones are left out."""

    def masks(rows: slice) -> tuple[Tensor, Tensor]:
        related = relation(queries[rows], items)
        return related == 1, related == 0

    return _ranks(queries.cone.axis, items.cone.axis, masks, chunk)


def _ranks(
    queries: Tensor, items: Tensor, masks: Callable[[slice], tuple[Tensor, Tensor]], chunk: int | None
) -> Tensor:
    step = chunk or max(1, CHUNK_SCORES // max(1, len(items)))
    found = []
    for start in range(0, len(queries), step):
        rows = slice(start, start + step)
        found.append(ranks_of_positives(queries[rows].float() @ items.float().T, *masks(rows)))
    most = max((ranks.shape[1] for ranks in found), default=0)
    padded = [torch.nn.functional.pad(ranks, (0, most - ranks.shape[1])) for ranks in found]
    return torch.cat(padded) if padded else torch.zeros(0, 0, dtype=torch.long)


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
