"""Training with light checkpoints: frozen towers are named in them, and must be the same when a run goes on."""

from pathlib import Path
from typing import Any

from torch import nn
from transformers.utils import CONFIG_NAME

from configuration_cue import CUEConfig

from ..tower_sources import describe
from .model_card import TrainerWithCard


class TrainerWithLightCheckpoints(TrainerWithCard):
    """A Trainer that goes on from checkpoints which name towers in place of holding them."""

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        whole: Any = self.model
        check_named_towers(whole.config, Path(resume_from_checkpoint))
        super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        # What a light checkpoint leaves out is in the model already.
        model: Any = self.model
        if model.save_towers == "reference":
            frozen = tuple(f"{model.tower_name(m)}." for m in model.frozen_modalities)
            load_result.missing_keys[:] = [key for key in load_result.missing_keys if not key.startswith(frozen)]
        super()._issue_warnings_after_load(load_result)


def check_named_towers(config: Any, checkpoint: Path) -> None:
    """Checks that a model of this configuration has the towers which a checkpoint names.

    Raises:
        ValueError: one of them has other weights, or is not known.
    """
    if not (checkpoint / CONFIG_NAME).is_file():
        return
    saved = CUEConfig.from_pretrained(str(checkpoint))
    for modality in saved.towers_by_reference:
        named, found = saved.tower_sources[modality], config.tower_sources.get(modality)
        if found is None or found["fingerprint"] != named["fingerprint"]:
            raise ValueError(
                f"{checkpoint} was trained over the {modality} tower {describe(named)}, and this run has "
                f"{'one of unknown origin' if found is None else describe(found) + ', which has other weights'}: go "
                "on with the same tower, or start afresh in another output_dir"
            )
