"""What is put together for the compositional layer: phrases, whole captions, sounds, and pictures with phrases."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch

PICTURE = "own image"  # the kind of a part that is the picture of its own sample
MORE_PARTS = 2  # of a row's other captions, at most, beside a caption's own phrases or a sound


class Part(NamedTuple):
    """One part of a compound: its kind, its place among those of its kind, and what it says."""

    kind: str
    place: int
    requires: tuple[int, ...] = ()
    words: tuple[int, ...] = ()


class Said(NamedTuple):
    """A caption of a row by its number: itself as a part, and its phrases as parts."""

    number: int
    whole: Part
    phrases: list[Part]


def own_sound(loaded: Mapping[str, Any], place: int) -> Part | None:
    """The row's own sound as a part; where there is nothing else to find, it would only find itself."""
    others = any(loaded.get(modality) is not None for modality in ("image", "video"))
    return Part("own audio", place) if loaded.get("audio") is not None and others else None


def draw_compounds(
    said: Sequence[Said], sound: Part | None = None, picture: Part | None = None, whole_parts: float = 0.0
) -> list[tuple[int, list[Part]]]:
    """For training, of each caption of a row (by its number) one compound of at least two parts, where it has them.

    Its own phrases with up to `MORE_PARTS` of the other captions: all captions of a row are true of it, so that any of
    their phrases together are. Without more computing of texts, the compositional layer meets every number of parts,
    and parts that no one caption has together. A share of `whole_parts` is made at random of whole captions,
    of any number of them; where there is a sound, of the sound with captions or phrases of others; where there is a
    picture, of the picture with a phrase of the caption, which then is what they are to find.
    """
    compounds = []
    for caption in said:
        others = [other for other in said if other.number != caption.number]
        told = [part for other in others for part in other.phrases]
        if whole_parts and _chance(whole_parts):
            captions = [other.whole for other in others]
            ways = [[caption.whole, *_some(captions, len(captions))]] if captions else []
            if sound is not None:
                ways.append([sound, *_some([*captions, *told], MORE_PARTS)])
            if picture is not None:
                ways.append([picture, *caption.phrases[:1]])
            # A caption alone, without sound or picture, has its phrases only.
            parts = ways[int(torch.randint(len(ways), ()))] if ways else caption.phrases
        else:
            parts = [*caption.phrases, *_some(told, MORE_PARTS)]
        if len(parts) > 1:
            compounds.append((caption.number, parts))
    return compounds


def _some(parts: Sequence[Part], most: int) -> list[Part]:
    """At random none to `most` of the parts, in random order."""
    count = int(torch.randint(min(most, len(parts)) + 1, ())) if parts else 0
    return [parts[i] for i in torch.randperm(len(parts))[:count].tolist()]


def _chance(share: float) -> bool:
    return bool(torch.rand(()) < share)
