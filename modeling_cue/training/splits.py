"""Which rows are in which split: of a source, of its split column, or made by a seeded rule; and what must hold."""

import hashlib
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from datasets import Dataset

from .rows import DataError

logger = logging.getLogger(__name__)
SPLIT_ALIASES = {
    **dict.fromkeys(("train", "training", "restval"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}
# A split: the data set that holds its rows, and their numbers in it.
Members = dict[str, tuple[Dataset, Sequence[int]]]


@dataclass(frozen=True)
class KnownCounts:
    """How many images and captions a data set of the hub has. `sizes` cuts one that has no splits of its own."""

    images: int
    splits: dict[str, int] | None = None
    captions: int | None = None
    sizes: tuple[int, int] | None = None


# Karpathy's splits leave out 769 of the 31,783 images of Flickr30k.
KNOWN_COUNTS = {
    "nlphuji/flickr30k": KnownCounts(31_014, {"train": 29_000, "validation": 1_014, "test": 1_000}, 155_070),
    "lmms-lab/flickr30k": KnownCounts(31_783, sizes=(1_014, 1_000)),
}


def split_name(name: str) -> str:
    """The usual name of a split: train, validation, test; or `name` where it is another one. restval is train."""
    return SPLIT_ALIASES.get(name.lower(), name)


def verify_one_piece(splits: Iterable[str], column: str | None, source: str) -> None:
    """What is to be cut anew has no splits of its own; a column of them is passed over, with a warning.

    Raises:
        DataError: it has several splits, of which the test rows would then be trained on.
    """
    several = list(splits)
    if len(several) > 1:
        raise DataError(
            f"split_sizes cuts data that comes in one piece, and {source} has the splits {', '.join(several)}: leave "
            "split_sizes out and name these, or give a copy in one piece"
        )
    if column:
        logger.warning("%s is cut anew by split_sizes, whatever its column %r says", source, column)


def made_splits(ids: Iterable[str], sizes: tuple[int, int], seed: int, source: str) -> dict[str, str]:
    """The split of each id: ranked by a hash of seed and id, validation takes the first, test the next, then train.

    Args:
        sizes: ids of validation and of test.

    Raises:
        DataError: a size is negative, or nothing is left for train.
    """
    ranked = sorted(set(ids), key=lambda name: hashlib.blake2b(f"{seed}:{name}".encode()).digest())
    validation, test = sizes
    if min(sizes) < 0 or validation + test >= len(ranked):
        raise DataError(
            f"split_sizes={sizes} is not valid for {source}, which has {len(ranked)} images: the sizes of validation "
            "and test must be zero or more and leave some for train"
        )
    parts = ("validation",) * validation + ("test",) * test + ("train",) * (len(ranked) - validation - test)
    return dict(zip(ranked, parts, strict=True))


def grouped(dataset: Dataset, names: Iterable[str]) -> Members:
    """The rows of each split, of a data set of which `names` says the split of each row."""
    numbers: dict[str, list[int]] = {}
    for number, name in enumerate(names):
        numbers.setdefault(name, []).append(number)
    return {name: (dataset, rows) for name, rows in numbers.items()}


def find_split(present: Iterable[str], split: str, source: str) -> str:
    """The name among `present` that is `split`, or its usual other name.

    Raises:
        DataError: there is none.
    """
    names = list(present)
    for name in [*(n for n in names if n == split), *(n for n in names if split_name(n) == split_name(split))]:
        return name
    raise DataError(
        f"{source} has no split {split!r}; it has: {', '.join(names)}. Name one of these; in training, cut "
        "it by numbers of images, split_sizes=(validation, test) (--split_sizes N N), or do without the split "
        "(--validation_split none --test_split none)"
    )


def only_split(present: Iterable[str], source: str) -> str:
    """The name of the one split.

    Raises:
        DataError: there are several.
    """
    names = list(present)
    if len(names) > 1:
        raise DataError(f"{source} has several splits, {', '.join(names)}: name one of them with split (--split NAME)")
    return names[0]


def verify_apart(
    members: Members, identities: dict[str, Callable[[Dataset, Sequence[int]], Iterable[str]]], source: str
) -> None:
    """No image stands in two splits, by any of `identities`: functions by label that name the images of some rows.

    Raises:
        DataError: one does.
    """
    for label, identify in identities.items():
        seen: dict[str, str] = {}
        for split, (dataset, numbers) in members.items():
            for value in identify(dataset, numbers):
                if value and seen.setdefault(value, split) != split:
                    raise DataError(
                        f"{source}: the image of {label} {value!r} stands in two splits, {seen[value]} and {split}: "
                        f"what is tested would have been trained on. Remove one of the two; or, if {label} tells no "
                        "images apart, name the column that does with id_column (--id_column NAME)"
                    )


def verify_counts(known: KnownCounts, images: dict[str, int], captions: int, source: str) -> None:
    """A known data set has its known numbers of images, in all and by split, and of captions.

    Raises:
        DataError: it has others.
    """
    for what, expected, found in (
        ("images", known.images, sum(images.values())),
        ("images by split", known.splits, images),
        ("captions", known.captions, captions),
    ):
        if expected not in (None, found):
            raise DataError(
                f"{source} is known to have {expected} {what}; here it has {found}. The download may be incomplete: "
                "remove it from the cache and try again; or take what is there with check_counts=False"
            )
