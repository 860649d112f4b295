"""What can be said of a scene, in how many ways, and when it is true.

A *thing* is a size, a colour and a shape, each of which a description may leave out. A *claim* is either one thing
("there is a red circle") or two different things and how they stand ("a red circle left of something small").
Everything that can be said is a claim, and a claim has one canonical wording, whose hash is its *fact id*; the other
wordings share that id. A scene is its own complete claim, so one closure, `implied`, gives both what is true of a
scene and what follows from a caption: a claim is true of a scene iff its fact is among those that the scene implies.
"""

from collections.abc import Sequence
from functools import cache
from itertools import product
from typing import Any, NamedTuple

import numpy as np

from .phrases import hash_id

SIZES = ("small", "large")
COLOURS = (
    "purple", "blue", "teal", "green", "cyan", "white", "pink", "magenta", "red", "brown", "orange", "yellow", "lime",
)  # fmt: skip
SHAPES = ("circle", "ring", "square", "triangle", "cross")
LEFT, ABOVE, AND = "left of", "above", "and"
RELATIONS = (LEFT, ABOVE)

_SIZE_WORDS = {"small": ("small", "little"), "large": ("large", "big")}
_PHRASE_FORMS = {
    LEFT: ("{a} left of {b}", "{a} to the left of {b}", "{b} right of {a}"),
    ABOVE: ("{a} above {b}", "{a} over {b}", "{b} below {a}"),
    AND: ("{a} and {b}", "{b} and {a}", "{a} with {b}", "{b} with {a}"),
}
_CAPTION_FORMS = {
    LEFT: (*_PHRASE_FORMS[LEFT], "{a} on the left and {b} on the right"),
    ABOVE: (*_PHRASE_FORMS[ABOVE], "{a} at the top and {b} at the bottom"),
    AND: (*_PHRASE_FORMS[AND], "{a} together with {b}", "{b} together with {a}"),
}
_OPENINGS = ("", "", "there is ", "here is ", "a scene with ")


class Thing(NamedTuple):
    """A description of one object; None is left out."""

    size: str | None = None
    colour: str | None = None
    shape: str | None = None


class Claim(NamedTuple):
    """`first` `relation` `second`; a claim about one thing has neither relation nor second.

    As a scene: two complete things that stand `LEFT` or `ABOVE`, or a single one.
    """

    first: Thing
    relation: str | None = None
    second: Thing | None = None

    @property
    def things(self) -> tuple[Thing, ...]:
        return (self.first,) if self.second is None else (self.first, self.second)


@cache
def describe(thing: Thing) -> str:
    """The canonical wording: "a small red circle", "a large cross", "something small and red", "something"."""
    adjectives = [word for word in thing[:2] if word is not None]
    if thing.shape is None:
        return " ".join(["something", " and ".join(adjectives)]).strip()
    return _article([*adjectives, thing.shape])


@cache
def fact_id(claim: Claim) -> int:
    """The id of a claim in (0, 2**63): the hash of its canonical wording."""
    names = [describe(thing) for thing in claim.things]
    return _text_id(_joined(*names) if claim.relation == AND else f" {claim.relation} ".join(names))


@cache
def generalisations(thing: Thing) -> tuple[Thing, ...]:
    """Every description that fits whatever `thing` fits: `thing` itself first, the empty one last."""
    return tuple(Thing(*kept) for kept in product(*((v, None) if v is not None else (None,) for v in thing)))


def implied(claim: Claim) -> set[Claim]:
    """Every claim that follows from `claim`, itself included, but for those that hold of all scenes of two things.

    Those are "something", and that there is something else besides.
    """
    claims = {Claim(general) for thing in claim.things for general in generalisations(thing)[:-1]}
    if claim.second is not None:
        for a, b in product(generalisations(claim.first), generalisations(claim.second)):
            if claim.relation != AND:
                claims.add(Claim(a, claim.relation, b))
            if any(a) and any(b):
                claims.add(Claim(a, AND, b))
    return claims


def facts(claim: Claim) -> list[int]:
    """The ids of `implied(claim)`, sorted. Works on the wordings, which is several times faster."""
    names = [_general_names(thing) for thing in claim.things]
    told = {name for each in names for name in each[:-1]}
    if claim.relation == AND:
        told |= {_joined(a, b) for a in names[0][:-1] for b in names[1][:-1]}
    elif claim.relation is not None:
        told |= {f"{a} {claim.relation} {b}" for a in names[0] for b in names[1]}
        told |= {_joined(a, b) for a in names[0][:-1] for b in names[1][:-1]}
    return sorted(_text_id(text) for text in told)


def say(thing: Thing, rng: np.random.Generator) -> str:
    """One of the wordings of a description."""
    words = []
    if thing.size is not None:
        words.append(_choose(_SIZE_WORDS[thing.size], rng))
    if thing.colour is not None:
        words.append(thing.colour)
    if thing.shape is not None:
        return _article([*words, thing.shape])
    noun = _choose(("something", "thing", "object"), rng)
    if noun == "something" or not words:
        return " ".join(["something", " and ".join(words)]).strip()
    return _article([*words, noun])


def say_claim(claim: Claim, rng: np.random.Generator) -> str:
    """One of the wordings of a claim as a phrase."""
    if claim.relation is None or claim.second is None:
        return say(claim.first, rng)
    form = _choose(_PHRASE_FORMS[claim.relation], rng)
    return form.format(a=say(claim.first, rng), b=say(claim.second, rng))


def say_caption(claim: Claim, rng: np.random.Generator) -> str:
    """One of the wordings of a claim as a caption: more forms than a phrase has, and openings."""
    if claim.relation is None or claim.second is None:
        return _choose(_OPENINGS, rng) + say(claim.first, rng)
    form = _choose(_CAPTION_FORMS[claim.relation], rng)
    opening = "" if form.startswith(("on the", "at the")) else _choose(_OPENINGS, rng)
    return opening + form.format(a=say(claim.first, rng), b=say(claim.second, rng))


def caption_claims(scene: Claim, rng: np.random.Generator) -> list[Claim]:
    """The claims of the five captions of a scene of two things, from complete to vague, in random order.

    Everything; everything but how they stand; without the size of one; without both sizes; and without the colour or
    the shape of one.

    Colours have to be missing somewhere: they are learned first, and where they tell scenes apart, a contrastive loss
    never asks for the shape.
    """
    one = int(rng.integers(2))
    claims = [
        scene,
        scene._replace(relation=AND),
        _leave_out(scene, one, "size"),
        _leave_out(_leave_out(scene, 0, "size"), 1, "size"),
        _leave_out(scene, one, _choose(("colour", "colour", "shape"), rng)),
    ]
    return [claims[i] for i in rng.permutation(len(claims))]


def phrase_claims(caption: Claim, rng: np.random.Generator) -> list[Claim]:
    """What a caption is made of, from general to specific, each once.

    Each thing by one attribute, by a random part of its description, and whole; then the relation between random parts
    of the descriptions, and between others.
    """
    claims: list[Claim] = []
    for thing in caption.things:
        parts = generalisations(thing)[:-1]
        single = [part for part in parts if part.count(None) == 2]
        claims += [Claim(_choose(single, rng)), Claim(_choose(parts, rng)), Claim(thing)]
    if caption.second is not None:
        for _ in range(2):
            # "Something and a circle" says no more than "a circle": where AND joins them, both things are described.
            last = -1 if caption.relation == AND else None
            a = _choose(generalisations(caption.first)[:last], rng)
            b = _choose(generalisations(caption.second)[:last], rng)
            claims.append(Claim(a, caption.relation, b))
    return list({fact_id(claim): claim for claim in claims}.values())


@cache
def _text_id(text: str) -> int:
    return hash_id(text)


@cache
def _general_names(thing: Thing) -> tuple[str, ...]:
    return tuple(describe(general) for general in generalisations(thing))


def _joined(a: str, b: str) -> str:
    return f"{a} and {b}" if a < b else f"{b} and {a}"


def _article(words: list[str]) -> str:
    return " ".join(["an" if words[0][0] in "aeiou" else "a", *words])


def _without(thing: Thing, name: str) -> Thing:
    return thing._replace(**{name: None})


def _leave_out(scene: Claim, which: int, name: str) -> Claim:
    """A scene of two things with one attribute of one of them left out."""
    things = list(scene.things)
    things[which] = _without(things[which], name)
    return Claim(things[0], scene.relation, things[1])


def _choose(options: Sequence[Any], rng: np.random.Generator) -> Any:
    return options[int(rng.random() * len(options))]
