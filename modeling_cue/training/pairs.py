"""What an epoch goes through: every (image, caption) pair, or every image with all its captions."""

import random
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow.compute as pc
import torch
from datasets import Dataset
from transformers.trainer_pt_utils import LengthGroupedSampler

from .draws import DRAW, UNREAD, Draws
from .streams import RowStream


def caption_pairs(
    rows: Dataset | RowStream,
    captions_per_image: int | str = 1,
    *,
    seed: int = 0,
    shuffle_buffer_size: int = 1000,
    images: Any = None,
) -> "CaptionPairs | CaptionStream":
    """`CaptionPairs` of rows that can be indexed, `CaptionStream` of a stream.

    Args:
        captions_per_image: 1: every (image, caption) pair; "all": every image once, with all its captions.
        seed: of what is drawn of an item, and of a stream's order.
        shuffle_buffer_size: for streams; rows that can be indexed are shuffled by the data loader.
        images: of rows that can be indexed, read in place of their own.

    Raises:
        ValueError: another `captions_per_image`.
    """
    if str(captions_per_image) not in ("1", "all"):
        raise ValueError(f"captions_per_image={captions_per_image!r} is not valid; it must be 1 or all")
    every = str(captions_per_image) == "all"
    if isinstance(rows, RowStream):
        return CaptionStream(rows, every, seed, shuffle_buffer_size)
    return CaptionPairs(rows, every, images, seed)


class CaptionPairs(torch.utils.data.Dataset):
    """Rows with `caption_index`, the numbers of the captions that count this time, and `index`, the number of the row.

    An image is never parted from its captions: an item is its whole row, with the image of that number in `images`
    where these are given. Its `draw` decides, with those of its batch, what is drawn of it in this epoch.
    """

    def __init__(self, rows: Dataset, every_caption: bool = False, images: Any = None, seed: int = 0):
        # What comes from elsewhere need not be read.
        self.rows = rows if images is None else rows.remove_columns(["image"])
        self.every_caption, self.images = every_caption, images
        captions = rows.select_columns(["caption"]).with_format("arrow")[:].column("caption")
        counts = pc.list_value_length(captions).to_numpy()
        self._ends = np.cumsum(np.ones_like(counts) if every_caption else counts)
        if not len(self._ends):
            raise ValueError("there are no rows: nothing can be trained or measured on an empty data set")
        self._draws = Draws(seed)

    def set_epoch(self, epoch: int) -> None:
        """Other draws for another epoch."""
        self._draws.epoch = epoch

    def __len__(self) -> int:
        return int(self._ends[-1])

    def lengths(self) -> list[int]:
        """The length in letters of each item's longest caption."""
        rows = ([len(caption) for caption in captions] for captions in self.rows["caption"])
        return [length for row in rows for length in ([max(row)] if self.every_caption else row)]

    def __getitem__(self, item: int) -> dict[str, Any]:
        return self.__getitems__([item])[0]

    def __getitems__(self, items: Sequence[int]) -> list[dict[str, Any]]:
        # What a data loader asks for where it is there: the rows of a batch cost little more than one.
        items = [int(item) for item in items]  # a sampler's may be of a type too small for what is made of them
        if wrong := [item for item in items if not 0 <= item < len(self)]:
            raise IndexError(f"item {wrong[0]} is not among the {len(self)} of this data")
        indices = np.searchsorted(self._ends, items, side="right").tolist()
        columns = self.rows[indices]
        found = []
        for place, (item, index) in enumerate(zip(items, indices, strict=True)):
            row = {name: column[place] for name, column in columns.items()} | {"index": index}
            if self.images is not None:
                row["image"] = self.images[index]
            count = len(row["caption"])
            chosen = list(range(count)) if self.every_caption else [item - int(self._ends[index]) + count]
            found.append(row | {"caption_index": chosen, DRAW: self._draws.of(item)})
        return found


class GroupedByLength(LengthGroupedSampler):
    """Items in batches of about one length of captions, in another order each epoch, the same in every process."""

    def __init__(self, batch_size: int, lengths: list[int], seed: int):
        # Of its own: the random state that processes share by default drifts apart as each draws phrases.
        super().__init__(batch_size, lengths=lengths, generator=torch.Generator())
        self.seed, self.epoch = seed, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        self.generator.manual_seed(self.seed + self.epoch)
        return super().__iter__()


class CaptionStream(torch.utils.data.IterableDataset):
    """The same over a stream, without `index`; taken from a buffer of whole items.

    Every process reads the whole stream in the same order and Accelerate gives each its share of every batch, so that
    all take the same number of steps (shards of a stream may differ in length, and a loss that gathers would wait for
    ever). Worker processes of one data loader share the files of the source between them.

    Args:
        shuffle_buffer_size: items to draw from; 0 or 1 keeps the order.
    """

    def __init__(self, rows: RowStream, every_caption: bool = False, seed: int = 0, shuffle_buffer_size: int = 1000):
        self.rows = rows.shuffled(seed) if shuffle_buffer_size > 1 else rows
        self.every_caption, self.shuffle_buffer_size = every_caption, shuffle_buffer_size
        self._draws = Draws(seed)
        self.unread = (0, 0)  # batches that nobody will read, and the items of each over all processes

    def set_epoch(self, epoch: int) -> None:
        """Another order and other draws for another epoch, the same in every process."""
        self._draws.epoch = epoch
        self.rows.set_epoch(epoch)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        # Worker processes take turns in making batches.
        worker = torch.utils.data.get_worker_info()
        workers, own = (worker.num_workers, worker.id) if worker else (1, 0)
        batches, items = self.unread
        unread = len(range(own, batches, workers)) * items
        for number, item in enumerate(self._shuffled()):
            yield {UNREAD: True} if number < unread else item

    def _shuffled(self) -> Iterator[dict[str, Any]]:
        draw = random.Random(f"{self._draws.seed}:{self._draws.epoch}")
        buffer: list[dict[str, Any]] = []
        for item in self._items():
            buffer.append(item)
            if len(buffer) > max(self.shuffle_buffer_size - 1, 0):
                place = draw.randrange(len(buffer))
                buffer[place], buffer[-1] = buffer[-1], buffer[place]
                yield buffer.pop()
        draw.shuffle(buffer)
        yield from buffer

    def _items(self) -> Iterator[dict[str, Any]]:
        for row in self.rows:
            numbers = list(range(len(row["caption"])))
            for chosen in [numbers] if self.every_caption else [[number] for number in numbers]:
                yield {**row, "caption_index": chosen, DRAW: self._draws.of((row["id"], chosen))}
