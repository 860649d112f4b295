"""A procedural data set of small scenes that exist as picture, sound, clip and in five captions each.

A scene is two different things, each of one of 2 sizes, 13 colours and 5 shapes, left of or above one another: 33,540
contents. Each content belongs to one split for good, whatever the seed or the size asked for: no content of test or
validation is ever trained on, and within a split no two rows are alike. The pairs in `HELD_OUT` (a colour and a
shape) occur together in no scene of train or validation, neither on one thing nor on two; test has them as often as
chance would. The seed chooses contents within the split, wording, and every nuisance of the media.
"""

import hashlib
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from itertools import permutations, product
from typing import Any, TypeVar

import numpy as np
from datasets import Audio, Dataset, Features, Image, List, Value, Video
from datasets.table import InMemoryTable, concat_tables

from .phrases import hash_id
from .relations import MEDIA
from .scenes_language import (
    COLOURS,
    RELATIONS,
    SHAPES,
    SIZES,
    Claim,
    Thing,
    caption_claims,
    describe,
    fact_id,
    facts,
    phrase_claims,
    say_caption,
    say_claim,
)
from .scenes_render import RENDER

SCENES = {"train": 3500, "validation": 200, "test": 200}  # how many the demo has of each split
SPLITS = tuple(SCENES)
HELD_OUT = (
    ("red", "circle"),
    ("blue", "triangle"),
    ("green", "cross"),
    ("yellow", "square"),
    ("purple", "ring"),
    ("orange", "triangle"),
    ("white", "square"),
    ("pink", "circle"),
)
_CHUNK = 250  # rows rendered at a time by a process
T = TypeVar("T")
_FILE = {"image": Image(decode=False), "audio": Audio(decode=False), "video": Video(decode=False)}
# The columns of rows whose truth is known; media stand beside them.
TRUTH_COLUMNS = {
    "id": Value("string"),
    "caption": List(Value("string")),
    "phrases": List(List(Value("string"))),
    "phrase_facts": List(List(Value("int64"))),
    "caption_requires": List(List(Value("int64"))),
    "caption_facts": List(List(Value("int64"))),
    "facts": List(Value("int64")),
}


def scene_id(scene: Claim) -> str:
    """The content as text, "a small red circle left of a large blue cross": rows of one content share their id."""
    return f" {scene.relation} ".join(describe(thing) for thing in scene.things)


def held_out_pairs(scene: Claim) -> list[tuple[str, str]]:
    """The held-out pairs whose colour and shape both occur in the scene, on one thing or on two."""
    colours, shapes = {thing.colour for thing in scene.things}, {thing.shape for thing in scene.things}
    return [pair for pair in HELD_OUT if pair[0] in colours and pair[1] in shapes]


@cache
def contents(split: str) -> tuple[Claim, ...]:
    """Every content of a split, in a fixed order."""
    if split not in SPLITS:
        raise ValueError(f"split={split!r} does not exist in scenes: choose one of {', '.join(SPLITS)}")
    things = [Thing(*values) for values in product(SIZES, COLOURS, SHAPES)]
    every = (Claim(a, relation, b) for a, b in permutations(things, 2) for relation in RELATIONS)
    return tuple(scene for scene in every if _split_of(scene) == split)


@cache
def scenes_by_id() -> dict[str, Claim]:
    """Every content of every split by its `scene_id`."""
    return {scene_id(scene): scene for split in SPLITS for scene in contents(split)}


def make_scenes(
    split: str,
    size: int,
    seed: int = 0,
    modalities: Sequence[str] = MEDIA,
    parts: bool = False,
) -> Dataset:
    """`size` different scenes of a split; a smaller set with the same seed is the beginning of a larger one.

    Columns: `id` (the content in words), `caption` (5), `phrases` and `phrase_facts` per caption (one fact each),
    `caption_requires` per caption (the one fact that is the whole caption: it is true of a scene iff that fact is
    among the scene's `facts`), `caption_facts` per caption (all that it implies), `facts` (all that is true of the
    scene), and a column of undecoded files ({"bytes", "path"}) per modality.

    With `parts`, also `part_image` and `part_audio` (of the modalities asked for): another rendering of *one* of the
    two things, alone; and `part_facts`, the one fact that such a part stands for, "there is a small red circle". A
    picture or sound of one thing is thus a phrase in another modality, which training can compose with phrases.

    Raises:
        ValueError: no such split or modality, or more scenes than the split has contents.
    """
    _check_modalities(modalities)
    pool = contents(split)
    if not 0 < size <= len(pool):
        raise ValueError(f"size={size} scenes asked of split {split!r}: ask for 1 to {len(pool)}, its contents")
    order = np.random.default_rng([seed, SPLITS.index(split)]).permutation(len(pool))[:size]
    return _dataset([pool[i] for i in order], split, seed, modalities, parts)


def render_part(thing: Thing, modality: str, seed: Sequence[int]) -> dict[str, Any]:
    """One thing alone, as an undecoded file of a modality; it stands for `fact_id(Claim(thing))`."""
    return RENDER[modality](Claim(thing), np.random.default_rng(seed))


def _split_of(scene: Claim) -> str | None:
    """Test 10 %, validation 5 %, train 85 %, by a hash; contents with a held-out pair outside test belong nowhere."""
    place = hash_id(f"split of {scene_id(scene)}") % 20
    if place < 2:
        return "test"
    if held_out_pairs(scene):
        return None
    return "validation" if place == 2 else "train"


def _check_modalities(modalities: Sequence[str]) -> None:
    unknown = [m for m in modalities if m not in RENDER]
    if unknown:
        raise ValueError(f"modalities={unknown} cannot be rendered: choose among {', '.join(RENDER)}")


def _dataset(scenes: Sequence[Claim], name: str, seed: int, modalities: Sequence[str], parts: bool) -> Dataset:
    columns = TRUTH_COLUMNS | {m: _FILE[m] for m in modalities}
    if parts:
        columns |= {f"part_{m}": _FILE[m] for m in modalities if m != "video"} | {"part_facts": List(Value("int64"))}
    # As Arrow tables: `from_list` would write through the typed audio column, which asks for torchcodec.
    schema = Features(columns).arrow_schema
    digest = hashlib.blake2b(digest_size=8)
    tables = []
    starts = range(0, len(scenes), _CHUNK)
    jobs = [(scenes[start : start + _CHUNK], start, name, seed, tuple(modalities), parts) for start in starts]
    for rows in _on_all_cores(_rows, jobs):
        for row in rows:
            _update(digest, row)
        tables.append(InMemoryTable.from_pylist(rows, schema=schema))
    # The fingerprint of `datasets` would pickle the whole table, which takes longer than to render it.
    return Dataset(concat_tables(tables), fingerprint=digest.hexdigest())


def _on_all_cores(task: Callable[[Any], T], jobs: Sequence[Any]) -> Iterator[T]:
    """What `task` returns of each job, in their order."""
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else 1
    # Processes are forked, as data loaders do on Linux: fresh ones would import longer than they render.
    if min(cores, len(jobs)) < 2 or multiprocessing.current_process().daemon:
        yield from map(task, jobs)
        return
    with multiprocessing.get_context("fork").Pool(min(cores, len(jobs))) as pool:
        yield from pool.imap(task, jobs)


def _rows(job: tuple[Sequence[Claim], int, str, int, Sequence[str], bool]) -> list[dict[str, Any]]:
    scenes, start, name, seed, modalities, parts = job
    return [_row(scene, name, [seed, i], modalities, parts) for i, scene in enumerate(scenes, start)]


def _update(digest: Any, row: dict[str, Any]) -> None:
    """Adds all that a row holds to a hash."""
    for name, value in row.items():
        digest.update(name.encode())
        digest.update(value["bytes"] if isinstance(value, dict) else repr(value).encode())


def _row(scene: Claim, name: str, seed: list[int], modalities: Iterable[str], parts: bool) -> dict[str, Any]:
    content = hash_id(f"{name} {scene_id(scene)}")
    words = np.random.default_rng([*seed, content])
    captions = caption_claims(scene, words)
    phrases = [phrase_claims(caption, words) for caption in captions]
    row: dict[str, Any] = {
        "id": scene_id(scene),
        "caption": [say_caption(caption, words) for caption in captions],
        "phrases": [[say_claim(phrase, words) for phrase in line] for line in phrases],
        "phrase_facts": [[fact_id(phrase) for phrase in line] for line in phrases],
        "caption_requires": [[fact_id(caption)] for caption in captions],
        "caption_facts": [facts(caption) for caption in captions],
        "facts": facts(scene),
    }
    # A stream for each medium: what one looks like does not depend on which others were asked for.
    for number, modality in enumerate(RENDER):
        if modality in modalities:
            row[modality] = RENDER[modality](scene, np.random.default_rng([*seed, content, number]))
    if parts:
        thing = scene.things[int(np.random.default_rng([*seed, content, 3]).integers(len(scene.things)))]
        row["part_facts"] = [fact_id(Claim(thing))]
        for number, modality in enumerate(("image", "audio"), 4):
            if modality in modalities:
                row[f"part_{modality}"] = render_part(thing, modality, [*seed, content, number])
    return row
