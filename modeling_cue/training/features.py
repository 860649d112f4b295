"""Features of frozen towers, read from memory-mapped files in place of running the towers."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from ..encoders_run import average_views
from ..media_files import MediaError
from .feature_files import open_shard
from .fingerprint import weights_digest
from .phrases import hash_id


class Place(NamedTuple):
    """Where a medium's features stand: the column and row of the data set, and whether its mirror image is meant."""

    column: str
    row: int
    mirrored: bool = False


class FeatureTable:
    """Features of one column, row by row: (H,) vectors, or tokens (T, H) of any length T.

    Rows are views of memory-mapped files; nothing is read before it is asked for. Worker processes get the names of
    the files, never their content.
    """

    def __init__(self, shards: Sequence[tuple[Path, str]], width: int, tokens: bool):
        self.shards, self.width, self.tokens = list(shards), width, tokens
        self._blocks: list[pa.RecordBatch] = []
        self._values: list[tuple[np.ndarray, np.ndarray]] = []
        for path, key in self.shards:
            found = open_shard(path, key)
            assert found is not None, path
            for block in found:
                column = block.column("features")
                self._blocks.append(block)
                self._values.append((column.values.to_numpy(zero_copy_only=True), column.offsets.to_numpy()))
        self._ends = np.cumsum([block.num_rows for block in self._blocks])
        self._complete = not any(block.column("features").null_count for block in self._blocks)

    def __reduce__(self) -> tuple[Any, ...]:
        return FeatureTable, (self.shards, self.width, self.tokens)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def has(self, row: int) -> bool:
        """Whether the row has this medium.

        Raises:
            MediaError: it has one, which could not be read when the table was made.
        """
        if self._complete:
            return True
        block, place = next(self._find([row]))
        reason = self._blocks[block].column("error")[place].as_py()
        if reason is not None:
            raise MediaError(reason)
        return self._blocks[block].column("features")[place].is_valid

    def rows(self, indices: Sequence[int]) -> list[np.ndarray]:
        """(H,) or flat (T * H,) of each of these rows, as stored."""
        found = []
        for block, place in self._find(indices):
            values, offsets = self._values[block]
            found.append(values[offsets[place] : offsets[place + 1]])
        return found

    def _find(self, indices: Sequence[int]) -> Iterator[tuple[int, int]]:
        blocks = np.searchsorted(self._ends, indices, side="right")
        for index, block in zip(indices, blocks, strict=True):
            yield block, index - (self._ends[block - 1] if block else 0)

    def batch(self, rows: Sequence[np.ndarray]) -> tuple[Tensor, Tensor | None]:
        """(N, H), or (N, T, H) with a mask (N, T) bool, of what `rows` returned, in the dtype in which it is stored.

        The model widens what it reads: half as many bytes are padded here and copied to a device, and on its side
        most of the padding is cut off before.
        """
        if not self.tokens:
            return torch.from_numpy(np.stack(rows)), None
        lengths = torch.tensor([len(row) // self.width for row in rows])
        mask = torch.arange(int(lengths.max())) < lengths[:, None]
        stored = torch.from_numpy(np.concatenate(rows)).view(-1, self.width)
        features = torch.zeros(*mask.shape, self.width, dtype=stored.dtype)
        features[mask] = stored
        return features, mask


class FeatureStore:
    """Features of one split for the modalities whose towers are frozen: texts by their words, media by their place.

    Args:
        tables: by column of the data set, beside `text`, and `mirror_of(column)` for mirror images.
        modality_of: the modality of each of these columns.
        texts: the words of the rows of `text`.
        weights: the digest of the tower behind each modality's features.
        average: whether an image stands for itself and its mirror image, as with `average_mirror` outside training.
    """

    def __init__(
        self,
        tables: dict[str, FeatureTable],
        modality_of: dict[str, str],
        texts: Sequence[str] = (),
        weights: dict[str, str] | None = None,
        average: bool = False,
    ):
        self.tables, self.modality_of, self.weights, self.average = tables, modality_of, weights or {}, average
        self.modalities = frozenset(modality_of.values())
        self._text_row = {hash_id(text): i for i, text in enumerate(texts)}

    @property
    def files(self) -> list[Path]:
        """The files that hold all this."""
        return [path for table in self.tables.values() for path, _ in table.shards]

    def text(self, texts: Iterable[str]) -> tuple[Tensor, Tensor | None]:
        """Features of these texts and their mask, as `CUEModel.tower_features` returns them."""
        table = self.tables["text"]
        return table.batch(table.rows([self._text_row[hash_id(text)] for text in texts]))

    def media(self, places: Sequence[Place]) -> tuple[Tensor, Tensor | None]:
        """Features of media of one modality and their mask, as `CUEModel.tower_features` returns them."""
        table = self.tables[places[0].column]
        features, mask = table.batch(self._rows(places))
        if self.average and mirror_of(places[0].column) in self.tables:
            turned, _ = table.batch(self._rows([place._replace(mirrored=True) for place in places]))
            return average_views(features, turned, mask)
        return features, mask

    def _rows(self, places: Sequence[Place]) -> list[np.ndarray]:
        wanted: dict[str, list[int]] = {}
        for number, place in enumerate(places):
            wanted.setdefault(mirror_of(place.column) if place.mirrored else place.column, []).append(number)
        found: dict[int, np.ndarray] = {}
        for column, numbers in wanted.items():
            found |= zip(numbers, self.tables[column].rows([places[n].row for n in numbers]), strict=True)
        return [found[number] for number in range(len(places))]

    def check_towers(self, model: Any) -> None:
        """Checks that the frozen towers of `model` are the ones whose features these are.

        Raises:
            ValueError: another tower was loaded since.
        """
        for modality, digest in self.weights.items():
            if weights_digest(getattr(model, model.tower_name(modality))) != digest:
                raise ValueError(
                    f"the checkpoint's frozen {modality} tower is not the one whose features are cached: name the "
                    "encoders that the checkpoint was trained with, or run the towers each time (--feature_cache none)"
                )


def mirror_of(column: str) -> str:
    """The name of the table of a column's mirror images."""
    return f"mirror of {column}"
