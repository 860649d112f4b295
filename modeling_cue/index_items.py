"""What an index knows of its cones beside the vectors: an Arrow table of id, radius, empty and further columns."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from .cone_type import empty_mask
from .cones import Cone

RESERVED = ("id", "axis", "radius", "empty")


@dataclass(frozen=True, eq=False)
class Items:
    """A table made ready for searching.

    Args:
        table: N rows, a chunk per column where Arrow can.
        radius: (N,) float32. empty: (N,) bool.
        special: positions of the whole and of the empty cones.
    """

    table: pa.Table
    radius: Tensor
    empty: Tensor
    special: np.ndarray

    @classmethod
    def of(cls, table: pa.Table) -> "Items":
        table = table.combine_chunks()
        radius, empty = (torch.tensor(table[name].to_numpy()) for name in ("radius", "empty"))
        special = empty | (radius >= torch.full_like(radius, math.pi))
        return cls(table, radius, empty, special.nonzero()[:, 0].numpy())

    def cones(self, axes: Tensor, positions: np.ndarray) -> Cone:
        """The cones (M,) at the positions (M,), of which these are the axes (M, D)."""
        place = torch.from_numpy(positions)
        return Cone(axes, self.radius[place], self.empty[place])


def make_items(cones: Cone, ids: Sequence, metadata: Any) -> pa.Table:
    """The rows of float32 cones (N,); `CUEIndex.add` tells of arguments and errors."""
    count = len(cones.radius)
    columns = {"id": _id_column(ids), "radius": cones.radius.numpy(), "empty": empty_mask(cones).numpy()}
    further = _table(metadata)
    taken = [name for name in further.column_names if name in RESERVED]
    if taken:
        raise ValueError(f"metadata cannot be called {taken}: {list(RESERVED)} are the index's own columns")
    columns |= {name: further[name] for name in further.column_names}
    for name, column in columns.items():
        if len(column) != count:
            raise ValueError(f"{name!r} has {len(column)} values for {count} cones; give one per cone")
    table = pa.table(columns)
    # The offsets of plain strings end at 2 GiB.
    long = [pa.field(f.name, pa.large_string()) if pa.types.is_string(f.type) else f for f in table.schema]
    return table.cast(pa.schema(long))


def _table(metadata: Any) -> pa.Table:
    if metadata is None or isinstance(metadata, pa.Table):
        return pa.table({}) if metadata is None else metadata
    try:
        if isinstance(metadata, Mapping):
            return pa.table(dict(metadata))
        if isinstance(metadata, Sequence):
            # Arrow itself takes the columns of the first row alone.
            names = dict.fromkeys(name for row in metadata for name in row)
            return pa.table({name: [row.get(name) for row in metadata] for name in names})
        return pa.Table.from_pandas(metadata, preserve_index=False).replace_schema_metadata(None)
    except (pa.ArrowException, TypeError, ValueError, AttributeError) as error:
        raise ValueError(
            "metadata must be a dict of columns, a table, a data frame or a list of dicts, of values that Arrow knows "
            f"(paths as text): {error}"
        ) from error


def _id_column(ids: Sequence) -> pa.ChunkedArray:
    try:
        column = ids if isinstance(ids, pa.ChunkedArray) else pa.chunked_array([pa.array(ids)])
        if pa.types.is_integer(column.type):
            column = column.cast(pa.int64())
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise TypeError(f"ids must be all strings or all integers of 64 bits: {error}") from error
    if not (
        pa.types.is_integer(column.type)
        or pa.types.is_string(column.type)
        or pa.types.is_large_string(column.type)
        or not len(column)
    ):
        raise TypeError(f"ids must be all strings or all integers, got {column.type}")
    if column.null_count:
        raise ValueError(f"{column.null_count} of {len(column)} ids are missing; every cone needs one")
    counts = pc.value_counts(column)
    twice = counts.filter(pc.greater(counts.field("counts"), 1))
    if len(twice):
        raise ValueError(
            f"{len(twice)} ids stand more than once, the first {twice.field('values')[0].as_py()!r}; "
            "every cone needs an id of its own"
        )
    return column


def append_items(old: pa.Table, new: pa.Table) -> pa.Table:
    if not old.column_names:
        return new
    if set(new.column_names) == set(old.column_names):
        new = new.select(old.column_names)
    # A column without any value has no type yet.
    pairs = zip(old.schema.types, new.schema.types, strict=False)
    alike = all(one == other or pa.null() in (one, other) for one, other in pairs)
    if new.column_names != old.column_names or not alike:
        raise ValueError(
            f"the index has the columns {_described(old)}, these cones come with {_described(new)}; "
            "give the same columns of the same types at every call"
        )
    # The new ids are hashed, and not the many that are there.
    known = old["id"].filter(pc.is_in(old["id"], value_set=new["id"].combine_chunks()))
    if len(known):
        raise ValueError(
            f"{len(known)} ids are in the index already, the first {known[0].as_py()!r}; "
            "every cone needs an id of its own"
        )
    return pa.concat_tables([old, new], promote_options="default")


def _described(table: pa.Table) -> str:
    return ", ".join(f"{field.name} ({field.type})" for field in table.schema)


def items_of(batch: pa.Table) -> tuple[Sequence, pa.Table]:
    """The ids and the metadata of an Arrow table that also holds cones.

    In tables by `run_embed.py` a sample's captions and media have its id in common: an item is then called id/image,
    id/text/0 and so on, and the id of its sample becomes metadata, `sample`.
    """
    further = batch.drop_columns([name for name in RESERVED if name in batch.column_names])
    if not {"modality", "caption", "text"} <= set(batch.column_names) or not pa.types.is_integer(
        batch.schema.field("caption").type
    ):
        return batch["id"], further
    if "sample" in batch.column_names:
        raise ValueError("the column 'sample' is what items of one sample will have in common: rename yours")
    rows = zip(*(batch[name].to_pylist() for name in ("id", "modality", "caption")), strict=True)
    ids = [f"{sample}/{kind}" if number is None else f"{sample}/{kind}/{number}" for sample, kind, number in rows]
    return ids, further.append_column("sample", batch["id"])


def cones_of(batch: pa.Table) -> Cone:
    """The cones (N,) of an Arrow table with the columns axis (lists of D floats), radius and perhaps empty (bool).

    Raises:
        ValueError: columns that are missing, values that are missing, lists of different lengths.
    """
    lacking = [name for name in ("id", "axis", "radius") if name not in batch.column_names]
    if lacking:
        raise ValueError(f"the data set has no column {lacking}, only {batch.column_names}; rename yours to these")
    lengths = pc.unique(pc.list_value_length(batch["axis"]))
    values = pc.list_flatten(batch["axis"])
    if len(lengths) > 1 or lengths.null_count or values.null_count:
        raise ValueError(
            f"column 'axis' must hold lists of one length without gaps, got lengths {lengths.to_pylist()}"
        )
    axis = torch.tensor(values.to_numpy()).reshape(len(batch), -1)
    if axis.dtype == torch.float16:
        # Rounding moved the norm of a unit vector by up to 2**-11. What is further off is refused like any other.
        norm = axis.float().norm(dim=-1, keepdim=True)
        axis = torch.where((norm - 1).abs() <= 2**-10, axis / norm, axis.float())
    empty = _tensor(batch, "empty") if "empty" in batch.column_names else None
    return Cone(axis, _tensor(batch, "radius"), empty)


def _tensor(batch: pa.Table, name: str) -> Tensor:
    if batch[name].null_count:
        raise ValueError(f"column {name!r} lacks {batch[name].null_count} values; every cone needs one")
    return torch.tensor(batch[name].to_numpy())
