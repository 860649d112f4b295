"""Sound from whatever a user or a data set has at hand."""

import math
from collections.abc import Iterator
from numbers import Real
from typing import Any, BinaryIO, Protocol, runtime_checkable

import numpy as np
import torch

from .media_files import FILES, MediaError, import_av, open_container, open_source, to_array

MAX_CHANNELS = 8  # of an array; what has more is a batch
MAX_FLOAT = 8.0  # of floating-point samples, which lie in [-1, 1] but for some overshoot
MAX_SECONDS = 3600  # of sound at up to 48 kHz; higher rates have the same number of samples


@runtime_checkable
class _AudioDecoder(Protocol):
    """Sound that `datasets` hands out where torchcodec works."""

    def get_all_samples(self) -> Any: ...


def load_audio(value: Any, sampling_rate: int, input_sampling_rate: int | None = None) -> np.ndarray:
    """Mono audio at `sampling_rate`: float32 (samples,). Silence is a sound; nothing at all is not.

    Args:
        value: path, bytes, open binary file, {"bytes", "path"}, {"array", "sampling_rate"}, (array, sampling rate) as
            librosa and soundfile give it, or an array alone, for which `input_sampling_rate` is needed. An array is
            (samples,) or (channels, samples): float, int16, int32 or uint8. Of two axes the shorter one holds the
            channels, which are averaged: up to 8; an array alone has one, as (1, samples), since what has more could
            be a batch of sounds.

    Raises:
        MediaError: missing, damaged, without an audio stream, empty, NaN or infinite, no sampling rate, longer than an
            hour.
    """
    name, bare = "the audio", False
    if is_sampled(value):
        value = {"array": value[0], "sampling_rate": value[1]}
    if isinstance(value, dict) and value.get("array") is not None:
        samples, rate = to_array(value["array"], "audio"), value.get("sampling_rate") or input_sampling_rate
    elif isinstance(value, FILES):
        with open_source(value, "audio") as (file, name):
            samples, rate = _decode_audio(file, name)
    elif isinstance(value, _AudioDecoder):
        decoded = value.get_all_samples()
        samples, rate = to_array(decoded.data, "audio"), decoded.sample_rate
    else:
        samples, rate, name, bare = to_array(value, "audio"), input_sampling_rate, "the audio array", True
    if rate is None:
        raise MediaError(f"{name} comes without its sampling rate: pass sampling_rate=")
    if isinstance(rate, torch.Tensor | np.generic):  # as formatted rows of datasets have it
        rate = rate.item()
    if not (isinstance(rate, int | float) and 1 <= rate < float("inf")):
        raise MediaError(f"{name} has sampling rate {rate!r}: it must be a number of at least 1 Hz")
    samples = _float(samples, name)
    if samples.ndim == 2 and bare and min(samples.shape) > 1:
        # Two rows may be two sounds, which are not to be averaged without a word.
        raise MediaError(
            f"{name} of shape {samples.shape} may be one sound of several channels or several sounds: give stereo as "
            '{"array": ..., "sampling_rate": ...} or (array, sampling rate), and several sounds as a list'
        )
    if samples.ndim == 2 and min(samples.shape) > MAX_CHANNELS:
        raise MediaError(
            f"{name} of shape {samples.shape} has more than {MAX_CHANNELS} channels: give several sounds as a list"
        )
    if samples.ndim == 2:
        samples = samples.mean(0 if samples.shape[0] <= samples.shape[1] else 1)
    if samples.ndim != 1 or not samples.size:
        raise MediaError(f"{name} is empty, or not of shape (samples,) or (channels, samples): got {samples.shape}")
    loudest = float(np.abs(samples).max())
    if not math.isfinite(loudest):
        raise MediaError(f"{name} has samples that are NaN or infinite: repair or replace it")
    if loudest > MAX_FLOAT:
        raise MediaError(
            f"{name} has samples up to {loudest:g}, and floating-point sound lies in [-1, 1]: divide those of 16 bits "
            "by 32768, or give them as int16"
        )
    _check_length(samples.size, rate, name)
    resampled = samples if rate == sampling_rate else _resample(samples, int(rate), sampling_rate)
    if not resampled.size:
        raise MediaError(
            f"{name} of {samples.size} samples is too short to be brought to {sampling_rate} Hz: leave it out"
        )
    return resampled


def is_sampled(value: Any) -> bool:
    """Whether it is one sound as (array, sampling rate)."""
    pair = isinstance(value, tuple) and len(value) == 2
    return pair and isinstance(value[0], np.ndarray | torch.Tensor | list) and isinstance(value[1], Real)


def _float(samples: np.ndarray, name: str) -> np.ndarray:
    """float32 samples; whole numbers are scaled to [-1, 1)."""
    if samples.dtype.kind == "f":
        with np.errstate(over="ignore"):
            return samples.astype(np.float32)
    if samples.dtype == np.uint8:
        return (samples.astype(np.float32) - 128) / 128
    if samples.dtype in (np.int16, np.int32):
        return samples.astype(np.float32) / -float(np.iinfo(samples.dtype).min)
    raise MediaError(f"{name} holds {samples.dtype}: give float in [-1, 1], int16, int32 or uint8")


def _check_length(count: int, rate: float, name: str) -> None:
    if count > MAX_SECONDS * min(rate, 48_000):
        raise MediaError(f"{name} is longer than {MAX_SECONDS} s of 48 kHz sound, or as many samples: cut it")


def _decode_audio(file: BinaryIO, name: str) -> tuple[np.ndarray, int]:
    pieces: list[np.ndarray] = []
    total, rate = 0, 1
    for piece, rate in _sound(file, name):
        pieces.append(piece)
        total += piece.size
        _check_length(total, rate, name)
    if not total:
        raise MediaError(f"{name} has no samples: it is empty or cut off; replace it")
    return np.concatenate(pieces), rate


def _sound(file: BinaryIO, name: str) -> Iterator[tuple[np.ndarray, int]]:
    """Mono pieces of a file with their sampling rate, by soundfile where it knows the format, else by PyAV."""
    try:
        import soundfile
    except (ImportError, OSError):  # the package, or the library that it binds, is missing
        yield from _sound_of_container(file, name)
        return
    try:
        sound = soundfile.SoundFile(file)
    except (soundfile.LibsndfileError, TypeError):  # TypeError: a name in .raw, which says nothing of what is inside
        file.seek(0)
        yield from _sound_of_container(file, name)
        return
    try:
        with sound:
            while len(block := sound.read(2**18, dtype="float32", always_2d=True)):
                yield block.mean(1), sound.samplerate
    except soundfile.LibsndfileError as error:
        raise MediaError(f"{name} is damaged or cut off: replace it ({error})") from error


def _sound_of_container(file: BinaryIO, name: str) -> Iterator[tuple[np.ndarray, int]]:
    with open_container(file, name) as container:
        if not container.streams.audio:
            raise MediaError(f"{name} has no audio stream: leave it out, or give a file with sound")
        rate = None
        for frame in container.decode(container.streams.audio[0]):
            # Frames know: of HE-AAC the stream states half the rate.
            if frame.sample_rate != (rate := rate or frame.sample_rate):
                raise MediaError(f"{name} changes its sampling rate half-way: convert it to one")
            piece = frame.to_ndarray()
            if not frame.format.is_planar:
                piece = piece.reshape(-1, frame.layout.nb_channels).T
            yield _float(piece, name).mean(0), rate


def _resample(samples: np.ndarray, rate: int, wanted: int) -> np.ndarray:
    # FFmpeg's resampler: errors of tones and aliases lie below -90 dB up to 0.4 times the lower rate.
    av = import_av()
    resampler = av.AudioResampler(format="flt", layout="mono", rate=wanted)
    pieces = [np.zeros(0, np.float32)]
    for start in range(0, samples.size, 2**20):
        piece = np.ascontiguousarray(samples[None, start : start + 2**20])
        frame = av.AudioFrame.from_ndarray(piece, format="flt", layout="mono")
        frame.sample_rate = rate
        pieces += [part.to_ndarray()[0] for part in resampler.resample(frame)]
    pieces += [part.to_ndarray()[0] for part in resampler.resample(None)]
    return np.concatenate(pieces)
