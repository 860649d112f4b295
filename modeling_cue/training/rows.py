"""The values of a row: which columns hold what, captions and media as training wants them, what a broken row does."""

import hashlib
import logging
import multiprocessing
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from datasets import Audio, DownloadConfig, Image, Value, Video
from datasets.download.streaming_download_manager import xopen

logger = logging.getLogger(__name__)

MEDIA_FEATURES = {"image": Image, "audio": Audio, "video": Video}
BYTES_OR_PATH = ("string", "large_string", "binary", "large_binary")
# What a table of text makes of a list of captions.
LIST_AS_TEXT = re.compile(r"""[\[(]\s*(?P<mark>["']).*(?P=mark)\s*,?\s*[\])]""", re.DOTALL)
# Names that a column is known by, the most telling first.
COLUMN_NAMES = {
    "id": ("img_id", "image_id", "imgid", "cocoid", "id", "filename", "file_name"),
    "caption": ("caption", "captions", "text", "sentence", "sentences"),
    "image": ("image", "img", "image_path"),
    "audio": ("audio", "audio_path"),
    "video": ("video", "video_path"),
    "split": ("split",),
}


class DataError(ValueError):
    """Data that cannot be used as it is; the message says what to do next."""


class BadRowError(DataError):
    """A row that cannot be used; the message names it."""


class BadRows:
    """What a broken row does: stops the run, or is left out, logged by its id and counted; never silent.

    The count is shared with the worker processes of a data loader. A row that is met again counts again.

    Args:
        policy: "raise" or "skip".
    """

    def __init__(self, policy: str = "raise"):
        if policy not in ("raise", "skip"):
            raise ValueError(f"on_bad_row={policy!r} is not valid; it must be raise or skip")
        self.policy = policy
        self._count = multiprocessing.get_context("spawn").Value("q", 0)  # for workers started in any way

    @property
    def count(self) -> int:
        """How many rows were left out so far, in this process and its workers."""
        return self._count.value

    def report(self, row_id: str, reason: str) -> None:
        """Notes that the row is broken.

        Raises:
            BadRowError: with policy "raise".
        """
        if self.policy == "raise":
            raise BadRowError(
                f"row {row_id!r}: {reason}. Mend or remove the row, or set on_bad_row to skip (--on_bad_row skip) to "
                "leave such rows out and count them"
            )
        with self._count.get_lock():
            self._count.value += 1
        logger.warning("left out row %r: %s", row_id, reason)


@dataclass(frozen=True)
class Columns:
    """The names of a source's columns; None is found by itself where a column has a usual name."""

    caption: str | None = None
    image: str | None = None
    audio: str | None = None
    video: str | None = None
    id: str | None = None
    split: str | None = None

    @property
    def media(self) -> dict[str, str]:
        """Column by modality, of the modalities that have one, in the order image, audio, video."""
        named = {modality: getattr(self, modality) for modality in MEDIA_FEATURES}
        return {modality: column for modality, column in named.items() if column}

    def find(self, present: Sequence[str], modalities: Sequence[str], source: str, paired: bool = True) -> "Columns":
        """These columns with what is None looked up among the columns `present`.

        Args:
            modalities: media that are wanted; others stay None unless they were named.
            paired: captions are needed, and a medium to match them with; else any of the modalities is enough, and
                captions are looked for only where text is among them.

        Raises:
            DataError: a named column is missing, or there are no captions, or nothing to match them with.
        """
        found = {field.name: self._one(field.name, present, modalities, source) for field in fields(self)}
        if not paired and self.caption is None and "text" not in modalities:
            found["caption"] = None
        columns = Columns(**found)
        there = f"its columns are: {', '.join(present)}"
        if not paired:
            if columns.caption is None and not columns.media:
                roles = ["caption" if modality == "text" else modality for modality in modalities]
                looked = ", ".join(name for role in roles for name in COLUMN_NAMES[role])
                raise DataError(
                    f"{source} has no column of {' or '.join(modalities)} (looked for {looked}); {there}. Name the "
                    f"one that holds it with {' or '.join(f'{role}_column' for role in roles)}"
                )
            return columns
        if columns.caption is None:
            raise DataError(
                f"{source} has no column of captions (looked for {', '.join(COLUMN_NAMES['caption'])}); {there}. Name "
                "the one that holds them with caption_column (--caption_column NAME)"
            )
        if not columns.media:
            wanted = [modality for modality in MEDIA_FEATURES if modality in modalities]
            looked = ", ".join(name for modality in wanted for name in COLUMN_NAMES[modality])
            raise DataError(
                f"{source} has no column of images, audio or video (looked for {looked}); {there}. Name the one that "
                "holds them with image_column, audio_column or video_column"
            )
        return columns

    def _one(self, role: str, present: Sequence[str], modalities: Sequence[str], source: str) -> str | None:
        named = getattr(self, role)
        if named is not None:
            if named not in present:
                raise DataError(
                    f"{source} has no column {named!r}, which {role}_column names; its columns are: "
                    f"{', '.join(present)}. Name one of these, or leave it out"
                )
            return named
        if role in MEDIA_FEATURES and role not in modalities:
            return None
        return next((name for name in COLUMN_NAMES[role] if name in present), None)


def check_feature(feature: Any, modality: str, column: str, source: str, local: bool) -> None:
    """A column of media holds media, bytes, or paths; paths are taken from local sources alone.

    Raises:
        DataError: it does not.
    """
    dtype = feature.dtype if isinstance(feature, Value) else ""
    stored = isinstance(feature, dict) and set(feature) == {"bytes", "path"}
    if dtype in ("string", "large_string") and not local:
        raise DataError(
            f"{source}: column {column!r} holds text, not {modality}. Paths are followed in local data only: download "
            "the repo (hf download) and give its folder"
        )
    if not isinstance(feature, MEDIA_FEATURES[modality]) and not stored and dtype not in BYTES_OR_PATH:
        raise DataError(
            f"{source}: column {column!r} holds {feature}, not {modality}; name the one that does with "
            f"{modality}_column (--{modality}_column NAME)"
        )


def captions_of(value: Any) -> list[str]:
    """The captions of a row, of any number.

    Raises:
        ValueError: none, an empty one, or not text; the message is the reason.
    """
    captions = [value] if isinstance(value, str) else value
    if captions is None or (isinstance(captions, Sequence) and not len(captions)):
        raise ValueError("it has no caption")
    if not isinstance(captions, Sequence) or isinstance(captions, bytes):
        raise ValueError(f"its captions are of type {type(captions).__name__}, not text or a list of texts")
    for number, caption in enumerate(captions, 1):
        if caption is not None and not isinstance(caption, str):
            raise ValueError(f"caption {number} of {len(captions)} is of type {type(caption).__name__}, not text")
        if not (caption and caption.strip()):
            raise ValueError(f"caption {number} of {len(captions)} is empty")
        if LIST_AS_TEXT.fullmatch(caption.strip()):
            raise ValueError(
                f"caption {number} of {len(captions)} is a list written as text: save lists as parquet or jsonl, or "
                "one caption a row"
            )
    return list(captions)


def media_of(value: Any, name: str, roots: Sequence[Path], token: str | bool | None = None) -> dict[str, Any]:
    """An undecoded medium as {"bytes", "path"}: one of the two is set, and a path is that of a file that is there.

    Args:
        value: a `datasets` value, bytes, or a path; a relative path is relative to the first of `roots`.
        roots: the folders that a path may lead into.

    Raises:
        ValueError: no medium, no such file, or a path that leaves the folders; the message is the reason.
    """
    if isinstance(value, bytes):
        return {"bytes": value, "path": None}
    if isinstance(value, dict) and value.get("bytes") is not None:
        return {"bytes": value["bytes"], "path": value.get("path")}
    path = value.get("path") if isinstance(value, dict) else value
    if not path:
        raise ValueError(f"it has no {name}")
    if not isinstance(path, str):
        raise ValueError(f"its {name} is of type {type(path).__name__}, not a path, bytes or a value of datasets")
    if "://" in path:
        return {"bytes": _read_remote(path, name, roots, token), "path": path}
    return {"bytes": None, "path": _local_file(path, name, roots)}


def media_id(value: Any, roots: Sequence[Path]) -> str:
    """An identity by medium: the path within the data, or the hash of the bytes; "" where there is none."""
    if isinstance(value, dict):
        value = value["path"] if value.get("bytes") is None else value["bytes"]
    if not value:
        return ""
    if isinstance(value, str):
        # The snapshot of a hub repo, in the local cache or by its address: what follows is the path within it.
        within = re.split(r"(?:snapshots/|@)[0-9a-f]{40}/", value)[-1]
        return Path(os.path.relpath(os.path.join(roots[0], within), roots[0])).as_posix()
    return hashlib.blake2b(value, digest_size=16).hexdigest()


def _local_file(path: str, name: str, roots: Sequence[Path]) -> str:
    # Without following links: a link that the owner of the folder put there is meant, "../" in a table may not be.
    full = Path(os.path.normpath(roots[0] / path))
    if not any(full.is_relative_to(root) for root in roots):
        raise ValueError(f"the path of its {name}, {path!r}, leaves the data folder {str(roots[0])!r}")
    if not full.is_file():
        raise ValueError(f"its {name} {path!r} is not there (looked for {str(full)!r})")
    return str(full)


def _read_remote(path: str, name: str, roots: Sequence[Path], token: str | bool | None) -> bytes:
    container = path.split("::")[-1]
    if not container.startswith("hf://datasets/"):
        _local_file(container.removeprefix("file://"), name, roots)
    with xopen(path, "rb", download_config=DownloadConfig(token=token)) as file:
        return file.read()
