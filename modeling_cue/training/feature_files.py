"""The files of a feature cache: Arrow files of rows (shards), each written aside and renamed when it is complete."""

import errno
import os
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path
from uuid import uuid4

import numpy as np
import pyarrow as pa

from .gathering import this_process

KEY = b"cue_features"  # of a shard's metadata: what its content depends on
ABANDONED = 3600  # seconds since the last batch went into a file that nobody will finish


class FeatureCacheError(RuntimeError):
    """The cache cannot be written; the message says what to do."""


def open_shard(path: Path, key: str) -> list[pa.RecordBatch] | None:
    """The memory-mapped rows of a shard; None where it is not there, cut off, damaged, or made from anything else."""
    try:
        reader = pa.ipc.open_file(pa.memory_map(str(path)))
        if (reader.schema.metadata or {}).get(KEY) != key.encode():
            return None
        return [reader.get_batch(i) for i in range(reader.num_record_batches)]
    except (OSError, pa.ArrowInvalid):
        return None


def shard_schema(dtype: str) -> pa.Schema:
    """Flat features of a row, null where it has no medium; `error` says why it could not be read, where it has one."""
    return pa.schema([("features", pa.large_list(pa.from_numpy_dtype(np.dtype(dtype)))), ("error", pa.string())])


class ShardWriter:
    """Writes the shards of one table, and knows how much there is left to write.

    Args:
        cache: the folder that messages name. what: what the features are of. rows: how many this process will write.
    """

    def __init__(self, cache: Path, what: str, dtype: str, rows: int):
        self.cache, self.what, self.schema = cache, what, shard_schema(dtype)
        self.left, self.bytes_per_row = rows, 0.0

    def write(self, path: Path, key: str, batches: Iterable[pa.RecordBatch]) -> None:
        """Writes one shard; nothing stands under its name before it is complete and on disk.

        Raises:
            FeatureCacheError: the disk is full or too small for what is left, or the folder cannot be written.
        """
        batches = iter(batches)
        first = next(batches)
        self._weigh(first)
        aside = path.with_name(f".{uuid4().hex}.tmp")
        with self._explained():
            path.parent.mkdir(parents=True, exist_ok=True)
            file = aside.open("wb")
        try:
            with self._explained():
                writer = pa.ipc.new_file(file, self.schema.with_metadata({KEY: key}))
            rows = 0
            for batch in chain([first], batches):
                self._weigh(batch)
                with self._explained():
                    writer.write_batch(batch)
                rows += batch.num_rows
            with self._explained():
                writer.close()
                file.flush()
                os.fsync(file.fileno())
                file.close()
                os.replace(aside, path)
            self.left -= rows  # not before: what waits in a buffer may still find the disk full
        finally:
            with suppress(OSError):  # what is in the buffer may not fit either
                file.close()
            aside.unlink(missing_ok=True)

    def _weigh(self, batch: pa.RecordBatch) -> None:
        """Refuses to go on with what cannot fit, whenever rows turn out larger than any before."""
        size = batch.get_total_buffer_size() / batch.num_rows
        if size > self.bytes_per_row:
            self.bytes_per_row = size
            if size * self.left > _free(self.cache):
                raise self._no_space()

    def _no_space(self) -> FeatureCacheError:
        needed = self.bytes_per_row * self.left
        known = f"about {readable_size(needed)}" if needed else "an unknown size"
        each = " by each process" if this_process()[1] > 1 else ""
        return FeatureCacheError(
            f"no space for {self.what} in {self.cache}: {known} more to write{each}, "
            f"{readable_size(_free(self.cache))} free. Free some space, name a folder on a larger disk "
            "(--feature_cache DIR), store half of it (--feature_dtype float16), or run the towers each time "
            "(--feature_cache none); what is finished is kept and used"
        )

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise self._no_space() from error
            raise FeatureCacheError(
                f"{self.what} cannot be written to {self.cache} ({error}): name a folder that you may write to "
                "(--feature_cache DIR), or run the towers each time (--feature_cache none)"
            ) from error


def sweep(folder: Path) -> None:
    """Removes what killed processes left half-written."""
    for file in folder.glob(".*.tmp"):
        with suppress(OSError):
            if time.time() - file.stat().st_mtime > ABANDONED:
                file.unlink()


def readable_size(count: float) -> str:
    """A number of bytes as people write it."""
    for unit in ("bytes", "KB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def _free(folder: Path) -> int:
    return shutil.disk_usage(next(f for f in (folder, *folder.absolute().parents) if f.is_dir())).free
