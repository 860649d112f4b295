"""Decoding of images, audio and video from whatever a user or a data set has at hand.

A value is a path, bytes, a `datasets` value ({"bytes", "path"}, or {"array", "sampling_rate"} of audio), or decoded
already: a Pillow image, an array or tensor, a list of frames. All that cannot be read raises `MediaError`.
"""

import io
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

MAX_PIXELS = 100_000_000  # of an image: more is taken for a decompression bomb
MAX_SECONDS = 3600  # of audio or video that is decoded
MAX_FRAMES = 200_000  # of a video


class MediaError(ValueError):
    """An image, audio or video that cannot be read; the message says which and what to do."""


# ---------------------------------------------------------------------- images


def load_image(value: Any) -> Image.Image:
    """An RGB image. Palette, grey, CMYK and 16-bit are converted, alpha is laid over white, EXIF turns are applied.

    Args:
        value: path, bytes, {"bytes", "path"}, Pillow image, or array (H, W), (H, W, 1|3|4), (3, H, W): uint8, uint16,
            or float in [0, 1].

    Raises:
        MediaError: missing, truncated, no image, over 100 million pixels.
    """
    if isinstance(value, Image.Image):
        return _to_rgb(value, "the image")
    if not isinstance(value, str | os.PathLike | bytes | bytearray | dict):
        return _to_rgb(_image_of_array(_numpy(value)), "the image")
    source, name = _source(value, "image")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            warnings.filterwarnings("ignore", category=UserWarning)  # complaints about metadata
            with Image.open(source) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise MediaError(f"{name} has {image.width} x {image.height} pixels, over {MAX_PIXELS}: shrink it")
                return _to_rgb(image, name)
    except MediaError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise MediaError(f"{name} is too large to be decoded safely: shrink it ({error})") from error
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged files
        raise MediaError(f"{name} is no image that can be read, or is cut off: replace it ({error})") from error


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I") or image.mode == "F":
        values = np.asarray(image, dtype=np.float64)
        top = 65535.0 if values.max(initial=0) > 255 else 255.0
        image = Image.fromarray((np.clip(values, 0, top) * (255.0 / top)).round().astype(np.uint8))
    if image.mode in ("LA", "PA", "RGBA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        ground = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(ground, image)
    if 0 in image.size:
        raise MediaError(f"{name} has no pixels: replace it")
    return image.convert("RGB")


def _image_of_array(array: np.ndarray) -> Image.Image:
    if array.ndim == 3 and array.shape[0] in (1, 3, 4) and array.shape[-1] not in (1, 3, 4):
        array = array.transpose(1, 2, 0)
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[-1] not in (3, 4)) or 0 in array.shape:
        raise MediaError(f"an array of shape {array.shape} is no image: give (H, W), (H, W, 3) or (3, H, W)")
    if np.issubdtype(array.dtype, np.floating):
        if not np.isfinite(array).all() or array.min() < 0 or array.max() > 1:
            raise MediaError("an image of floating point must lie in [0, 1]: scale it, or give uint8")
        array = (array * 255).round()
    elif array.dtype == np.uint16:
        array = array // 257
    elif array.dtype != np.uint8:
        raise MediaError(f"an image array must be uint8, uint16 or float in [0, 1]; got {array.dtype}")
    return Image.fromarray(array.astype(np.uint8))


# ---------------------------------------------------------------------- audio


def load_audio(value: Any, sampling_rate: int, input_sampling_rate: int | None = None) -> np.ndarray:
    """Mono audio at `sampling_rate`: float32 (samples,). Silence is a sound; nothing at all is not.

    Args:
        value: path, bytes, {"bytes", "path"}, {"array", "sampling_rate"}, or an array (samples,) or
            (channels, samples), for which `input_sampling_rate` is needed. Channels are averaged.

    Raises:
        MediaError: missing, damaged, without an audio stream, empty, NaN or infinite, no sampling rate.
    """
    if isinstance(value, dict) and value.get("array") is not None:
        samples, rate, name = _numpy(value["array"]), value.get("sampling_rate"), "the audio"
    elif isinstance(value, str | os.PathLike | bytes | bytearray | dict):
        source, name = _source(value, "audio")
        samples, rate = _decode_audio(source, name)
    elif hasattr(value, "get_all_samples"):  # a decoder of `datasets`
        decoded = value.get_all_samples()
        samples, rate, name = _numpy(decoded.data), decoded.sample_rate, "the audio"
    else:
        samples, rate, name = _numpy(value), input_sampling_rate, "the audio array"
    if rate is None:
        raise MediaError(f"{name} comes without its sampling rate: pass sampling_rate=")
    if np.issubdtype(samples.dtype, np.integer):
        samples = samples.astype(np.float32) / -float(np.iinfo(samples.dtype).min)
    if samples.ndim == 2:
        samples = samples.mean(0 if samples.shape[0] <= samples.shape[1] else 1)
    if samples.ndim != 1 or not samples.size:
        raise MediaError(f"{name} is empty, or not of shape (samples,) or (channels, samples): got {samples.shape}")
    samples = samples.astype(np.float32)
    if not np.isfinite(samples).all():
        raise MediaError(f"{name} has samples that are NaN or infinite: repair or replace it")
    return samples if rate == sampling_rate else _resample(samples, int(rate), sampling_rate)


def _decode_audio(source: Any, name: str) -> tuple[np.ndarray, int]:
    try:
        import soundfile
    except ImportError:
        return _decode_audio_av(source, name)
    try:
        with soundfile.SoundFile(source) as file:
            if file.frames > MAX_SECONDS * file.samplerate:
                raise MediaError(f"{name} is longer than {MAX_SECONDS} s: cut it")
            return file.read(dtype="float32", always_2d=True).T, file.samplerate
    except soundfile.SoundFileError:
        if hasattr(source, "seek"):
            source.seek(0)
        return _decode_audio_av(source, name)


def _decode_audio_av(source: Any, name: str) -> tuple[np.ndarray, int]:
    with _opened(source, name) as container:
        if not container.streams.audio:
            raise MediaError(f"{name} has no audio stream: leave it out, or give a file with sound")
        stream = container.streams.audio[0]
        rate = stream.codec_context.sample_rate
        pieces: list[np.ndarray] = []
        total = 0
        for frame in container.decode(stream):
            piece = frame.to_ndarray()
            if not frame.format.is_planar:
                piece = piece.reshape(-1, len(frame.layout.channels)).T
            if np.issubdtype(piece.dtype, np.integer):
                piece = piece.astype(np.float32) / -float(np.iinfo(piece.dtype).min)
            pieces.append(piece.mean(0))
            total += len(pieces[-1])
            if total > MAX_SECONDS * rate:
                raise MediaError(f"{name} is longer than {MAX_SECONDS} s: cut it")
        return np.concatenate(pieces) if pieces else np.zeros(0, np.float32), rate


def _resample(samples: np.ndarray, rate: int, wanted: int) -> np.ndarray:
    av = _av()
    resampler = av.AudioResampler(format="flt", layout="mono", rate=wanted)
    frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples[None]), format="flt", layout="mono")
    frame.sample_rate = rate
    pieces = [piece.to_ndarray()[0] for part in (frame, None) for piece in resampler.resample(part)]
    return np.concatenate(pieces)


# ---------------------------------------------------------------------- video


def load_video(value: Any, num_frames: int) -> np.ndarray:
    """`num_frames` RGB frames: uint8 (num_frames, H, W, 3), sampled evenly.

    Of n frames, those of number floor((k + 1/2) n / num_frames) are taken; a shorter clip repeats some.

    Args:
        value: path, bytes, {"bytes", "path"}, array (F, H, W, 3) or (F, 3, H, W), or a list of images.

    Raises:
        MediaError: missing, damaged, without a video stream, without frames, frames of different sizes.
    """
    if num_frames < 1:
        raise ValueError(f"num_frames={num_frames} is not valid; it must be 1 or more")
    if isinstance(value, str | os.PathLike | bytes | bytearray | dict):
        source, name = _source(value, "video")
        return _decode_video(source, name, num_frames)
    if hasattr(value, "get_frames_at"):  # a decoder of `datasets`
        taken = value.get_frames_at(frame_places(len(value), num_frames)).data
        return _numpy(taken).transpose(0, 2, 3, 1)
    frames = list(value)
    if not frames:
        raise MediaError("the video has no frames")
    taken = {k: np.asarray(load_image(frames[k])) for k in set(frame_places(len(frames), num_frames))}
    if len({frame.shape for frame in taken.values()}) > 1:
        raise MediaError("the frames of the video differ in size: bring them to one size")
    return np.stack([taken[k] for k in frame_places(len(frames), num_frames)])


def frame_places(count: int, num_frames: int) -> list[int]:
    """Which of `count` frames are taken, `num_frames` numbers from 0, not falling."""
    return [(2 * k + 1) * count // (2 * num_frames) for k in range(num_frames)]


def _decode_video(source: Any, name: str, num_frames: int) -> np.ndarray:
    # Two passes: what a container says of its length is often missing or wrong, and all frames would not fit.
    with _opened(source, name) as container:
        count = sum(1 for _ in _frames(container, name))
    if not count:
        raise MediaError(f"{name} has no frames that can be read: replace it")
    if hasattr(source, "seek"):
        source.seek(0)
    places = frame_places(count, num_frames)
    taken: dict[int, np.ndarray] = {}
    with _opened(source, name) as container:
        for number, frame in enumerate(_frames(container, name)):
            if number in places:
                taken[number] = frame.to_ndarray(format="rgb24")
            if number >= places[-1]:
                break
    first = taken[places[0]]
    for number, picture in taken.items():
        if picture.shape != first.shape:
            taken[number] = np.asarray(Image.fromarray(picture).resize((first.shape[1], first.shape[0])))
    return np.stack([taken[place] for place in places])


def _frames(container: Any, name: str) -> Iterator[Any]:
    if not container.streams.video:
        raise MediaError(f"{name} has no video stream: leave it out, or give a file with pictures")
    stream = container.streams.video[0]
    stream.thread_type = "AUTO"
    if stream.width * stream.height > MAX_PIXELS:
        raise MediaError(f"{name} has frames of {stream.width} x {stream.height} pixels, over {MAX_PIXELS}")
    for number, frame in enumerate(container.decode(stream)):
        if number >= MAX_FRAMES:
            raise MediaError(f"{name} has more than {MAX_FRAMES} frames: cut it")
        yield frame


# ---------------------------------------------------------------------- shared


@contextmanager
def _opened(source: Any, name: str) -> Iterator[Any]:
    av = _av()
    try:
        with av.open(source) as container:
            yield container
    except MediaError:
        raise
    except (av.FFmpegError, OSError, ValueError, IndexError) as error:
        raise MediaError(f"{name} is no media file that can be read, or is cut off: replace it ({error})") from error


def _av() -> Any:
    try:
        import av
    except ImportError as error:
        raise ImportError("decoding this needs PyAV: pip install av") from error
    return av


def _source(value: Any, kind: str) -> tuple[Any, str]:
    """What a decoder opens, a path or a file of bytes, and what to call it in a message."""
    path, data = None, value
    if isinstance(value, dict):
        path, data = value.get("path"), value.get("bytes")
        if data is None:
            data = path
    if data is None:
        raise MediaError(f"the {kind} is missing: it has neither bytes nor a path")
    if isinstance(data, str | os.PathLike):
        if not Path(data).is_file():
            raise MediaError(f"there is no {kind} file {str(data)!r}: look at the path")
        return str(data), f"the {kind} {str(data)!r}"
    if not data:
        raise MediaError(f"the {kind} is empty: it has no bytes")
    return io.BytesIO(data), f"the {kind} {path!r}" if path else f"the {kind}"


def _numpy(value: Any) -> np.ndarray:
    return value.detach().cpu().numpy() if hasattr(value, "detach") else np.asarray(value)
