"""Filling the cache of frozen towers' features: every process its share, each shard written aside and then renamed."""

import os
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from ..encoders import MODALITIES, feature_size
from ..media_files import MediaError
from ..media_pixels import mirror
from .collator import CUECollator
from .feature_files import FeatureCacheError, ShardWriter, open_shard, shard_schema, sweep
from .feature_keys import shard_keys, shard_rows, tower_key
from .features import FeatureStore, FeatureTable, mirror_of
from .fingerprint import weights_digest
from .gathering import this_process, together
from .relations import MEDIA
from .rows import BadRows

TEXTS_PER_SAMPLE = 8  # captions and phrases that evaluation runs at once for each sample of a batch, or more


class FeatureCache:
    """The features of a model's frozen towers in a folder, where every run finds what any run has computed.

    Shards are named by what they depend on: the tower's weights and configuration, how its input is prepared and its
    output stored, and the content of their own rows. Whatever changes, other shards are read or made. Of an
    interrupted run the finished ones stay and are used.

    Args:
        modalities: those whose features are wanted, by default all whose towers are frozen.
        dtype: float32 gives the towers' own numbers back; float16 halves the files and rounds to 11 bits.
        autocast: the dtype of mixed precision in which the towers run, None for their own.
        batch_size: media that run at once. num_workers: processes that decode them.
        bad_rows: what a row does that cannot be read. "skip" notes the reason in its place.

    Raises:
        ValueError: a modality whose tower is not frozen.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        folder: str | Path,
        *,
        modalities: Sequence[str] | None = None,
        dtype: str = "float32",
        autocast: torch.dtype | None = None,
        batch_size: int = 64,
        num_workers: int = 0,
        bad_rows: BadRows | None = None,
        show_progress: bool = False,
    ):
        self.model, self.processor, self.folder = model, processor, Path(folder)
        self.modalities = tuple(model.frozen_modalities if modalities is None else modalities)
        for modality in self.modalities:
            if modality not in model.frozen_modalities:
                raise ValueError(f"the {modality} tower is not frozen: what it says now will not be true after a step")
        self.dtype, self.autocast = dtype, autocast
        self.batch_size, self.num_workers = batch_size, num_workers
        self.bad_rows = bad_rows or BadRows("raise")
        self.show_progress = show_progress
        self.collator = CUECollator(processor, self.modalities)
        self._weights: dict[str, str] | None = None

    def store(self, dataset: Dataset, texts: Sequence[str], mirror: str = "off") -> FeatureStore:
        """Reads or computes the features of one split. All processes must call this together.

        Args:
            dataset: rows with undecoded media columns named by modality, or as its part, such as `part_image`.
            texts: every caption and phrase that will be asked for.
            mirror: "off", or keeps the features of each image's mirror image too: "random" for training, which takes
                either, "average" for evaluation, where an image stands for both.

        Raises:
            FeatureCacheError: the folder cannot be written, the disk is full, or float16 cannot hold a feature.
            BadRowError: a row cannot be read, and `bad_rows` says to stop.
        """
        if self._weights is None:
            self._weights = together(self._digests if this_process()[0] == 0 else dict)[0]
        texts = sorted(set(texts), key=lambda text: (len(text), text))  # equal lengths together: little padding
        was_training = self.model.training
        self.model.eval()
        ids = dataset["id"] if "id" in dataset.column_names else range(len(dataset))
        tables: dict[str, FeatureTable] = {}
        modality_of: dict[str, str] = {}
        try:
            if "text" in self.modalities:
                keys = shard_keys(texts, self.folder / "data")
                tables["text"], modality_of["text"] = self._table("text", texts, keys, range(len(texts))), "text"
            for modality in MEDIA:
                for name in (modality, f"part_{modality}"):
                    if modality not in self.modalities or name not in dataset.column_names:
                        continue
                    column, modality_of[name] = dataset.select_columns([name]), modality
                    keys = shard_keys(column[name], self.folder / "data", column)
                    tables[name] = self._table(modality, column[name], keys, ids)
                    if mirror != "off" and modality == "image":
                        tables[mirror_of(name)] = self._table(modality, column[name], keys, ids, mirrored=True)
        finally:
            self.model.train(was_training)
        weights = {modality: self._weights[modality] for modality in {*modality_of.values()}}
        return FeatureStore(tables, modality_of, texts, weights, mirror == "average")

    def _digests(self) -> dict[str, str]:
        towers = {m: self.model.tower_name(m) for m in self.modalities}
        found = {name: weights_digest(getattr(self.model, name)) for name in {*towers.values()}}
        return {modality: found[name] for modality, name in towers.items()}

    def _table(
        self, modality: str, values: Any, keys: Sequence[str], ids: Any, mirrored: bool = False
    ) -> FeatureTable:
        assert self._weights is not None
        stored = {"dtype": self.dtype, "autocast": str(self.autocast), "mirrored": mirrored}
        tower = tower_key(self.model, self.processor, modality, self._weights[modality], **stored)
        folder = self.folder / f"{modality}-{tower[:16]}"
        shards = [(folder / f"{key}.arrow", f"{tower} {key}") for key in keys]
        _Filling(self, modality, values, ids, mirrored, shards).run()
        tokens = hasattr(self.model, f"{modality}_pooler")
        width = feature_size(self.model.config.tower_config(modality), self.model.pooler_name(modality))
        return FeatureTable(shards, width, tokens)


class _Filling:
    """Makes the shards of one table that are not there."""

    def __init__(
        self,
        cache: FeatureCache,
        modality: str,
        values: Any,
        ids: Any,
        mirrored: bool,
        shards: Sequence[tuple[Path, str]],
    ):
        self.cache, self.modality, self.ids, self.shards = cache, modality, ids, shards
        self.values = _Prepared(cache.collator, modality, values, mirrored)
        self.size = shard_rows(len(values))
        self.batch_size = cache.batch_size * (TEXTS_PER_SAMPLE if modality == "text" else 1)

    def run(self) -> None:
        # All processes share the work; where they do not see one another's files, those of each machine do the rest.
        local = int(os.environ.get("LOCAL_RANK", 0)), int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        for number, count in (this_process(), local):
            missing = [i for i, (path, key) in enumerate(self.shards) if open_shard(path, key) is None]
            mine = missing[number::count]
            turns = max(together(partial(len, mine)))
            if not turns:
                return
            self._fill(mine, turns)
        together(self._check_all_there)

    def _fill(self, mine: list[int], turns: int) -> None:
        sweep(self.shards[0][0].parent)
        batches = [rows for shard in mine for rows in self._batches(shard)]
        loader = iter(
            DataLoader(
                self.values,
                batch_sampler=batches,
                collate_fn=self.values.prepare,
                num_workers=self.cache.num_workers,
                # A generator of its own: training must draw the same numbers whether the cache was there or not.
                generator=torch.Generator(),
            )
        )
        what = f"features of the frozen {self.modality} tower"
        count = sum(map(len, batches))
        writer = ShardWriter(self.cache.folder, what, self.cache.dtype, count)
        with tqdm(total=count, desc=what, disable=not self.cache.show_progress) as bar:
            # Shard by shard all processes hear of one another: one that fails stops all of them.
            for turn in range(turns):
                together(partial(self._write, mine[turn], writer, loader, bar) if turn < len(mine) else _nothing)

    def _write(self, shard: int, writer: ShardWriter, loader: Iterator[Any], bar: tqdm) -> None:
        def encoded() -> Iterator[pa.RecordBatch]:
            for rows in self._batches(shard):
                yield self._encode(rows, next(loader))
                bar.update(len(rows))

        writer.write(*self.shards[shard], encoded())

    def _batches(self, shard: int) -> list[list[int]]:
        rows = list(range(shard * self.size, min((shard + 1) * self.size, len(self.values))))
        return [rows[start : start + self.batch_size] for start in range(0, len(rows), self.batch_size)]

    def _encode(self, rows: Sequence[int], prepared: tuple[dict[str, Any], list[str | None]]) -> pa.RecordBatch:
        inputs, reasons = prepared
        for row, reason in zip(rows, reasons, strict=True):
            if reason and self.cache.bad_rows.policy == "raise":
                self.cache.bad_rows.report(str(self.ids[row]), reason)
        there = np.array([reason is None for reason in reasons])
        lengths = np.zeros(len(rows), np.int64)
        values = np.zeros(0, self.cache.dtype)
        if inputs:
            features, lengths[there] = self._features(inputs)
            values = self._stored(features)
        offsets = np.concatenate([[0], lengths.cumsum()])
        column = pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(values), mask=pa.array(~there))
        errors = pa.array([reason or None for reason in reasons], pa.string())
        return pa.record_batch([column, errors], schema=shard_schema(self.cache.dtype))

    def _features(self, inputs: dict[str, Any]) -> tuple[np.ndarray, Any]:
        """What the tower says of a batch, float32, all rows in one; and how many numbers each row has."""
        model, spec = self.cache.model, MODALITIES[self.modality]
        given = {name: value.to(model.device) for name, value in inputs.items()}
        precision = torch.autocast(
            model.device.type, dtype=self.cache.autocast, enabled=self.cache.autocast is not None
        )
        with torch.no_grad(), precision:
            features, mask = model.view_features(
                self.modality, given[spec.input_name], given.get(spec.mask_name) if spec.mask_name else None
            )
        features = features.float()
        if mask is None:
            return features.flatten().cpu().numpy(), features[0].numel()
        return features[mask].flatten().cpu().numpy(), mask.sum(1).cpu().numpy() * features.shape[-1]

    def _stored(self, values: np.ndarray) -> np.ndarray:
        with np.errstate(over="ignore"):
            stored = values.astype(self.cache.dtype)
        if np.isinf(stored).any() and not np.isinf(values).any():
            raise FeatureCacheError(
                f"features of the {self.modality} tower reach {np.abs(values).max():.3g}, which {self.cache.dtype} "
                "cannot hold: store them as they are (--feature_dtype float32)"
            )
        return stored

    def _check_all_there(self) -> None:
        if any(open_shard(path, key) is None for path, key in self.shards):
            raise FeatureCacheError(
                f"files in {self.cache.folder} vanish or change while they are written: name a folder that nothing "
                "else cleans (--feature_cache DIR)"
            )


class _Prepared(torch.utils.data.Dataset):
    """Values of a column, decoded one by one and prepared in batches: by worker processes where there are any."""

    def __init__(self, collator: CUECollator, modality: str, values: Any, mirrored: bool):
        self.collator, self.modality, self.values, self.mirrored = collator, modality, values, mirrored

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, row: int) -> Any:
        value = self.values[row]
        if value is None:
            return None
        try:
            loaded = self.collator.load_medium(self.modality, value)
        except MediaError as error:
            return error
        return mirror(loaded) if self.mirrored else loaded

    def prepare(self, loaded: list[Any]) -> tuple[dict[str, Any], list[str | None]]:
        """The tower's inputs; and for each value None, or "" where there was none, or why it could not be read."""
        reasons = ["" if v is None else str(v) if isinstance(v, MediaError) else None for v in loaded]
        good = [value for value, reason in zip(loaded, reasons, strict=True) if reason is None]
        return self.collator.inputs({self.modality: good}), reasons


def _nothing() -> None:
    return None
