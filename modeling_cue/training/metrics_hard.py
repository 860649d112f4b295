"""Hard negatives: the wrong items that are most like a query by an encoder that has nothing to do with the model.

By default that encoder is tf-idf over the content words of captions (an image's words are those of all its captions):
it knows no tower, loads nothing, and is the same for every model. What it takes for alike and is yet wrong shares
most of its words with the query, "a dog runs on grass" with "a dog lies on grass". Among them are pairs that are true
though nobody said so; they lower the figures of every method alike. Vectors of any other encoder can take its place.
"""

import numpy as np
import torch
from scipy.sparse import csr_array
from torch import Tensor

from .relations import Embedded

HARDEST = 10  # of a query


class WordSimilarity:
    """Cosine of tf-idf vectors between the words of `outer` and of `inner`; words are sets, so that tf is 0 or 1.

    The weight of a word is the log of inner items over inner items that have it.
    """

    def __init__(self, outer: Embedded, inner: Embedded):
        known, place = torch.cat([outer.words.flatten(), inner.words.flatten()]).unique(return_inverse=True)
        split = outer.words.numel()
        rows, columns = place[:split].view(outer.words.shape), place[split:].view(inner.words.shape)
        count = torch.bincount(columns[inner.words != 0], minlength=len(known)).double()
        weight = (len(inner) / count.clamp(min=1)).log().where(count > 0, 0)
        self._outer = _unit_rows(rows, outer.words != 0, weight)
        self._inner = _unit_rows(columns, inner.words != 0, weight).T.tocsr()

    def rows(self, start: int, stop: int) -> Tensor:
        """(stop - start, M) float32 in [0, 1]."""
        return torch.from_numpy((self._outer[start:stop] @ self._inner).toarray().astype(np.float32))


class VectorSimilarity:
    """Cosine between unit vectors of `outer` (N, D) and of what is told of `inner` (T, D), by any encoder.

    Args:
        told_of: (T,) int64, the place among the inner items that each vector tells of: an item of several vectors, an
            image of five captions, counts as the nearest of them; one of none as -1. None: one vector for each item.
    """

    def __init__(self, outer: Tensor, inner: Tensor, told_of: Tensor | None = None):
        self._outer, self._inner, self._told_of = outer, inner, told_of

    def rows(self, start: int, stop: int) -> Tensor:
        """(stop - start, M) in [-1, 1]."""
        cosine = self._outer[start:stop] @ self._inner.T
        if self._told_of is None:
            return cosine
        nearest = cosine.new_full((len(cosine), int(self._told_of.max()) + 1), -1.0)
        return nearest.scatter_reduce_(1, self._told_of.expand_as(cosine), cosine, "amax")


def _unit_rows(place: Tensor, present: Tensor, weight: Tensor) -> csr_array:
    values = torch.where(present, weight[place], 0)
    values = torch.nn.functional.normalize(values, dim=1)
    row = torch.arange(len(place), device=place.device)[:, None].expand_as(place)
    kept = present.flatten()
    columns = (values.flatten()[kept], (row.flatten()[kept], place.flatten()[kept]))
    data, (rows, cols) = columns[0].cpu().numpy(), [index.cpu().numpy() for index in columns[1]]
    return csr_array((data, (rows, cols)), shape=(len(place), len(weight)))


def hardest_negatives(similarity: Tensor, labels: Tensor, count: int = HARDEST) -> Tensor:
    """Labels (N, M) in which of the negatives (0) only each row's `count` most similar stay; the others become -1.

    Items without any likeness (of 0 or less: they share no word with the query) are no hard negatives.
    """
    wrong = similarity.to(labels.device).masked_fill(labels != 0, 0)
    best = wrong.topk(min(count, wrong.shape[1]), dim=1)
    hard = torch.zeros_like(labels, dtype=torch.bool).scatter_(1, best.indices, best.values > 0)
    return labels.masked_fill((labels == 0) & ~hard, -1)
