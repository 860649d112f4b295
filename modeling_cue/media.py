"""Decoding of images, audio and video from whatever a user or a data set has at hand.

A value is a path, bytes, a `datasets` value ({"bytes", "path"}, or {"array", "sampling_rate"} of audio), or decoded
already: a Pillow image, an array or tensor, a list of frames. All that cannot be read raises `MediaError`.
"""

import io
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, Protocol, runtime_checkable

import numpy as np
import torch
from PIL import Image, ImageOps

MAX_PIXELS = 80_000_000  # of an image: more is taken for a decompression bomb
MAX_FRAME_PIXELS = 36_000_000  # of a video's frame: 8K and a little
MAX_ASPECT = 200  # long side to short side: resizing the short side would blow up the long one
MAX_SECONDS = 3600  # of sound at up to 48 kHz; higher rates have the same number of samples
MAX_FRAMES = 250_000  # of a video
FILES = (str, os.PathLike, bytes, bytearray, memoryview, dict)


class MediaError(ValueError):
    """An image, audio or video that cannot be read; the message says which and what to do."""


@runtime_checkable
class _AudioDecoder(Protocol):
    """Sound that `datasets` hands out where torchcodec works."""

    def get_all_samples(self) -> Any: ...


@runtime_checkable
class _VideoDecoder(Protocol):
    """Video that `datasets` hands out where torchcodec works."""

    def __len__(self) -> int: ...

    def get_frames_at(self, indices: list[int]) -> Any: ...


# ---------------------------------------------------------------------- images


def load_image(value: Any) -> Image.Image:
    """An RGB image. Palette, grey, CMYK and 16-bit are converted, alpha is laid over white, EXIF turns are applied.

    Args:
        value: path, bytes, {"bytes", "path"}, Pillow image, or array (H, W), (H, W, 1|3|4), (3, H, W): uint8, uint16,
            or float in [0, 1].

    Raises:
        MediaError: missing, truncated, no image, over 80 million pixels, over 200 times as long as wide.
    """
    if isinstance(value, Image.Image):
        return _read_image(value, "the image")
    if not isinstance(value, FILES):
        return _read_image(_image_of_array(_array(value, "image")), "the image")
    with _source(value, "image") as (file, name):
        return _read_image(file, name)


def _read_image(source: Any, name: str) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            warnings.filterwarnings("ignore", category=UserWarning)  # complaints about metadata
            if isinstance(source, Image.Image):
                return _to_rgb(source, name)
            with Image.open(source) as image:
                return _to_rgb(image, name)
    except MediaError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise MediaError(f"{name} is too large to be decoded safely: shrink it ({error})") from error
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged files
        raise MediaError(f"{name} is no image that can be read, or is cut off: replace it ({error})") from error


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    # Only the header has been read so far: what is too large is refused before memory is spent on it.
    short, long = sorted(image.size)
    if not short:
        raise MediaError(f"{name} has no pixels: replace it")
    if short * long > MAX_PIXELS:
        raise MediaError(f"{name} has {image.width} x {image.height} pixels, over {MAX_PIXELS:,}: shrink it")
    if long > MAX_ASPECT * short:
        raise MediaError(f"{name} of {image.width} x {image.height} is over {MAX_ASPECT} to 1 in shape: crop it")
    image = ImageOps.exif_transpose(image)
    if image.mode == "F":
        image = _image_of_array(np.asarray(image))
    elif image.mode.startswith("I"):  # 16 bits, which some formats hand out in 32
        image = Image.fromarray(_eight_bits(np.asarray(image).clip(0, 65535)))
    if image.mode in ("LA", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _image_of_array(array: np.ndarray) -> Image.Image:
    if array.ndim == 3 and array.shape[0] in (1, 3, 4) and array.shape[-1] not in (1, 3, 4):
        array = array.transpose(1, 2, 0)
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[-1] not in (3, 4)) or 0 in array.shape:
        raise MediaError(f"an array of shape {array.shape} is no image: give (H, W), (H, W, 3) or (3, H, W)")
    if array.dtype.kind == "f":
        if not np.isfinite(array).all() or array.min() < 0 or array.max() > 1:
            raise MediaError("an image of floating point must lie in [0, 1]: scale it, or give uint8")
        array = (array * 255).round()
    elif array.dtype == np.uint16:
        array = _eight_bits(array)
    elif array.dtype != np.uint8:
        raise MediaError(f"an image array must be uint8, uint16 or float in [0, 1]; got {array.dtype}: convert it")
    return Image.fromarray(np.ascontiguousarray(array, dtype=np.uint8))


def _eight_bits(values: np.ndarray) -> np.ndarray:
    """16-bit values to 8 bits, rounded: 65535 becomes 255."""
    return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)


# ---------------------------------------------------------------------- audio


def load_audio(value: Any, sampling_rate: int, input_sampling_rate: int | None = None) -> np.ndarray:
    """Mono audio at `sampling_rate`: float32 (samples,). Silence is a sound; nothing at all is not.

    Args:
        value: path, bytes, {"bytes", "path"}, {"array", "sampling_rate"}, or an array (samples,) or
            (channels, samples), for which `input_sampling_rate` is needed: float, int16, int32 or uint8. Of two axes
            the shorter one holds the channels, which are averaged.

    Raises:
        MediaError: missing, damaged, without an audio stream, empty, NaN or infinite, no sampling rate, longer than an
            hour.
    """
    name = "the audio"
    if isinstance(value, dict) and value.get("array") is not None:
        samples, rate = _array(value["array"], "audio"), value.get("sampling_rate") or input_sampling_rate
    elif isinstance(value, FILES):
        with _source(value, "audio") as (file, name):
            samples, rate = _decode_audio(file, name)
    elif isinstance(value, _AudioDecoder):
        decoded = value.get_all_samples()
        samples, rate = _array(decoded.data, "audio"), decoded.sample_rate
    else:
        samples, rate, name = _array(value, "audio"), input_sampling_rate, "the audio array"
    if rate is None:
        raise MediaError(f"{name} comes without its sampling rate: pass sampling_rate=")
    if rate < 1:
        raise MediaError(f"{name} has sampling rate {rate}: it must be at least 1 Hz")
    samples = _float(samples, name)
    if samples.ndim == 2:
        samples = samples.mean(0 if samples.shape[0] <= samples.shape[1] else 1)
    if samples.ndim != 1 or not samples.size:
        raise MediaError(f"{name} is empty, or not of shape (samples,) or (channels, samples): got {samples.shape}")
    if not np.isfinite(samples).all():
        raise MediaError(f"{name} has samples that are NaN or infinite: repair or replace it")
    _check_length(samples.size, rate, name)
    resampled = samples if rate == sampling_rate else _resample(samples, int(rate), sampling_rate)
    if not resampled.size:
        raise MediaError(
            f"{name} of {samples.size} samples is too short to be brought to {sampling_rate} Hz: leave it out"
        )
    return resampled


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
    with _opened(file, name) as container:
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
    av = _av()
    resampler = av.AudioResampler(format="flt", layout="mono", rate=wanted)
    pieces = [np.zeros(0, np.float32)]
    for start in range(0, samples.size, 2**20):
        piece = np.ascontiguousarray(samples[None, start : start + 2**20])
        frame = av.AudioFrame.from_ndarray(piece, format="flt", layout="mono")
        frame.sample_rate = rate
        pieces += [part.to_ndarray()[0] for part in resampler.resample(frame)]
    pieces += [part.to_ndarray()[0] for part in resampler.resample(None)]
    return np.concatenate(pieces)


# ---------------------------------------------------------------------- video


def load_video(value: Any, num_frames: int) -> np.ndarray:
    """`num_frames` RGB frames: uint8 (num_frames, H, W, 3), sampled evenly, turned as the file says.

    Of n frames, those of number floor((k + 1/2) n / num_frames) are taken; a shorter clip repeats some.

    Args:
        value: path, bytes, {"bytes", "path"}, array (F, H, W, 3) or (F, 3, H, W), or a list of images.

    Raises:
        MediaError: missing, damaged, without a video stream, without frames, over 250,000 frames or over 8K.
    """
    if num_frames < 1:
        raise ValueError(f"num_frames={num_frames} is not valid; it must be 1 or more")
    if isinstance(value, FILES):
        with _source(value, "video") as (file, name):
            return _decode_video(file, name, num_frames)
    if isinstance(value, _VideoDecoder):
        value = value.get_frames_at(frame_places(len(value), num_frames)).data
    if isinstance(value, np.ndarray | torch.Tensor):
        if value.ndim != 4:
            raise MediaError(f"an array of shape {tuple(value.shape)} is no video: give (F, H, W, 3) or (F, 3, H, W)")
    elif not isinstance(value, list | tuple):
        raise MediaError(f"a {type(value).__name__} is no video: give a path, bytes, an array, or a list of images")
    if not len(value):
        raise MediaError("the video has no frames: leave it out, or give at least one")
    places = frame_places(len(value), num_frames)
    taken = {place: np.asarray(load_image(value[place])) for place in set(places)}
    if len({frame.shape for frame in taken.values()}) > 1:
        raise MediaError("the frames of the video differ in size: bring them to one size")
    return np.stack([taken[place] for place in places])


def frame_places(count: int, num_frames: int) -> list[int]:
    """Which of `count` frames are taken, `num_frames` numbers from 0, not falling."""
    return [(2 * k + 1) * count // (2 * num_frames) for k in range(num_frames)]


def _decode_video(file: BinaryIO, name: str, num_frames: int) -> np.ndarray:
    # What a container says of its length is often missing or wrong, and all frames would not fit in memory: packets
    # are counted first, which decodes nothing, and only where they are not the frames are these decoded twice.
    with _opened(file, name) as container:
        packets = sum(1 for packet in container.demux(_pictures(container, name)) if packet.size)
    taken, count = _take(file, name, frame_places(packets, num_frames))
    if not count:
        raise MediaError(f"{name} has no frames that can be read: replace it")
    places = frame_places(count, num_frames)
    if count != packets:
        taken, _ = _take(file, name, places)
    height, width = taken[places[0]].shape[:2]
    same = {k: Image.fromarray(frame).resize((width, height)) for k, frame in taken.items()}
    return np.stack([np.asarray(same[place]) for place in places])


def _take(file: BinaryIO, name: str, places: list[int]) -> tuple[dict[int, np.ndarray], int]:
    """The frames of these numbers, and how many frames there are."""
    file.seek(0)
    taken, count = {}, 0
    with _opened(file, name) as container:
        for frame in container.decode(_pictures(container, name)):
            if count >= MAX_FRAMES:
                raise MediaError(f"{name} has more than {MAX_FRAMES:,} frames: cut it")
            if count in places:
                turned = np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90))
                taken[count] = np.ascontiguousarray(turned)
            count += 1
    return taken, count


def _pictures(container: Any, name: str) -> Any:
    """The video stream; a cover picture in a sound file is none."""
    streams = [s for s in container.streams.video if not s.disposition & type(s.disposition).attached_pic]
    if not streams:
        raise MediaError(f"{name} has no video stream: leave it out, or give a file with pictures")
    stream = streams[0]
    if stream.width * stream.height > MAX_FRAME_PIXELS:
        raise MediaError(f"{name} has frames of {stream.width} x {stream.height} pixels, over 8K: shrink it")
    stream.codec_context.options = {"max_pixels": str(MAX_FRAME_PIXELS)}  # frames may be larger than the header says
    stream.thread_type = "AUTO"
    return stream


# ---------------------------------------------------------------------- shared


@contextmanager
def _opened(file: BinaryIO, name: str) -> Iterator[Any]:
    av = _av()
    try:
        # Playlists name other files and addresses: none of them may be opened.
        options = {"protocol_whitelist": "none"}
        with av.open(file, options=options, metadata_errors="ignore") as container:
            yield container
    except MediaError:
        raise
    except Exception as error:  # demuxers and decoders raise nearly anything on damaged files
        raise MediaError(f"{name} is no media file that can be read, or is cut off: replace it ({error})") from error


def _av() -> Any:
    try:
        import av
    except ImportError as error:
        raise ImportError("decoding this needs PyAV: pip install av") from error
    return av


@contextmanager
def _source(value: Any, kind: str) -> Iterator[tuple[BinaryIO, str]]:
    """An open file with the value's bytes, and what to call it in a message."""
    data, path = (value.get("bytes"), value.get("path")) if isinstance(value, dict) else (value, None)
    data = path if data is None else data
    if data is None:
        raise MediaError(f"the {kind} is missing: it has neither bytes nor a path")
    if isinstance(data, bytes | bytearray | memoryview):
        if not len(data):
            raise MediaError(f"the {kind} is empty: it has no bytes")
        yield io.BytesIO(data), f"the {kind} {path!r}" if path else f"the {kind}"
        return
    called = str(data) if len(str(data)) < 300 else str(data)[:300] + "..."
    if not os.path.isfile(data):
        raise MediaError(f"there is no {kind} file {called!r} here: look at the path (addresses are not fetched)")
    try:
        file = open(data, "rb")  # noqa: SIM115
    except OSError as error:
        raise MediaError(f"the {kind} file {called!r} cannot be opened: look at its permissions ({error})") from error
    with file:
        yield file, f"the {kind} {called!r}"


def _array(value: Any, kind: str) -> np.ndarray:
    """Numbers as an array; torch's bfloat16, which numpy lacks, as float32."""
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu()
        return (value.float() if value.is_floating_point() else value).numpy()
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise MediaError(f"a {type(value).__name__} of uneven parts is no {kind}: give one array ({error})") from error
    if array.dtype.kind not in "buif":
        raise MediaError(f"a {type(value).__name__} is no {kind}: give a path, bytes, or an array")
    return array
