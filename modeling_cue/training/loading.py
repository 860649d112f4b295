"""A CUE checkpoint by Hub name or folder, whole or an adapter beside its base."""

from pathlib import Path
from typing import Any

import torch

from configuration_cue import CUEConfig

from ..modeling_cue import CUEModel
from ..processing_cue import CUEProcessor
from .arguments import ArgumentsError
from .lora import BASE_FOLDER, is_adapter, load_lora


def checkpoint_config(name: str) -> CUEConfig:
    """The configuration of a CUE checkpoint by Hub name or folder, which may be one that training with LoRA left.

    Raises:
        ArgumentsError: there is no CUE there.
    """
    try:
        config = CUEConfig.from_pretrained(str(Path(name) / BASE_FOLDER) if is_adapter(name) else name)
    except (OSError, ValueError) as error:
        raise ArgumentsError(
            f"model_name_or_path={name!r} could not be loaded: give a folder that a run has saved, or the Hub name of "
            f"a CUE ({error})"
        ) from error
    if not config.modalities:
        raise ArgumentsError(
            f"model_name_or_path={name!r} is no CUE: give a folder or repo that run_contrastive.py or "
            "CUEModel.save_pretrained wrote; name an encoder by text_encoder, image_encoder, ..."
        )
    return config


def load_checkpoint(name: str, **kwargs: Any) -> tuple[CUEModel, CUEProcessor]:
    """Model, float32, and processor of a checkpoint. Keyword arguments go to `from_pretrained` of the model.

    Raises:
        ArgumentsError: there is no CUE there.
    """
    checkpoint_config(name)
    load = load_lora if is_adapter(name) else CUEModel.from_pretrained
    return load(name, dtype=torch.float32, **kwargs), CUEProcessor.from_pretrained(name)
