"""Model and processor of a run: from a checkpoint, from encoders, or the demo's tiny towers."""

import logging
from dataclasses import fields
from pathlib import Path
from typing import Any

from ..encoders import MODALITIES
from ..modeling_cue import CUEModel
from ..processing_cue import CUEProcessor
from ..tower_sources import check_sources, on_the_hub
from .arguments import CUETrainingArguments, DataArguments, ModelArguments
from .demo import build_demo
from .loading import load_checkpoint
from .lora import BASE_FOLDER, add_lora

logger = logging.getLogger(__name__)
# What counts with a checkpoint too; all other model arguments shape what it has already.
OF_A_CHECKPOINT = (
    "model_name_or_path", "attn_implementation", "freeze", "lora_rank", "lora_alpha", "lora_dropout", "lora_merge",
)  # fmt: skip


def encoder_names(model: ModelArguments, data: DataArguments) -> dict[str, Any]:
    """The encoder of each modality by name, or None.

    Raises:
        ValueError: nothing says which model to train. Asked before data are loaded, which may take hours.
    """
    names = {m: getattr(model, f"{m}_encoder") for m in MODALITIES}
    if not (model.model_name_or_path or any(names.values()) or data.dataset_name == "scenes"):
        raise ValueError(
            "no encoder named: set text_encoder and image_encoder (audio_encoder, video_encoder), or "
            "model_name_or_path"
        )
    return names


def build_model(
    model: ModelArguments, data: DataArguments, training: CUETrainingArguments, rows: Any
) -> tuple[Any, CUEProcessor]:
    """Model and processor from a checkpoint, from encoders, or the demo's tiny towers; frozen and adapted as asked."""
    names = encoder_names(model, data)
    if model.model_name_or_path:
        cue, processor = _from_checkpoint(model.model_name_or_path, model)
    elif any(names.values()):
        cue, processor = _from_encoders(names, model)
    else:
        texts = (
            text for row in rows.train for text in (*row["caption"], *(p for line in row["phrases"] for p in line))
        )
        cue, processor = build_demo(texts, **_config_fields(model))
    cue.freeze(model.freeze)
    if training.save_towers == "reference":
        check_sources(cue.config, public=training.push_to_hub)  # better now than when hours of training are saved
        cue.save_towers = training.save_towers
    elif training.push_to_hub:  # what is saved will be read by others, who need no name of a folder here
        cue.config.tower_sources = on_the_hub(cue.config.tower_sources)
    if not training.composition_weight:
        cue.composition.requires_grad_(False)  # its loss counts for nothing, and nothing is composed in training
    if training.torch_compile and training.should_log:
        logger.info("torch_compile is on: the first steps compile")
    if model.lora_rank:
        base = Path(training.output_dir or ".") / BASE_FOLDER
        adapted = add_lora(cue, rank=model.lora_rank, alpha=model.lora_alpha, dropout=model.lora_dropout, base=base)
        return adapted, processor
    return cue, processor


def _from_checkpoint(name: str, model: ModelArguments) -> tuple[CUEModel, CUEProcessor]:
    plain = ModelArguments()
    shaping = [f.name for f in fields(model) if f.name not in OF_A_CHECKPOINT]
    if given := [field for field in shaping if getattr(model, field) != getattr(plain, field)]:
        logger.warning("ignored, as the checkpoint that model_name_or_path names decides: %s", ", ".join(given))
    return load_checkpoint(name, attn_implementation=model.attn_implementation)


def _from_encoders(names: dict[str, Any], model: ModelArguments) -> tuple[CUEModel, CUEProcessor]:
    kwargs: dict[str, Any] = {"trust_remote_code": model.trust_remote_code}
    if model.attn_implementation:
        kwargs["attn_implementation"] = model.attn_implementation
    fields = _config_fields(model)
    if model.num_frames is not None:
        fields["num_frames"] = model.num_frames
    cue = CUEModel.from_encoders(
        **names,
        encoder_kwargs=kwargs,
        crop_audio=not model.pad_audio_to_30s,
        **fields,
    )
    settings: dict[str, Any] = {"num_frames": cue.config.num_frames, "whole_image": model.whole_image}
    settings |= {"fast_images": model.fast_images, "jpeg_draft": model.jpeg_draft}
    if model.text_prefix is not None:
        settings["text_prefix"] = model.text_prefix
    if model.max_text_length is not None:
        settings["max_text_length"] = model.max_text_length
    if model.pad_audio_to_30s:
        settings["audio_padding"] = "max_length"
    return cue, CUEProcessor.from_encoders(**names, encoder_kwargs=kwargs, **settings)


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
        "composition_dropout": model.composition_dropout,
        "signed_sqrt": model.signed_sqrt,
    }
    if model.logit_scale_init is not None:
        fields["logit_scale_init_value"] = model.logit_scale_init
    return fields
