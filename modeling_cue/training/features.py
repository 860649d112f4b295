"""Features of frozen towers, computed once and kept on disk as memory-mapped Arrow files.

A cache file is named by a key over all that its content depends on: the tower's weights, the settings of model and
processor, and the data itself. Whatever changes, another file is written. `datasets` writes aside and renames, so a
file that was cut off half-way is never read.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, Features, Value
from datasets import Sequence as ListOf
from PIL import ImageOps
from torch import Tensor

from ..encoders import average_views, hidden_size
from ..media_audio import load_audio
from ..media_files import MediaError
from ..media_image import load_image
from ..media_video import load_video
from .phrases import hash_id
from .rows import BadRows

logger = logging.getLogger(__name__)


class FeatureTable:
    """One modality's features, row by row: (H,) vectors, or tokens (T, H) of any length T.

    Rows are views of the memory-mapped file; nothing is read before it is asked for.
    """

    def __init__(self, dataset: Dataset, width: int, tokens: bool):
        self.width, self.tokens = width, tokens
        self.rows: list[np.ndarray] = []
        for chunk in dataset.data.column("features").chunks:
            values = chunk.values.to_numpy(zero_copy_only=True)
            offsets = chunk.offsets.to_numpy()
            self.rows.extend(values[a:b] for a, b in pairwise(offsets))

    def batch(self, indices: Sequence[int]) -> tuple[Tensor, Tensor | None]:
        """float32 (N, H), or (N, T, H) with a mask (N, T) bool, of these rows."""
        rows = [self.rows[i] for i in indices]
        if not self.tokens:
            return torch.from_numpy(np.stack(rows).astype(np.float32)), None
        lengths = [len(row) // self.width for row in rows]
        features = torch.zeros(len(rows), max(lengths), self.width)
        for i, (row, length) in enumerate(zip(rows, lengths, strict=True)):
            features[i, :length] = torch.from_numpy(row.astype(np.float32)).view(length, self.width)
        return features, torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]


class FeatureStore:
    """Features of one split: texts by their words, media by the row of the data set they stand in.

    Where `tables` hold mirror images, `mirror` says what becomes of them: "random" takes an image or its mirror image,
    "average" both, as the model does outside training.
    """

    def __init__(self, tables: dict[str, FeatureTable], texts: Sequence[str], mirror: str = "off"):
        self.tables, self.mirror = tables, mirror
        self._text_row = {hash_id(text): i for i, text in enumerate(texts)}

    def has(self, modality: str, row: int) -> bool:
        """False where the medium of this row could not be read when features were computed."""
        return len(self.tables[modality].rows[row]) > 0

    def text(self, texts: Iterable[str]) -> tuple[Tensor, Tensor | None]:
        return self.tables["text"].batch([self._text_row[hash_id(text)] for text in texts])

    def media(self, modality: str, rows: Sequence[int]) -> tuple[Tensor, Tensor | None]:
        features, mask = self.tables[modality].batch(rows)
        if modality == "image" and "mirror" in self.tables:
            turned, _ = self.tables["mirror"].batch(rows)
            if self.mirror == "average":
                return average_views(features, turned, mask)
            choice = torch.rand(len(rows)) < 0.5
            features = torch.where(choice.view(-1, *[1] * (features.ndim - 1)), turned, features)
        return features, mask


def build_feature_store(
    model: Any,
    processor: Any,
    dataset: Dataset,
    texts: Iterable[str],
    folder: str | Path,
    *,
    dtype: str = "float32",
    mirror: str = "off",
    batch_size: int = 64,
    bad_rows: BadRows | None = None,
) -> FeatureStore:
    """Runs the frozen towers of `model` over `dataset` and `texts`, or reads what an earlier run kept in `folder`.

    Args:
        dataset: rows with undecoded media columns named by modality; every row has every medium it names.
        texts: every caption and phrase that training or evaluation will ask for.
        mirror: "off", or keeps the features of each image's mirror image too: "random" for training, "average" for
            evaluation; see `FeatureStore`.
        dtype: float32 gives the towers' own numbers back; float16 halves the file and rounds to 11 bits.
        bad_rows: what a row does whose medium cannot be read; one that is skipped has no features, and whoever meets
            it counts it.

    Raises:
        BadRowError: a row is broken and `bad_rows` says to stop, as it does by default.
    """
    bad_rows = bad_rows or BadRows("raise")
    names = dataset["id"]
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    texts = sorted(set(texts), key=lambda text: (len(text), text))  # equal lengths together: little padding
    columns = {
        modality: Dataset.from_dict({"text": texts}) if modality == "text" else dataset.select_columns([modality])
        for modality in model.config.modalities
        if modality == "text" or modality in dataset.column_names
    }
    was_training = model.training
    model.eval()

    def report(row: int, error: MediaError) -> None:
        if bad_rows.policy == "raise":
            bad_rows.report(names[row], str(error))
        logger.warning("no features of row %r: %s", names[row], error)

    common = (folder, dtype, batch_size, report)
    tables = {m: _table(model, processor, m, column, *common) for m, column in columns.items()}
    if mirror != "off" and "image" in columns:
        tables["mirror"] = _table(model, processor, "image", columns["image"], *common, mirror=True)
    model.train(was_training)
    return FeatureStore(tables, texts, mirror)


def _table(
    model: Any,
    processor: Any,
    modality: str,
    column: Dataset,
    folder: Path,
    dtype: str,
    batch_size: int,
    report: Callable[[int, MediaError], None],
    mirror: bool = False,
) -> FeatureTable:
    argument, load = _loaders(processor)["mirror" if mirror else modality]
    rate = {"sampling_rate": processor.feature_extractor.sampling_rate} if modality == "audio" else {}

    def encode(batch: dict[str, list], rows: list[int]) -> dict[str, list]:
        loaded = {}
        for row, value in zip(rows, batch[modality], strict=True):
            try:
                loaded[row] = load(value)
            except MediaError as error:
                report(row, error)
        found = dict.fromkeys(rows, np.zeros(0, dtype))
        if loaded:
            inputs = processor(**{argument: list(loaded.values())}, **rate).to(model.device)
            with torch.no_grad():
                features, mask = model.view_features(modality, *inputs.values())
            values = features.float().cpu().numpy().astype(dtype)
            kept = [slice(None)] * len(values) if mask is None else mask.cpu().numpy()
            found |= {row: v[seen].reshape(-1) for row, v, seen in zip(loaded, values, kept, strict=True)}
        return {"features": list(found.values())}

    key = _key(model, processor, modality, column, dtype) + ("-mirror" if mirror else "")
    cached = column.map(
        encode,
        with_indices=True,
        batched=True,
        batch_size=batch_size,
        writer_batch_size=batch_size,
        remove_columns=column.column_names,
        features=Features({"features": ListOf(Value(dtype))}),
        cache_file_name=str(folder / f"{modality}-{key}.arrow"),
        new_fingerprint=key,
        load_from_cache_file=True,
        desc=f"features of the frozen {modality} tower",
    )
    tokens = hasattr(model, f"{modality}_pooler")
    return FeatureTable(cached, hidden_size(model.config.tower_config(modality)), tokens)


def _loaders(processor: Any) -> dict[str, tuple[str, Callable[[Any], Any]]]:
    """By modality: the argument of the processor that takes it, and what reads a row's value for it."""
    return {
        "text": ("text", str),
        "image": ("images", load_image),
        "mirror": ("images", lambda value: ImageOps.mirror(load_image(value))),
        "audio": ("audio", lambda value: load_audio(value, processor.feature_extractor.sampling_rate)),
        "video": ("videos", lambda value: load_video(value, processor.num_frames)),
    }


def _key(model: Any, processor: Any, modality: str, column: Dataset, dtype: str) -> str:
    digest = hashlib.blake2b(digest_size=16)
    tower = getattr(model, model.tower_name(modality))
    for name, tensor in tower.state_dict().items():
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    settings = {
        "pooler": model.pooler_name(modality),
        "crop_audio": model.config.crop_audio,
        "attention": model.config._attn_implementation,
        "dtype": dtype,
        "processor": processor.to_dict(),
        "tokenizer": getattr(processor.tokenizer, "name_or_path", None) and processor.tokenizer.get_vocab()
        if modality == "text"
        else None,
    }
    digest.update(json.dumps(settings, sort_keys=True, default=str).encode())
    for value in column[modality]:
        digest.update(_content(value))
    return digest.hexdigest()


def _content(value: Any) -> bytes:
    if isinstance(value, str):
        return value.encode() + b"\0"
    if value is None:
        return b"\0"
    if isinstance(value, dict) and value.get("bytes") is not None:
        return hashlib.blake2b(value["bytes"]).digest()
    if isinstance(value, dict) and value.get("path"):
        return hashlib.blake2b(Path(value["path"]).read_bytes()).digest()
    array = value["array"] if isinstance(value, dict) else value
    return hashlib.blake2b(np.ascontiguousarray(array).data).digest()
