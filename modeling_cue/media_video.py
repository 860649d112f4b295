"""Video from whatever a user or a data set has at hand."""

from typing import Any, BinaryIO, Protocol, runtime_checkable

import numpy as np
import torch
from PIL import Image

from .media_files import FILES, MediaError, import_av, open_container, open_source
from .media_image import load_image

MAX_FRAME_PIXELS = 36_000_000  # of a video's frame: 8K and a little
MAX_FRAMES = 250_000  # of a video


@runtime_checkable
class _VideoDecoder(Protocol):
    """Video that `datasets` hands out where torchcodec works."""

    def __len__(self) -> int: ...

    def get_frames_at(self, indices: list[int]) -> Any: ...


def load_video(value: Any, num_frames: int) -> np.ndarray:
    """`num_frames` RGB frames: uint8 (num_frames, H, W, 3), sampled evenly, turned as the file says.

    Of n frames, those of number floor((k + 1/2) n / num_frames) are taken; a shorter clip repeats some. Frames of
    another size than the first that is taken are resized to it.

    Args:
        value: path, bytes, open binary file, {"bytes", "path"}, array (F, H, W, 3) or (F, 3, H, W), or a list of
            images.

    Raises:
        MediaError: missing, damaged, without a video stream, without frames, over 250,000 frames or over 8K.
    """
    if num_frames < 1:
        raise ValueError(f"num_frames={num_frames} is not valid; it must be 1 or more")
    if isinstance(value, FILES):
        with open_source(value, "video") as (file, name):
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
    return _clip({place: np.asarray(load_image(value[place])) for place in set(places)}, places)


def frame_places(count: int, num_frames: int) -> list[int]:
    """Which of `count` frames are taken, `num_frames` numbers from 0, not falling."""
    return [(2 * k + 1) * count // (2 * num_frames) for k in range(num_frames)]


def _clip(taken: dict[int, np.ndarray], places: list[int]) -> np.ndarray:
    """The frames of these places as one clip, each of the size of the first."""
    height, width = taken[places[0]].shape[:2]
    for place, frame in taken.items():
        if frame.shape[:2] != (height, width):
            taken[place] = np.asarray(Image.fromarray(frame).resize((width, height)))
    return np.stack([taken[place] for place in places])


def _decode_video(file: BinaryIO, name: str, num_frames: int) -> np.ndarray:
    # All frames would not fit in memory, so their number comes first. What a container says of it is often missing,
    # then packets are counted, which decodes nothing; or wrong, and only then frames are decoded twice.
    with open_container(file, name) as container:
        stream = _pictures(container, name)
        if expected := stream.frames:
            taken, count = _take(container, stream, name, frame_places(expected, num_frames))
        else:
            expected = sum(1 for packet in container.demux(stream) if packet.size)
            taken, count = _take_anew(file, name, frame_places(expected, num_frames))
    if not count:
        raise MediaError(f"{name} has no frames that can be read: replace it")
    places = frame_places(count, num_frames)
    if count != expected:
        taken, _ = _take_anew(file, name, places)
    return _clip(taken, places)


def _take_anew(file: BinaryIO, name: str, places: list[int]) -> tuple[dict[int, np.ndarray], int]:
    file.seek(0)
    with open_container(file, name) as container:
        return _take(container, _pictures(container, name), name, places)


def _take(container: Any, stream: Any, name: str, places: list[int]) -> tuple[dict[int, np.ndarray], int]:
    """The frames of these numbers, and how many frames there are."""
    taken, count = {}, 0
    # One for all frames, as each sets up tables; on one thread, as starting others takes longer than most frames do.
    reformatter = import_av().video.reformatter.VideoReformatter()
    for frame in container.decode(stream):
        if count >= MAX_FRAMES:
            raise MediaError(f"{name} has more than {MAX_FRAMES:,} frames: cut it")
        if count in places:
            alpha = any(component.is_alpha for component in frame.format.components)
            pixels = reformatter.reformat(frame, format="rgba" if alpha else "rgb24", threads=1).to_ndarray()
            if alpha:  # laid over white, as in an image
                pixels = np.asarray(load_image(pixels))
            taken[count] = np.ascontiguousarray(np.rot90(pixels, round(frame.rotation / 90)))
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
