"""What a perfect reader could reach on scenes, and queries that ask for what was never seen together."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from .scenes import held_out_pairs, render_part, scenes_by_id
from .scenes_language import Claim, Thing, fact_id, generalisations, implied, say_claim

KINDS = ("text", "image", "audio")


@dataclass(frozen=True)
class Part:
    """One part of a query: a phrase, or a picture or sound of one thing, and the facts that it requires."""

    modality: str
    value: Any
    facts: tuple[int, ...]


@dataclass(frozen=True)
class Query:
    """Parts to be composed, the indices of the rows of which every part is true, and the pair never seen together.

    `kind` is "text" where all parts are phrases, else the modality of the one part that is not.
    """

    kind: str
    parts: tuple[Part, ...]
    hits: tuple[int, ...]
    pair: tuple[str, str]


def reader_ceiling(rows: Iterable[Mapping[str, Any]], letters: str = "tiav") -> dict[str, float]:
    """R@1 of a reader who knows exactly what is true, by key ("t2i_R@1"), for every two of the modalities `letters`.

    From a caption, it picks at random among the rows of which the caption is true: no reader can do better. To a
    caption, it picks at random among the most specific of the captions that are true (a vague one is more likely to
    have been said of another scene). Media tell everything, so between them it makes no mistake. Rows must have
    `caption_requires`, `caption_facts`, `facts`, and contents of which no two are alike.
    """
    columns = ("caption_requires", "caption_facts", "facts")
    scenes = [{name: row[name] for name in columns} for row in rows]
    truths = [frozenset(scene["facts"]) for scene in scenes]
    from_text, told = [], [[] for _ in scenes]  # type: list[float], list[list[tuple[int, int]]]
    for own, scene in enumerate(scenes):
        for requires, all_implied in zip(scene["caption_requires"], scene["caption_facts"], strict=True):
            true_of = [i for i, truth in enumerate(truths) if truth.issuperset(requires)]
            from_text.append(1 / len(true_of))
            for i in true_of:
                told[i].append((len(all_implied), own))
    to_text = []
    for i, captions in enumerate(told):
        best = max(captions)[0]
        owners = [own for specific, own in captions if specific == best]
        to_text.append(owners.count(i) / len(owners))
    values = {True: float(np.mean(from_text)), False: float(np.mean(to_text))}
    return {f"{a}2{b}_R@1": values[a == "t"] if "t" in (a, b) else 1.0 for a in letters for b in letters if a != b}


def composition_queries(
    rows: Sequence[Mapping[str, Any]] | Any, seed: int = 0, max_true: int = 3, max_parts: int = 4, draws: int = 5
) -> list[Query]:
    """Queries about a held-out pair: for each test scene with one, all of phrases, with a picture, and with a sound.

    Each `draws` times, with other phrases and renderings: one draw, of some 80, leaves recall uncertain by 4 points.

    A phrase names the colour of the pair and another phrase its shape: no training scene made both true. Further
    phrases that are true of the scene are added until all together are true of 1 to `max_true` rows.

    A picture or sound as a part shows one thing alone (never itself a held-out pair, so that it is nothing new) and
    stands for "there is a small red circle", with size, colour and shape: a row is a hit iff it has such a thing and
    all the phrases are true of it. Where the thing shown has half of the pair, a phrase names the other half; else
    two phrases name the halves.

    Args:
        rows: rows of `make_scenes("test", ...)`; only `id` and `facts` are read.
    """
    known = scenes_by_id()
    ids, truths = [row["id"] for row in rows], [frozenset(row["facts"]) for row in rows]
    queries = []
    for own, identity in enumerate(ids):
        scene = known[identity]
        for number, pair in enumerate(held_out_pairs(scene)):
            for (k, kind), draw in product(enumerate(KINDS), range(draws)):
                stream = [seed, own, number, k, draw]
                parts = _parts(scene, pair, kind, stream, truths, max_true, max_parts)
                if parts is not None:
                    hits = tuple(i for i, truth in enumerate(truths) if _true(parts, truth))
                    queries.append(Query(kind, tuple(parts), hits, pair))
    return queries


def _parts(
    scene: Claim,
    pair: tuple[str, str],
    kind: str,
    stream: list[int],
    truths: Sequence[frozenset[int]],
    max_true: int,
    max_parts: int,
) -> list[Part] | None:
    """Parts true of `scene` and of at most `max_true` of `truths`; None where there is no such choice."""
    rng = np.random.default_rng(stream)
    colour, shape = pair
    halves = [Thing(colour=colour), Thing(shape=shape)]
    parts: list[Part] = []
    if kind != "text":
        shown = [thing for thing in scene.things if not held_out_pairs(Claim(thing))]
        if not shown:
            return None
        thing = shown[int(rng.integers(len(shown)))]
        parts.append(Part(kind, render_part(thing, kind, [*stream, 0]), (fact_id(Claim(thing)),)))
        halves = [half for half in halves if half not in generalisations(thing)]
    parts += [_phrase(Claim(half), rng) for half in halves]
    more = [claim for claim in sorted(implied(scene), key=fact_id) if _plain(claim, pair)]
    order = iter(rng.permutation(len(more)))
    true_of = [truth for truth in truths if _true(parts, truth)]
    while len(true_of) > max_true and len(parts) < max_parts:
        claim = more[next(order)]
        fewer = [truth for truth in true_of if fact_id(claim) in truth]
        # The last phrase must do what is left to do; one before it must say something at all.
        if len(fewer) < len(true_of) and (len(parts) < max_parts - 1 or len(fewer) <= max_true):
            parts.append(_phrase(claim, rng))
            true_of = fewer
    return parts if len(true_of) <= max_true else None


def _plain(claim: Claim, pair: tuple[str, str]) -> bool:
    """Whether a claim is a phrase as training has them, and leaves the pair to the parts that name its halves."""
    names = [value for thing in claim.things for value in thing if value is not None]
    return 0 < len(names) <= 3 and claim.relation != "and" and not (pair[0] in names and pair[1] in names)


def _phrase(claim: Claim, rng: np.random.Generator) -> Part:
    return Part("text", say_claim(claim, rng), (fact_id(claim),))


def _true(parts: Iterable[Part], truth: frozenset[int]) -> bool:
    return all(fact in truth for part in parts for fact in part.facts)
