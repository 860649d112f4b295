"""What is common to CUE models: their output, how weights start, and what loading refuses."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput

from .composition import CompositionLayer
from .cones import Cone
from .configuration_cue import CUEConfig
from .encoders import MODALITIES
from .heads import AttentionPooler, ProjectionHead, Scales

if TYPE_CHECKING:
    # `transformers` copies what is imported by name, run or not: so this file travels, and nobody imports
    # sentence-transformers who does not use it.
    from .sentence_transformers_cue import CUESentenceModule  # noqa: F401

# What sentence-transformers reads of a checkpoint: the class that embeds, from the folder itself, and how embeddings
# are compared.
SENTENCE_TRANSFORMERS_FILES: dict[str, Any] = {
    "modules.json": [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers_cue.CUESentenceModule"},
    ],
    "config_sentence_transformers.json": {
        "model_type": "SentenceTransformer",
        "prompts": {},
        "default_prompt_name": None,
        "similarity_fn_name": "cosine",
    },
}


@dataclass
class CUEOutput(ModelOutput):
    """What `CUEModel.forward` returns; a field of a modality that was not given is None.

    Args:
        loss: scalar, with `return_loss=True`: the mean InfoNCE over pairs of the modalities given.
        logits_per_image, logits_per_text: (N_image, N_text) and its transpose: cosines times the scale.
        text_embeds, image_embeds, audio_embeds, video_embeds: (N, D), unit axes.
        text_radius, image_radius, audio_radius, video_radius: (N,), radians in (0, pi).
        composed_embeds, composed_radius, composed_empty: (C, D), (C,), (C,) bool: the compounds of `parts`.
        logit_scale: scalar in (0, 100]. containment_scale, containment_bias: scalars of the containment loss.
    """

    loss: Tensor | None = None
    logits_per_image: Tensor | None = None
    logits_per_text: Tensor | None = None
    text_embeds: Tensor | None = None
    text_radius: Tensor | None = None
    image_embeds: Tensor | None = None
    image_radius: Tensor | None = None
    audio_embeds: Tensor | None = None
    audio_radius: Tensor | None = None
    video_embeds: Tensor | None = None
    video_radius: Tensor | None = None
    composed_embeds: Tensor | None = None
    composed_radius: Tensor | None = None
    composed_empty: Tensor | None = None
    logit_scale: Tensor | None = None
    containment_scale: Tensor | None = None
    containment_bias: Tensor | None = None

    @property
    def cones(self) -> dict[str, Cone]:
        """The cones by modality, and the compounds as `composed`."""
        cones = {m: Cone(self[f"{m}_embeds"], self[f"{m}_radius"]) for m in MODALITIES if f"{m}_embeds" in self}
        if "composed_embeds" in self:
            cones["composed"] = Cone(self["composed_embeds"], self["composed_radius"], self["composed_empty"])
        return cones


class CUEPreTrainedModel(PreTrainedModel):
    """What `transformers` must know of CUE: its configuration, what it supports, and how its weights start."""

    config_class = CUEConfig
    base_model_prefix = "cue"
    main_input_name = "input_ids"
    text_tower: PreTrainedModel
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    def _initialize_weights(self, module: nn.Module, is_custom_code: bool = False) -> None:
        # For custom code `transformers` skips a module without parameters of its own, such as a head. All
        # initialisation here goes through the helpers that leave loaded weights alone, so nothing needs skipping.
        super()._initialize_weights(module, is_custom_code=False)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, Scales):
            module.reset_parameters()
        elif isinstance(module, AttentionPooler | ProjectionHead):
            module.reset_parameters(self.config.initializer_range)
        elif isinstance(module, CompositionLayer):
            module.reset_parameters()
        elif isinstance(module, nn.MultiheadAttention):
            init.xavier_uniform_(module.in_proj_weight)
            init.zeros_(module.in_proj_bias)
            init.zeros_(module.out_proj.bias)
        else:
            super()._init_weights(module)

    def save_pretrained(
        self, save_directory: str | os.PathLike, is_main_process: bool = True, *args: Any, **kwargs: Any
    ) -> None:
        """As in `transformers`; the folder is one that sentence-transformers loads too, from the same weights."""
        super().save_pretrained(save_directory, is_main_process, *args, **kwargs)
        if is_main_process:
            _write_sentence_transformers_files(save_directory)

    def _upload_modified_files(self, working_dir: str | os.PathLike, *args: Any, **kwargs: Any) -> Any:
        # `save_pretrained(push_to_hub=True)` uploads before it comes back.
        _write_sentence_transformers_files(working_dir)
        return super()._upload_modified_files(working_dir, *args, **kwargs)

    @classmethod
    def from_pretrained(cls, *args: Any, output_loading_info: bool = False, **kwargs: Any) -> Any:
        """As in `transformers`, but a checkpoint without all weights is refused instead of getting random ones.

        Raises:
            ValueError: the checkpoint lacks weights of this model, or has them in other shapes.
        """
        # Tensors of other shapes are let in only to be named below.
        kwargs["ignore_mismatched_sizes"] = True
        loaded: Any = super().from_pretrained(*args, output_loading_info=True, **kwargs)
        model, info = loaded
        if info["missing_keys"] or info["mismatched_keys"]:
            missing = sorted(info["missing_keys"]) + sorted(str(key) for key in info["mismatched_keys"])
            raise ValueError(
                f"the checkpoint has no fitting weights for {len(missing)} tensors of this CUE, such as {missing[0]}: "
                "it is incomplete or was saved with another configuration; load the complete checkpoint, or build a "
                "fresh model by CUEModel.from_encoders and train it"
            )
        for tensor in (*model.parameters(), *model.buffers()):
            # A memory-mapped checkpoint puts tensors at any address, and CPU kernels round by alignment: a copy lies
            # where a fresh tensor would, so that a model that was saved and loaded answers to the bit.
            if tensor.device.type == "cpu" and tensor.data_ptr() % 64:
                tensor.data = tensor.data.clone()
        return (model, info) if output_loading_info else model


def _write_sentence_transformers_files(folder: str | os.PathLike) -> None:
    """Writes those of the files that are not there yet: others hold a user's prompts, or further modules."""
    for name, content in SENTENCE_TRANSFORMERS_FILES.items():
        path = Path(folder) / name
        if path.parent.is_dir() and not path.exists():
            path.write_text(json.dumps(content, indent=2) + "\n")
