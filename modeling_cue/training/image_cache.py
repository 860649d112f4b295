"""Images decoded and resized once, and kept on disk: every later epoch and run reads pixels in place of files.

A cache is a folder that is named by a key over all that its content depends on, the images and how the processor
prepares them: whatever changes, another one is written. It is written aside and renamed, so that one that was cut off
is never read; processes that want the same one wait for the first.
"""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from filelock import FileLock
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from ..media_files import MediaError
from ..media_pixels import Prepared
from .rows import BadRows

PIXELS, THERE = "pixels.npy", "there.npy"


class ImageCache:
    """The images of one split by the number of their row, as `ImagePipeline.prepare` gives them.

    Pixels are memory-mapped: nothing is read before it is asked for, and worker processes share what was read. An
    image that could not be read comes as it stands in the data, so that it is met, reported and counted as ever.
    """

    def __init__(self, folder: Path, images: Dataset):
        self.folder, self.images = folder, images
        self._open()

    def _open(self) -> None:
        self._pixels = np.load(self.folder / PIXELS, mmap_mode="r")
        self._there = np.load(self.folder / THERE)

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "images": self.images}  # to another process goes the name, not the pixels

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()

    def __len__(self) -> int:
        return len(self._there)

    def __getitem__(self, row: int) -> Any:
        if not self._there[row]:
            return self.images[row]["image"]
        return Prepared(torch.from_numpy(np.array(self._pixels[row])))


def build_image_cache(
    processor: Any, dataset: Dataset, folder: str | Path, bad_rows: BadRows | None = None, num_workers: int = 0
) -> ImageCache:
    """Decodes and resizes every image of `dataset`, or finds what an earlier run kept in `folder`.

    Args:
        dataset: rows with `id` and an undecoded `image`.
        bad_rows: with policy "raise", the first image that cannot be read stops here; else it is met in its batch.
        num_workers: processes that decode.

    Raises:
        ValueError: the tower's own image processor is needed, or the disk has no room. BadRowError: see `bad_rows`.
    """
    if processor.pipeline.spec is None:
        raise ValueError(
            f"image_cache: images as {type(processor.image_processor).__name__} prepares them cannot be cached, since "
            "fast_images is off or its settings are more than CUE can do itself: leave out image_cache"
        )
    images, root = dataset.select_columns(["image"]), Path(folder)
    root.mkdir(parents=True, exist_ok=True)
    path = root / f"images-{_key(processor, images)}"
    with FileLock(f"{path}.lock"):
        if not path.is_dir():
            aside = path.with_suffix(".part")
            shutil.rmtree(aside, ignore_errors=True)  # of a run that was cut off
            aside.mkdir()
            try:
                _fill(aside, processor, dataset, bad_rows or BadRows("skip"), num_workers)
            except BaseException:
                shutil.rmtree(aside, ignore_errors=True)
                raise
            aside.rename(path)
    return ImageCache(path, images)


def _fill(folder: Path, processor: Any, dataset: Dataset, bad_rows: BadRows, num_workers: int) -> None:
    height, width = processor.pipeline.spec.crop
    shape = (len(dataset), height, width, 3)
    size = int(np.prod(shape, dtype=np.int64))
    if shutil.disk_usage(folder).free < size:
        raise _no_room(folder.parent, size)
    there = np.zeros(len(dataset), bool)
    loader = DataLoader(
        _Images(processor, dataset), batch_size=64, num_workers=num_workers, collate_fn=_together  # type: ignore[arg-type]
    )  # fmt: skip
    try:
        with open(folder / PIXELS, "wb") as file:
            header = {"descr": "|u1", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)  # type: ignore[arg-type]
            for number, (pixels, reason) in enumerate(_one_by_one(loader, len(dataset))):
                if pixels is None and bad_rows.policy == "raise":
                    bad_rows.report(dataset[number]["id"], reason)
                there[number] = pixels is not None
                file.write((np.zeros(shape[1:], np.uint8) if pixels is None else pixels).tobytes())
        np.save(folder / THERE, there)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise _no_room(folder.parent, size) from error
        raise


def _no_room(folder: Path, size: int) -> ValueError:
    return ValueError(
        f"image_cache: {str(folder)!r} has no room for {size / 2**30:.2f} GiB of images "
        f"({shutil.disk_usage(folder).free / 2**30:.2f} GiB are free): make room, name a folder on another disk, or "
        "leave out image_cache"
    )


class _Images(torch.utils.data.Dataset):
    """What a worker makes of a row: the pixels, or None and why there are none."""

    def __init__(self, processor: Any, dataset: Dataset):
        self.processor, self.dataset = processor, dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, row: int) -> tuple[np.ndarray | None, str]:
        try:
            return self.processor.pipeline.prepare(self.dataset[row]["image"]).pixels.numpy(), ""
        except MediaError as error:
            return None, str(error)


def _together(items: list[Any]) -> list[Any]:
    return items


def _one_by_one(loader: DataLoader, count: int) -> Iterator[tuple[np.ndarray | None, str]]:
    with tqdm(total=count, desc="decoding images for the cache", leave=False, disable=count < 1000) as progress:
        for batch in loader:
            yield from batch
            progress.update(len(batch))


def _key(processor: Any, images: Dataset) -> str:
    pipeline = processor.pipeline
    settings = asdict(pipeline.spec) | {"backend": pipeline.backend, "jpeg_draft": pipeline.jpeg_draft}
    digest = hashlib.blake2b(json.dumps(settings, sort_keys=True).encode(), digest_size=16)
    for row in images:
        digest.update(_content(row["image"]))
    return digest.hexdigest()


def _content(value: Any) -> bytes:
    """A hash of what stands in the file, or of the path of one that cannot be read."""
    data = None if value is None else value["bytes"]
    if data is None and value is not None and value["path"]:
        data = Path(value["path"]).read_bytes() if os.path.isfile(value["path"]) else value["path"].encode()
    return hashlib.blake2b(data or b"").digest()
