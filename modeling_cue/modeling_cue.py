"""CUEModel: towers, heads and the compositional layer as one Hugging Face model."""

from collections.abc import Iterable, Mapping
from functools import reduce
from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from .composition import CompositionLayer
from .cones import Cone
from .configuration_cue import CUEConfig
from .contrastive import info_nce, scaled_cosines
from .encoders import MODALITIES, build_tower, feature_size, tower_pooler, whole_clips
from .heads import AttentionPooler, ProjectionHead, Scales
from .modeling_base import CUEOutput, listed_cones
from .modeling_towers import CUETowers
from .tower_sources import load_known_tower

# What `get_text_cones` and its like may be given: what a processor or a tokenizer returned, whole.
_INPUT_NAMES = {"token_type_ids"} | {name for m in MODALITIES.values() for name in (m.input_name, m.mask_name) if name}


class CUEModel(CUETowers):
    """The Universal Compositional Embedder: any of text, image, audio and video in, spherical cones out.

    `CUEModel(config)` builds fresh weights from the configuration alone; `from_encoders` starts from pretrained
    towers; `from_pretrained` loads a trained CUE and refuses a checkpoint that lacks weights.

    `text_chunks` is the number of runs, by length, that a large batch of texts is cut into at most: 1 is slower with
    the same result, and does not depend on the batch.
    """

    def __init__(self, config: CUEConfig, towers: dict[str, PreTrainedModel] | None = None):
        super().__init__(config)
        config.check()  # `from_pretrained` sets fields that its caller names after the configuration was built
        if not config.modalities:
            raise ValueError(
                "CUEModel: the configuration has no modality; give at least one of text_config, image_config, "
                "audio_config, video_config, or use CUEModel.from_encoders(text=..., image=...)"
            )
        # `transformers` asks for token embeddings, to checkpoint them, where this is `input_ids`.
        self.main_input_name = MODALITIES[config.modalities[0]].input_name
        towers = towers or {}
        self._poolers: dict[str, str] = {}
        for modality in config.modalities:
            tower_config = config.tower_config(modality)
            pooler = tower_pooler(tower_config, modality, config.poolers.get(modality))
            self._poolers[modality] = pooler
            # Towers are direct attributes: `post_init` merges what it knows of sub-models from immediate children.
            if self.tower_name(modality) == f"{modality}_tower":
                setattr(self, f"{modality}_tower", towers.get(modality) or build_tower(tower_config, modality))
            width = feature_size(tower_config, pooler)
            pooled_width = width
            by_frame = modality == "video" and not whole_clips(tower_config)
            if modality == "video" and not by_frame and tower_config.num_frames != config.num_frames:
                raise ValueError(
                    f"num_frames={config.num_frames} does not fit the video tower of family "
                    f"{tower_config.model_type!r}, which takes {tower_config.num_frames} frames: set num_frames="
                    f"{tower_config.num_frames}, for CUEProcessor too"
                )
            if pooler == "attention" or by_frame:
                frames = config.num_frames if by_frame else 0
                learned = AttentionPooler(width, config.pooler_queries, config.token_dropout, frames)
                setattr(self, f"{modality}_pooler", learned)
                pooled_width = width * (1 + config.pooler_queries)
            head = ProjectionHead(
                pooled_width,
                config.projection_dim,
                config.head_hidden_dim,
                config.head_dropout,
                config.radius_hidden_dim,
                config.radius_init[modality],
                config.detach_radius_features,
                modality in config.signed_sqrt,
            )
            setattr(self, f"{modality}_head", head)
        self.composition = CompositionLayer(
            config.projection_dim,
            config.composition_dim,
            config.composition_heads,
            config.composition_layers,
            config.min_radius,
            config.composition_dropout,
        )
        self.scales = Scales(config.logit_scale_init_value, config.containment_scale_init_value)
        self.post_init()

    # ------------------------------------------------------------------ building

    @classmethod
    def from_encoders(
        cls,
        text: str | None = None,
        image: str | None = None,
        audio: str | None = None,
        video: str | None = None,
        *,
        encoder_kwargs: dict[str, Any] | None = None,
        **config_fields: Any,
    ) -> "CUEModel":
        """A CUE over pretrained towers, with fresh heads.

        Args:
            text, image, audio: Hub name or local folder of the tower; None leaves the modality out.
            video: `"image"` (or the same name as `image`) for the image tower over frames, stored once; or the name
                of a tower of its own: an image tower over frames, or one of whole clips, whose number of frames is
                then the default of `num_frames`.
            encoder_kwargs: passed to every tower's `from_pretrained`: dtype, attn_implementation, token, cache_dir.
            config_fields: fields of [`CUEConfig`].

        Raises:
            ValueError: no modality, an unknown encoder, or a tower that cannot be pooled. TypeError: a field that the
                configuration does not have.
        """
        if unknown := sorted(config_fields.keys() - cls.config_class.__dataclass_fields__.keys()):
            raise TypeError(
                f"CUEConfig has no field {', '.join(unknown)}: look at its documentation for their names; what "
                "prepares input, such as text_prefix and whole_image, belongs to CUEProcessor.from_encoders"
            )
        shared = video is not None and video in ("image", image)
        if shared and image is None:
            raise ValueError("video='image' needs an image encoder: give image=..., or a tower of its own for video")
        names = {"text": text, "image": image, "audio": audio, "video": None if shared else video}
        if not any(names.values()):
            raise ValueError("no modality given: name at least one encoder, e.g. text='intfloat/e5-base-v2'")
        if (encoder_kwargs or {}).get("quantization_config") is not None:
            raise ValueError(
                "towers cannot be quantised before there is a CUE, whose configuration must say so: save the model, "
                "and load it by AutoModel.from_pretrained(..., quantization_config=...), which leaves the heads whole"
            )
        known = {m: load_known_tower(name, m, **(encoder_kwargs or {})) for m, name in names.items() if name}
        towers = {m: tower for m, (tower, _) in known.items()}
        for tower in towers.values():
            # A timm tower holds plain modules, which the outer `post_init` would give fresh weights.
            for module in tower.modules():
                module._is_hf_initialized = True  # type: ignore[assignment]
        fields: dict[str, Any] = {f"{m}_config": tower.config for m, tower in towers.items()}
        if "video" in towers and whole_clips(towers["video"].config):
            config_fields.setdefault("num_frames", towers["video"].config.num_frames)
        # Without this the outer config would take the choice of attention back from the towers.
        fields["attn_implementation"] = {f"{m}_config": t.config._attn_implementation for m, t in towers.items()}
        fields["tower_sources"] = {m: source for m, (_, source) in known.items() if source}
        config = cls.config_class(**fields, video_uses_image_tower=shared, **config_fields)
        if (encoder_kwargs or {}).get("dtype") == "auto":
            # One for all: a checkpoint states one, which all towers are loaded in.
            dtype = reduce(torch.promote_types, (tower.dtype for tower in towers.values()))
            for tower in towers.values():
                nn.Module.to(tower, dtype)
        return cls(config, towers)

    # ------------------------------------------------------------------ embedding

    def embed_features(self, modality: str, features: Tensor, mask: Tensor | None = None) -> Cone:
        """Cones (N,) from what `tower_features` returned."""
        self._require(modality)
        if features.ndim == 3:
            features = getattr(self, f"{modality}_pooler")(features, mask)
        return getattr(self, f"{modality}_head")(features)

    def _cones(self, modality: str, inputs: dict[str, Any]) -> Cone:
        spec = MODALITIES[modality]
        self._require(modality)
        if unknown := inputs.keys() - _INPUT_NAMES:
            raise TypeError(
                f"get_{modality}_cones got {', '.join(sorted(unknown))}, which it does not accept: pass "
                f"{' and '.join(filter(None, (spec.input_name, spec.mask_name)))}"
            )
        if inputs.get(spec.input_name) is None:
            raise ValueError(f"{modality} needs {spec.input_name}; got {', '.join(inputs) or 'nothing'}")
        mask = inputs.get(spec.mask_name) if spec.mask_name else None
        return self.embed_features(modality, *self.tower_features(modality, inputs[spec.input_name], mask))

    def get_text_cones(self, **inputs: Any) -> Cone:
        """Cones (N,) of `input_ids` (N, L) with `attention_mask` (N, L)."""
        return self._cones("text", inputs)

    def get_image_cones(self, **inputs: Any) -> Cone:
        """Cones (N,) of `pixel_values` (N, 3, H, W)."""
        return self._cones("image", inputs)

    def get_audio_cones(self, **inputs: Any) -> Cone:
        """Cones (N,) of `input_features` with `input_features_mask`, as the tower reads them; see [`CUEProcessor`]."""
        return self._cones("audio", inputs)

    def get_video_cones(self, **inputs: Any) -> Cone:
        """Cones (N,) of `pixel_values_videos` (N, num_frames, 3, H, W)."""
        return self._cones("video", inputs)

    def get_text_features(self, **inputs: Any) -> Tensor:
        """Unit axes (N, D) of text; see `get_text_cones`."""
        return self.get_text_cones(**inputs).axis

    def get_image_features(self, **inputs: Any) -> Tensor:
        """Unit axes (N, D) of images; see `get_image_cones`."""
        return self.get_image_cones(**inputs).axis

    def get_audio_features(self, **inputs: Any) -> Tensor:
        """Unit axes (N, D) of audio; see `get_audio_cones`."""
        return self.get_audio_cones(**inputs).axis

    def get_video_features(self, **inputs: Any) -> Tensor:
        """Unit axes (N, D) of video; see `get_video_cones`."""
        return self.get_video_cones(**inputs).axis

    def compose(
        self, cones: Cone | Iterable[Cone] | Mapping[str, Cone] | CUEOutput, mask: Tensor | None = None
    ) -> Cone:
        """One compound (B,) out of parts of any modalities: K cones (B,) in a list, or cones of shape (B, K).

        Of a mapping its values are composed, of an output of the model its cones. Out of single cones of shape () in a
        list comes a compound of shape (), with a mask (K,). See [`CompositionLayer`] for `mask` and what is raised.
        """
        if isinstance(cones, Cone):
            return self.composition(cones, mask)
        parts = listed_cones(cones)
        if all(isinstance(part, Cone) and part.shape == () for part in parts):
            return self.composition(Cone.stack(parts)[None], mask if mask is None else mask[None])[0]
        return self.composition(Cone.stack(parts, dim=1), mask)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        input_features: Tensor | None = None,
        input_features_mask: Tensor | None = None,
        pixel_values_videos: Tensor | None = None,
        text_features: Tensor | None = None,
        text_features_mask: Tensor | None = None,
        image_features: Tensor | None = None,
        audio_features: Tensor | None = None,
        audio_features_mask: Tensor | None = None,
        video_features: Tensor | None = None,
        text_index: Tensor | None = None,
        parts: Tensor | None = None,
        return_loss: bool = False,
        return_dict: bool | None = None,
    ) -> CUEOutput | tuple[Any, ...]:
        """Embeds any subset of modalities, each with a batch size of its own.

        Args:
            input_ids, attention_mask, pixel_values, input_features, input_features_mask, pixel_values_videos: as
                [`CUEProcessor`] returns them.
            {modality}_features, {modality}_features_mask: what `tower_features` returned, in place of raw input.
            text_index: (N,) int64, the rows of the text input that are meant, in order: a text that comes up more than
                once is embedded once, and N texts come out.
            parts: (C, K) int64, rows of the embeddings of this call in the order text, image, audio, video, -1 for
                no part: each line is composed into one compound.
            return_loss: adds the mean InfoNCE over the pairs of modalities given; their rows match by position.

        Raises:
            ValueError: no modality, or one that this model does not have, or rows that cannot match.
        """
        given: dict[str, Any] = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "pixel_values": pixel_values,
            "input_features": input_features,
            "input_features_mask": input_features_mask,
            "pixel_values_videos": pixel_values_videos,
            "text_features": text_features,
            "text_features_mask": text_features_mask,
            "image_features": image_features,
            "audio_features": audio_features,
            "audio_features_mask": audio_features_mask,
            "video_features": video_features,
        }  # not locals(): torch.compile cannot trace it
        if isinstance(input_ids, Mapping):
            raise TypeError("input_ids is a dict: pass what the processor returned by name, model(**processor(...))")
        cones: dict[str, Cone] = {}
        for modality, spec in MODALITIES.items():
            if given[f"{modality}_features"] is not None:
                mask = given.get(f"{modality}_features_mask")
                cones[modality] = self.embed_features(modality, given[f"{modality}_features"], mask)
            elif given[spec.input_name] is not None:
                named = (spec.input_name, spec.mask_name)
                cones[modality] = self._cones(modality, {name: given[name] for name in named if name})
        if not cones:
            names = ", ".join(MODALITIES[m].input_name for m in self.config.modalities)
            raise ValueError(f"no modality given: pass at least one of {names}")

        if text_index is not None and "text" in cones:
            cones["text"] = cones["text"].take(text_index)

        logit_scale, containment_scale, containment_bias = self.scales()
        fields: dict[str, Any] = {}
        for modality, cone in cones.items():
            fields |= {f"{modality}_embeds": cone.axis, f"{modality}_radius": cone.radius}
        if parts is not None:
            compound = self.compose(Cone.cat(list(cones.values())).take(parts.clamp(min=0)), parts >= 0)
            fields |= {"composed_embeds": compound.axis, "composed_radius": compound.radius}
            fields["composed_empty"] = compound.empty
        if "text" in cones and "image" in cones and text_index is None and parts is None:
            fields["logits_per_image"] = scaled_cosines(cones["image"].axis, cones["text"].axis, logit_scale)
            fields["logits_per_text"] = fields["logits_per_image"].T
        if return_loss:
            fields["loss"] = self._loss(cones, logit_scale)
        output = CUEOutput(
            **fields,
            logit_scale=logit_scale,
            containment_scale=containment_scale,
            containment_bias=containment_bias,
        )
        wants_dict = self.config.return_dict if return_dict is None else return_dict
        return output if wants_dict else output.to_tuple()

    @staticmethod
    def _loss(cones: dict[str, Cone], logit_scale: Tensor) -> Tensor:
        sizes = {modality: len(cone.axis) for modality, cone in cones.items()}
        if len(cones) < 2 or len(set(sizes.values())) > 1:
            raise ValueError(
                f"return_loss needs two or more modalities with rows that match one to one; got {sizes} rows"
            )
        losses = [info_nce(a.axis, b.axis, logit_scale) for a, b in combinations(cones.values(), 2)]
        return torch.stack(losses).mean()

    def floating_point_ops(self, *args: Any, **kwargs: Any) -> int:
        """0: the Trainer's estimate counts tokens of one text tower, which says nothing here."""
        return 0
