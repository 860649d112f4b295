"""Media as a browser shows them: thumbnails, sounds and clips of formats that it knows."""

import base64
import io
import os
import tempfile
import wave
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from modeling_cue.media_audio import load_audio
from modeling_cue.media_files import MediaError
from modeling_cue.media_image import load_image
from modeling_cue.media_video import load_video

# Files that every browser plays as they are.
PLAYED = {
    "audio": (".wav", ".mp3", ".flac", ".ogg", ".oga", ".opus", ".m4a", ".aac"),
    "video": (".mp4", ".m4v", ".mov", ".webm"),
}
EDGE, SMALL_EDGE = 320, 64  # pixels of the longer side, in results and beside the parts of a query
FRAMES, FRAME_MILLISECONDS = 12, 150  # of a clip that no browser plays
RATE = 32_000  # Hz, of a sound that is converted


class Shelf:
    """Files for the browser by item, made when they are first asked for, in a folder that is the demo's own."""

    def __init__(self, folder: Path):
        self.folder = folder

    def file(self, name: str, kind: str, value: dict[str, Any]) -> Path | None:
        """The file that shows a medium, {"bytes", "path"}: its own where browsers play it; None where it is broken.

        Args:
            name: a name that no other medium has.
        """
        own = Path(value["path"]) if value.get("bytes") is None else None
        if own is not None and own.suffix.lower() in PLAYED.get(kind, ()):
            return own if own.is_file() else None
        path = self.folder / f"{name}{_SUFFIX[kind]}"
        if not path.exists():
            try:
                content = _MAKE[kind](value)
            except MediaError:
                return None
            # Aside and renamed: two visitors may ask for the same one.
            handle, aside = tempfile.mkstemp(dir=self.folder)
            with os.fdopen(handle, "wb") as file:
                file.write(content)
            os.replace(aside, path)
        return path


def thumbnail(kind: str, value: dict[str, Any]) -> str:
    """A small picture of an image or of a clip's middle, as a data address; "" of a sound, which has none."""
    if kind == "audio":
        return ""
    picture = load_image(value) if kind == "image" else Image.fromarray(load_video(value, 1)[0])
    return "data:image/jpeg;base64," + base64.b64encode(_jpeg(_sized(picture, SMALL_EDGE))).decode()


def _sized(picture: Image.Image, edge: int) -> Image.Image:
    """At most `edge` pixels a side; tiny pictures grow by whole factors, so that their pixels stay sharp."""
    factor = edge // max(picture.size)
    if factor > 1:
        return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)
    picture = picture.copy()
    picture.thumbnail((edge, edge))
    return picture


def _jpeg(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=88)
    return buffer.getvalue()


def _image(value: dict[str, Any]) -> bytes:
    return _jpeg(_sized(load_image(value), EDGE))


def _sound(value: dict[str, Any]) -> bytes:
    samples = load_audio(value, RATE)
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes((np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes())
    return buffer.getvalue()


def _clip(value: dict[str, Any]) -> bytes:
    frames = [_sized(Image.fromarray(frame), EDGE) for frame in load_video(value, FRAMES)]
    buffer = io.BytesIO()
    frames[0].save(
        buffer, "WEBP", save_all=True, append_images=frames[1:], duration=FRAME_MILLISECONDS, loop=0, method=0
    )
    return buffer.getvalue()


_SUFFIX = {"image": ".jpg", "audio": ".wav", "video": ".webp"}
_MAKE = {"image": _image, "audio": _sound, "video": _clip}
