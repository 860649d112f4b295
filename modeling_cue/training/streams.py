"""Rows as they come: nothing is downloaded, indexed or compared ahead; checks are made row by row."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from datasets import IterableDataset, concatenate_datasets

from .row_forms import Numbering, content_id, row_form
from .rows import BadRows, Columns, DataError, check_feature
from .sources import DataSource, OpenedSource, open_source
from .splits import find_split, made_splits, only_split, split_name, verify_one_piece


class RowStream(torch.utils.data.IterableDataset):
    """The good rows of a stream, in the form and with the rules of `data.load_rows`.

    Worker processes of a data loader share the files of the source between them, and the limit too.

    Args:
        raw: rows as the source has them. columns: which of its columns hold what.
        limit: how many good rows to read at most; the search for more than these is not begun.
        paired: see `data.load_rows`.
    """

    def __init__(
        self,
        raw: IterableDataset,
        columns: Columns,
        opened: OpenedSource,
        limit: int | None,
        bad_rows: BadRows,
        paired: bool = True,
    ):
        self.raw, self.columns, self.opened, self.limit, self.bad_rows = raw, columns, opened, limit, bad_rows
        self.paired = paired

    @property
    def column_names(self) -> list[str]:
        """The keys of a row: id, caption, and those of image, audio and video that the source has."""
        return ["id", "caption", *([] if self.paired else ["first", "media"]), *self.columns.media]

    def files(self) -> list["RowStream"]:
        """The same rows as one stream for each file of the source; in one piece where rows are limited."""
        count = 1 if self.limit is not None else self.raw.num_shards
        if count == 1:
            return [self]
        parts = (self.raw.shard(num_shards=count, index=number) for number in range(count))
        return [RowStream(part, self.columns, self.opened, None, self.bad_rows, self.paired) for part in parts]

    def shuffled(self, seed: int) -> "RowStream":
        """The same rows with the files of the source in another order each epoch; as it is, where rows are limited."""
        if self.limit is not None:
            return self
        # One file at a time: several would each hold rows in memory, read by threads that take seconds to end.
        raw = self.raw.shuffle(seed=seed, buffer_size=1, max_buffer_input_shards=1)
        return RowStream(raw, self.columns, self.opened, self.limit, self.bad_rows, self.paired)

    def set_epoch(self, epoch: int) -> None:
        self.raw.set_epoch(epoch)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return itertools.islice(self._good_rows(), self._own_limit())

    def _own_limit(self) -> int | None:
        worker = torch.utils.data.get_worker_info()
        if self.limit is None or worker is None:
            return self.limit
        busy = min(worker.num_workers, self.raw.num_shards)
        return self.limit // busy + (worker.id < self.limit % busy)

    def _good_rows(self) -> Iterator[dict[str, Any]]:
        number_on = Numbering()
        for row in self.raw:
            name = self._name(row)
            try:
                form = self._form(row, name)
            except ValueError as error:
                self.bad_rows.report(name, str(error))
            else:
                yield form if self.paired else form | number_on(form)

    def _name(self, row: dict[str, Any]) -> str:
        if self.columns.id:
            return "" if row[self.columns.id] is None else str(row[self.columns.id])
        caption = row[self.columns.caption] if self.columns.caption and not self.paired else None
        return content_id((row[column] for column in self.columns.media.values()), caption, self.opened.roots)

    def _form(self, row: dict[str, Any], name: str) -> dict[str, Any]:
        values = {"id": name, "caption": row[self.columns.caption] if self.columns.caption else None}
        for modality, column in self.columns.media.items():
            if isinstance(row[column], str) and not self.opened.local:
                raise ValueError(f"column {column!r} holds a path, and paths are followed in local data only")
            values[modality] = row[column]
        return row_form(values, self.columns, self.opened.roots, self.opened.token, self.paired)


class Strided(torch.utils.data.IterableDataset):
    """Every n-th row of a stream, for one of n processes."""

    def __init__(self, stream: torch.utils.data.IterableDataset, index: int, count: int):
        self.stream, self.index, self.count = stream, index, count

    def __iter__(self) -> Any:
        # Worker processes share the files of a stream between them: each gives numbers that no other gives.
        worker = torch.utils.data.get_worker_info()
        workers, own = (worker.num_workers, worker.id) if worker else (1, 0)
        for number, row in enumerate(self.stream):
            if number % self.count == self.index:
                yield {**row, "index": number * workers + own}


def stream_rows(
    source: DataSource,
    opened: OpenedSource,
    split: str | None,
    named: Columns,
    modalities: Sequence[str],
    sizes: tuple[int, int] | None,
    seed: int,
    limit: int | None,
    bad_rows: BadRows,
    paired: bool = True,
) -> RowStream:
    """One split of a source that was opened for streaming; see `data.load_rows`. One row of it is read at once.

    Raises:
        DataError: there is no such split or column, or the split is empty.
    """
    streams: dict[str, IterableDataset] = dict(opened.splits)
    first = next(iter(streams.values()))
    columns = named.find(_column_names(first, source.name), modalities, source.name, paired)
    among = None
    if split is None:
        raw = streams[only_split(streams, source.name)]
    elif sizes:
        verify_one_piece(streams, columns.split, source.name)
        raw = concatenate_datasets(list(streams.values()))
        among = _Among(columns.id, str, _made_split(source, columns.id, split, sizes, seed))
    elif len(streams) == 1 and columns.split:
        raw, among = first, _Among(columns.split, split_name, frozenset([split_name(split)]))
    else:
        raw = streams[find_split(streams, split, source.name)]
    if raw.features is not None:
        for modality, column in columns.media.items():
            check_feature(raw.features[column], modality, column, source.name, opened.local)
        raw = raw.decode(False)
    if among is not None:
        raw = raw.filter(among)
    if next(iter(raw), None) is None:
        raise DataError(
            f"split {split!r} of {source.name} is empty: no row belongs to it. Name a split that has rows; without "
            "streaming, this message says which there are"
        )
    return RowStream(raw, columns, opened, limit, bad_rows, paired)


def _column_names(rows: IterableDataset, source: str) -> list[str]:
    if rows.column_names is not None:
        return list(rows.column_names)
    row = next(iter(rows), None)
    if row is None:
        raise DataError(f"{source} is empty: it has no rows")
    return list(row)


def _made_split(
    source: DataSource, column: str | None, split: str, sizes: tuple[int, int], seed: int
) -> frozenset[str]:
    """The ids of a made split: one pass over the ids, which reads no other column of parquet files."""
    if column is None:
        raise DataError(
            f"{source.name} has no column of ids, by which a stream could be split: name one with id_column "
            "(--id_column NAME), or leave out streaming"
        )
    try:
        opened = open_source(source, streaming=True, columns=[column])
    except ValueError:  # only parquet files can be read by column
        opened = open_source(source, streaming=True)
    ids = [str(row[column]) for stream in opened.splits.values() for row in stream.select_columns([column])]
    cut = made_splits(ids, sizes, seed, source.name)
    chosen = find_split(dict.fromkeys(cut.values()), split, source.name)
    return frozenset(name for name, part in cut.items() if part == chosen)


class _Among:
    """Whether a row is of a split; a class, since a stream goes to the worker processes of a data loader."""

    def __init__(self, column: str | None, key: Callable[[str], str], chosen: frozenset[str]):
        self.column, self.key, self.chosen = column, key, chosen

    def __call__(self, row: dict[str | None, Any]) -> bool:
        return self.key(str(row[self.column])) in self.chosen
