"""The steps of `run_contrastive.py`, one function each."""

import json
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers.trainer_utils import get_last_checkpoint

from configuration_cue import CUEConfig

from ..modeling_cue import CUEModel
from ..processing_cue import CUEProcessor
from .arguments import CUETrainingArguments, DataArguments, ModelArguments
from .collator import CUECollator, row_phrases
from .data import load_rows
from .demo import build_demo, demo_report
from .features import FeatureStore, build_feature_store
from .lora import BASE_FOLDER, add_lora
from .pairs import CaptionPairs, caption_pairs
from .report import format_table
from .rows import BadRows
from .scenes import make_scenes
from .trainer import CUETrainer

logger = logging.getLogger(__name__)
SCENES = {"train": 3500, "validation": 200, "test": 200}
MEDIA = ("image", "audio", "video")


@dataclass
class Data:
    """The rows of each split; test is None where it is left out."""

    train: Any
    validation: Any
    test: Any
    bad_rows: BadRows


def announce(argv: Sequence[str], training: CUETrainingArguments) -> None:
    """Says what is about to run; the demo's first line names the command of the real recipe."""
    if not training.should_log:
        return
    if Path(argv[0]).stem == "demo":
        print(
            "This is the demo; on Flickr30k: accelerate launch run_contrastive.py configs/flickr30k.yaml", flush=True
        )
    print(f"configuration {argv[0]}, results in {training.output_dir}", flush=True)


# ---------------------------------------------------------------------- data


def load_data(data: DataArguments, model: ModelArguments) -> Data:
    """Rows of the three splits, from scenes or from a data set on the Hub or on disk, with the media of the model."""
    media = _media(model)
    bad_rows = BadRows(data.on_bad_row)
    limits = {"train": data.max_train_samples, "validation": data.max_eval_samples, "test": data.max_eval_samples}
    names = {"train": data.train_split, "validation": data.validation_split, "test": data.test_split}
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
                data.dataset_name,
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
                check_counts=data.check_counts,
                cache_dir=data.data_cache_dir,
                bad_rows=bad_rows,
            )
    return Data(**rows, bad_rows=bad_rows)


def _media(model: ModelArguments) -> tuple[str, ...]:
    """The media that the model will have: columns of others are never read."""
    if model.model_name_or_path:
        modalities = CUEConfig.from_pretrained(model.model_name_or_path).modalities
        return tuple(m for m in MEDIA if m in modalities)
    return tuple(m for m in MEDIA if getattr(model, f"{m}_encoder")) or MEDIA


# ---------------------------------------------------------------------- model


def build_model(
    model: ModelArguments, data: DataArguments, training: CUETrainingArguments, rows: Data
) -> tuple[Any, CUEProcessor]:
    """Model and processor from a checkpoint, from encoders, or the demo's tiny towers; frozen and adapted as asked."""
    names: dict[str, Any] = {m: getattr(model, f"{m}_encoder") for m in ("text", "image", "audio", "video")}
    if model.model_name_or_path:
        cue = CUEModel.from_pretrained(
            model.model_name_or_path, attn_implementation=model.attn_implementation, dtype=torch.float32
        )
        processor = CUEProcessor.from_pretrained(model.model_name_or_path)
    elif any(names.values()):
        cue, processor = _from_encoders(names, model)
    elif data.dataset_name == "scenes":
        texts = (
            text for row in rows.train for text in (*row["caption"], *(p for line in row["phrases"] for p in line))
        )
        cue, processor = build_demo(texts, **_config_fields(model))
    else:
        raise ValueError(
            "no encoder named: set text_encoder and image_encoder (audio_encoder, video_encoder), or "
            "model_name_or_path"
        )
    cue.freeze(model.freeze)
    if not training.composition_weight:
        cue.composition.requires_grad_(False)  # its loss counts for nothing, and nothing is composed in training
    if training.torch_compile and training.should_log:
        logger.info("torch_compile is on: the first steps compile")
    if model.lora_rank:
        base = Path(training.output_dir or ".") / BASE_FOLDER
        cue = add_lora(cue, rank=model.lora_rank, alpha=model.lora_alpha, dropout=model.lora_dropout, base=base)
    return cue, processor


def _from_encoders(names: dict[str, Any], model: ModelArguments) -> tuple[CUEModel, CUEProcessor]:
    kwargs: dict[str, Any] = {"trust_remote_code": model.trust_remote_code}
    if model.attn_implementation:
        kwargs["attn_implementation"] = model.attn_implementation
    cue = CUEModel.from_encoders(
        **names, encoder_kwargs=kwargs, crop_audio=not model.pad_audio_to_30s, **_config_fields(model)
    )
    settings: dict[str, Any] = {"num_frames": model.num_frames, "whole_image": model.whole_image}
    if model.text_prefix is not None:
        settings["text_prefix"] = model.text_prefix
    if model.max_text_length is not None:
        settings["max_text_length"] = model.max_text_length
    if model.pad_audio_to_30s:
        settings["audio_padding"] = "max_length"
    return cue, CUEProcessor.from_encoders(**names, **settings)


def _config_fields(model: ModelArguments) -> dict[str, Any]:
    poolers = {m: getattr(model, f"{m}_pooler") for m in ("text", "image", "audio")}
    fields = {
        "projection_dim": model.projection_dim,
        "average_mirror": model.average_mirror,
        "poolers": {m: pooler for m, pooler in poolers.items() if pooler},
        "pooler_queries": model.pooler_queries,
        "head_hidden_dim": model.head_hidden_dim,
        "head_dropout": model.head_dropout,
        "token_dropout": model.token_dropout,
        "signed_sqrt": model.signed_sqrt,
    }
    if model.logit_scale_init is not None:
        fields["logit_scale_init_value"] = model.logit_scale_init
    return fields


# ---------------------------------------------------------------------- training


def build_trainer(
    cue: Any,
    processor: Any,
    rows: Data,
    data: DataArguments,
    training: CUETrainingArguments,
) -> CUETrainer:
    """A trainer over raw rows, or over cached features where every tower is frozen and a cache is named."""
    config: CUEConfig = cue.config
    use_text = training.containment_weight > 0 or training.composition_weight > 0
    phrases = data.phrases_per_caption if use_text else 0
    stores: dict[str, FeatureStore | None] = dict.fromkeys(("train", "validation", "test"))
    frozen = set(cue.frozen_modalities) == set(config.modalities)
    splits = {"train": rows.train, "validation": rows.validation, "test": rows.test}
    if data.feature_cache and frozen and not data.streaming:
        for split, dataset in splits.items():
            if dataset is not None:
                if split == "train":
                    mirror = "random" if data.mirror_images else "off"
                else:
                    mirror = "average" if config.average_mirror else "off"
                stores[split] = _features(cue, processor, dataset, data, training, mirror)
                kept = dataset.remove_columns([m for m in MEDIA if m in dataset.column_names])
                splits[split] = kept.add_column("index", list(range(len(kept))))
    elif data.feature_cache:
        logger.warning("feature_cache is not used: it needs every tower frozen and no streaming")

    def collator(split: str, count: int | None) -> CUECollator:
        mirror = data.mirror_images and split == "train"
        compounds = split != "train" or training.composition_weight > 0
        return CUECollator(processor, config.modalities, count, stores[split], rows.bad_rows, mirror, compounds)

    trainer = CUETrainer(
        model=cue,
        args=training,
        train_dataset=caption_pairs(
            splits["train"], data.captions_per_image, seed=training.seed, shuffle_buffer_size=data.shuffle_buffer_size
        ),
        eval_dataset=_whole_rows(splits["validation"]),
        data_collator=collator("train", phrases),
        eval_collator=collator("validation", None),
        processing_class=processor,
    )
    rows.train, rows.validation, rows.test = splits.values()
    trainer.test_collator = collator("test", None)
    return trainer


def _whole_rows(rows: Any) -> Any:
    """Evaluation sees every row once, with all its captions; a stream is numbered by the trainer."""
    return CaptionPairs(rows, every_caption=True) if isinstance(rows, Dataset) else rows


def _features(
    cue: Any,
    processor: CUEProcessor,
    dataset: Any,
    data: DataArguments,
    training: CUETrainingArguments,
    mirror: str,
) -> FeatureStore:
    columns = dataset.select_columns([c for c in ("caption", "phrases") if c in dataset.column_names])
    texts = []
    for row in columns:
        texts += row["caption"]
        for k in range(len(row["caption"])):
            texts += row_phrases(row, k)
    # The main process fills the cache; the others wait and read it.
    with training.main_process_first(desc="features of frozen towers"):
        cue.to(training.device)
        return build_feature_store(
            cue, processor, dataset, texts, str(data.feature_cache), dtype=data.feature_dtype, mirror=mirror
        )


def train(trainer: CUETrainer) -> None:
    """Trains, from the newest checkpoint where `resume_from_checkpoint` says so."""
    resume: Any = trainer.args.resume_from_checkpoint
    if isinstance(resume, str) and resume.lower() in ("true", "last"):
        resume = get_last_checkpoint(str(trainer.args.output_dir))
        if resume is None:
            raise ValueError(
                f"resume_from_checkpoint: there is no checkpoint in {trainer.args.output_dir} to go on from"
            )
    result = trainer.train(resume_from_checkpoint=resume)
    trainer.save_metrics("train", result.metrics)
    trainer.save_state()


def evaluate_test(trainer: CUETrainer, rows: Data, data: DataArguments) -> dict[str, float]:
    """Metrics of the best checkpoint: the validation split again, and the test split once."""
    metrics: dict[str, float] = {}
    if rows.test is None:
        metrics |= trainer.evaluate(metric_key_prefix="eval")
        return metrics
    trainer.eval_collator = trainer.test_collator
    metrics |= trainer.evaluate(_whole_rows(rows.test), metric_key_prefix="test")
    # A sharded model runs in all processes or none.
    if data.dataset_name == "scenes" and trainer.is_world_process_zero() and not trainer.is_fsdp_enabled:
        cue, processor = trainer.accelerator.unwrap_model(trainer.model), trainer.eval_collator.processor
        metrics |= {f"test_{k}": v for k, v in demo_report(cue, processor, rows.test).items()}
    return metrics


# ---------------------------------------------------------------------- results


def save_and_share(trainer: CUETrainer, metrics: dict[str, float], model: ModelArguments, rows: Data) -> None:
    """Saves model and processor, writes `all_results.json`, prints the table, and pushes where asked."""
    folder = Path(str(trainer.args.output_dir))
    if model.lora_rank and model.lora_merge and trainer.is_fsdp_enabled:
        logger.warning("the adapter is saved unmerged: under FSDP no process has whole weights; merge by load_lora")
    elif model.lora_rank and model.lora_merge:
        trainer.model = trainer.accelerator.unwrap_model(trainer.model).merge_and_unload()
    trainer.save_model()
    trainer.save_metrics("test" if any(k.startswith("test_") for k in metrics) else "eval", metrics)
    if not trainer.is_world_process_zero():
        return
    prefix = "test_" if any(k.startswith("test_") for k in metrics) else "eval_"
    table = {k.removeprefix(prefix): v for k, v in metrics.items() if isinstance(v, float) and math.isfinite(v)}
    print(format_table(table))
    if rows.bad_rows.count:
        print(f"broken rows left out: {rows.bad_rows.count}")
    print(f"results:  {folder / 'all_results.json'}\nmodel:    {folder}")
    if trainer.args.push_to_hub:
        trainer.push_to_hub(commit_message="CUE trained by run_contrastive.py")
        print(f"shared:   {trainer.hub_model_id}")


def results(folder: str | Path) -> dict[str, float]:
    """What a run wrote to `all_results.json`."""
    return json.loads((Path(folder) / "all_results.json").read_text())
