"""What is known of "outer contains inner": from ids, facts and words to a matrix of yes, no and unknown."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..cones import Cone

# "pictured" is a compound of which one part is the picture of its own sample: it looks for what is said of that.
MEDIA = ("image", "audio", "video")
LETTERS = {"text": "t", "image": "i", "audio": "a", "video": "v"}  # as in the names of metrics: t2i
KINDS = ("text", "phrase", "image", "audio", "video", "composed", "pictured")
UNKNOWN = -1
# Bound on the entries of a lookup table that the subset test holds at a time (bytes).
TABLE_ENTRIES = 2**24


@dataclass(frozen=True)
class Embedded:
    """The cones of one kind (text, image, audio, video, phrase, composed, pictured) beside what is known of them.

    Sets are rows of hashed ids in any order, padded with 0; their widths may be 0.

    Args:
        cone: axis (N, D), radius (N,).
        ids: (N,) int64, the sample that an item comes from; items with equal ids match.
        requires: (N, R) int64, what defines the item: facts, or the hash of its normalised text.
        implies: (N, S) int64, what is known to hold of the item.
        words: (N, W) int64, its content words; empty where a generator tells the whole truth.

    Raises:
        ValueError: shapes that do not fit; the message names the field.
    """

    cone: Cone
    ids: Tensor
    requires: Tensor
    implies: Tensor
    words: Tensor

    def __post_init__(self) -> None:
        rows = self.ids.shape
        if len(rows) != 1 or self.cone.shape != rows:
            raise ValueError(f"Embedded: ids {tuple(rows)} and cones {tuple(self.cone.shape)} must both be (N,)")
        for name, field in (("requires", self.requires), ("implies", self.implies), ("words", self.words)):
            if field.ndim != 2 or len(field) != len(self.ids):
                raise ValueError(f"Embedded: {name} must be ({len(self.ids)}, any); got {tuple(field.shape)}")

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, rows: Any) -> "Embedded":
        """The items of a slice, a mask or an index tensor."""
        columns = (self.ids[rows], self.requires[rows], self.implies[rows], self.words[rows])
        return Embedded(self.cone[rows], *columns)

    def with_cone(self, cone: Cone) -> "Embedded":
        """The same items with other cones."""
        return replace(self, cone=cone)


def join(blocks: Sequence[dict[str, Embedded]]) -> dict[str, Embedded]:
    """The rows of several blocks as one, kind by kind; a block may lack a kind."""
    return {
        kind: Embedded(
            Cone.cat([rows.cone for rows in members]),
            torch.cat([rows.ids for rows in members]),
            *(_cat_sets([getattr(rows, name) for rows in members]) for name in ("requires", "implies", "words")),
        )
        for kind in {kind: None for block in blocks for kind in block}
        for members in [[block[kind] for block in blocks if kind in block]]
    }


def _cat_sets(sets: list[Tensor]) -> Tensor:
    width = max(rows.shape[1] for rows in sets)
    return torch.cat([torch.nn.functional.pad(rows, (0, width - rows.shape[1])) for rows in sets])


@dataclass(frozen=True)
class Level:
    """A step of the hierarchy: items of kind `outer` contain items of kind `inner`.

    `same_sample` is what equal ids alone say. A caption contains its image: 1. A phrase of one caption says nothing of
    another caption of the same image, which may leave the attribute open: unknown. Its own caption implies it.
    """

    name: str
    outer: str
    inner: str
    same_sample: int = 1

    def relation(self, outer: Embedded, inner: Embedded) -> Tensor:
        """`relation` at this level."""
        return relation(outer, inner, self.same_sample)


LEVELS = (
    Level("p2c", "phrase", "text", same_sample=UNKNOWN),
    Level("c2i", "text", "image"),
    Level("c2a", "text", "audio"),
    Level("c2v", "text", "video"),
)


def relation(outer: Embedded, inner: Embedded, same_sample: int = 1) -> Tensor:
    """Whether outer contains inner: (N, M) int8; 1 = it does, 0 = it does not, -1 = unknown, to be masked.

    The first rule that applies decides: 1 where what outer requires is not empty and implied by inner; `same_sample`
    where ids are equal; -1 where the words of outer are not empty and all among those of inner (it may well be true);
    else 0. (With `same_sample` = 1 the order of the first two does not matter.)
    """
    same = outer.ids[:, None] == inner.ids[None]
    result = -subset(outer.words, inner.words).to(torch.int8)
    result.masked_fill_(same, same_sample)
    return result.masked_fill_(subset(outer.requires, inner.implies), 1)


def said_of_sample(compound: Embedded, text: Embedded) -> Tensor:
    """Whether a text is that of which a compound holds a picture and a part: (N, M) int8.

    1 for a text of the same sample that implies what the compound requires; -1 for its others; 0 for all else, since
    the picture is that of one sample.
    """
    same = compound.ids[:, None] == text.ids[None]
    return (-same.to(torch.int8)).masked_fill_(same & subset(compound.requires, text.implies), 1)


def same_sample(a: Embedded, b: Embedded) -> Tensor:
    """Whether two items are of one sample: (N, M) int8, 1 or 0."""
    return (a.ids[:, None] == b.ids[None]).to(torch.int8)


def subset(small: Tensor, large: Tensor) -> Tensor:
    """Whether every id of a row of `small` is in a row of `large`, all pairs: (N, R), (M, S) -> (N, M) bool.

    Ids are positive and 0 is padding. A row of `small` without ids gives false. Memory beyond the result is bounded
    by `TABLE_ENTRIES`, whatever N.
    """
    if 0 in small.shape or 0 in large.shape:
        return torch.zeros(len(small), len(large), dtype=torch.bool, device=small.device)
    step = max(1, TABLE_ENTRIES // (small.shape[1] * len(large)))
    return torch.cat([_subset(chunk, large) for chunk in small.split(step)])


def _subset(small: Tensor, large: Tensor) -> Tensor:
    known = small.flatten().sort().values
    place = torch.searchsorted(known, large.contiguous()).clamp_(max=len(known) - 1)
    found = (known[place] == large) & (large != 0)
    # has[v, m]: row m of `large` holds known[v]. The last row takes what was not found; then it stands for padding,
    # which asks for nothing.
    has = torch.zeros(len(known) + 1, len(large), dtype=torch.bool, device=small.device)
    row = torch.arange(len(large), device=small.device)[:, None].expand_as(large)
    has[place.where(found, len(known)), row] = True
    has[-1] = True
    own = torch.searchsorted(known, small.contiguous()).masked_fill_(small == 0, len(known))
    result = (small != 0).any(dim=1)[:, None] & has[own[:, 0]]
    for column in own.T[1:]:
        result &= has[column]
    return result
