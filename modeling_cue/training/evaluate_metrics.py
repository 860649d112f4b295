"""The metrics as `evaluate.Metric`: rows go in batch by batch, wait in a file, and give the same figures as the code.

The classes are used as they are, without `evaluate.load`, so that nothing is looked up on the Hub:

    metric = RetrievalMetric(cache_dir="runs/metrics")
    metric.add_batch(kind=["text", "image"], axis=[[1.0, 0.0], [1.0, 0.0]], id=[7, 7])
    metric.compute()["t2i_R@1"]

Axes and radii are stored as float32, in which all metrics are computed; wider input is rounded to it.
"""

from typing import Any

import evaluate
import torch
from datasets import Features, Sequence, Value

from ..cones import Cone, check_cone
from .columns import padded
from .metrics import composition_metrics, cone_metrics, retrieval_metrics
from .relations import KINDS, Embedded

_CITATION = "CUE, the Universal Compositional Embedder: spherical cones for text, image, audio and video."
_AXES = {"kind": Value("string"), "axis": Sequence(Value("float32")), "id": Value("int64")}
_SETS = {name: Sequence(Value("int64")) for name in ("requires", "implies", "words")}


class RetrievalMetric(evaluate.Metric):
    """Recall, median rank and mAP@R between every two modalities: `metrics.retrieval_metrics`."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Recall at 1, 5, 10, median rank and mAP@R by cosine between every two modalities.",
            citation=_CITATION,
            inputs_description="""
            Args:
                kind: text, image, audio or video, for each row.
                axis: a unit vector for each row.
                id: int64, the sample of each row; rows of two kinds match where their ids are equal.
            """,
            features=Features(_AXES),
        )

    def _compute(
        self,
        kind: list[str],
        axis: list[list[float]],
        id: list[int],
        **of_cones: Any,
    ) -> dict[str, float]:
        # `evaluate.combine` hands to each what any of them takes: the others are for `ConeMetric`.
        nothing: list[list[int]] = [[]] * len(kind)
        return retrieval_metrics(_by_kind(kind, axis, [0.0] * len(kind), id, nothing, nothing, nothing))


class ConeMetric(evaluate.Metric):
    """Containment, transitivity, radii and composition: `metrics.cone_metrics` and `metrics.composition_metrics`."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="AUROC and AP of containment, transitivity, radii by kind and generality, composition recall.",
            citation=_CITATION,
            inputs_description="""
            Args:
                kind: text, image, audio, video, phrase, composed or parts_mean, for each row.
                axis, radius: the cone of each row; a unit vector and radians in [0, pi].
                id: int64, the sample of each row.
                requires, implies, words: positive int64 ids for each row; see `relations.Embedded`.
                containment_scale, containment_bias: of the model's probabilities, for their calibration; to `compute`.
            """,
            features=Features(_AXES | {"radius": Value("float32")} | _SETS),
        )

    def _compute(
        self,
        kind: list[str],
        axis: list[list[float]],
        id: list[int],
        radius: list[float],
        requires: list[list[int]],
        implies: list[list[int]],
        words: list[list[int]],
        containment_scale: float | None = None,
        containment_bias: float = 0.0,
    ) -> dict[str, float]:
        embedded = _by_kind(kind, axis, radius, id, requires, implies, words)
        return cone_metrics(embedded, containment_scale, containment_bias) | composition_metrics(embedded)


def _by_kind(kind: Any, axis: Any, radius: Any, id: Any, *sets: Any) -> dict[str, Embedded]:
    cones = Cone(torch.tensor(axis, dtype=torch.float32), torch.tensor(radius, dtype=torch.float32))
    check_cone(cones)  # vectors of another length would be ranked by it, and not by the cosine
    known = (*KINDS, "parts_mean")
    if unknown := sorted(set(kind) - set(known)):
        raise ValueError(f"kind {unknown[0]!r} is not valid; it must be one of {', '.join(known)}")
    if any(number < 1 for column in sets for row in column for number in row):
        raise ValueError("requires, implies and words hold ids from 1 on, 0 is no id: add 1 to yours")
    rows = Embedded(cones, torch.tensor(id), *(padded(column, 0) for column in sets))
    places: dict[str, list[int]] = {}
    for place, name in enumerate(kind):
        places.setdefault(name, []).append(place)
    return {name: rows[torch.tensor(chosen)] for name, chosen in places.items()}
