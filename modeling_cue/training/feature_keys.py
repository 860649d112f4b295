"""What the features of frozen towers depend on, as keys: the tower, how its input is prepared, and the data.

Every key is a digest of content. Reading all media to compute one takes long, so that digests of data on disk are
noted beside the cache, each under the identity of the files it was computed from: paths, inodes, sizes, times of the
last change. Whatever writes to a file sets the time of its inode, so that a note is never older than the data.
"""

import hashlib
import json
import os
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset
from datasets.fingerprint import Hasher
from datasets.table import ConcatenationTable, MemoryMappedTable

from .fingerprint import kept, part_settings
from .gathering import this_process, together

FORMAT = 1  # of the files; another one reads none of the old ones
# What prepares the input of each modality: the part of the processor, and the settings of its own.
PREPARED_BY: dict[str, tuple[str, tuple[str, ...]]] = {
    "text": ("tokenizer", ("text_prefix", "text_padding", "max_text_length")),
    "image": ("image_processor", ("fast_images", "jpeg_draft")),
    "audio": ("feature_extractor", ("audio_padding",)),
    "video": ("frame_image_processor", ("num_frames", "fast_images", "jpeg_draft")),
}
SHARD_ROWS, SHARDS = 256, 256
# Seconds within which a file could change again without a later time: such files are not noted.
SETTLED = 2.0


def tower_key(model: Any, processor: Any, modality: str, weights: str, **stored: Any) -> str:
    """A key over all that features of one input depend on: 32 hex digits.

    Args:
        weights: `weights_digest` of the tower. stored: how features are computed and stored.
    """
    tower = getattr(model, model.tower_name(modality))
    part, own = PREPARED_BY[modality]
    if modality == "video" and processor.frame_image_processor is None:
        part = "image_processor"
    pipeline = {"image": "pipeline", "video": "frame_pipeline"}.get(modality)
    # The configuration holds the version of transformers too, whose towers and processors may change their numbers.
    settings = {
        "format": FORMAT,
        "modality": modality,
        "weights": weights,
        "tower": [type(tower).__name__, kept(tower.config.to_dict()), tower.config._attn_implementation],
        "pooler": model.pooler_name(modality),
        "crop_audio": model.config.crop_audio,
        "prepared by": part_settings(getattr(processor, part)),
        "own settings": {name: getattr(processor, name) for name in own},
        "resized by": getattr(processor, pipeline).backend if pipeline else "",  # whose pixels differ a little
        "stored": stored,
    }
    return _digest(json.dumps(settings, sort_keys=True, default=_plain).encode())


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray) else repr(value)


def _digest(*parts: bytes) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()


# ---------------------------------------------------------------------- data


def shard_rows(count: int) -> int:
    """Rows of a shard, of `count` in all: some hundred shards at most, cut alike for numbers not far apart."""
    size = SHARD_ROWS
    while count > size * SHARDS:
        size *= 4
    return size


def shard_keys(values: Sequence[Any], notes: Path, column: Dataset | None = None) -> list[str]:
    """The digest of each shard of `values` by content. All processes share the work, and must call this together.

    Args:
        values: texts, or undecoded media. notes: the folder of notes.
        column: the data set of one column that `values` stand in, which may spare reading them.
    """
    starts = range(0, len(values), shard_rows(len(values)))
    rank, world = this_process()
    note, known = together(partial(_look_up, notes, column) if rank == 0 else _nothing)[0]
    if known is not None and len(known) == len(starts):
        return known
    keys = [""] * len(starts)
    parts = together(lambda: [_shard_key(values[s : s + starts.step]) for s in starts[rank::world]])
    for number, part in enumerate(parts):
        keys[number::world] = part
    if note is not None and rank == 0:
        # Nobody may write here who only reads the cache: then all is read again next time.
        with suppress(OSError):
            note.parent.mkdir(parents=True, exist_ok=True)
            aside = note.with_name(f".{uuid4().hex}.tmp")
            aside.write_text(json.dumps(keys))
            os.replace(aside, note)
    return keys


def _nothing() -> tuple[None, None]:
    return None, None


def _look_up(notes: Path, column: Dataset | None) -> tuple[Path | None, list[str] | None]:
    """Where the digests of a column are noted, None where they cannot be; and the digests, None where they are not."""
    identity = None if column is None else _identity(column)
    if identity is None:
        return None, None
    note = notes / f"{identity}.json"
    try:
        return note, json.loads(note.read_text())
    except (OSError, ValueError):
        return note, None


def _identity(column: Dataset) -> str | None:
    """A digest of which files hold a column; None where it lies in memory, or a file changed just now."""
    (name,) = column.column_names
    table: Any = column.data
    stored = table.column(name)
    if not pa.types.is_struct(stored.type):
        return None
    inside = pc.is_valid(pc.struct_field(stored, "bytes"))
    parts = [t for row in table.blocks for t in row] if isinstance(table, ConcatenationTable) else [table]
    mapped = all(isinstance(part, MemoryMappedTable) for part in parts if name in part.column_names)
    if not mapped and pc.any(inside).as_py():
        return None
    paths = [file["filename"] for file in column.cache_files]
    paths += pc.filter(pc.struct_field(stored, "path"), pc.invert(inside)).to_pylist()
    found = []
    latest = time.time_ns() - int(SETTLED * 1e9)
    for path in paths:
        try:
            stat = os.stat(path)
        except (OSError, TypeError):
            found.append([path])
            continue
        if max(stat.st_mtime_ns, stat.st_ctime_ns) >= latest:
            return None
        found.append([path, stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns])
    # The data set itself says which rows of its files it holds, and in what order.
    return _digest(json.dumps([FORMAT, shard_rows(len(column)), Hasher.hash(column), found]).encode())


def _shard_key(values: Sequence[Any]) -> str:
    return _digest(*(_content(value) for value in values))


def _content(value: Any) -> bytes:
    """The content of a value, or a digest of it; equal only where values are."""
    if isinstance(value, str):
        return b"text" + value.encode()
    if isinstance(value, dict) and value.get("bytes") is not None:
        return b"bytes" + hashlib.blake2b(value["bytes"]).digest()
    if isinstance(value, dict) and value.get("path"):
        path = Path(value["path"])
        try:
            with path.open("rb") as file:
                return b"file" + path.suffix.encode() + hashlib.file_digest(file, hashlib.blake2b).digest()
        except OSError:
            return b"unreadable" + str(path).encode()
    if isinstance(value, np.ndarray):
        return f"array{value.shape}{value.dtype}".encode() + hashlib.blake2b(np.ascontiguousarray(value).data).digest()
    if isinstance(value, dict):
        return b"dict" + _digest(*(_content(x) for pair in sorted(value.items()) for x in pair)).encode()
    return b"other" + Hasher.hash(value).encode()
