"""The one form of a row: id, caption (a list), and undecoded media; with what rows have beside that are not paired."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset, Features
from datasets.table import InMemoryTable

from .rows import MEDIA_FEATURES, Columns, captions_of, media_id, media_of


def row_form(
    values: dict[str, Any],
    columns: Columns,
    roots: Sequence[Path],
    token: str | bool | None = None,
    paired: bool = True,
) -> dict[str, Any]:
    """A row in the one form, of its values by role: id, caption (a list), and undecoded media.

    Unless `paired`, captions and media may be missing, and are [] and None then; not all of them.

    Raises:
        ValueError: the row is broken; the message is the reason.
    """
    if not values["id"]:
        raise ValueError(f"its {columns.id or 'medium'} is empty, so it has no id")
    there = [role for role in ("caption", *columns.media) if paired or not _is_missing(values.get(role))]
    if not there:
        raise ValueError("it has nothing to embed: no caption and no medium")
    form: dict[str, Any] = {
        "id": values["id"],
        "caption": captions_of(values["caption"]) if "caption" in there else [],
    }
    for modality in columns.media:
        form[modality] = media_of(values[modality], modality, roots, token) if modality in there else None
    return form


def _is_missing(value: Any) -> bool:
    if isinstance(value, dict):
        return value.get("bytes") is None and not value.get("path")
    return value is None or (not isinstance(value, bytes) and not len(value))


def content_id(media: Iterable[Any], caption: Any, roots: Sequence[Path]) -> str:
    """An identity by content: that of the first medium that is there, else the hash of the captions; "" of nothing."""
    for value in media:
        if name := media_id(value, roots):
            return name
    texts = [caption] if isinstance(caption, str) else caption or ()
    return media_id("\0".join(map(str, texts)).encode(), roots)


class Numbering:
    """What rows that are not paired have beside: rows of equal id are one sample, also where each has one caption.

    `first` (int) is the number of the row's first caption among those of its id, from 0. `media` (list of str) names
    the media that the row has, less the files that an earlier row of its id named.
    """

    def __init__(self) -> None:
        self._captions: dict[str, int] = {}
        self._files: set[tuple[str, str, str]] = set()

    def __call__(self, form: dict[str, Any]) -> dict[str, Any]:
        """`first` and `media` of the next row, which has the one form."""
        name, media = form["id"], []
        first = self._captions.get(name, 0)
        self._captions[name] = first + len(form["caption"])
        for modality in MEDIA_FEATURES:
            value = form.get(modality)
            if value is None:
                continue
            if value["bytes"] is None:
                file = (name, modality, value["path"])
                if file in self._files:
                    continue
                self._files.add(file)
            media.append(modality)
        return {"first": first, "media": media}


def dataset_of(columns: dict[str, list], features: dict[str, Any]) -> Dataset:
    """A data set in memory, media as undecoded values. `Dataset.from_dict` would ask for torchcodec to take sounds."""
    return Dataset(InMemoryTable.from_pydict(columns, schema=Features(features).arrow_schema))
