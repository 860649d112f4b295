"""Sounds as a tower's feature extractor prepares them: each the same alone and in a batch."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

SHORTEST = 0.025  # seconds: one window of a spectrogram; shorter clips are filled up with silence
LONGEST = 30  # seconds, where an extractor states no length of its own

Extracted = tuple[Tensor, Tensor | None]


def extract(extractor: Any, clips: Sequence[np.ndarray], padding: str) -> Extracted:
    """What a tower reads of mono clips at its rate: the values (N, ...), and their mask where it reads one.

    Args:
        padding: "longest" of the batch, or "max_length"; extractors of one length know no choice.
    """
    shortest = round(SHORTEST * extractor.sampling_rate)
    clips = [np.pad(clip, (0, max(0, shortest - clip.size))) for clip in clips]
    with torch.autocast("cpu", enabled=False):  # spectrograms have no bfloat16
        return EXTRACTORS.get(type(extractor).__name__, _padded)(extractor, clips, padding)


def _padded(extractor: Any, clips: Sequence[np.ndarray], padding: str, **limit: Any) -> Extracted:
    extracted = extractor(
        clips,
        sampling_rate=extractor.sampling_rate,
        padding=padding,
        truncation=True,
        return_attention_mask=True,
        return_tensors="pt",
        **limit,
    )
    values = extracted[extractor.model_input_names[0]]
    return values, extracted["attention_mask"][..., : values.shape[-1]]


def _whisper(extractor: Any, clips: Sequence[np.ndarray], padding: str) -> Extracted:
    if padding != "longest":
        return _padded(extractor, clips, padding)
    # The end of what is extracted is mirrored. A window of silence after the longest clip, as after the others and as
    # in 30 s, gives each clip the same frames alone and in a batch; the tower runs over the real ones.
    longest = max(clip.size for clip in clips) + extractor.n_fft
    frames = -(-longest // extractor.hop_length)
    most = min(frames * extractor.hop_length, extractor.n_samples)
    values, mask = _padded(extractor, clips, "max_length", max_length=most)
    assert mask is not None
    real = int(mask.sum(-1).max())
    return values[..., :real], mask[..., :real]


def _waveform(extractor: Any, clips: Sequence[np.ndarray], padding: str) -> Extracted:
    return _padded(extractor, clips, padding, max_length=LONGEST * extractor.sampling_rate)


def _spectrogram(extractor: Any, clips: Sequence[np.ndarray], padding: str) -> Extracted:
    extracted = extractor(clips, sampling_rate=extractor.sampling_rate, return_tensors="pt")
    return extracted["input_values"], None


def _clap(extractor: Any, clips: Sequence[np.ndarray], padding: str) -> Extracted:
    # Of long clips the extractor takes parts by chance. Drawn alike each time, a clip gets one cone.
    state = np.random.get_state()
    values = []
    try:
        for clip in clips:
            np.random.seed(0)
            values.append(extractor(clip, sampling_rate=extractor.sampling_rate, return_tensors="pt"))
    finally:
        np.random.set_state(state)
    return torch.cat([value["input_features"] for value in values]).float(), None


# By the extractor's class; others pad to the longest clip of the batch.
EXTRACTORS: dict[str, Callable[..., Extracted]] = {
    "WhisperFeatureExtractor": _whisper,
    "Wav2Vec2FeatureExtractor": _waveform,
    "ASTFeatureExtractor": _spectrogram,
    "ClapFeatureExtractor": _clap,
}
