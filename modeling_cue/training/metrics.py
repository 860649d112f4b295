"""All metrics of an evaluation, from embedded rows: plain numbers, all shares as fractions, radii in radians."""

from itertools import combinations

import torch

from .metrics_cones import containment_metrics, radius_metrics, transitivity_metrics
from .metrics_retrieval import RECALL_AT, chance_recall, relation_ranks, retrieval_ranks, summarise_ranks
from .relations import LETTERS, MEDIA, Embedded


def compute_all(
    embedded: dict[str, Embedded], containment_scale: float | None = None, containment_bias: float = 0.0
) -> dict[str, float]:
    """Retrieval, composition and cone metrics of the kinds at hand; what they do not allow is left out.

    Args:
        embedded: by kind: text, image, audio, video, phrase, composed, and `parts_mean`, the mean of the parts' axes
            as a baseline of `composed`.
        containment_scale, containment_bias: those of the model, for the calibration of its probabilities.

    Raises:
        FloatingPointError: a cone is not finite; the message names the kind.
    """
    for kind, rows in embedded.items():
        if not (torch.isfinite(rows.cone.axis).all() and torch.isfinite(rows.cone.radius).all()):
            raise FloatingPointError(
                f"{kind} cones are not finite, so nothing can be measured: the weights or the inputs hold NaN or "
                f"infinity; go back to an earlier checkpoint and lower the learning rate"
            )
    cones = cone_metrics(embedded, containment_scale, containment_bias)
    return retrieval_metrics(embedded) | composition_metrics(embedded) | cones


def retrieval_metrics(embedded: dict[str, Embedded]) -> dict[str, float]:
    """Both directions between every two modalities; a hit is an item of the query's sample, others are not.

    Returns:
        for `t2i` and the like: `t2i_R@{1,5,10}`, `t2i_median_rank`, `t2i_mAP@R` (see `summarise_ranks`), and
        `t2i_chance_R@{1,5,10}`, the recall of a random order; with text and images also `rsum`, the sum of the six
        recalls between them, in [0, 6].
    """
    found: dict[str, float] = {}
    for a, b in combinations([kind for kind in LETTERS if kind in embedded], 2):
        one, other = embedded[a], embedded[b]
        there, back = retrieval_ranks(one.cone.axis, other.cone.axis, one.ids, other.ids)
        for name, ranks, items in (
            (f"{LETTERS[a]}2{LETTERS[b]}", there, other),
            (f"{LETTERS[b]}2{LETTERS[a]}", back, one),
        ):
            if summary := summarise_ranks(name, ranks):
                chance = chance_recall(ranks, len(items))
                found |= summary | {f"{name}_chance_R@{k}": value for k, value in chance.items()}
    sides = [f"{way}_R@{k}" for way in ("t2i", "i2t") for k in RECALL_AT]
    if all(key in found for key in sides):
        found["rsum"] = sum(found[key] for key in sides)
    return found


def composition_metrics(embedded: dict[str, Embedded]) -> dict[str, float]:
    """Compounds as queries for images (for audio or video where there are none): `composition_R@{1,5,10}` and so on.

    A hit is any image that the compound is true of (relation 1); an image of which that is unknown is left out.
    `composition_mean_...` are the same figures for the plain mean of the parts' axes, where it is at hand.
    """
    items = next((embedded[kind] for kind in MEDIA if kind in embedded), None)
    found: dict[str, float] = {}
    for kind, name in (("composed", "composition"), ("parts_mean", "composition_mean")):
        if kind in embedded and items is not None:
            found |= summarise_ranks(name, relation_ranks(embedded[kind], items))
    return found


def cone_metrics(
    embedded: dict[str, Embedded], containment_scale: float | None = None, containment_bias: float = 0.0
) -> dict[str, float]:
    """What radii add: containment beside its baselines, calibration, transitivity, radii by kind and by generality."""
    containment = containment_metrics(embedded, containment_scale, containment_bias)
    return containment | transitivity_metrics(embedded) | radius_metrics(embedded)
