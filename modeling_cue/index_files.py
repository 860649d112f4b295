"""An index on disk: a folder of index.json, items.arrow and the vectors."""

import importlib.metadata
import json
import tempfile
from pathlib import Path

import pyarrow as pa

from .index_vectors import FlatVectors, GraphVectors

FORMAT_VERSION = 1
_PACKAGE, _JSON, _ITEMS = "cue-embedder", "index.json", "items.arrow"
_FILES = {_JSON, _ITEMS, FlatVectors.file, GraphVectors.file}


def save_index(folder: Path, vectors: FlatVectors, items: pa.Table) -> None:
    """`CUEIndex.save`."""
    folder = folder.resolve()  # the index that a link leads to is replaced, not the link
    if folder.exists():
        others = {path.name for path in folder.iterdir()} - _FILES if folder.is_dir() else {folder.name}
        if others:
            raise ValueError(f"{folder} holds {sorted(others)[0]!r}, which is of no index; choose another folder")
    about = {
        "format_version": FORMAT_VERSION,
        "kind": vectors.kind,
        "dim": vectors.shape[1] - 2,
        "count": vectors.shape[0],
        "metric": "inner product",
        "package_version": _package_version(),
    }
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as aside:
        new, old = Path(aside) / "new", Path(aside) / "old"
        new.mkdir()
        vectors.save(new)
        _save_items(items, new)
        (new / _JSON).write_text(json.dumps(about, indent=2) + "\n")
        if folder.exists():
            folder.rename(old)
        try:
            new.rename(folder)
        except OSError:
            if old.exists():
                old.rename(folder)
            raise


def load_index(folder: Path, memory_map: bool) -> tuple[FlatVectors, pa.Table]:
    """`CUEIndex.load`."""
    if not (folder / _JSON).is_file():
        raise ValueError(f"{folder} is no index: it has no {_JSON}, which CUEIndex.save writes")
    try:
        about = json.loads((folder / _JSON).read_text())
        newer, by = about["format_version"] > FORMAT_VERSION, about["package_version"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{folder} is no index: its {_JSON} is not one that CUEIndex.save writes") from error
    if newer:
        raise ValueError(
            f"{folder} is in format {about['format_version']}, written by version {by}; "
            f"this version reads formats up to {FORMAT_VERSION}: update the package"
        )
    try:
        kind = {kind.kind: kind for kind in (FlatVectors, GraphVectors)}[about["kind"]]
        count, dim = about["count"], about["dim"]
        vectors, items = kind.load(folder, memory_map), _load_items(folder, memory_map)
    except (KeyError, TypeError, ValueError, EOFError, OSError, RuntimeError) as error:  # the last is FAISS's own
        raise ValueError(f"{folder} is damaged ({type(error).__name__}: {error}); build it again") from error
    if vectors.shape != (count, dim + 2) or len(items) != count:
        raise ValueError(
            f"{folder} is damaged: {_JSON} speaks of {count} cones of {dim} dimensions, there are "
            f"{vectors.shape[0]} of {vectors.shape[1] - 2}, and {len(items)} rows of metadata; build it again"
        )
    return vectors, items


def _save_items(items: pa.Table, folder: Path) -> None:
    # One batch: read back as one chunk, which needs no copy.
    items = items.combine_chunks()
    with pa.OSFile(str(folder / _ITEMS), "wb") as sink, pa.ipc.new_file(sink, items.schema) as writer:
        writer.write_table(items)


def _load_items(folder: Path, memory_map: bool) -> pa.Table:
    path = str(folder / _ITEMS)
    return pa.ipc.open_file(pa.memory_map(path) if memory_map else pa.OSFile(path)).read_all()


def _package_version() -> str:
    try:
        return importlib.metadata.version(_PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        # Run from a clone that is not installed.
        return "unknown"
