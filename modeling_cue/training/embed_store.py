"""The folder that `run_embed.py` writes: shards while it runs, a parquet data set with its README at the end.

    .run/settings.json   what the content depends on: a run that depends on anything else is refused
    .run/shards/         a file for each shard that is done, until all are
    data/                all shards, under the names by which `datasets.load_dataset` finds their split
    README.md            schema, model, data, settings and counts

`datasets` sees no hidden folder: there is no data set before it is whole.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Features, List, Value

from .embedder import Cones
from .rows import DataError

KEY = b"cue"  # of the metadata of a shard


def cone_features(dim: int, axis_dtype: str) -> Features:
    """The columns of the data set; see `embed_readme.README`."""
    return Features(
        {
            "id": Value("string"),
            "modality": Value("string"),
            "caption": Value("int32"),
            "text": Value("string"),
            "axis": List(Value(axis_dtype), length=dim),
            "radius": Value("float32"),
        }
    )


@dataclass(frozen=True)
class Totals:
    """What all shards hold: cones by modality, and rows that were left out of them."""

    cones: dict[str, int]
    left_out: int


class ConeStore:
    """A folder of cones that is filled shard by shard, by several processes, in several goes.

    A shard is written aside and renamed: what is there under its name is whole. Shards are named by the unit (a file
    of a stream; else the shard itself) and their number in it.

    Args:
        folder: where to write. settings: all that the content depends on, as plain nested dicts; below "names" stand
            names that may differ between the runs that fill one folder.
        features: the columns. split: the split that the data set has when it is finished.
    """

    def __init__(self, folder: str | Path, settings: dict[str, Any], features: Features, split: str):
        self.folder = Path(folder)
        self.settings, self.features = settings, features
        self.split = re.sub(r"\W+", "_", split)
        self.data, run = self.folder / "data", self.folder / ".run"
        self._settings, self._shards, self._published = run / "settings.json", run / "shards", run / "data"

    def open(self) -> None:
        """Makes the folder, or goes on with what a run of the same settings left in it.

        Raises:
            DataError: the folder holds the cones of another run, or other files.
        """
        if not self._settings.exists():
            if self.folder.exists() and any(path.name != ".run" for path in self.folder.iterdir()):
                raise DataError(
                    f"{str(self.folder)!r} holds other files: give a new or empty folder as output_dir (--output_dir)"
                )
            self._shards.mkdir(parents=True, exist_ok=True)
            _write(self._settings, json.dumps(self.settings, indent=2) + "\n")
            return
        before = json.loads(self._settings.read_text())
        if differences := list(_differences(before, self.settings)):
            raise DataError(
                f"{str(self.folder)!r} holds cones of another run, which had {'; '.join(differences)}. Give another "
                "output_dir, or remove this one to begin anew"
            )
        self.settings = before

    @property
    def run(self) -> str:
        """What the shards of this run are known by."""
        return _digest({name: value for name, value in self.settings.items() if name != "names"})

    @property
    def complete(self) -> bool:
        """Whether all shards are done, so that no row needs to be read."""
        return self.data.exists() or self._published.exists()

    @property
    def finished(self) -> bool:
        """Whether nothing at all is left to do."""
        return self.data.exists() and not self._shards.exists()

    def has(self, unit: int, number: int) -> bool:
        """Whether a shard is done.

        Raises:
            DataError: it is damaged, or of another run.
        """
        path = self._path(unit, number)
        if not path.exists():
            return False
        self._note_of(path)
        return True

    def write(self, unit: int, number: int, ids: Sequence[str], cones: dict[str, Cones], left_out: int) -> None:
        """Writes a shard: a row group (or more) for each modality, so that a reader can pass over the others."""
        note = {"run": self.run, "cones": {m: len(c.radius) for m, c in cones.items()}, "left_out": left_out}
        schema = self.features.arrow_schema
        schema = schema.with_metadata({**schema.metadata, KEY: json.dumps(note).encode()})
        path = self._path(unit, number)
        aside = path.with_suffix(".writing")
        with pq.ParquetWriter(aside, schema, use_dictionary=["id", "modality"], compression="zstd") as writer:
            for modality, found in cones.items():
                writer.write_table(_table(modality, found, ids, schema))
        os.replace(aside, path)

    def close(self, unit: int, shards: int, left_out: int) -> None:
        """Notes that a unit has no more than so many shards, and how many rows were left out before they were made."""
        _write(self._shards / f"{unit:06d}.json", json.dumps({"shards": shards, "left_out": left_out}))

    def closed(self, unit: int) -> bool:
        """Whether all shards of a unit are done."""
        path = self._shards / f"{unit:06d}.json"
        return path.exists() and all(self.has(unit, n) for n in range(json.loads(path.read_text())["shards"]))

    def publish(self, units: int) -> Totals:
        """Makes the data set of the shards, once all units are closed. An interrupted move is resumed.

        Raises:
            DataError: a shard is missing, or all rows were left out.
        """
        if not self.complete:
            if missing := [unit for unit in range(units) if not self.closed(unit)]:
                raise DataError(
                    f"{len(missing)} of {units} parts of {str(self.folder)!r} are not done: start the same command "
                    "again to go on (all processes must see the same folder)"
                )
            if not any(self.totals().cones.values()):
                raise DataError("nothing was embedded: every row is broken, see the messages above")
            self._published.mkdir()
        if not self.data.exists():
            moved, pending = len(list(self._published.iterdir())), sorted(self._shards.glob("*.parquet"))
            total = moved + len(pending)
            for number, path in enumerate(pending, moved):
                path.rename(self._published / f"{self.split}-{number:05d}-of-{total:05d}.parquet")
            self._published.rename(self.data)
        return self.totals()

    def totals(self) -> Totals:
        """Counts over all shards that are there, finished or not."""
        shards = [path for place in (self._shards, self._published, self.data) for path in place.glob("*.parquet")]
        notes = [self._note_of(path) for path in shards]
        closed = [json.loads(path.read_text()) for path in self._shards.glob("*.json")]
        cones: dict[str, int] = {}
        for note in notes:
            for modality, count in note["cones"].items():
                cones[modality] = cones.get(modality, 0) + count
        return Totals(cones, sum(note["left_out"] for note in (*notes, *closed)))

    def tidy(self, readme: str) -> None:
        """Writes the README, and removes what only an unfinished folder needs."""
        _write(self.folder / "README.md", readme)
        shutil.rmtree(self._shards)

    def _path(self, unit: int, number: int) -> Path:
        return self._shards / f"{unit:06d}-{number:06d}.parquet"

    def _note_of(self, path: Path) -> dict[str, Any]:
        try:
            note = json.loads((pq.read_metadata(path).metadata or {}).get(KEY, b"{}"))
        except (OSError, pa.ArrowInvalid) as error:
            raise DataError(f"the shard {str(path)!r} is damaged: remove it, and start again ({error})") from error
        if note.get("run") != self.run:
            raise DataError(
                f"the shard {str(path)!r} is of another model, data set or settings: remove it, and start again"
            )
        return note


def _table(modality: str, cones: Cones, ids: Sequence[str], schema: pa.Schema) -> pa.Table:
    count, axis = len(cones.radius), schema.field("axis").type
    flat = pa.array(np.ascontiguousarray(cones.axis, dtype=axis.value_type.to_pandas_dtype()).reshape(-1))
    columns = {
        "id": pa.array([ids[row] for row in cones.rows], pa.string()),
        "modality": pa.array([modality] * count, pa.string()),
        "caption": pa.array(cones.captions, mask=cones.captions < 0),
        "text": pa.array(cones.texts, pa.string()),
        "axis": pa.FixedSizeListArray.from_arrays(flat, type=axis),
        "radius": pa.array(cones.radius.astype(np.float32)),
    }
    return pa.Table.from_arrays([columns[name] for name in schema.names], schema=schema)


def _differences(before: Any, now: Any, name: str = "") -> Iterator[str]:
    """What two settings differ in, in words; "" on either side is a value that could not be told."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in sorted(before.keys() | now.keys()):
            if key != "names":
                yield from _differences(before.get(key), now.get(key), f"{name} {key}".strip())
    elif before != now and "" not in (before, now):
        yield f"{name} {before!r}, here {now!r}"


def _digest(value: Any) -> str:
    return hashlib.blake2b(json.dumps(value, sort_keys=True).encode(), digest_size=16).hexdigest()


def _write(path: Path, text: str) -> None:
    aside = path.with_name(path.name + ".writing")
    aside.write_text(text)
    os.replace(aside, path)
