"""Loose files as rows: a folder of images, sounds, clips and text files, or one such file, without any table."""

import logging
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from datasets import Dataset, List, Value

from ..media_files import MODALITY_OF_SUFFIX, SUFFIXES
from .row_forms import dataset_of
from .rows import MEDIA_FEATURES, BadRows, DataError
from .sources import FILE_BUILDERS

logger = logging.getLogger(__name__)


def is_loose(name: str) -> bool:
    """Whether `name` is a media or text file, or a folder without any table (csv, json, parquet, arrow).

    A json file beside media is no table unless it is called metadata: many programs put one beside each photograph.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        files = list(_files(path))
        tables = [file for file in files if file.suffix.lower() in FILE_BUILDERS]
        if any(MODALITY_OF_SUFFIX.get(file.suffix.lower(), "text") != "text" for file in files):
            tables = [file for file in tables if file.suffix.lower() != ".json" or file.stem == "metadata"]
        return not tables
    return path.is_file() and path.suffix.lower() in MODALITY_OF_SUFFIX


def loose_rows(
    name: str, split: str | None, modalities: Sequence[str], limit: int | None, bad_rows: BadRows
) -> Dataset:
    """A row for each media file and for each line of a text file that is not blank, in the order of their paths.

    Args:
        split: a sub-folder, or None for all. modalities: those that are wanted. limit: rows at most.

    Returns:
        Rows as `data.load_rows` gives them with `paired=False`. The id is the path within the folder; the captions of
        a text file are its lines, numbered from 0.

    Raises:
        DataError: no such sub-folder, or no file of these modalities. BadRowError: a text file that is not UTF-8 or
            holds nothing, where `bad_rows` says to stop.
    """
    root = Path(name).expanduser().absolute()
    folder = root / split if split else root
    if split and not folder.is_dir():
        raise DataError(
            f"{name!r} holds loose files and no sub-folder {split!r}: name one, or leave split out to take all"
        )
    files = [folder] if folder.is_file() else _files(folder)
    rows = list(islice(_rows(files, root if root.is_dir() else root.parent, modalities, bad_rows), limit))
    if not rows:
        suffixes = ", ".join(suffix for modality in modalities for suffix in SUFFIXES[modality])
        raise DataError(
            f"{str(folder)!r} is empty: it holds no table and no file of {' or '.join(modalities)} ({suffixes})"
        )
    features: dict[str, Any] = {"id": Value("string"), "caption": List(Value("string"))}
    features |= {"first": Value("int32"), "media": List(Value("string"))}
    features |= {m: kind(decode=False) for m, kind in MEDIA_FEATURES.items() if m in modalities}
    return dataset_of({column: [row.get(column) for row in rows] for column in features}, features)


def _files(folder: Path) -> list[Path]:
    """The files of a folder, hidden ones left out."""
    found = ((file.relative_to(folder).parts, file) for file in folder.rglob("*") if file.is_file())
    return [file for parts, file in sorted(found) if not any(part.startswith(".") for part in parts)]


def _rows(files: Sequence[Path], root: Path, modalities: Sequence[str], bad_rows: BadRows) -> Iterator[dict[str, Any]]:
    left_out: dict[str, int] = {}
    for file in files:
        # A file of no known kind is called by its suffix.
        modality = MODALITY_OF_SUFFIX.get(file.suffix.lower(), file.suffix)
        name = file.relative_to(root).as_posix()
        if modality not in modalities:
            left_out[modality] = left_out.get(modality, 0) + 1
        elif modality == "text":
            yield from _lines(file, name, bad_rows)
        else:
            value = {"bytes": None, "path": str(file)}
            yield {"id": name, "caption": [], "first": 0, "media": [modality], modality: value}
    if left_out:
        kinds = ", ".join(f"{count} of {kind or 'no suffix'}" for kind, count in sorted(left_out.items()))
        logger.warning("%s: files of other kinds are left out: %s", root, kinds)


def _lines(file: Path, name: str, bad_rows: BadRows) -> Iterator[dict[str, Any]]:
    try:
        lines = file.read_text(encoding="utf-8-sig").split("\n")
        if not any(line.strip() for line in lines):
            raise ValueError("it holds no text")
    except (OSError, ValueError) as error:  # what is not UTF-8 is a ValueError too
        bad_rows.report(name, f"the text file cannot be used: {error}")
        return
    for number, line in enumerate(lines):
        if line.strip():
            yield {"id": name, "caption": [line], "first": number, "media": []}
