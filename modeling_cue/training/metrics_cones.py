"""How well cones tell what contains what: AUROC, average precision, baselines, transitivity, radius by generality."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from scipy.stats import spearmanr
from torch import Tensor

from ..cones import pairwise_angle, pairwise_contains
from .relations import LEVELS, Embedded, Level, relation

# Pairs that are held at a time.
CHUNK_PAIRS = 2**22
# Scores lie in [-2 pi, pi] and are counted on a grid of this many points per radian (1.5e-5 rad apart; scores nearer
# than that tie). A count needs the same memory for any number of pairs, and counts of chunks add up.
PER_RADIAN = 2**16
_OFFSET = math.ceil(2 * math.pi * PER_RADIAN)
_BINS = _OFFSET + math.ceil(math.pi * PER_RADIAN) + 1
# The constant radii of the baseline are searched on a grid of this many points per radian.
SHIFTS_PER_RADIAN = 32


@dataclass(frozen=True)
class Counts:
    """How many positive and negative pairs have each score of the grid: two (bins,) float64 tensors, ascending."""

    positive: Tensor
    negative: Tensor

    @staticmethod
    def of(scores: Tensor, labels: Tensor) -> "Counts":
        """Counts scores, any shape, radians in [-2 pi, pi], by labels 1 and 0 of that shape; others are left out."""
        bins = (scores * PER_RADIAN).round_().int().add_(_OFFSET).clamp_(0, _BINS - 1)
        # One bin more takes what is left out: faster than picking the many negatives.
        negative = torch.bincount(bins.masked_fill(labels != 0, _BINS).flatten(), minlength=_BINS + 1)[:-1]
        return Counts(torch.bincount(bins[labels == 1], minlength=_BINS).double(), negative.double())

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(self.positive + other.positive, self.negative + other.negative)

    def balanced(self) -> "Counts":
        """The same with a mass of 1 for the positives and of 1 for the negatives."""
        return Counts(self.positive / self.positive.sum(), self.negative / self.negative.sum())

    def shifted(self, bins: int) -> "Counts":
        """All scores moved up by so many points of the grid, which must not take them past its end."""
        return Counts(self.positive.roll(bins), self.negative.roll(bins))

    def coarse(self, factor: int) -> "Counts":
        """The same on a grid that is `factor` times coarser."""

        def add_up(counts: Tensor) -> Tensor:
            return torch.nn.functional.pad(counts, (0, -len(counts) % factor)).view(-1, factor).sum(dim=1)

        return Counts(add_up(self.positive), add_up(self.negative))

    @property
    def defined(self) -> bool:
        """Whether there are positives and negatives, without which no figure means anything."""
        return bool(self.positive.sum() > 0) and bool(self.negative.sum() > 0)

    def auroc(self) -> float:
        """The share of (positive, negative) that the scores order rightly, ties counted half: in [0, 1]."""
        below = self.negative.cumsum(0) - self.negative / 2
        return ((self.positive @ below) / (self.positive.sum() * self.negative.sum())).item()

    def average_precision(self) -> float:
        """The mean over positives of the precision among scores at least as high as its own: in [0, 1]."""
        hits = self.positive.flip(0).cumsum(0)
        drawn = hits + self.negative.flip(0).cumsum(0)
        precision = torch.where(drawn > 0, hits / drawn, 0.0)
        return ((self.positive.flip(0) @ precision) / self.positive.sum()).item()


def _chunks(rows: Embedded, width: int) -> Iterator[tuple[int, Embedded]]:
    """Pieces of `rows`, each with its start, that make at most `CHUNK_PAIRS` pairs with `width` others."""
    step = max(1, CHUNK_PAIRS // max(1, width))
    for start in range(0, len(rows), step):
        yield start, rows[start : start + step]


def level_counts(outer: Embedded, inner: Embedded, level: Level) -> tuple[Counts, Counts]:
    """Counts over all pairs whose relation is known, by containment margin and by minus the angle (as the cosine)."""
    empty = torch.zeros(_BINS, dtype=torch.float64, device=outer.ids.device)
    margins = cosines = Counts(empty, empty)
    for _, part in _chunks(outer, len(inner)):
        labels = level.relation(part, inner)
        angle = pairwise_angle(part.cone.axis, inner.cone.axis)
        margins += Counts.of(part.cone.radius[:, None] - inner.cone.radius[None] - angle, labels)
        cosines += Counts.of(-angle, labels)
    return margins, cosines


def containment_metrics(embedded: dict[str, Embedded]) -> dict[str, float]:
    """AUROC and average precision of containment margins against what is known to be true and false.

    Returns:
        `containment_auroc_{level}`, `containment_ap_{level}` and, by the cosine alone,
        `containment_auroc_cosine_{level}`, for each level (p2c, c2i, c2a, c2v) that has true and false pairs;
        `containment_auroc`, `containment_ap` and `containment_auroc_cosine`: their means over p2c and the first level
        below captions (c2i where there are images);
        `containment_auroc_constant_radius`: the same mean for margins with one radius for each kind, which order the
        pairs of a level as the cosine does: equal to `containment_auroc_cosine` whatever the radii.

        Where there are two such levels, also one ranking of the pairs of both, in which every level, and in it the
        true and the false pairs, have equal mass. There constant radii do matter, as they shift one level against the
        other: `containment_pooled_auroc` for the margins, `containment_pooled_auroc_cosine`, and
        `containment_pooled_auroc_constant_radius` for the best constant radii, which are chosen on these very pairs
        (in the baseline's favour).
    """
    found: dict[str, float] = {}
    scored: dict[str, tuple[Counts, Counts]] = {}
    for level in LEVELS:
        if level.outer in embedded and level.inner in embedded:
            margins, cosines = level_counts(embedded[level.outer], embedded[level.inner], level)
            if margins.defined:
                scored[level.name] = margins, cosines
                found[f"containment_auroc_{level.name}"] = margins.auroc()
                found[f"containment_ap_{level.name}"] = margins.average_precision()
                found[f"containment_auroc_cosine_{level.name}"] = cosines.auroc()
    heads = [name for name in scored if name == "p2c"] + [name for name in scored if name != "p2c"][:1]
    if not heads:
        return found
    for name in ("auroc", "ap", "auroc_cosine"):
        found[f"containment_{name}"] = sum(found[f"containment_{name}_{level}"] for level in heads) / len(heads)
    found["containment_auroc_constant_radius"] = found["containment_auroc_cosine"]
    if len(heads) == 2:
        (margins, cosines), (lower_margins, lower_cosines) = (scored[name] for name in heads)
        found["containment_pooled_auroc"] = pooled_auroc(margins, lower_margins)
        found["containment_pooled_auroc_cosine"] = pooled_auroc(cosines, lower_cosines)
        found["containment_pooled_auroc_constant_radius"] = best_pooled_auroc(cosines, lower_cosines)
    return found


def pooled_auroc(first: Counts, second: Counts) -> float:
    """AUROC of one ranking of the pairs of two levels, of equal mass: in [0, 1]."""
    return (first.balanced() + second.balanced()).auroc()


def best_pooled_auroc(first: Counts, second: Counts) -> float:
    """The largest `pooled_auroc` that shifting the scores of one level gives, to 1/32 rad: in [0, 1].

    The shift is all that constant radii can change: r_phrase - r_text at one level, r_text - r_image at the other.
    """
    factor = PER_RADIAN // SHIFTS_PER_RADIAN // 32
    coarse, other = first.coarse(factor), second.coarse(factor)
    reach = int(math.pi * SHIFTS_PER_RADIAN)
    best = max(range(-reach, reach + 1), key=lambda shift: pooled_auroc(coarse.shifted(32 * shift), other))
    return pooled_auroc(first.shifted(best * 32 * factor), second)


def distinct_phrases(phrases: Embedded) -> Embedded:
    """One item (the first) for each distinct `requires`, without those that have none: the concepts of a data set."""
    phrases = phrases[(phrases.requires != 0).any(dim=1)]
    if not len(phrases):
        return phrases
    unique, group = phrases.requires.unique(dim=0, return_inverse=True)
    first = torch.full((len(unique),), len(phrases), device=group.device)
    first.scatter_reduce_(0, group, torch.arange(len(phrases), device=group.device), "amin")
    return phrases[first.sort().values]


def true_of(phrases: Embedded, kinds: list[Embedded]) -> Tensor:
    """How many samples each phrase is known to be true of, through an item of any of `kinds`: (N,) int64."""
    ids = torch.cat([rows.ids for rows in kinds])
    samples, group = ids.unique(return_inverse=True)
    counts = []
    for _, part in _chunks(phrases, len(ids)):
        hits = torch.cat([relation(part, rows) == 1 for rows in kinds], dim=1)
        by_sample = torch.zeros(len(part), len(samples), device=ids.device).index_add_(1, group, hits.float())
        counts.append((by_sample > 0).sum(dim=1))
    return torch.cat(counts) if counts else ids.new_zeros(0)


def radius_metrics(embedded: dict[str, Embedded]) -> dict[str, float]:
    """`radius_mean_{kind}` and `radius_std_{kind}`, radians; and `radius_specificity_spearman`, in [-1, 1].

    The last is Spearman's rank correlation, over distinct phrases, of a phrase's radius with the log of the number of
    samples that it is known to be true of: high where general phrases are wide. 0 if all radii are equal; absent if
    all numbers are.
    """
    found: dict[str, float] = {}
    for kind, rows in embedded.items():
        if len(rows):
            found[f"radius_mean_{kind}"] = rows.cone.radius.double().mean().item()
            found[f"radius_std_{kind}"] = rows.cone.radius.double().std(correction=0).item()
    items = [embedded[kind] for kind in ("text", "image", "audio", "video") if kind in embedded]
    if "phrase" in embedded and items:
        phrases = distinct_phrases(embedded["phrase"])
        count, radius = true_of(phrases, items), phrases.cone.radius
        if len(count.unique()) > 1:
            constant = len(radius.unique()) == 1
            log_count = count.double().log()
            found["radius_specificity_spearman"] = (
                0.0 if constant else float(spearmanr(radius.cpu().numpy(), log_count.cpu().numpy()).statistic)
            )
    return found


def transitivity_metrics(embedded: dict[str, Embedded]) -> dict[str, float]:
    """Over triples of a phrase, a caption and an image that are truly nested (relation 1 and 1), distinct phrases.

    Returns:
        `transitivity_chains`: the share of these triples in which phrase contains caption and caption contains image;
        `transitivity_violations`: the share of those in which the phrase then does not contain the image. Cones nest
        as sets, so it can only come from rounding; 0 where there is no chain.
        {} without such triples. Audio or video stand in where there are no images.
    """
    inner = next((embedded[level.inner] for level in LEVELS[1:] if level.inner in embedded), None)
    if inner is None or not all(len(embedded.get(kind, ())) for kind in ("phrase", "text")):
        return {}
    text, phrases = embedded["text"], distinct_phrases(embedded["phrase"])
    pairs = []
    for start, part in _chunks(text, len(inner)):
        row, column = (relation(part, inner) == 1).nonzero(as_tuple=True)
        pairs.append((row + start, column, pairwise_contains(part.cone, inner.cone)[row, column]))
    caption, item, inside = (torch.cat(column) for column in zip(*pairs, strict=True))
    triples = chains = violations = 0
    for _, part in _chunks(phrases, len(text) + len(inner) + len(caption)):
        true = LEVELS[0].relation(part, text) == 1
        premise = (true & pairwise_contains(part.cone, text.cone))[:, caption] & inside
        triples += int(true[:, caption].sum())
        chains += int(premise.sum())
        violations += int((premise & ~pairwise_contains(part.cone, inner.cone)[:, item]).sum())
    if not triples:
        return {}
    return {"transitivity_chains": chains / triples, "transitivity_violations": violations / max(chains, 1)}
