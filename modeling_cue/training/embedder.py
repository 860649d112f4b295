"""Cones in bulk: many captions or media through the model in batches that leave little to padding."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from torch.utils.data import DataLoader

from ..encoders import MODALITIES
from ..media_files import MediaError
from .collator import CUECollator
from .rows import BadRows

# Texts that are tokenised in one go.
TEXTS = 16_384


@dataclass
class Cones:
    """Cones of one modality: the row (N,) and the caption (N,) that each is of, axis (N, D), radius (N,) radians.

    The caption is its number among those of the row's id, -1 for media; `texts` are the captions.
    """

    rows: np.ndarray
    captions: np.ndarray
    texts: list[str | None]
    axis: np.ndarray
    radius: np.ndarray

    def select(self, chosen: np.ndarray) -> "Cones":
        """Those where `chosen` (N,) bool is true."""
        texts = [text for text, wanted in zip(self.texts, chosen, strict=True) if wanted]
        return Cones(self.rows[chosen], self.captions[chosen], texts, self.axis[chosen], self.radius[chosen])


@dataclass
class Embedder:
    """Embeds rows by modality.

    Args:
        model: a `CUEModel`, which is put into eval mode. processor: its `CUEProcessor`.
        modalities: those to embed. batch_size: captions or media that run together.
        num_workers: processes that decode media; 0 decodes here.
        autocast: the dtype that towers run in, or None for the model's own.

    `counts` and `seconds` say by modality what was embedded so far and how long it took.
    """

    model: Any
    processor: Any
    modalities: Sequence[str]
    batch_size: int = 32
    num_workers: int = 0
    autocast: torch.dtype | None = None
    counts: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.model.eval()
        self.collator = CUECollator(self.processor, self.modalities)

    def rows(
        self,
        rows: Dataset | list[dict[str, Any]],
        bad_rows: BadRows,
        advance: Callable[[float], None] = lambda _: None,
    ) -> dict[str, Cones]:
        """The cones of rows as `data.load_rows` gives them with `paired=False`, by modality, in the order of the rows.

        Args:
            bad_rows: the policy for rows with an unreadable medium; such a row is left out whole.
            advance: called with the share of the rows, in (0, 1], that is done since the last call.
        """
        ids, captions, firsts, media = (_column(rows, name) for name in ("id", "caption", "first", "media"))
        wanted = {m: [i for i, has in enumerate(media) if m in has] for m in self.modalities if m != "text"}
        total = sum(map(len, wanted.values()))
        total += sum(map(len, captions)) if "text" in self.modalities else 0
        broken: set[int] = set()
        found: dict[str, Cones] = {}

        def done(count: int) -> None:
            advance(count / total)

        # Text comes last: the captions of a row that turned out broken are not embedded in vain.
        for modality, places in wanted.items():
            places = [i for i in places if i not in broken]
            if places:
                good, cones, reasons = self._media(rows, modality, places, done)
                for place, reason in reasons.items():
                    bad_rows.report(ids[place], reason)
                broken |= reasons.keys()
                found[modality] = _cones(good, [-1] * len(good), [None] * len(good), cones)
        lines = [
            (i, firsts[i] + k, caption)
            for i, row in enumerate(captions if "text" in self.modalities else ())
            if i not in broken
            for k, caption in enumerate(row)
        ]
        if lines:
            places, numbers, texts = map(list, zip(*lines, strict=True))
            found["text"] = _cones(places, numbers, texts, self.texts(texts, done))
        kept = np.array([i not in broken for i in range(len(ids))], dtype=bool)
        return {m: found[m].select(kept[found[m].rows]) for m in MODALITIES if m in found}

    def texts(self, texts: Sequence[str], done: Callable[[int], None] = lambda _: None) -> tuple[Tensor, Tensor]:
        """Axes (N, D) and radii (N,) of texts, float32 on the CPU.

        All texts are sorted by their number of tokens, and texts of one length run together where there are enough of
        them: most batches have no padding at all.
        """
        start = time.perf_counter()
        tokens: list[list[int]] = []
        for at in range(0, len(texts), TEXTS):
            tokens += self.processor.token_ids(texts[at : at + TEXTS])
        batches = length_batches([len(line) for line in tokens], self.batch_size)
        inputs = (self._padded([tokens[i] for i in batch]) for batch in batches)
        cones = self._run("text", inputs, done)
        order = torch.from_numpy(np.argsort(np.concatenate(batches)))
        self._note("text", len(texts), start)
        return cones[0][order], cones[1][order]

    def _padded(self, lines: list[list[int]]) -> dict[str, Tensor]:
        whole = self.processor.text_padding == "max_length"  # the tower reads its padding
        if not whole and len({*map(len, lines)}) == 1:
            ids = torch.tensor(lines)
            return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        padded = self.processor.tokenizer.pad(
            {"input_ids": lines},
            padding="max_length" if whole else "longest",
            max_length=self.processor.text_length if whole else None,
            return_attention_mask=True,
            return_tensors="pt",
        )
        return {name: padded[name] for name in ("input_ids", "attention_mask")}

    def _media(
        self, rows: Any, modality: str, places: list[int], done: Callable[[int], None]
    ) -> tuple[list[int], tuple[Tensor, Tensor], dict[int, str]]:
        """Places that could be read, their axes and radii, and why the others could not."""
        start = time.perf_counter()
        batches = [places[at : at + self.batch_size] for at in range(0, len(places), self.batch_size)]
        on_device = self.model.device.type != "cpu"
        loader: Any = DataLoader(
            _Prepared(rows, modality, batches, self.collator),  # type: ignore[arg-type]
            batch_size=None,
            num_workers=min(self.num_workers, len(batches)),
            pin_memory=on_device,
        )
        good: list[int] = []
        reasons: dict[int, str] = {}

        def inputs() -> Iterator[dict[str, Tensor]]:
            for batch, (prepared, failed) in zip(batches, loader, strict=True):
                reasons.update(failed)
                good.extend(place for place in batch if place not in failed)
                done(len(failed))
                if prepared:
                    yield prepared

        cones = self._run(modality, inputs(), done)
        self._note(modality, len(good), start)
        return good, cones, reasons

    @torch.inference_mode()
    def _run(
        self, modality: str, inputs: Iterator[dict[str, Tensor]], done: Callable[[int], None]
    ) -> tuple[Tensor, Tensor]:
        device, dim = self.model.device, self.model.config.projection_dim
        cast = torch.autocast(device.type, self.autocast) if self.autocast else nullcontext()
        axes, radii = [torch.zeros(0, dim, device=device)], [torch.zeros(0, device=device)]
        for batch in inputs:
            moved = {name: value.to(device, non_blocking=True) for name, value in batch.items()}
            with cast:
                cone = self.model(**moved).cones[modality]
            # What was computed stays on the device until the end: fetching each batch would wait for it.
            axes.append(cone.axis.float())
            radii.append(cone.radius.float())
            done(len(cone.radius))
        axis, radius = torch.cat(axes).cpu(), torch.cat(radii).cpu()
        if not bool(axis.isfinite().all() and radius.isfinite().all()):
            raise ValueError(
                f"some {modality} cones are not finite: with fp16, numbers of the tower may be too large, so use bf16 "
                "or neither; else the checkpoint is damaged"
            )
        return axis, radius

    def _note(self, modality: str, count: int, start: float) -> None:
        self.counts[modality] = self.counts.get(modality, 0) + count
        self.seconds[modality] = self.seconds.get(modality, 0.0) + time.perf_counter() - start


def length_batches(lengths: Sequence[int], size: int) -> list[np.ndarray]:
    """The numbers of all items in batches of at most `size`, shortest first.

    A batch that is at least half full ends where the length changes, so that what follows is not padded to it.
    """
    order = np.argsort(np.asarray(lengths), kind="stable")
    batches, start = [], 0
    for at in range(1, len(order) + 1):
        full = at - start == size or at == len(order)
        if full or (2 * (at - start) >= size and lengths[order[at]] != lengths[order[at - 1]]):
            batches.append(order[start:at])
            start = at
    return batches


class _Prepared:
    """Batches of media as the model takes them, each with the places that could not be read and why."""

    def __init__(self, rows: Any, modality: str, batches: list[list[int]], collator: CUECollator):
        self.rows, self.modality, self.batches, self.collator = rows, modality, batches, collator

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, number: int) -> tuple[dict[str, Tensor], dict[int, str]]:
        places = self.batches[number]
        values = _column(self.rows, self.modality, places)
        try:
            return self.collator.inputs({self.modality: values}), {}
        except MediaError:
            good, failed = [], {}  # some are broken: which, each alone will say
        for place, value in zip(places, values, strict=True):
            try:
                self.collator.load_medium(self.modality, value)
                good.append(value)
            except MediaError as error:
                failed[place] = str(error)
        return (self.collator.inputs({self.modality: good}) if good else {}), failed


def _column(rows: Dataset | list[dict[str, Any]], name: str, places: Sequence[int] | None = None) -> list[Any]:
    if isinstance(rows, Dataset):
        column = rows.select_columns([name])
        return (column[:] if places is None else column[places])[name]
    return [rows[i][name] for i in (range(len(rows)) if places is None else places)]


def _cones(rows: list[int], captions: list[int], texts: list[Any], cones: tuple[Tensor, Tensor]) -> Cones:
    axis, radius = (tensor.numpy() for tensor in cones)
    return Cones(np.array(rows, dtype=np.int64), np.array(captions, dtype=np.int32), texts, axis, radius)
