"""What all media have in common: the files, bytes and arrays that they come in, and the error they raise.

A value is a path, bytes, an open binary file, a `datasets` value ({"bytes", "path"}), or decoded already.
"""

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, Protocol, runtime_checkable

import numpy as np
import torch


@runtime_checkable
class OpenFile(Protocol):
    """What `open(path, "rb")` gives, io.BytesIO and their like."""

    def read(self) -> Any: ...

    def seekable(self) -> bool: ...

    def seek(self, offset: int, /) -> Any: ...


FILES = (str, os.PathLike, bytes, bytearray, memoryview, dict, OpenFile)
# The modality that the suffix of a file tells.
SUFFIXES = {
    "text": (".txt",),
    "image": (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm"),
    "audio": (".wav", ".flac", ".mp3", ".ogg", ".oga", ".opus", ".m4a", ".aac", ".aif", ".aiff"),
    "video": (".mp4", ".mov", ".mkv", ".avi", ".webm", ".m4v", ".mpg", ".mpeg"),
}
MODALITY_OF_SUFFIX = {suffix: modality for modality, suffixes in SUFFIXES.items() for suffix in suffixes}


class MediaError(ValueError):
    """An image, audio or video that cannot be read; the message says which and what to do."""


@contextmanager
def open_container(file: BinaryIO, name: str) -> Iterator[Any]:
    av = import_av()
    try:
        # Playlists name other files and addresses: none of them may be opened.
        options = {"protocol_whitelist": "none"}
        with av.open(file, options=options, metadata_errors="ignore") as container:
            yield container
    except MediaError:
        raise
    except Exception as error:  # demuxers and decoders raise nearly anything on damaged files
        raise MediaError(f"{name} is no media file that can be read, or is cut off: replace it ({error})") from error


def import_av() -> Any:
    try:
        import av
    except ImportError as error:
        raise ImportError("decoding this needs PyAV: pip install av") from error
    return av


@contextmanager
def open_source(value: Any, kind: str) -> Iterator[tuple[BinaryIO, str]]:
    """An open file with the value's bytes, and what to call it in a message."""
    data, path = (value.get("bytes"), value.get("path")) if isinstance(value, dict) else (value, None)
    data = path if data is None else data
    if data is None:
        raise MediaError(f"the {kind} is missing: it has neither bytes nor a path")
    if isinstance(data, OpenFile):
        data = _whole(data, kind)
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


def _whole(file: OpenFile, kind: str) -> bytes:
    """All that is in an open file, wherever it stands: so that it can be given twice, or just after writing."""
    try:
        if file.seekable():
            file.seek(0)
        data = file.read()
    except (OSError, ValueError) as error:  # ValueError: it is closed, or text that is none
        raise MediaError(f"the {kind} is a file not open for reading: open(path, 'rb') it ({error})") from error
    if not isinstance(data, bytes | bytearray):
        raise MediaError(f"the {kind} is an open file that gives no bytes: open(path, 'rb') does")
    return bytes(data)


def to_array(value: Any, kind: str) -> np.ndarray:
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
