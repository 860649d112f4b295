"""CUEConfig: every number that shapes a CUE checkpoint. Imports no torch."""

import math
from copy import copy
from typing import Any, ClassVar

from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

MODALITIES = ("text", "image", "audio", "video")
POOLERS = ("pooler_output", "cls", "mean", "attention")
FORMAT = 1  # of a checkpoint: raised where an older CUE would load one and give other cones


class CUEConfig(PreTrainedConfig):
    r"""Configuration of a [`CUEModel`].

    Args:
        text_config, image_config, audio_config (`PreTrainedConfig` or `dict`, *optional*):
            Configuration of the tower of that modality; `None` leaves the modality out. At least one is needed.
        video_config (`PreTrainedConfig` or `dict`, *optional*):
            Configuration of a tower of its own for video: an image tower that sees frame by frame, or one of whole
            clips (VideoMAE).
        video_uses_image_tower (`bool`, defaults to `False`):
            Video runs through the image tower, frame by frame; the tower is stored once. Excludes `video_config`.
        projection_dim (`int`, defaults to 512): Dimension D of the shared space, at least 2.
        poolers (`dict[str, str]`, *optional*):
            Pooler by modality: `"pooler_output"`, `"cls"`, `"mean"` or `"attention"`. A modality that is not named
            takes its tower's own habit. For video it pools each frame, and frames are always pooled by attention; a
            tower of whole clips is pooled as others are.
        pooler_queries (`int`, defaults to 1): Learned queries of each attention pooler.
        head_hidden_dim (`int`, defaults to 0): Width of the residual MLP in each projection head; 0 leaves it out.
        head_dropout (`float`, defaults to 0.0):
            Dropout on the input of each projection head, of axis and radius apart, in [0, 1).
        signed_sqrt (`list[str]`, defaults to none): Modalities whose heads take sign(x) sqrt|x| of the features first.
        token_dropout (`float`, defaults to 0.0):
            Share of tokens or patches that an attention pooler does not see in training, in [0, 1).
        radius_hidden_dim (`int`, defaults to 128): Width of the MLP that reads the radius.
        radius_init (`dict[str, float]`, *optional*):
            Initial angular radius by modality, radians in (0, pi). Defaults: text 1.0, all others 0.1.
        detach_radius_features (`bool`, defaults to `True`):
            The radius reads features without passing gradient to them, so that containment does not move axes.
        average_mirror (`bool`, defaults to `False`):
            Outside training, features of an image are the mean over it and its mirror image (Krizhevsky et al.,
            NeurIPS 2012, average predictions so), at twice the tower's cost.
        crop_audio (`bool`, defaults to `True`):
            Whisper runs over real frames only. `False` restores the original behaviour: every clip is padded to 30 s.
        num_frames (`int`, defaults to 8): Frames that a video is sampled to; those of a tower of whole clips.
        composition_layers (`int`, defaults to 2), composition_heads (`int`, defaults to 4),
        composition_dim (`int`, defaults to 256): Shape of the set encoder in the composition layer.
        composition_dropout (`float`, defaults to 0.0): Dropout of the composition layer, in [0, 1).
        min_radius (`float`, defaults to 0.01): Smallest radius of a compound, radians in (0, pi).
        logit_scale_init_value (`float`, defaults to ln(1/0.07)): Log of the initial InfoNCE scale, at most ln 100.
        containment_scale_init_value (`float`, defaults to ln 10): Log of the initial scale of containment margins.
        initializer_range (`float`, defaults to 0.02): As in `transformers`, for what has no initialisation of its own.
        tower_sources (`dict[str, dict]`, *optional*):
            Where towers came from, by modality: `name`, `revision`, `dtype` and `fingerprint`; see `tower_sources.py`.
        towers_by_reference (`list[str]`, defaults to none):
            Of a light checkpoint, the modalities whose towers it names in place of holding their weights.
        checkpoint_format (`int`): Version of what the fields and weights mean, written on saving.

    Raises:
        ValueError: a field is out of its range; the message names the field, its value and the valid values. Or the
            checkpoint comes from a newer CUE.
    """

    model_type = "cue"
    sub_configs_defaults: ClassVar[dict[str, SubConfigSpec]] = {
        "text_config": SubConfigSpec(AutoConfig, model_type="bert", optional=True),
        "image_config": SubConfigSpec(AutoConfig, model_type="clip_vision_model", optional=True),
        "audio_config": SubConfigSpec(AutoConfig, model_type="whisper", optional=True),
        "video_config": SubConfigSpec(AutoConfig, model_type="vit", optional=True),
    }

    text_config: PreTrainedConfig | dict | None = None
    image_config: PreTrainedConfig | dict | None = None
    audio_config: PreTrainedConfig | dict | None = None
    video_config: PreTrainedConfig | dict | None = None
    video_uses_image_tower: bool = False
    projection_dim: int = 512
    poolers: Any = None
    pooler_queries: int = 1
    head_hidden_dim: int = 0
    head_dropout: float = 0.0
    token_dropout: float = 0.0
    signed_sqrt: Any = ()
    radius_hidden_dim: int = 128
    radius_init: Any = None
    detach_radius_features: bool = True
    average_mirror: bool = False
    crop_audio: bool = True
    num_frames: int = 8
    composition_layers: int = 2
    composition_heads: int = 4
    composition_dim: int = 256
    composition_dropout: float = 0.0
    min_radius: float = 0.01
    logit_scale_init_value: float = math.log(1 / 0.07)
    containment_scale_init_value: float = math.log(10.0)
    initializer_range: float = 0.02
    tower_sources: Any = None
    towers_by_reference: Any = ()
    checkpoint_format: int = FORMAT

    def __post_init__(self, **kwargs: Any) -> None:
        if self.checkpoint_format > FORMAT:
            raise ValueError(
                f"this checkpoint is in format {self.checkpoint_format}, of a newer CUE; this one reads formats up to "
                f"{FORMAT}: update the package, or load it with trust_remote_code=True, by the code beside it"
            )
        self.poolers = copy(self.poolers or {})
        self.radius_init = {m: 1.0 if m == "text" else 0.1 for m in MODALITIES} | (self.radius_init or {})
        self.signed_sqrt = list(self.signed_sqrt)
        self.tower_sources = copy(self.tower_sources or {})
        self.towers_by_reference = list(self.towers_by_reference)
        super().__post_init__(**kwargs)
        self.check()

    @property
    def modalities(self) -> tuple[str, ...]:
        """Names of the modalities this model embeds, in the order text, image, audio, video."""
        present = [m for m in MODALITIES if getattr(self, f"{m}_config") is not None]
        if self.video_uses_image_tower:
            present.append("video")
        return tuple(present)

    def tower_config(self, modality: str) -> PreTrainedConfig:
        """The configuration of the tower that `modality` runs through."""
        if modality == "video" and self.video_uses_image_tower:
            modality = "image"
        return getattr(self, f"{modality}_config")

    def to_diff_dict(self) -> dict[str, Any]:
        """As in `transformers`, which leaves out where the configuration itself was loaded from: here towers' too."""
        output = super().to_diff_dict()
        for modality in MODALITIES:
            (output.get(f"{modality}_config") or {}).pop("_name_or_path", None)
        return output

    def check(self) -> None:
        """Refuses values that no CUE can have.

        Raises:
            ValueError: the message names the field, its value and valid ones.
        """

        def refuse(field: str, valid: str) -> None:
            raise ValueError(f"CUEConfig: {field}={getattr(self, field)!r} is not valid; it must be {valid}")

        for field in ("video_uses_image_tower", "detach_radius_features", "average_mirror", "crop_audio"):
            if not isinstance(getattr(self, field), bool):  # "false" would count as true
                refuse(field, "True or False")
        numbers = ("head_dropout", "token_dropout", "composition_dropout", "min_radius", "logit_scale_init_value")
        for field in (*numbers, "containment_scale_init_value"):
            if not isinstance(getattr(self, field), int | float):
                refuse(field, "a number")
        # `transformers` builds a config without arguments to find its defaults, so no towers at all is refused
        # where the model is built, not here.
        if self.video_uses_image_tower and self.video_config is not None:
            refuse("video_uses_image_tower", "False when a video_config is given")
        if self.video_uses_image_tower and self.image_config is None:
            refuse("video_uses_image_tower", "False when there is no image_config")
        for field, least in {
            "projection_dim": 2,
            "pooler_queries": 1,
            "head_hidden_dim": 0,
            "radius_hidden_dim": 1,
            "num_frames": 1,
            "composition_layers": 1,
            "composition_heads": 1,
            "composition_dim": 1,
        }.items():
            value = getattr(self, field)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                refuse(field, f"a whole number of at least {least}")
        if self.composition_dim % self.composition_heads:
            refuse("composition_dim", f"a multiple of composition_heads={self.composition_heads}")
        for field in ("head_dropout", "token_dropout", "composition_dropout"):
            if not 0.0 <= getattr(self, field) < 1.0:
                refuse(field, "in [0, 1)")
        if not 0.0 < self.min_radius < math.pi:
            refuse("min_radius", "radians in (0, pi)")
        # A checkpoint stores ln 100 as a decimal: the last digits may round up.
        if not self.logit_scale_init_value <= math.log(100.0) + 1e-6:
            refuse("logit_scale_init_value", "at most ln 100 = 4.6052")
        if not math.isfinite(self.containment_scale_init_value):
            refuse("containment_scale_init_value", "finite")
        known = isinstance(self.poolers, dict) and self.poolers.keys() <= set(MODALITIES)
        if not known or not set(self.poolers.values()) <= set(POOLERS):
            refuse("poolers", f"a dict from {', '.join(MODALITIES)} to {', '.join(POOLERS)}")
        if not set(self.signed_sqrt) <= set(MODALITIES):
            refuse("signed_sqrt", f"a list of {', '.join(MODALITIES)}")
        parts = {"name", "revision", "dtype", "fingerprint"}
        if not set(self.tower_sources) <= set(MODALITIES) or any(parts - set(s) for s in self.tower_sources.values()):
            refuse("tower_sources", f"a dict from {', '.join(MODALITIES)} to dicts of {', '.join(sorted(parts))}")
        if not set(self.towers_by_reference) <= set(self.tower_sources):
            refuse("towers_by_reference", "a list of modalities that tower_sources names")
        for modality, radius in self.radius_init.items():
            if modality not in MODALITIES or not 0.0 < radius < math.pi:
                refuse("radius_init", f"a dict from {', '.join(MODALITIES)} to radians in (0, pi)")


__all__ = ["CUEConfig"]
