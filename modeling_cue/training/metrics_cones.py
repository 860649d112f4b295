"""How well cones tell what contains what: AUROC, average precision, baselines, transitivity, radius by generality."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields

import torch
from scipy.stats import spearmanr
from torch import Tensor

from ..cones import pairwise_angle, pairwise_contains
from .metrics_calibration import calibration_metrics
from .metrics_counts import PER_RADIAN, Counts
from .metrics_hard import VectorSimilarity, WordSimilarity, hardest_negatives
from .metrics_queries import ConceptCounts, distinct_places
from .relations import LETTERS, LEVELS, UNKNOWN, Embedded, Level, relation

# Pairs that are held at a time.
CHUNK_PAIRS = 2**22
# The constant radii of the baseline are searched on a grid of this many points per radian.
SHIFTS_PER_RADIAN = 32


def _chunks(rows: Embedded, width: int) -> Iterator[tuple[int, Embedded]]:
    """Pieces of `rows`, each with its start, that make at most `CHUNK_PAIRS` pairs with `width` others."""
    step = max(1, CHUNK_PAIRS // max(1, width))
    for start in range(0, len(rows), step):
        yield start, rows[start : start + step]


@dataclass(frozen=True)
class LevelCounts:
    """The pairs of a level whose relation is known, by containment margin and by minus the angle (as the cosine).

    `hard_` counts have all true pairs, and of the false ones only the hardest; see `metrics_hard`. `concepts` has each
    distinct phrase once.
    """

    margins: Counts
    cosines: Counts
    hard_margins: Counts
    hard_cosines: Counts
    concepts: ConceptCounts

    def __add__(self, other: "LevelCounts") -> "LevelCounts":
        return LevelCounts(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))


def level_counts(
    outer: Embedded, inner: Embedded, level: Level, similarity: WordSimilarity | VectorSimilarity | None = None
) -> LevelCounts:
    """Counts over all pairs of a level; hard negatives by `similarity`, or by words where both sides have them."""
    nothing = Counts.nothing(outer.ids.device)
    total = LevelCounts(nothing, nothing, nothing, nothing, ConceptCounts.nothing(outer.ids.device))
    if not (len(outer) and len(inner)):
        return total
    if similarity is None and outer.words.any() and inner.words.any():
        similarity = WordSimilarity(outer, inner)
    once = torch.ones_like(outer.ids, dtype=torch.bool)
    if level.outer == "phrase":
        once = torch.zeros_like(once).index_fill_(0, distinct_places(outer), True)
    for start, part in _chunks(outer, len(inner)):
        labels = level.relation(part, inner)
        cosine = -pairwise_angle(part.cone.axis, inner.cone.axis)
        margin = part.cone.radius[:, None] - inner.cone.radius[None] + cosine
        hard = torch.full_like(labels, -1)
        if similarity is not None:
            hard = hardest_negatives(similarity.rows(start, start + len(part)), labels)
        # Few pairs are hard ones: what is left out needs no counting.
        kept = hard >= 0
        rows = once[start : start + len(part)]
        total += LevelCounts(
            Counts.of(margin, labels), Counts.of(cosine, labels), Counts.of(margin[kept], hard[kept]),
            Counts.of(cosine[kept], hard[kept]),
            ConceptCounts.of(margin[rows], cosine[rows], labels[rows], hard[rows]),
        )  # fmt: skip
    return total


def containment_metrics(
    embedded: dict[str, Embedded], scale: float | None = None, bias: float = 0.0
) -> dict[str, float]:
    """AUROC and average precision of containment margins against what is known to be true and false.

    Args:
        scale, bias: of `containment_probability`, per radian and in radians; None leaves out what needs them.

    Returns:
        `containment_auroc_{level}`, `containment_ap_{level}` and, by the cosine alone,
        `containment_auroc_cosine_{level}`, for each level (p2c, c2i, c2a, c2v) that has true and false pairs;
        `containment_auroc_hard_{level}`, `containment_auroc_hard_cosine_{level}`: the same with the hardest of the
        false pairs alone (see `metrics_hard`), where the words of both sides are known;
        `containment_concepts_{...}_{level}`: each distinct phrase once, and each by itself; see `metrics_queries`;
        `containment_ece_{level}`, `containment_active_{level}`: see `metrics_calibration`;
        `containment_auroc`, `containment_ap`, `containment_auroc_cosine`, `containment_auroc_hard` and
        `containment_auroc_hard_cosine`: their means over p2c and the first level below captions (c2i where there are
        images);
        `containment_auroc_constant_radius`: the same mean for margins with one radius for each kind, which order the
        pairs of a level as the cosine does: equal to `containment_auroc_cosine` whatever the radii.

        Where there are two such levels, also one ranking of the pairs of both, in which every level, and in it the
        true and the false pairs, have equal mass. There constant radii do matter, as they shift one level against the
        other: `containment_pooled_auroc` for the margins, `containment_pooled_auroc_cosine`, and
        `containment_pooled_auroc_constant_radius` for the best constant radii, which are chosen on these very pairs
        (in the baseline's favour).
    """
    found: dict[str, float] = {}
    scored: dict[str, LevelCounts] = {}
    for level in LEVELS:
        if level.outer in embedded and level.inner in embedded:
            counts = level_counts(embedded[level.outer], embedded[level.inner], level)
            if not counts.margins.defined:
                continue
            scored[level.name] = counts
            found[f"containment_auroc_{level.name}"] = counts.margins.auroc()
            found[f"containment_ap_{level.name}"] = counts.margins.average_precision()
            found[f"containment_auroc_cosine_{level.name}"] = counts.cosines.auroc()
            found |= counts.concepts.metrics(level.name)
            if counts.hard_margins.defined:
                found[f"containment_auroc_hard_{level.name}"] = counts.hard_margins.auroc()
                found[f"containment_auroc_hard_cosine_{level.name}"] = counts.hard_cosines.auroc()
            if scale is not None:
                found |= calibration_metrics(level.name, counts.margins, scale, bias)
    heads = [name for name in scored if name == "p2c"] + [name for name in scored if name != "p2c"][:1]
    if not heads:
        return found
    for name in ("auroc", "ap", "auroc_cosine", "auroc_hard", "auroc_hard_cosine"):
        if all(f"containment_{name}_{level}" in found for level in heads):
            found[f"containment_{name}"] = sum(found[f"containment_{name}_{level}"] for level in heads) / len(heads)
    found["containment_auroc_constant_radius"] = found["containment_auroc_cosine"]
    if len(heads) == 2:
        upper, lower = (scored[name] for name in heads)
        found["containment_pooled_auroc"] = pooled_auroc(upper.margins, lower.margins)
        found["containment_pooled_auroc_cosine"] = pooled_auroc(upper.cosines, lower.cosines)
        found["containment_pooled_auroc_constant_radius"] = best_pooled_auroc(upper.cosines, lower.cosines)
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
    return phrases[distinct_places(phrases)]


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
    items = [embedded[kind] for kind in LETTERS if kind in embedded]
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
        as sets, so it can only come from rounding; 0 where there is no chain;
        `transitivity_false_pairs`: the share of false pairs of phrase and image (relation 0) that are nested all the
        same: where it is high, cones nest at both steps because phrases are too wide to tell images apart.
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
    triples = chains = violations = wrong = held = 0
    for _, part in _chunks(phrases, len(text) + len(inner) + len(caption)):
        true = LEVELS[0].relation(part, text) == 1
        premise = (true & pairwise_contains(part.cone, text.cone))[:, caption] & inside
        triples += int(true[:, caption].sum())
        chains += int(premise.sum())
        nested = pairwise_contains(part.cone, inner.cone)
        violations += int((premise & ~nested[:, item]).sum())
        false = relation(part, inner, UNKNOWN) == 0
        wrong += int(false.sum())
        held += int((false & nested).sum())
    if not triples:
        return {}
    found = {"transitivity_chains": chains / triples, "transitivity_violations": violations / max(chains, 1)}
    return found | ({"transitivity_false_pairs": held / wrong} if wrong else {})
