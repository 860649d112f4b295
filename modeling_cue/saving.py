"""Saving that leaves what was there before as it is, until all that is new is on the disk."""

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# Files are written in a folder of this name first. Pushing passes over what begins with an underscore.
ASIDE = "_unfinished"


@contextmanager
def written_aside(folder: str | os.PathLike) -> Iterator[Path]:
    """A folder within `folder`. What is written there moves into `folder` at the end, or is removed where that fails.

    It bears the name of `folder`, by which `push_to_hub=True` names a repo.
    """
    aside = Path(folder) / ASIDE / Path(folder).absolute().name
    with removed_if_it_fails(aside):
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        yield aside
        put_files_in_place(aside, Path(folder))


@contextmanager
def removed_if_it_fails(folder: Path) -> Iterator[None]:
    """What could not be written to the end gives its room back."""
    try:
        yield
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        remove_empty(folder.parent)
        raise


def put_files_in_place(written: Path, folder: Path) -> None:
    """Moves files into a folder, over others of their names; with weights, deletes those there that are another's."""
    reach_the_disk(written)
    files = [path for path in written.rglob("*") if path.is_file()]
    for path in files:
        target = folder / path.relative_to(written)
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(path, target)
    # Weights in one file are read before those in several, of whichever model they are.
    names = {path.name for path in files}
    variants = {_variant(name) for name in names if name.startswith("model")}
    for path in folder.glob("model*.safetensors*"):
        if path.name not in names and _variant(path.name) in variants:
            path.unlink()
    shutil.rmtree(written)
    remove_empty(written.parent)


def reach_the_disk(folder: Path) -> None:
    """Waits until all files are on the disk: else a machine that loses power may know names and not the content."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("r+b") as file:
                os.fsync(file.fileno())


def remove_empty(folder: Path) -> None:
    """Removes a folder that has nothing in it, if it is there."""
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def _variant(name: str) -> str:
    """What files of weights have in common that are read together: "model", or "model.fp16" for that variant."""
    return re.sub(r"-\d{5}-of-\d{5}|\.safetensors|\.index|\.json", "", name)
