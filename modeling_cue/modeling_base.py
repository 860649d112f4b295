"""What is common to CUE models: their output, how weights start, and what loading refuses."""

import json
import os
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
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
from .saving import written_aside
from .tower_sources import WAYS, check_sources, leave_out_towers, light_state_dict, public_sources, tower_owners

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
        logits_per_image, logits_per_text: (N_image, N_text) and its transpose: cosines times the scale. Without
            `text_index` and `parts`, which training gives: its losses never hold all pairs.
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


def listed_cones(given: Iterable[Cone] | Mapping[str, Cone] | CUEOutput) -> list[Cone]:
    """The cones of an output of the model, of a mapping, or of a sequence.

    Raises:
        ValueError: there are none.
    """
    given = given.cones if isinstance(given, CUEOutput) else given
    cones = list(given.values() if isinstance(given, Mapping) else given)
    if not cones:
        raise ValueError("there are no cones to compose: give at least one, such as those of model(...).cones")
    return cones


class CUEPreTrainedModel(PreTrainedModel):
    """What `transformers` must know of CUE: its configuration, what it supports, and how its weights start.

    `save_towers` is how `save_pretrained` saves towers where its call does not say: "whole", or "reference" for those
    that are frozen.
    """

    save_towers = "whole"
    config_class = CUEConfig
    base_model_prefix = "cue"
    main_input_name = "input_ids"
    text_tower: PreTrainedModel
    supports_gradient_checkpointing = True
    # Float32 whatever the towers are loaded in, and left whole by quantisation: radii would come in steps.
    _keep_in_fp32_modules_strict = [  # noqa: RUF012
        *(f"{modality}_{part}" for modality in MODALITIES for part in ("pooler", "head")), "composition", "scales",
    ]  # fmt: skip
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
        if isinstance(module, AttentionPooler | ProjectionHead | CompositionLayer | Scales):
            module.reset_parameters()
        elif isinstance(module, nn.MultiheadAttention):
            init.xavier_uniform_(module.in_proj_weight)
            init.zeros_(module.in_proj_bias)
            init.zeros_(module.out_proj.bias)
        else:
            super()._init_weights(module)

    def _get_files_timestamps(self, working_dir: str | os.PathLike) -> dict[str, float]:
        return {}  # what is saved lies aside: all of it is new, and goes to the Hub

    @classmethod
    def from_pretrained(cls, *args: Any, output_loading_info: bool = False, **kwargs: Any) -> Any:
        """As in `transformers`, but a checkpoint without all weights is refused instead of getting random ones.

        The towers that a light checkpoint names are fetched too, with the same `cache_dir`, `token` and the like.

        Raises:
            ValueError: the checkpoint lacks weights of this model, or has them in other shapes; or a tower that it
                names cannot be fetched, or has other weights than it had.
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

    @staticmethod
    def _load_pretrained_model(
        model: Any, state_dict: dict[str, Tensor] | None, checkpoint_files: Iterable[str] | None, load_config: Any,
        *args: Any, **kwargs: Any,
    ) -> Any:  # fmt: skip
        # Here the configuration and the checkpoint's own files are found, and nothing is loaded: whatever
        # `from_pretrained` is told of dtypes, devices and adapters holds for the towers that are fetched too.
        if state_dict is None and checkpoint_files and model.config.towers_by_reference:
            found = load_config.download_kwargs or {}
            options = {
                key: found[key] for key in ("token", "cache_dir", "force_download", "local_files_only", "proxies")
                if found.get(key)
            }  # fmt: skip
            state_dict = light_state_dict(model.config, checkpoint_files, **options)
        model.config.towers_by_reference = []
        files: Any = checkpoint_files
        return PreTrainedModel._load_pretrained_model(model, state_dict, files, load_config, *args, **kwargs)

    def save_pretrained(
        self,
        save_directory: str | os.PathLike,
        is_main_process: bool = True,
        state_dict: dict[str, Tensor] | None = None,
        push_to_hub: bool = False,
        *args: Any,
        towers: str | None = None,
        **kwargs: Any,
    ) -> None:
        """As in `transformers`; the folder is one that sentence-transformers loads too, from the same weights.

        Where saving fails, for instance on a full disk, what was in the folder before is still whole. Optionally a
        light checkpoint, of heads, composition and adapters only.

        Args:
            towers: "whole" stores them; "reference" names each by repo, revision and fingerprint, and stores whole
                only those that were trained, with a warning. Default: as `save_towers` says.
            Others as in `transformers`.

        Raises:
            ValueError: another value of `towers`; by reference, a tower without a known origin or, with
                `push_to_hub`, one that is not on the Hub.
        """
        way = self.save_towers if towers is None else towers
        if way not in WAYS:
            raise ValueError(f"towers={way!r} is not valid; it must be {' or '.join(WAYS)}")
        config, left_out = self.config, []
        # Of a model with adapters of its own `transformers` saves these only.
        if way == "reference" and not getattr(self, "_hf_peft_config_loaded", False):
            check_sources(config, public=push_to_hub)
            state_dict = dict(self.state_dict() if state_dict is None else state_dict)
            # In training a tower that will change must be there to come back to, though it may not have changed yet.
            trainable = [m for m in tower_owners(config) if towers is None and self._trains(m)]
            left_out = leave_out_towers(config, state_dict, trainable)
        config.towers_by_reference = left_out
        # Other processes take part in gathering weights, and write nothing.
        aside: Any = written_aside(save_directory) if is_main_process else nullcontext(save_directory)
        try:
            with public_sources(config, push_to_hub), aside as folder:
                if is_main_process:
                    _write_sentence_transformers_files(folder, kept=Path(save_directory))
                super().save_pretrained(folder, is_main_process, state_dict, push_to_hub, *args, **kwargs)
        finally:
            config.towers_by_reference = []

    def push_to_hub(  # type: ignore[override]
        self, *args: Any, towers: str | None = None, **kwargs: Any
    ) -> str:
        """As in `transformers`; `towers` as in `save_pretrained`.

        Raises:
            ValueError: by reference, a tower without a known origin, or one that is not on the Hub.
        """
        if (self.save_towers if towers is None else towers) == "reference":
            check_sources(self.config, public=True)
        save: Any = partial(self.save_pretrained, towers=towers)
        self.save_pretrained = save  # type: ignore[method-assign]
        try:
            with public_sources(self.config):
                return super().push_to_hub(*args, **kwargs)
        finally:
            del self.save_pretrained

    def _trains(self, modality: str) -> bool:
        return any(weight.requires_grad for weight in self.get_submodule(f"{modality}_tower").parameters())


def _write_sentence_transformers_files(folder: Path, kept: Path) -> None:
    """Writes the files, or copies those that are in `kept` already: they hold a user's prompts, or further modules."""
    for name, content in SENTENCE_TRANSFORMERS_FILES.items():
        there = kept / name
        text = there.read_text() if there.is_file() else json.dumps(content, indent=2) + "\n"
        (folder / name).write_text(text)
