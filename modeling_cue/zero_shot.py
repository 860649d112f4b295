"""Zero-shot classification: labels in words become cones, and an input belongs to the label that is nearest to it."""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import AutoModel, AutoProcessor

from .cones import Cone, pairwise_containment_probability
from .contrastive import scaled_cosines
from .media_audio import is_sampled
from .media_files import MODALITY_OF_SUFFIX, MediaError
from .processing_inputs import without_columns
from .processing_parts import ARGUMENTS

# What says which files a checkpoint is made of: the processor is loaded from the same ones.
OF_THE_HUB = ("cache_dir", "force_download", "local_files_only", "revision", "subfolder", "token", "trust_remote_code")
# Of arrays: a wave, an image with its channels, a clip. A grey image and a sound of several channels look alike.
MODALITY_OF_DIMENSIONS = {1: "audio", 3: "image", 4: "video"}


class ZeroShotClassifier:
    """Classifies text, images, audio and video by labels in words, without training.

    A label is one cone, embedded once when the classifier is built: over the templates, the normalised mean of the
    axes (the prompt ensemble of Radford et al., CLIP, ICML 2021) and the mean of the radii: `cones` (L,). As a cone it
    also says what does not belong to it, so that "none of these" is an answer.

    Args:
        model, processor: a CUE with a text tower, and its processor. The model is put in eval mode.
        labels: different, none empty.
        templates: sentences with `{}` where the label goes, such as "a photo of a {}."; by default the label alone.
        none_label: the answer where no label contains the input; None: there is no such answer.
        threshold: the least probability of containment, in [0, 1], by which a label counts as containing the input.
            Probabilities are calibrated for captions as the model was trained on: with labels of another length choose
            it on data of your own. Cones of one or two words can be so wide that they contain every photograph
            (docs/cones.md); a template that makes a caption of them helps.
        batch_size: inputs, or sentences, that run through a tower at once.

    Raises:
        ValueError: labels, templates or a setting that are not as above, or a model without text.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        labels: Sequence[str],
        templates: str | Sequence[str] = ("{}",),
        *,
        none_label: str | None = None,
        threshold: float = 0.5,
        batch_size: int = 32,
    ):
        self.labels = _checked_labels(labels, none_label)
        self.templates = _checked_templates(templates)
        if not 0 <= threshold <= 1:
            raise ValueError(f"threshold={threshold} is not valid; it must be a probability, from 0 to 1")
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size} is not valid; it must be 1 or more")
        self.model, self.processor = model.eval(), processor
        self.none_label, self.threshold, self.batch_size = none_label, threshold, batch_size
        sentences = [template.replace("{}", label) for label in self.labels for template in self.templates]
        each = self._embed("text", sentences)
        axes = each.axis.unflatten(0, (len(self.labels), -1)).mean(1)  # (L, D)
        self.cones = Cone(
            torch.nn.functional.normalize(axes, dim=-1), each.radius.unflatten(0, (len(self.labels), -1)).mean(1)
        )

    @classmethod
    def from_pretrained(
        cls,
        name: str | os.PathLike,
        labels: Sequence[str],
        templates: str | Sequence[str] = ("{}",),
        *,
        none_label: str | None = None,
        threshold: float = 0.5,
        batch_size: int = 32,
        **kwargs: Any,
    ) -> "ZeroShotClassifier":
        """A classifier over a checkpoint by Hub name or folder.

        Args:
            kwargs: passed to `AutoModel.from_pretrained` (dtype, device_map, ...); those of the Hub (revision, token,
                ...) to `AutoProcessor.from_pretrained` too.
            Others as in the class.
        """
        processor = AutoProcessor.from_pretrained(name, **{k: v for k, v in kwargs.items() if k in OF_THE_HUB})
        model = AutoModel.from_pretrained(name, **kwargs)
        settings: dict[str, Any] = {"none_label": none_label, "threshold": threshold, "batch_size": batch_size}
        return cls(model, processor, labels, templates, **settings)

    def __repr__(self) -> str:
        return f"ZeroShotClassifier({len(self.labels)} labels, {len(self.templates)} templates)"

    def __call__(
        self,
        inputs: Any,
        *,
        modality: str | None = None,
        sampling_rate: int | None = None,
        top_k: int | None = None,
    ) -> Any:
        """The labels of an input, best first; of a list of inputs, a list of such lists in the same order.

        Args:
            inputs: one input or a list. An input is a file, of which the suffix tells the modality; a text; a Pillow
                image; a sound as (array, Hz); an array or tensor of a sound (samples,), an image (H, W, 3) or a clip
                (F, H, W, 3); or with `modality` whatever the processor takes, such as bytes. A string is a file where
                its suffix is that of a known format, or where it has a suffix and no space. A list is always several
                inputs.
            modality: text, image, audio or video, for all inputs; given, a string is a text in "text", else a path.
            sampling_rate: Hz, of arrays of sound.
            top_k: give only so many labels.

        Returns:
            Dicts of `label`, `score`, in [0, 1] and over all answers summing to 1: the softmax over labels of the
            model's logit scale times the cosine, and `containment`, in [0, 1]: the probability that the label's cone
            contains the input's, sigmoid(scale * (margin + bias)). With `none_label`, labels whose containment reaches
            the threshold come before those whose does not. Where none does, `none_label` comes first: its score and
            containment are 1 - the largest containment, and the scores of the labels share the rest.

        Raises:
            ValueError: no inputs, an input or suffix of no known modality, a modality that the model lacks.
            MediaError: a file that cannot be read.
        """
        if top_k is not None and top_k < 1:
            raise ValueError(f"top_k={top_k} is not valid; it must be 1 or more")
        inputs = without_columns(inputs)
        one = is_sampled(inputs) or isinstance(inputs, str | bytes | bytearray | memoryview)
        several = isinstance(inputs, Sequence) and not one
        values = list(inputs) if several else [inputs]
        if not values:
            raise ValueError("the list of inputs is empty: give at least one")
        told = [_told(value) if modality is None else (modality, value) for value in values]
        answers: list[list[dict[str, Any]]] = [[] for _ in values]
        for kind in dict.fromkeys(kind for kind, _ in told):
            places = [place for place, (other, _) in enumerate(told) if other == kind]
            options = {"sampling_rate": sampling_rate} if kind == "audio" and sampling_rate is not None else {}
            cones = self._embed(kind, [_checked_value(told[place][1], kind) for place in places], **options)
            for place, scores, containment in zip(places, *self._scores(cones), strict=True):
                answers[place] = self._answer(scores.tolist(), containment.tolist())[:top_k]
        return answers if several else answers[0]

    @torch.no_grad()
    def _embed(self, modality: str, values: Sequence[Any], **options: Any) -> Cone:
        """Cones (N,) of N inputs of one modality, on the model's device."""
        if modality not in ARGUMENTS:
            raise ValueError(f"modality={modality!r} is not valid; it must be one of {', '.join(ARGUMENTS)}")
        present = self.model.config.modalities
        if modality not in present:
            raise ValueError(f"this CUE has no {modality} modality; it has {', '.join(present)}")
        embed = getattr(self.model, f"get_{modality}_cones")
        parts = []
        for at in range(0, len(values), self.batch_size):
            inputs = self.processor(**{ARGUMENTS[modality]: values[at : at + self.batch_size]}, **options)
            parts.append(embed(**inputs.to(self.model.device)))
        return Cone.cat(parts)

    @torch.no_grad()
    def _scores(self, cones: Cone) -> tuple[Tensor, Tensor]:
        """Scores and containment (N, L) of inputs (N,)."""
        logit_scale, scale, bias = self.model.scales()
        scores = scaled_cosines(cones.axis, self.cones.axis, logit_scale).softmax(-1)
        return scores, pairwise_containment_probability(self.cones, cones, scale, bias).T

    def _answer(self, scores: list[float], containment: list[float]) -> list[dict[str, Any]]:
        if self.none_label is None:
            return _answer(self.labels, scores, containment, sorted(range(len(scores)), key=lambda i: -scores[i]))
        contains = [value >= self.threshold for value in containment]
        order = sorted(range(len(scores)), key=lambda i: (not contains[i], -scores[i]))
        if any(contains):
            return _answer(self.labels, scores, containment, order)
        outside = 1 - max(containment)
        labels = (*self.labels, self.none_label)
        scores = [score * (1 - outside) for score in scores]
        return _answer(labels, [*scores, outside], [*containment, outside], [len(self.labels), *order])


def _answer(
    labels: Sequence[str], scores: Sequence[float], containment: Sequence[float], order: Sequence[int]
) -> list[dict[str, Any]]:
    return [{"label": labels[i], "score": scores[i], "containment": containment[i]} for i in order]


# ---------------------------------------------------------------------- checks


def _checked_labels(labels: Sequence[str], none_label: str | None) -> tuple[str, ...]:
    if isinstance(labels, str):
        raise ValueError(f"labels is one string, {labels!r}: give a list of labels")
    labels = tuple(labels)
    if not labels:
        raise ValueError("there are no labels: give at least one")
    for number, label in enumerate(labels):
        if not isinstance(label, str) or not label.strip():
            raise ValueError(f"label number {number} is empty or no text ({label!r}): leave it out")
    label, count = Counter(labels).most_common(1)[0]
    if count > 1:
        raise ValueError(f"the label {label!r} stands {count} times: give each once")
    if none_label is not None and (not none_label.strip() or none_label in labels):
        raise ValueError(f"none_label={none_label!r} is not valid; it must be a text that is no label")
    return labels


def _checked_templates(templates: str | Sequence[str]) -> tuple[str, ...]:
    templates = (templates,) if isinstance(templates, str) else tuple(templates)
    if not templates:
        raise ValueError('there are no templates: give at least one, or leave them out for "{}", the label alone')
    for template in templates:
        if "{}" not in template:
            raise ValueError(
                f'the template {template!r} has no {{}} where the label goes, as "a photo of a {{}}." has'
            )
    return templates


def _told(value: Any) -> tuple[str, Any]:
    """The modality that an input itself tells, and the input, a text file as a path."""
    path = value.get("path") if isinstance(value, Mapping) else value
    if isinstance(path, str | os.PathLike):
        suffix = Path(path).suffix.lower()
        if suffix in MODALITY_OF_SUFFIX:
            modality = MODALITY_OF_SUFFIX[suffix]
            return modality, (Path(path) if modality == "text" else value)
        if isinstance(value, str) and (not suffix or len(value.split()) > 1):
            return "text", value
        raise ValueError(
            f"{str(path)!r} has the suffix {suffix!r}, which tells no modality: give modality= (text, for a text)"
        )
    if isinstance(value, Image.Image):
        return "image", value
    if is_sampled(value) or (isinstance(value, Mapping) and value.get("array") is not None):
        return "audio", value
    if isinstance(value, np.ndarray | Tensor) and value.ndim in MODALITY_OF_DIMENSIONS:
        return MODALITY_OF_DIMENSIONS[value.ndim], value
    shape = f" of shape {tuple(value.shape)}" if isinstance(value, np.ndarray | Tensor) else ""
    raise ValueError(
        f"a {type(value).__name__}{shape} tells no modality: give modality= one of {', '.join(ARGUMENTS)}"
    )


def _checked_value(value: Any, modality: str) -> Any:
    """The input as the processor takes it; a text file as its text."""
    frame = isinstance(value, Image.Image) or (isinstance(value, np.ndarray | Tensor) and value.ndim == 3)
    if isinstance(value, Real) or (modality == "video" and frame):
        raise ValueError(
            f"a {type(value).__name__} is no {modality}: a list is several inputs; give one sound as an array, and "
            "the frames of one clip as a list within the list"
        )
    if modality != "text" or not isinstance(value, os.PathLike):
        return value
    try:
        return Path(value).read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:  # what is not UTF-8 is a ValueError too
        raise MediaError(
            f"the text file {str(value)!r} cannot be read: look at its path and contents ({error})"
        ) from error
