"""Rows of captions and undecoded media, from any source, in one form: id, caption (a list), image, audio, video."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, List, Value, concatenate_datasets

from .row_forms import Numbering, content_id, dataset_of, row_form
from .rows import MEDIA_FEATURES, BadRows, Columns, DataError, check_feature, media_id
from .sources import DataSource, OpenedSource, open_source
from .splits import (
    KNOWN_COUNTS,
    Members,
    find_split,
    grouped,
    made_splits,
    only_split,
    split_name,
    verify_apart,
    verify_counts,
    verify_one_piece,
)
from .streams import RowStream, stream_rows

# Rows that are looked at in one go: limited data reads little more than it needs.
CHUNK = 1000


def load_rows(
    source: str | DataSource,
    split: str | None,
    *,
    paired: bool = True,
    streaming: bool = False,
    max_samples: int | None = None,
    modalities: Sequence[str] = tuple(MEDIA_FEATURES),
    image_column: str | None = None,
    caption_column: str | None = None,
    audio_column: str | None = None,
    video_column: str | None = None,
    id_column: str | None = None,
    split_column: str | None = None,
    split_sizes: tuple[int, int] | None = None,
    split_seed: int = 0,
    check_counts: bool = True,
    bad_rows: BadRows | None = None,
    cache_dir: str | None = None,
    token: str | bool | None = None,
) -> Dataset | RowStream:
    """The rows of one split of a source.

    A split is, in this order: what `split_sizes` makes; where the source has just one split, the rows that its split
    column gives to this one (restval counts as train); a split of the source under this name or a usual other one
    (val, dev). `split_sizes` are numbers of images for validation and test, the rest is train: see
    `splits.made_splits`, by which the same images are in the same split whatever their order. `lmms-lab/flickr30k`,
    which has no splits, is cut so by itself (1,014 and 1,000).

    Args:
        source: a hub data set, a folder or a file; a `DataSource` says more about it.
        split: None is all rows of a source that has one split only.
        paired: every row has captions, and every medium that the source has a column of, as training needs; no image
            may stand in two splits. Else captions alone or media alone will do, and rows may lack some: see
            `row_forms.Numbering` for what stands in a row beside.
        streaming: rows are read as they come; nothing is downloaded, counted or compared between splits.
        max_samples: the first so many good rows of the split; no more are read than that needs.
        modalities: the media (and text, unless `paired`) whose columns are looked for by their usual names.
        image_column, caption_column, ...: names of columns, where they are not the usual ones.
        split_seed: decides what `split_sizes` makes, and nothing else: keep it through runs that are compared.
        check_counts: whether known data sets of the hub must have their known numbers of images and captions.
        bad_rows: what a broken row does; by default it stops the run.

    Returns:
        A `datasets.Dataset`, or with `streaming` a torch iterable data set. Rows are dicts of id (str), caption (list
        of str, one or more), and image, audio and video where the source has them, as undecoded `datasets` values
        {"bytes", "path"}. Rows of equal id are one sample; paired ones with the same media, as of a table with one
        caption a row, become one row with the captions of all (but not in a stream). Without a column of ids, the id
        is the path of the row's medium within the data, or the hash of its content.

    Raises:
        DataError: there is no such source, split or column; a split is empty; an image stands in two splits; counts
            are not the known ones; or a row is broken and `bad_rows` says to stop (`BadRowError`).
    """
    if isinstance(source, str):
        source = DataSource(source, cache_dir=cache_dir, token=token)
    if max_samples is not None and max_samples < 1:
        raise DataError(f"max_samples={max_samples} is not valid; it must be one or more, or None for all rows")
    known = KNOWN_COUNTS.get(source.name)
    sizes = split_sizes or (known.sizes if known else None)
    named = Columns(caption_column, image_column, audio_column, video_column, id_column, split_column)
    opened = open_source(source, streaming)
    bad_rows = bad_rows or BadRows("raise")
    if streaming:
        return stream_rows(source, opened, split, named, modalities, sizes, split_seed, max_samples, bad_rows, paired)

    try:
        first: Dataset = next(iter(opened.splits.values()))
        columns = named.find(first.column_names, modalities, source.name, paired)
        table = _Table(source.name, opened, columns, paired)
        if split is None:
            split = only_split(opened.splits, source.name)
            members: Members = {split: (opened.splits[split], range(len(opened.splits[split])))}
        else:
            members = table.members(sizes, split_seed)
        if paired:
            verify_apart(members, table.identities(first.column_names, by_content=max_samples is None), source.name)
        if known and check_counts and max_samples is None:
            images = {split_name(name): len(numbers) for name, (_, numbers) in members.items()}
            verify_counts(known, images, table.count_captions(members), source.name)
        dataset, numbers = members[find_split(members, split, source.name)]
        return table.rows(dataset, numbers, split, max_samples, bad_rows)
    except UnicodeDecodeError as error:
        raise DataError(
            f"{source.name} has text that is no UTF-8 ({error}); replace the file that is damaged"
        ) from error


@dataclass(frozen=True)
class _Table:
    """A source that can be indexed, and which of its columns hold what. Media are looked at, not read."""

    name: str
    opened: OpenedSource
    columns: Columns
    paired: bool = True

    def members(self, sizes: tuple[int, int] | None, seed: int) -> Members:
        splits: dict[str, Dataset] = dict(self.opened.splits)
        if sizes:
            verify_one_piece(splits, self.columns.split, self.name)
            whole = concatenate_datasets(list(splits.values()))
            ids = list(self.ids(whole, range(len(whole))))
            cut = made_splits(ids, sizes, seed, self.name)
            return grouped(whole, [cut[name] for name in ids])
        if len(splits) == 1 and self.columns.split:
            (whole,) = splits.values()
            return grouped(whole, (split_name(str(v)) for v in _column(whole, self.columns.split).to_pylist()))
        return {name: (dataset, range(len(dataset))) for name, dataset in splits.items()}

    def identities(self, present: Sequence[str], by_content: bool) -> dict[str, Any]:
        """What tells images apart: ids, and file names where there are any."""

        def filenames(dataset: Dataset, numbers: Sequence[int]) -> Iterable[str]:
            return _take(_column(dataset, "filename"), numbers)

        by = {"id": self.ids} if self.columns.id or by_content else {}
        return by | ({"filename": filenames} if "filename" in present and self.columns.id != "filename" else {})

    def ids(self, dataset: Dataset, numbers: Sequence[int]) -> Iterator[str]:
        """The identity of each of these rows; "" where it has none."""
        if self.columns.id:
            column = _column(dataset, self.columns.id)
            for start in range(0, len(numbers), CHUNK):
                for value in _take(column, numbers[start : start + CHUNK]):
                    yield "" if value is None else str(value)
            return
        media = [_column(dataset, column) for column in self.columns.media.values()]
        captions = None if self.paired or not self.columns.caption else _column(dataset, self.columns.caption)
        for number in numbers:
            caption = captions[number].as_py() if captions else None
            yield content_id((column[number].as_py() for column in media), caption, self.opened.roots)

    def count_captions(self, members: Members) -> int:
        count = 0
        for dataset, numbers in members.values():
            captions = _column(dataset, self.columns.caption or "").take(pa.array(numbers, pa.int64()))
            lists = isinstance(dataset.features[self.columns.caption], List)
            count += pc.sum(pc.list_value_length(captions)).as_py() if lists else len(numbers)
        return count

    def rows(
        self, dataset: Dataset, numbers: Sequence[int], split: str, limit: int | None, bad_rows: BadRows
    ) -> Dataset:
        """The good rows among `numbers`. Bytes of media stay where they are on disk; paths become those of files."""
        media = self.columns.media
        for modality, column in media.items():
            check_feature(dataset.features[column], modality, column, self.name, self.opened.local)
        written = {m for m, column in media.items() if not _has_bytes(_column(dataset, column))}
        features = {"id": Value("string"), "caption": List(Value("string"))}
        features |= {} if self.paired else {"first": Value("int32"), "media": List(Value("string"))}
        texts: dict[str, list] = {role: [None] * len(dataset) for role in (*features, *sorted(written))}
        good: list[int] = []
        number_on = Numbering()
        for number, row in self._looked_at(dataset, numbers):
            if len(good) == limit:
                break
            try:
                found = row_form(row, self.columns, self.opened.roots, paired=self.paired)
            except ValueError as error:
                bad_rows.report(row["id"] or f"number {number} of {split}", str(error))
                continue
            if not self.paired:
                found |= number_on(found)
            for role, values in texts.items():
                values[number] = found[role]
            good.append(number)
        if not good:
            raise DataError(f"split {split!r} of {self.name} is empty: there is no row in it that can be used")
        if self.paired:
            good = self._merged(dataset, good, texts)

        features |= {m: MEDIA_FEATURES[m](decode=False) for m in sorted(written)}
        text = dataset_of(texts, features)
        held = {modality: column for modality, column in media.items() if modality not in written}
        parts = [text]
        for modality, column in held.items():
            part = dataset.select_columns([column]).cast_column(column, MEDIA_FEATURES[modality](decode=False))
            parts.append(part if column == modality else part.rename_column(column, modality))
        return concatenate_datasets(parts, axis=1).select(good)

    def _merged(self, dataset: Dataset, good: Sequence[int], texts: dict[str, list]) -> list[int]:
        """Of rows with one id and the same media the first, which gets the captions of all."""
        counts = Counter(texts["id"][number] for number in good)
        if len(counts) == len(good):
            return list(good)
        media = [_column(dataset, column) for column in self.columns.media.values()]
        groups: dict[tuple[str, ...], list[int]] = {}
        for number in good:
            name = texts["id"][number]
            alone = counts[name] == 1
            same = [] if alone else [media_id(column[number].as_py(), self.opened.roots) for column in media]
            groups.setdefault((name, *same), []).append(number)
        for first, *others in groups.values():
            texts["caption"][first] = [text for number in (first, *others) for text in texts["caption"][number]]
        return [first for first, *_ in groups.values()]

    def _looked_at(self, dataset: Dataset, numbers: Sequence[int]) -> Iterator[tuple[int, dict[str, Any]]]:
        """Number and content of each row; of media only the path, and b"" in place of bytes."""
        captions = _column(dataset, self.columns.caption) if self.columns.caption else None
        media = {modality: _column(dataset, column) for modality, column in self.columns.media.items()}
        ids = self.ids(dataset, numbers)
        for start in range(0, len(numbers), CHUNK):
            chunk = numbers[start : start + CHUNK]
            looked: dict[str, Iterable[Any]] = {
                "id": islice(ids, len(chunk)),
                "caption": _take(captions, chunk) if captions else [None] * len(chunk),
            }
            looked |= {modality: _media(column, chunk) for modality, column in media.items()}
            for number, *values in zip(chunk, *looked.values(), strict=True):
                yield number, dict(zip(looked, values, strict=True))


def _column(dataset: Dataset, name: str) -> pa.ChunkedArray:
    return dataset.select_columns([name]).with_format("arrow")[:].column(name)


def _piece(column: pa.ChunkedArray, numbers: Sequence[int]) -> tuple[pa.ChunkedArray, list[int]]:
    """The part of a column that holds these rows, and their places in it: Arrow looks through all that it is given."""
    if not len(numbers):
        return column.slice(0, 0), []
    first = min(numbers)
    return column.slice(first, max(numbers) - first + 1), [number - first for number in numbers]


def _take(column: pa.ChunkedArray, numbers: Sequence[int]) -> list[Any]:
    piece, places = _piece(column, numbers)
    return piece.take(pa.array(places, pa.int64())).to_pylist()


def _media(column: pa.ChunkedArray, numbers: Sequence[int]) -> list[Any]:
    """Each medium as b"" where its bytes are there, else its path, or None."""
    has_bytes = _has_bytes(column)
    column, numbers = _piece(column, numbers)
    if not has_bytes:
        return _take(pc.struct_field(column, "path") if pa.types.is_struct(column.type) else column, numbers)
    stored, paths = column, [None] * len(numbers)
    if pa.types.is_struct(column.type):
        stored, paths = pc.struct_field(column, "bytes"), _take(pc.struct_field(column, "path"), numbers)
    return [b"" if there else path for there, path in zip(_take(pc.is_valid(stored), numbers), paths, strict=True)]


def _has_bytes(column: pa.ChunkedArray) -> bool:
    """Whether a column of media holds any bytes, not paths alone."""
    if pa.types.is_struct(column.type):
        column = pc.struct_field(column, "bytes")
    binary = pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type)
    return binary and column.null_count < len(column)
