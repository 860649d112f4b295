"""Which frozen towers run once and are read from a cache afterwards, and where that cache is."""

import logging
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.constants import HF_ASSETS_CACHE

from .arguments import CUETrainingArguments, DataArguments
from .collator import row_phrases
from .feature_files import FeatureCacheError, readable_size
from .feature_filling import FeatureCache
from .features import FeatureStore
from .rows import BadRows

logger = logging.getLogger(__name__)
PRECISION = {"bf16": torch.bfloat16, "fp16": torch.float16}


def feature_stores(
    model: Any,
    processor: Any,
    splits: dict[str, Any],
    data: DataArguments,
    training: CUETrainingArguments,
    phrases: int,
    bad_rows: BadRows,
) -> dict[str, FeatureStore]:
    """The features of frozen towers by split; empty where towers run each time.

    Args:
        splits: rows by split, None where it is left out. phrases: phrases drawn of each caption in training.
    """
    folder = cache_folder(model, data, training.should_log)
    if folder is None:
        return {}
    model.to(training.device)
    cache = FeatureCache(
        model,
        processor,
        folder,
        dtype=data.feature_dtype,
        autocast=PRECISION.get(training.mixed_precision),
        batch_size=training.eval_batch_size,
        num_workers=training.dataloader_num_workers or 0,
        bad_rows=bad_rows,
        show_progress=training.should_log and not training.disable_tqdm,
    )
    stores = {}
    try:
        for split, rows in splits.items():
            if rows is not None:
                stores[split] = _store(cache, rows, split == "train", data, phrases)
    except FeatureCacheError as error:
        if data.feature_cache is not None:
            raise
        # Nobody asked for a cache: a run that needs none goes on.
        if training.should_log:
            logger.warning("no feature cache, the frozen towers run each time: %s", error)
        return {}
    if training.should_log:
        names = ", ".join(cache.modalities)
        size = sum({path: path.stat().st_size for s in stores.values() for path in s.files}.values())
        print(f"features of frozen towers ({names}): {readable_size(size)} in {folder}", flush=True)
    return stores


def cache_folder(model: Any, data: DataArguments, should_log: bool) -> Path | None:
    """Where features are kept; None where the towers run each time."""
    every_tower = set(model.frozen_modalities) == set(model.config.modalities)
    if data.feature_cache == "none" or not (data.feature_cache or every_tower):
        return None
    reason = ""
    if data.streaming:
        reason = "a stream has no rows to come back to"
    elif not model.frozen_modalities:
        reason = "no tower is frozen (--freeze image, for one)"
    if reason:
        if should_log:
            logger.warning("no feature cache, the towers run each time: %s", reason)
        return None
    return Path(data.feature_cache) if data.feature_cache else Path(HF_ASSETS_CACHE) / "cue" / "features"


def _store(cache: FeatureCache, rows: Any, training: bool, data: DataArguments, phrases: int) -> FeatureStore:
    texts: set[str] = set()
    if "text" in cache.modalities:
        for row in rows.select_columns([c for c in ("caption", "phrases") if c in rows.column_names]):
            texts.update(row["caption"])
            if phrases or not training:  # evaluation asks for all phrases
                for k in range(len(row["caption"])):
                    texts.update(row_phrases(row, k))
    if training:
        mirror = "random" if data.mirror_images else "off"
    else:
        mirror = "average" if cache.model.config.average_mirror else "off"
    return cache.store(rows, sorted(texts), mirror)
