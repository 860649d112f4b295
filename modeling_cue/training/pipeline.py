"""The steps of `run_contrastive.py`, one function each."""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers.trainer_utils import get_last_checkpoint

from configuration_cue import CUEConfig

from ..processing_cue import CUEProcessor
from .allocator import keep_freed_memory
from .arguments import CUETrainingArguments, DataArguments, ModelArguments
from .building import encoder_names
from .collator import CUECollator
from .data import load_rows
from .demo import demo_report
from .frozen import feature_stores
from .gathering import together
from .image_cache import ImageCache, build_image_cache
from .loading import checkpoint_config
from .lora import forget_adapter
from .model_card_facts import Run
from .pairs import CaptionPairs, caption_pairs
from .relations import LETTERS, MEDIA
from .report import format_table
from .rows import BadRows, DataError
from .run_record import FILE, describe_rows
from .scenes import SCENES, make_scenes
from .sources import data_source
from .splits import split_name
from .trainer import CUETrainer

logger = logging.getLogger(__name__)


@dataclass
class Data:
    """The rows of each split, test is None where it is left out, and what `describe_rows` said of them as loaded."""

    train: Any
    validation: Any
    test: Any
    bad_rows: BadRows
    described: dict[str, dict[str, Any]] = field(default_factory=dict)


def announce(argv: Sequence[str], data: DataArguments, training: CUETrainingArguments) -> None:
    """Says what is about to run; the demo's first line names the command of the real recipe.

    Raises:
        DataError: checkpoints of an earlier run are there, from which this one could not be told.
    """
    folder = Path(str(training.output_dir))
    trains = data.train_split is not None
    if trains and not training.resume_from_checkpoint and folder.is_dir() and get_last_checkpoint(str(folder)):
        raise DataError(
            f"{folder} holds checkpoints of an earlier run. To go on from the newest, add --resume_from_checkpoint "
            "last; else name another folder (--output_dir DIR), or remove them"
        )
    if not training.should_log:
        return
    if Path(argv[0]).stem == "demo":
        print(
            "This is the demo; on Flickr30k: accelerate launch run_contrastive.py configs/flickr30k.yaml", flush=True
        )
    configuration = "built-in defaults" if argv[0].startswith("-") else argv[0]
    print(f"configuration: {configuration}; results go to {training.output_dir}", flush=True)
    if trains and (folder / FILE).is_file() and not training.resume_from_checkpoint:
        logger.warning(
            "%s holds an earlier run, whose model and results this one replaces; to keep them, stop and name another "
            "folder (--output_dir DIR)", folder,
        )  # fmt: skip


# ---------------------------------------------------------------------- data


def load_data(data: DataArguments, model: ModelArguments) -> Data:
    """Rows of the three splits, from scenes or from a data set on the Hub or on disk, with the media of the model."""
    encoder_names(model, data)
    media = _media(model)
    bad_rows = BadRows(data.on_bad_row)
    limits = {"train": data.max_train_samples, "validation": data.max_eval_samples, "test": data.max_eval_samples}
    names = {"train": data.train_split, "validation": data.validation_split, "test": data.test_split}
    measured = {split_name(str(name)) for split, name in names.items() if split != "train" and name is not None}
    if split_name(str(names["train"])) in measured:
        logger.warning(
            "the split %r is trained on and evaluated on: its figures say nothing about new data", data.train_split
        )
    rows: dict[str, Any] = {}
    for split, limit in limits.items():
        name = names[split]
        if name is None:
            rows[split] = None
        elif data.dataset_name == "scenes":
            size = min(limit or SCENES[split], SCENES[split])
            rows[split] = make_scenes(split, size, parts=split == "train")
        else:
            rows[split] = load_rows(
                data_source(data),
                name,
                streaming=data.streaming,
                max_samples=limit,
                modalities=media,
                image_column=data.image_column,
                caption_column=data.caption_column,
                audio_column=data.audio_column,
                video_column=data.video_column,
                id_column=data.id_column,
                split_column=data.split_column,
                split_sizes=tuple(data.split_sizes) or None,  # type: ignore[arg-type]
                split_seed=data.split_seed,
                check_counts=data.check_counts,
                bad_rows=bad_rows,
            )
    described = {split: describe_rows(found) for split, found in rows.items() if found is not None}
    return Data(**rows, bad_rows=bad_rows, described=described)


def _media(model: ModelArguments) -> tuple[str, ...]:
    """The media that the model will have: columns of others are never read."""
    if model.model_name_or_path:
        modalities = checkpoint_config(model.model_name_or_path).modalities
        return tuple(m for m in MEDIA if m in modalities)
    return tuple(m for m in MEDIA if getattr(model, f"{m}_encoder")) or MEDIA


# ---------------------------------------------------------------------- training


def build_trainer(
    cue: Any,
    processor: Any,
    rows: Data,
    data: DataArguments,
    training: CUETrainingArguments,
) -> CUETrainer:
    """A trainer over rows: of raw input, or of cached features for frozen towers."""
    keep_freed_memory()
    config: CUEConfig = cue.config
    splits = {"train": rows.train, "validation": rows.validation, "test": rows.test}
    columns = next(found for found in splits.values() if found is not None).column_names
    present = [m for m in config.modalities if m == "text" or m in columns]
    if missing := [m for m in config.modalities if m not in present]:
        logger.warning(
            "the data has no column of %s: that part of the model is neither trained nor evaluated; name the column "
            "with --%s_column, or leave the encoder out", " and ".join(missing), missing[0],
        )  # fmt: skip
    if training.metric_for_best_model == "rsum" and not {"text", "image"} <= set(present):
        first, second = [*(LETTERS[m] for m in present), "", ""][:2]
        training.metric_for_best_model = f"{first}2{second}_R@1" if second else "containment_auroc"
        logger.warning("rsum needs text and images: the best model is best in %s", training.metric_for_best_model)
    use_text = training.containment_weight > 0 or training.composition_weight > 0
    phrases = data.phrases_per_caption if use_text else 0
    stores = feature_stores(cue, processor, splits, data, training, phrases, rows.bad_rows)
    for split, store in stores.items():  # what nobody will read
        splits[split] = splits[split].remove_columns([c for c in store.modality_of if c in splits[split].column_names])

    images = _image_caches(processor, splits, data, training, rows.bad_rows)

    train_store = stores.get("train")
    if data.random_crop_scale < 1 and train_store is not None and "image" in train_store.modalities:
        raise ValueError(
            f"random_crop_scale={data.random_crop_scale}: the features of the frozen image tower are cached, and it "
            "sees no part of an image; leave random_crop_scale at 1, or set feature_cache to none"
        )

    def collator(split: str, count: int | None) -> CUECollator:
        in_training = split == "train"
        mirror = data.mirror_images and in_training
        compounds = split != "train" or training.composition_weight > 0
        return CUECollator(
            processor, config.modalities, count, stores.get(split), rows.bad_rows, mirror, compounds, data.whole_parts,
            data.random_crop_scale if in_training else 1.0, normalize=not in_training,
        )  # fmt: skip

    pairs = None
    if splits["train"] is not None:
        pairs = caption_pairs(
            splits["train"],
            data.captions_per_image,
            seed=training.seed,
            shuffle_buffer_size=data.shuffle_buffer_size,
            images=images.get("train"),
        )
    trainer = CUETrainer(
        model=cue,
        args=training,
        train_dataset=pairs,
        eval_dataset=_whole_rows(splits["validation"], images.get("validation")),
        data_collator=collator("train", phrases),
        eval_collator=collator("validation", None),
        processing_class=processor,
    )
    rows.train, rows.validation, rows.test = splits.values()
    trainer.test_collator, trainer.test_rows = collator("test", None), _whole_rows(splits["test"], images.get("test"))
    return trainer


def _whole_rows(rows: Any, images: ImageCache | None = None) -> Any:
    """Evaluation sees every row once, with all its captions; a stream is numbered by the trainer."""
    return CaptionPairs(rows, every_caption=True, images=images) if isinstance(rows, Dataset) else rows


def _image_caches(
    processor: CUEProcessor,
    splits: dict[str, Any],
    data: DataArguments,
    training: CUETrainingArguments,
    bad_rows: BadRows,
) -> dict[str, ImageCache]:
    """Decoded images of the splits whose images will be read, where a cache is named."""
    if data.image_cache is None:
        return {}
    with_images = {s: rows for s, rows in splits.items() if isinstance(rows, Dataset) and "image" in rows.column_names}
    if data.random_crop_scale < 1:
        raise ValueError(
            f"random_crop_scale={data.random_crop_scale}: the images of image_cache are cropped already; leave one of "
            "them out"
        )
    if not with_images:
        logger.warning("image_cache is not used: no image will be read, or they come as a stream")
    return {
        split: build_image_cache(processor, rows, data.image_cache, bad_rows, training.dataloader_num_workers or 0)
        for split, rows in with_images.items()
    }


def train(trainer: CUETrainer) -> None:
    """Trains, from a checkpoint where `resume_from_checkpoint` says so; nothing where there is no training split."""
    if trainer.train_dataset is None:
        return
    result = trainer.train(resume_from_checkpoint=trainer.args.resume_from_checkpoint)
    trainer.save_metrics("train", result.metrics)
    trainer.save_state()


def evaluate_test(trainer: CUETrainer, rows: Data, data: DataArguments) -> dict[str, float]:
    """Metrics of the best checkpoint: the validation split again, and the test split once."""
    metrics: dict[str, float] = {}
    if rows.test is None:
        return metrics if rows.validation is None else trainer.evaluate(metric_key_prefix="eval")
    trainer.eval_collator = trainer.test_collator
    metrics |= trainer.evaluate(trainer.test_rows, metric_key_prefix="test")
    # A sharded model runs in all processes or none.
    if data.dataset_name == "scenes" and trainer.is_world_process_zero() and not trainer.is_fsdp_enabled:
        cue, processor = trainer.accelerator.unwrap_model(trainer.model), trainer.eval_collator.processor
        metrics |= {f"test_{k}": v for k, v in demo_report(cue, processor, rows.test).items()}
    return metrics


# ---------------------------------------------------------------------- results


def save_and_share(
    trainer: CUETrainer, metrics: dict[str, float], model: ModelArguments, rows: Data, data: DataArguments
) -> None:
    """Saves model, processor and model card, writes `all_results.json`, prints the table, and pushes where asked."""
    folder = Path(str(trainer.args.output_dir))
    trained = trainer.train_dataset is not None
    adapter = bool(model.lora_rank)
    if adapter and model.lora_merge and trainer.is_fsdp_enabled:
        logger.warning("the adapter is saved unmerged: under FSDP no process has whole weights; merge by load_lora")
    elif adapter and model.lora_merge:
        trainer.model, adapter = trainer.accelerator.unwrap_model(trainer.model).merge_and_unload(), False
    if trained and trainer.is_world_process_zero() and not adapter:
        forget_adapter(folder, and_base=bool(model.lora_rank))
    if trained:
        trainer.save_model()
    left_out = sum(together(lambda: rows.bad_rows.count))
    trainer.save_metrics("test" if any(k.startswith("test_") for k in metrics) else "eval", metrics)
    if not trainer.is_world_process_zero():
        return
    prefix = "test_" if any(k.startswith("test_") for k in metrics) else "eval_"
    table = {k.removeprefix(prefix): v for k, v in metrics.items() if isinstance(v, float) and math.isfinite(v)}
    print(format_table(table))
    if left_out:
        print(f"broken rows left out: {left_out}")
    print(f"results:  {folder / 'all_results.json'}\nmodel:    {folder if trained else model.model_name_or_path}")
    if not trained:
        return
    splits = {"train": rows.train, "validation": rows.validation, "test": rows.test}
    counts = {split: len(found) for split, found in splits.items() if isinstance(found, Dataset)}
    trainer.run = Run(metrics, model, data, counts)
    if not trainer.args.push_to_hub:  # pushing writes the card
        trainer.create_model_card()
    else:
        trainer.push_to_hub(commit_message="CUE trained by run_contrastive.py")
        print(f"shared:   {trainer.hub_model_id}")
