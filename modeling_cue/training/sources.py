"""Where data comes from: data sets of the hub, folders of parquet, image folders, single csv, json, parquet files."""

import hashlib
import logging
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
from datasets import Dataset, IterableDataset, concatenate_datasets, load_dataset
from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError
from huggingface_hub import HfApi
from huggingface_hub.constants import HF_HUB_CACHE

from .arguments import SourceArguments
from .rows import DataError
from .splits import SPLIT_ALIASES

logger = logging.getLogger(__name__)

HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
PARQUET_REVISION = "refs/convert/parquet"
FILE_BUILDERS: dict[str, tuple[str, dict[str, Any]]] = {
    ".csv": ("csv", {}),
    ".tsv": ("csv", {"sep": "\t"}),
    ".json": ("json", {}),
    ".jsonl": ("json", {}),
    ".parquet": ("parquet", {}),
    ".arrow": ("arrow", {}),
}


@dataclass(frozen=True)
class DataSource:
    """A place to read rows from.

    name: a hub data set, a folder, or a csv, tsv, json, jsonl, parquet or arrow file.
    config: the configuration of a hub data set that has several. revision: a branch, tag or commit of its repo.
    cache_dir: where data is kept; None is the cache of Hugging Face. token: for a private or gated data set.
    """

    name: str
    config: str | None = None
    revision: str | None = None
    cache_dir: str | None = None
    token: str | bool | None = None


def data_source(arguments: SourceArguments) -> DataSource:
    """The place that arguments name."""
    return DataSource(
        arguments.dataset_name, arguments.dataset_config_name, arguments.dataset_revision, arguments.data_cache_dir
    )


@dataclass(frozen=True)
class OpenedSource:
    """A source that is open: its splits by the names that it gives them, and the folders that its paths may lead into.

    A relative path is relative to the first of `roots`. `local` is whether that is a folder of the user's.
    """

    splits: dict[str, Dataset] | dict[str, IterableDataset]
    roots: tuple[Path, ...]
    local: bool
    token: str | bool | None


def open_source(source: DataSource, streaming: bool = False, columns: list[str] | None = None) -> OpenedSource:
    """Opens a source, downloading what it needs (with `streaming`: nothing but its list of files).

    A hub data set that is a loading script is read from the parquet files that the hub made of it. `columns` reads no
    other columns, of parquet files alone.

    Raises:
        DataError: there is no such thing, or it cannot be read.
    """
    path = Path(source.name).expanduser()
    cache = Path(source.cache_dir or datasets.config.HF_DATASETS_CACHE).expanduser().absolute()
    options: dict[str, Any] = {"streaming": streaming, "token": source.token}
    if columns:
        options["columns"] = columns
    try:
        if path.exists():
            path = Path(os.path.abspath(path))
            # `datasets` may key its cache by file patterns alone: two folders of one name need a key of ours.
            options["cache_dir"] = str(cache / f"local-{_fingerprint(path)}")
            found = _open_file(path, options) if path.is_file() else load_dataset(str(path), source.config, **options)
            roots = (path.parent if path.is_file() else path, cache)
        elif not HUB_NAME.fullmatch(source.name) or path.suffix.lower() in FILE_BUILDERS:
            raise DataError(f"there is no file or folder {source.name!r} (looked for {os.path.abspath(path)!r})")
        else:
            options["cache_dir"] = source.cache_dir and str(cache)
            found = _open_hub(source, options)
            roots = (Path(HF_HUB_CACHE).expanduser().absolute(), cache)
    except DatasetNotFoundError as error:
        raise DataError(
            f"{source.name!r} is no file or folder here and no data set that the hub lets you read: check the "
            "spelling, and for a private or gated data set log in (hf auth login) or give a token"
        ) from error
    except ConnectionError as error:
        raise DataError(
            f"{source.name!r} is no file or folder here, and the hub cannot be reached ({error}): check the name, "
            "the connection, and whether HF_HUB_OFFLINE is set"
        ) from error
    except FileNotFoundError as error:
        raise DataError(
            f"{source.name!r} holds no data that can be read ({error}). It should hold parquet files, an image folder "
            f"with metadata.csv or metadata.jsonl, or be a file of a kind among {', '.join(FILE_BUILDERS)}"
        ) from error
    except DatasetGenerationError as error:
        raise DataError(f"{source.name!r} cannot be read: {error.__cause__ or error}") from error
    except (OSError, UnicodeDecodeError, pa.ArrowException) as error:
        if not path.exists():
            raise
        raise DataError(f"{source.name!r} cannot be read: {error}; replace the file that is damaged") from error
    except ValueError as error:
        if "Config name is missing" in str(error) or "BuilderConfig" in str(error):
            raise DataError(
                f"{source.name!r} has several configurations: name one of them with dataset_config_name "
                f"(--dataset_config_name NAME). {error}"
            ) from error
        if "corresponds to no data" not in str(error):
            raise
        raise DataError(f"a split of {source.name!r} is empty ({error}); remove its file or fill it") from error
    splits = dict(found)
    if path.is_dir() and (unread := _unread_tables(path, splits)):
        raise DataError(
            f"{source.name!r} holds media beside the table {unread!r}, which would not be read: call it "
            f"metadata{Path(unread).suffix}, with the files in a column file_name, give the table itself as "
            "dataset_name, or move it away"
        )
    if "restval" in splits and "train" in splits:
        splits["train"] = concatenate_datasets([splits["train"], splits.pop("restval")])
    return OpenedSource(splits, roots, path.exists(), source.token)


def _unread_tables(folder: Path, splits: Any) -> str:
    """A table that `datasets` passes over in a folder that it takes for one of media; "" where there is none."""
    if next(iter(splits.values())).info.builder_name not in ("imagefolder", "audiofolder", "videofolder"):
        return ""
    kinds = FILE_BUILDERS.keys() - {".json"}  # which many programs put beside each file
    tables = (p for p in sorted(folder.rglob("*")) if p.suffix.lower() in kinds and p.stem != "metadata")
    return next((str(p.relative_to(folder)) for p in tables), "")


def _open_file(path: Path, options: dict[str, Any]) -> Any:
    if path.suffix.lower() not in FILE_BUILDERS:
        raise DataError(
            f"{str(path)!r} is of no kind that can be read; it must be {', '.join(FILE_BUILDERS)}, or a folder"
        )
    builder, extra = FILE_BUILDERS[path.suffix.lower()]
    split = SPLIT_ALIASES.get(re.split("[^a-z]", path.stem.lower())[0], "train")
    return load_dataset(builder, data_files={split: str(path)}, **extra, **options)


def _open_hub(source: DataSource, options: dict[str, Any]) -> Any:
    try:
        return load_dataset(source.name, source.config, revision=source.revision, **options)
    except RuntimeError as error:
        if "scripts are no longer supported" not in str(error) or source.revision is not None:
            raise
        logger.info("%s is a loading script; reading its parquet files (%s)", source.name, PARQUET_REVISION)
    return load_dataset(source.name, source.config, revision=PARQUET_REVISION, **options)


def source_fingerprint(source: DataSource) -> str:
    """Changes when a source does: with place, sizes and times of local files, or the commit of a repo of the hub.

    "" where the hub cannot be asked.
    """
    path = Path(source.name).expanduser()
    if path.exists():
        return _fingerprint(Path(os.path.abspath(path)))
    try:
        return HfApi(token=source.token).dataset_info(source.name, revision=source.revision).sha or ""
    except Exception as error:  # offline, or whatever else keeps the hub from answering
        logger.info("the commit of %s is not known: %s", source.name, error)
        return ""


def _fingerprint(path: Path) -> str:
    """Changes with the place of a file or folder and with the size or time of any file in it."""
    digest = hashlib.blake2b(str(path).encode(), digest_size=8)
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    for file in files:
        status = file.stat()
        digest.update(f"{file.relative_to(path)}\0{status.st_size}\0{status.st_mtime_ns}\0".encode())
    return digest.hexdigest()
