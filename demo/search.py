"""A collection as cones, queries out of parts of any kind, and what they find."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from modeling_cue import Cone, CUEIndex, angle
from modeling_cue.media_files import MODALITY_OF_SUFFIX, SUFFIXES
from modeling_cue.training.demo import embed_media
from modeling_cue.training.embed import load_model, load_source, start
from modeling_cue.training.embed_arguments import EmbedArguments
from modeling_cue.training.embedder import Cones, Embedder
from modeling_cue.training.rows import BadRows, DataError

from .media import thumbnail

# What the visitor of the demo's own scenes may ask for; of other data the first captions are.
SCENE_PHRASES = ("a red circle", "something green", "a small blue ring", "a large square above a small triangle")
# Radians by which a text embedded alone may differ from itself among others: it lies inside itself all the same.
ROUNDING = 1e-5


@dataclass(frozen=True)
class Part:
    """A part of a query: its modality, what to call it, its cone (1,), a small picture as a data address or ""."""

    kind: str
    name: str
    cone: Cone
    picture: str = ""


@dataclass(frozen=True)
class Item:
    """An item that was found.

    Args:
        kind: its modality. position: its number among those of its kind. title: its id. caption: what is said of it.
        score: cosine between the axes of query and item. inside: whether the query's cone contains the item's.
        probability: that it does, in (0, 1), by the model's learned scale and bias.
    """

    kind: str
    position: int
    title: str
    caption: str
    score: float
    inside: bool
    probability: float


@dataclass(frozen=True)
class Found:
    """The items of one kind that are shown, and how many of the collection's lie inside the query."""

    kind: str
    items: list[Item]
    inside: int
    total: int


class Search:
    """Searches a collection by cones: an index for each modality, as cones of two modalities lie apart.

    Args:
        model, processor: a CUE, in eval mode. name: what the collection is called.
        rows: a `Dataset` as `data.load_rows` gives it with `paired=False`. cones: of its items, by modality.
    """

    def __init__(self, model: Any, processor: Any, name: str, rows: Any, cones: dict[str, Cones]):
        self.model, self.processor, self.name, self.rows = model, processor, name, rows
        self.cones = {kind: found for kind, found in cones.items() if len(found.radius)}
        if not self.cones:
            raise DataError(f"{name!r}: none of its {len(rows)} rows could be read; the log above says why")
        self.indexes: dict[str, CUEIndex] = {}
        for kind, found in self.cones.items():
            index = CUEIndex(model.config.projection_dim)
            index.add(Cone(torch.from_numpy(found.axis), torch.from_numpy(found.radius)), range(len(found.radius)))
            self.indexes[kind] = index

    @property
    def modalities(self) -> tuple[str, ...]:
        """What a query can be made of."""
        return self.model.config.modalities

    @property
    def suffixes(self) -> list[str]:
        """Of files that can be a part of a query."""
        return [suffix for kind in self.modalities if kind != "text" for suffix in SUFFIXES[kind]]

    def phrases(self) -> list[str]:
        """Texts to begin with."""
        if "text" not in self.modalities:
            return []
        texts = self.cones["text"].texts if "text" in self.cones else []
        return list(SCENE_PHRASES if self.name == "scenes" else dict.fromkeys(str(text) for text in texts[:4]))

    # ---------------------------------------------------------------- parts

    def text(self, text: str) -> Part:
        """A part in words.

        Raises:
            ValueError: there are none, or the model knows no texts.
        """
        if not text.strip():
            raise ValueError("There are no words: write what you look for.")
        return Part("text", text.strip(), self._embed("text", text))

    def knows(self, text: str) -> bool:
        """Whether the model's tokenizer knows every word."""
        unknown = self.processor.tokenizer.unk_token_id
        return unknown is None or unknown not in self.processor.token_ids([text])[0]

    def file(self, path: str | Path) -> Part:
        """A part from a file, of which the suffix tells the modality.

        Raises:
            ValueError: a suffix of no modality that the model has. MediaError: a file that cannot be read.
        """
        path = Path(path)
        kind = MODALITY_OF_SUFFIX.get(path.suffix.lower(), "text")
        if path.suffix.lower() not in self.suffixes:
            raise ValueError(f"{path.name!r} is of no kind that this model takes: give {', '.join(self.suffixes)}")
        # As bytes, so that a message about the file calls it by its name and not by where the server keeps it.
        value = {"bytes": path.read_bytes(), "path": path.name}
        return Part(kind, path.name, self._embed(kind, value), thumbnail(kind, value))

    def item(self, kind: str, position: int) -> Part:
        """An item of the collection as a part."""
        found, title = self.cones[kind], self._title(kind, position)
        cone = Cone(torch.from_numpy(found.axis[position])[None], torch.from_numpy(found.radius[[position]]))
        picture = thumbnail(kind, self.medium(kind, position)) if kind != "text" else ""
        return Part(kind, found.texts[position] or title, cone, picture)

    @torch.no_grad()
    def _embed(self, kind: str, value: Any) -> Cone:
        if kind not in self.modalities:
            raise ValueError(f"This model takes no {kind}: it takes {', '.join(self.modalities)}.")
        return embed_media(self.model, self.processor, kind, [value]).float().to("cpu")

    # ---------------------------------------------------------------- queries

    @torch.no_grad()
    def compound(self, parts: Sequence[Part]) -> Cone:
        """The compound (1,) of the parts; `empty` says whether some of them lie apart."""
        cones = Cone.stack([part.cone for part in parts], dim=1)
        return self.model.compose(cones.to(self.model.device)).float().to("cpu")

    def find(self, query: Cone, kind: str, count: int, only_inside: bool) -> Found:
        """The `count` items of a kind that are nearest to the query (1,), perhaps of those inside it only."""
        index = self.indexes[kind]
        within = index.inside(Cone(query.axis, (query.radius + ROUNDING).clamp(max=math.pi), query.empty))[0]
        hits = within if only_inside else index.nearest(query, min(count, len(index)))[0]
        inside = set(within.positions.tolist())
        _, scale, bias = self.model.scales()
        probabilities = torch.sigmoid(scale.detach().cpu() * (hits.margins + bias.detach().cpu()))
        items = [
            Item(kind, at, self._title(kind, at), self._caption(kind, at), score, at in inside, chance)
            for at, score, chance in zip(
                *(column[:count].tolist() for column in (hits.positions, hits.scores, probabilities)), strict=True
            )
        ]
        return Found(kind, items, len(inside), len(index))

    # ---------------------------------------------------------------- items

    def medium(self, kind: str, position: int) -> dict[str, Any]:
        """The undecoded medium of an item, {"bytes", "path"}."""
        return self._row(kind, position)[kind]

    def _row(self, kind: str, position: int) -> dict[str, Any]:
        return self.rows[int(self.cones[kind].rows[position])]

    def _title(self, kind: str, position: int) -> str:
        return str(self._row(kind, position)["id"])

    def _caption(self, kind: str, position: int) -> str:
        return self.cones[kind].texts[position] or next(iter(self._row(kind, position)["caption"]), "")


def open_search(model: str, data: str, split: str | None = None, max_rows: int | None = None) -> Search:
    """Loads a CUE by folder or Hub name and embeds a collection with it, with progress.

    Args:
        data: a folder of files, a table, a data set, or "scenes". split: of it, or a sub-folder.
        max_rows: reads no more than these.

    Raises:
        ValueError: no CUE, no such data, or nothing in it that can be read.
    """
    arguments = EmbedArguments(
        model_name_or_path=model,
        dataset_name=data,
        split=split,
        max_samples=max_rows,
        on_bad_row="skip",
        output_dir="-",  # the arguments ask for one; nothing is written
    )
    state = start(arguments)
    cue, processor = load_model(arguments, state)
    source = load_source(arguments, cue, state)
    embedder = Embedder(cue, processor, source.modalities, arguments.batch_size)
    rows: Any = source.rows
    with tqdm(total=len(rows), unit=" rows", desc="embedding") as bar:
        share = 0.0

        def advance(more: float) -> None:
            nonlocal share
            share += more
            bar.update(round(share * len(rows)) - bar.n)

        cones = embedder.rows(rows, BadRows("skip"), advance)
    return Search(cue, processor, data, rows, cones)


def widened(cone: Cone, degrees: float) -> Cone:
    """The cone with its radius wider by so many degrees, within [0, 180], and without the flag that it is empty."""
    return Cone(cone.axis, (cone.radius + math.radians(degrees)).clamp(0, math.pi))


def apart(parts: Sequence[Part], compound: Cone) -> list[float]:
    """The angle in degrees from each part's axis to that of the compound (1,)."""
    return [math.degrees(float(angle(part.cone.axis, compound.axis))) for part in parts]


def mean_apart(parts: Sequence[Part], compound: Cone) -> float:
    """The angle in degrees from the mean of the parts' axes to the axis of the compound (1,)."""
    mean = torch.nn.functional.normalize(torch.cat([part.cone.axis for part in parts]).mean(0, keepdim=True), dim=-1)
    return math.degrees(float(angle(mean, compound.axis)))
