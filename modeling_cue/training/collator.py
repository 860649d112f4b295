"""From rows to a batch: decodes media, draws phrases, and notes what is true of what."""

import logging
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from ..encoders import MODALITIES
from ..media_audio import load_audio
from ..media_files import MediaError
from ..media_image import load_image
from ..media_pixels import Prepared, mirror, random_crop
from ..media_video import load_video
from ..processing_parts import ARGUMENTS
from .columns import Columns, padded
from .compounds import PICTURE, Part, Said, draw_compounds, own_sound
from .draws import UNREAD, drawn_for
from .features import FeatureStore, Place
from .phrases import hash_id, normalise, split_phrases, words
from .relations import MEDIA
from .rows import BadRows

logger = logging.getLogger(__name__)

COMPOUNDS = ("composed", "pictured")  # in the order of the model's output
# A row number times the first, plus the caption's number times the second, plus the place in the caption, names an
# element of a kind for good.
PLACES, PLACES_OF_CAPTION = 2**32, 2**16
KEPT_TEXTS = 2**17  # captions and phrases of which the collator remembers what they say, some hundred bytes each


class EveryRowBroken(MediaError):
    """A batch of which no row could be read."""

    def __init__(self) -> None:
        super().__init__(
            "every row of this batch is broken, and none was read before it: look at the rows reported above"
        )


def row_phrases(row: dict[str, Any], caption: int) -> Sequence[str]:
    """The phrases of one caption of a row: the row's own, or the splitter's."""
    return row["phrases"][caption] if "phrases" in row else _split(row["caption"][caption])


# The same texts come back every epoch: what they say is worked out once.
@lru_cache(maxsize=KEPT_TEXTS)
def _split(caption: str) -> tuple[str, ...]:
    return tuple(split_phrases(caption))


@lru_cache(maxsize=KEPT_TEXTS)
def _says(text: str) -> tuple[int, tuple[int, ...]]:
    """The id of a text as a fact, and the ids of its content words."""
    return hash_id(normalise(text)), tuple(hash_id(word) for word in words(text))


class CUECollator:
    """Makes a batch `{"model": arguments of CUEModel.forward, "rows": what losses and metrics need}`.

    Texts come once each; `text_index` names all captions, then all phrases among them. `rows` holds for each kind
    (text, phrase, image, audio, video, composed, pictured) `ids`, `requires`, `implies`, `words` and `key` as int64
    tensors; see `relations.Embedded`.

    Args:
        processor: a `CUEProcessor`. modalities: the modalities that the model has.
        phrases_per_caption: phrases drawn at random of each caption; None takes all (evaluation); 0 none.
        features: cached features of frozen towers, in place of their input; the other modalities come as input.
        bad_rows: what happens to a row that cannot be read.
        mirror_images: each image or its mirror image, at random.
        random_crop_scale: each image is cut to a random part of it, of this share of its area at least; 1: the whole.
        compounds: whether parts are put together for the compositional layer.
        whole_parts: the share of training's compounds whose parts are whole captions of a row, and the row's sound
            where it has one beside an image or a clip, or its image and phrases, in place of phrases alone.
        normalize: whether pixels come normalised, or as uint8 where they can, for `CUEProcessor.normalize`.
    """

    def __init__(
        self,
        processor: Any,
        modalities: Sequence[str],
        phrases_per_caption: int | None = 2,
        features: FeatureStore | None = None,
        bad_rows: BadRows | None = None,
        mirror_images: bool = False,
        compounds: bool = True,
        whole_parts: float = 0.0,
        random_crop_scale: float = 1.0,
        normalize: bool = True,
    ):
        self.processor = processor
        self.modalities = tuple(modalities)
        self.phrases_per_caption = phrases_per_caption
        self.features = features
        self.bad_rows = bad_rows or BadRows("raise")
        self.mirror_images = mirror_images
        self.compounds = compounds
        self.whole_parts = whole_parts
        self.random_crop_scale = random_crop_scale
        self.normalize = normalize
        self._read: dict[str, Any] | None = None

    @property
    def decodes(self) -> bool:
        """Whether there are media to decode: of cached features there are none."""
        cached = self.features.modalities if self.features is not None else ()
        return any(modality in MEDIA and modality not in cached for modality in self.modalities)

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        if UNREAD in rows[0]:
            return {}
        try:
            return self.batch(rows)
        except EveryRowBroken:
            return self.stand_in()

    def stand_in(self) -> dict[str, Any]:
        """The row that was read last once more, where a step needs a batch and all its rows are broken.

        Every process must take every step, and evaluation counts a row that comes twice once.
        """
        if self._read is None:
            raise EveryRowBroken
        logger.warning("every row of a batch is broken: row %r stands in for it", self._read["id"])
        return self.batch([self._read])

    def batch(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """The batch of the rows that can be read.

        Raises:
            EveryRowBroken: there are none. BadRowError: one is broken and `bad_rows` says to stop.
        """
        with drawn_for(rows):
            return self._batch(rows)

    def _batch(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        kinds: dict[str, Columns] = {kind: Columns() for kind in ("text", "phrase", *MEDIA, *COMPOUNDS)}
        texts: list[str] = []
        phrases: list[str] = []
        media: dict[str, list] = {modality: [] for modality in MEDIA}
        shown: dict[str, list] = {modality: [] for modality in MEDIA}  # media that are parts of compounds
        # Of each kind of compound, kind and place of the parts of each.
        parts: dict[str, list[list[tuple[str, int]]]] = {kind: [] for kind in COMPOUNDS}
        last = None
        for number, row in enumerate(rows):
            try:
                loaded = self._load(row)
            except MediaError as error:
                self.bad_rows.report(row["id"], str(error))
                continue
            last = row
            sample, place = hash_id(row["id"]), row.get("index", number) * PLACES
            truth = row.get("facts")
            for modality, value in loaded.items():
                media[modality].append(value)
                if truth is not None:
                    kinds[modality].add(sample, place, implies=truth)
                else:
                    told = {word for caption in row["caption"] for word in _says(caption)[1]}
                    implied = {_says(caption)[0] for caption in row["caption"]}
                    kinds[modality].add(sample, place, implies=implied, words=told)
            said = [
                self._add_caption(row, k, sample, place, kinds, texts, phrases)
                for k in row.get("caption_index", range(len(row["caption"])))
                if "text" in self.modalities
            ]
            compounds: list[tuple[int, list[Part]]] = []
            if self.compounds and self.phrases_per_caption is None:
                compounds = [(caption.number, caption.phrases) for caption in said if len(caption.phrases) > 1]
            elif self.compounds:
                sound = own_sound(loaded, len(media["audio"]) - 1)
                picture = Part(PICTURE, len(media["image"]) - 1) if "image" in loaded else None
                compounds = draw_compounds(said, sound, picture, self.whole_parts)
            self._show_part(row, shown, compounds)
            for k, compound in compounds:
                composed = "pictured" if any(part.kind == PICTURE for part in compound) else "composed"
                parts[composed].append([(part.kind, part.place) for part in compound])
                required = {fact for part in compound for fact in part.requires}
                composed_of = {word for part in compound for word in part.words}
                kinds[composed].add(sample, place + k, requires=required, words=composed_of)
        if last is None:
            raise EveryRowBroken
        self._read = last

        # Phrases come up again and again in a batch ("a man"): each text is embedded once.
        place_of: dict[str, int] = {}
        text_index = [place_of.setdefault(text, len(place_of)) for text in texts + phrases]
        inputs = self._inputs(list(place_of), {m: media[m] + shown[m] for m in MEDIA})
        if text_index:
            inputs["text_index"] = torch.tensor(text_index)
        if lines := [line for compounds in parts.values() for line in compounds]:
            start = {"text": 0, "phrase": len(texts)}
            before = len(texts) + len(phrases)
            for modality in MEDIA:
                start[f"own {modality}"], start[modality] = before, before + len(media[modality])
                before = start[modality] + len(shown[modality])
            inputs["parts"] = padded([[start[kind] + p for kind, p in line] for line in lines], -1)
        return {"model": inputs, "rows": {name: kind.tensors() for name, kind in kinds.items() if kind.ids}}

    def _add_caption(
        self,
        row: dict[str, Any],
        k: int,
        sample: int,
        place: int,
        kinds: dict[str, Columns],
        texts: list[str],
        phrases: list[str],
    ) -> Said:
        """Adds a caption and phrases drawn of it; returns both as parts."""
        # Where nobody reads phrases, captions are not parsed for them.
        caption, own = row["caption"][k], () if self.phrases_per_caption == 0 else row_phrases(row, k)
        generated = "phrase_facts" in row
        facts = row["phrase_facts"][k] if generated else [_says(phrase)[0] for phrase in own]
        if generated:
            required, text_words = tuple[int, ...](row["caption_requires"][k]), tuple[int, ...]()
            kinds["text"].add(sample, place + k, requires=required, implies=row["caption_facts"][k])
        else:
            required, text_words = (_says(caption)[0],), _says(caption)[1]
            kinds["text"].add(sample, place + k, requires=required, implies=[*required, *facts], words=text_words)
        whole = Part("text", len(texts), required, text_words)
        texts.append(caption)

        drawn = list(range(len(own)))
        if own and self.phrases_per_caption is not None:
            drawn = torch.randperm(len(own))[: self.phrases_per_caption].tolist()
        parts = []
        for place_in_caption, p in enumerate(drawn):
            said_here = () if generated else _says(own[p])[1]
            key = place + PLACES_OF_CAPTION * k + place_in_caption
            kinds["phrase"].add(sample, key, requires=[facts[p]], words=said_here)
            parts.append(Part("phrase", len(phrases), (facts[p],), said_here))
            phrases.append(own[p])
        return Said(k, whole, parts)

    def _show_part(self, row: dict[str, Any], shown: dict[str, list], compounds: list[tuple[int, list[Part]]]) -> None:
        """Puts a row's picture or sound of one part into every third of its compounds, in training."""
        if self.phrases_per_caption is None or not compounds:
            return
        choices = [m for m in self.modalities if self._has(row, f"part_{m}")]
        if not choices:
            return
        modality = choices[int(torch.randint(len(choices), ()))]
        for _, parts in compounds[::3]:
            parts.append(Part(modality, len(shown[modality]), tuple(row["part_facts"]), ()))
        shown[modality].append(self._medium(row, modality, f"part_{modality}"))

    def load_medium(self, modality: str, value: Any) -> Any:
        """Decodes an undecoded value as the model's processor wants it, text as it is; raises `MediaError`."""
        if modality == "text":
            return value
        if modality == "image":
            if self.random_crop_scale < 1:
                whole = value if isinstance(value, Prepared) else load_image(value)
                value = random_crop(whole, self.random_crop_scale)
            image = self.processor.pipeline.prepare(value)
            return mirror(image) if self._mirrors(modality) else image
        if modality == "audio":
            return load_audio(value, self.processor.feature_extractor.sampling_rate)
        return load_video(value, self.processor.num_frames)

    def _mirrors(self, modality: str) -> bool:
        return modality == "image" and self.mirror_images and bool(torch.rand(()) < 0.5)

    def _load(self, row: dict[str, Any]) -> dict[str, Any]:
        return {m: self._medium(row, m, m) for m in MEDIA if m in self.modalities and self._has(row, m)}

    def _has(self, row: dict[str, Any], column: str) -> bool:
        if self.features is not None and column in self.features.tables:
            return self.features.tables[column].has(row["index"])
        return row.get(column) is not None

    def _medium(self, row: dict[str, Any], modality: str, column: str) -> Any:
        """The decoded medium, or the place of its features; whether it is mirrored is drawn alike for both."""
        if self.features is not None and column in self.features.tables:
            return Place(column, row["index"], self._mirrors(modality))
        return self.load_medium(modality, row[column])

    def inputs(self, loaded: dict[str, list]) -> dict[str, Tensor]:
        """Arguments of `CUEModel.forward` from texts and decoded media by modality."""
        given: dict[str, Any] = {ARGUMENTS[m]: v for m, v in loaded.items() if v and m in self.modalities}
        if "audio" in given:
            given["sampling_rate"] = self.processor.feature_extractor.sampling_rate
        return dict(self.processor(**given, do_normalize=self.normalize)) if given else {}

    def _inputs(self, texts: list[str], media: dict[str, list]) -> dict[str, Tensor]:
        """Features of the modalities that have them, input of the others."""
        loaded = {"text": texts, **media}
        cached = self.features.modalities if self.features is not None else frozenset()
        inputs = self.inputs({m: values for m, values in loaded.items() if m not in cached})
        for modality in loaded:
            if modality in cached and loaded[modality]:
                assert self.features is not None
                get = self.features.text if modality == "text" else self.features.media
                features, mask = get(loaded[modality])
                inputs[f"{modality}_features"] = features
                if mask is not None and MODALITIES[modality].mask_name is not None:
                    inputs[f"{modality}_features_mask"] = mask
        return inputs
