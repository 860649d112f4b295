"""Embedding a whole data set for evaluation, the same in one process as in many."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..cones import Cone
from .arguments import own_cores
from .gathering import agreed, gather_rows
from .relations import KINDS, MEDIA, Embedded


def embedded_kinds(output: Any, batch: dict[str, Any]) -> dict[str, Embedded]:
    """The cones of a model output by kind, beside the ids and sets that the collator noted for them."""
    cones = dict(output.cones)
    rows = batch["rows"]
    if "text" in cones:
        captions, both = len(rows["text"]["ids"]), cones["text"]
        cones["text"], cones["phrase"] = both[:captions], both[captions:]
    if "composed" in cones:
        alone, compounds = len(rows["composed"]["ids"]) if "composed" in rows else 0, cones["composed"]
        cones["composed"], cones["pictured"] = compounds[:alone], compounds[alone:]
    for modality in MEDIA:
        if modality in cones:  # the rows after those of the samples are parts of compounds
            cones[modality] = cones[modality][: len(rows[modality]["ids"]) if modality in rows else 0]
    return {
        kind: Embedded(cones[kind], *(rows[kind][name] for name in ("ids", "requires", "implies", "words")))
        for kind in KINDS
        if kind in cones and kind in rows
    }


def parts_mean(cones: dict[str, Cone], parts: Tensor) -> Cone:
    """The plain alternative to the composition layer: the mean of the parts' axes, with the mean of their radii.

    Args:
        cones: of a model output, by kind. parts: (N, K) int64, as in `CUEModel.forward`.
    """
    every = Cone.cat([cone for kind, cone in cones.items() if kind != "composed"])
    weight = (parts >= 0).to(every.radius.dtype)
    taken = every[parts.clamp(min=0)]
    axis = torch.nn.functional.normalize((taken.axis * weight[..., None]).sum(1), dim=-1)
    return Cone(axis, (taken.radius * weight).sum(1) / weight.sum(1))


@torch.no_grad()
def embed_dataset(
    model: Any, batches: Iterable[dict[str, Any]], device: torch.device, *, show_progress: bool = True
) -> dict[str, Embedded]:
    """Embeds every batch of every process; on all processes returns the same rows, float32 on the CPU.

    Rows that a sampler repeated to make processes even are counted once; the order is that of the data set. A kind may
    be missing in some processes.
    """
    was_training = model.training
    model.eval()
    found: dict[str, list[tuple[Tensor, ...]]] = {}
    for batch in tqdm(batches, desc="embedding", disable=not show_progress, leave=False):
        inputs = {name: value.to(device) for name, value in batch["model"].items()}
        output = model(**inputs)
        kinds = embedded_kinds(output, batch)
        keys = {kind: batch["rows"][kind]["key"] for kind in kinds}
        if "composed" in kinds:
            c = kinds["composed"]
            # Those with a picture of their own come after.
            kinds["parts_mean"] = c.with_cone(parts_mean(output.cones, inputs["parts"])[: len(c)])
            keys["parts_mean"] = keys["composed"]
        for kind, e in kinds.items():
            columns = (e.cone.axis.float(), e.cone.radius.float(), keys[kind], e.ids, e.requires, e.implies, e.words)
            found.setdefault(kind, []).append(tuple(column.cpu() for column in columns))
    model.train(was_training)
    anywhere = agreed(found, (*KINDS, "parts_mean"), device)
    return {kind: _unique(_everywhere(found.get(kind, [_nothing()]), device)) for kind in anywhere}


@contextmanager
def all_threads(processes: int) -> Iterator[None]:
    """Launchers give each of several processes one thread, which metrics, all on the CPU, would take minutes with."""
    before = torch.get_num_threads()
    if processes > 1:
        torch.set_num_threads(max(before, own_cores()))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _nothing() -> tuple[Tensor, ...]:
    """The columns of a kind of which this process has no row; gathering brings them to the width of the others."""
    floats, ids = torch.zeros(0), torch.zeros(0, dtype=torch.long)
    return floats.view(0, 0), floats, ids, ids, ids.view(0, 0), ids.view(0, 0), ids.view(0, 0)


def _everywhere(chunks: list[tuple[Tensor, ...]], device: torch.device) -> list[Tensor]:
    return [gather_rows(_cat(list(column)).to(device)).cpu() for column in zip(*chunks, strict=True)]


def _cat(tensors: list[Tensor]) -> Tensor:
    if tensors[0].ndim == 2 and not tensors[0].is_floating_point():
        width = max(t.shape[1] for t in tensors)
        tensors = [torch.nn.functional.pad(t, (0, width - t.shape[1])) for t in tensors]
    return torch.cat(tensors)


def _unique(columns: list[Tensor]) -> Embedded:
    axis, radius, key, ids, *sets = columns
    order = ids.argsort(stable=True)
    order = order[key[order].argsort(stable=True)]
    first = torch.ones_like(key, dtype=torch.bool)
    # Rows of several data sets in one may have one number, and not one sample.
    first[1:] = (key[order].diff() != 0) | (ids[order].diff() != 0)
    keep = order[first]
    return Embedded(Cone(axis[keep], radius[keep]), *(column[keep] for column in (ids, *sets)))
