"""Towers: pretrained encoders of one modality each, and what CUE must know about their families.

Everything that differs between modalities stands in `MODALITIES`, everything that differs between families of towers
in `FAMILIES`; the rest of the code loops over these tables.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from inspect import signature
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from .encoders_audio import run_clap, run_spectrogram, run_waveform, run_whisper
from .encoders_run import TEXT_CHUNKS, TowerOutput, run_clip, run_image, run_mae, run_text, run_whole_text


@dataclass(frozen=True)
class Modality:
    """One use of a tower: its argument of `forward`, and the mask beside it."""

    input_name: str
    mask_name: str | None


MODALITIES = {
    "text": Modality("input_ids", "attention_mask"),
    "image": Modality("pixel_values", None),
    "audio": Modality("input_features", "input_features_mask"),
    "video": Modality("pixel_values_videos", None),
}


@dataclass(frozen=True)
class Family:
    """A family of towers.

    `poolers` are the poolers its output allows beside `mean` and `attention`, which all allow; the first of the
    tuple is the family's habit. `init` are arguments of the class that keep random parts from being built, `fields`
    are set in the tower's configuration.
    """

    class_name: str
    run: Callable[..., TowerOutput]
    poolers: tuple[str, ...]
    init: tuple[tuple[str, Any], ...] = ()
    pretrained: tuple[str, str] | None = None  # class to load a checkpoint by, and the part of it that is the tower
    fields: tuple[tuple[str, Any], ...] = ()


_NO_POOLER = (("add_pooling_layer", False),)
# Masking of time spans is the original's exercise for speech recognition: it draws from NumPy, so that no replay of a
# batch would see the same, and refuses short clips. Skipped layers get no gradient, which DDP and FSDP take for an
# error. An adapter shortens tokens for a decoder.
_WAVEFORM = (("mask_time_prob", 0.0), ("mask_feature_prob", 0.0), ("layerdrop", 0.0))
FAMILIES = {
    "bert": Family("BertModel", run_text, ("mean", "cls"), _NO_POOLER),
    "mpnet": Family("MPNetModel", run_text, ("mean", "cls"), _NO_POOLER),
    "roberta": Family("RobertaModel", run_text, ("mean", "cls"), _NO_POOLER),
    "xlm-roberta": Family("XLMRobertaModel", run_text, ("mean", "cls"), _NO_POOLER),
    "modernbert": Family("ModernBertModel", run_text, ("mean", "cls")),
    "clip_text_model": Family("CLIPTextModel", run_text, ("pooler_output",)),
    "siglip_text_model": Family("SiglipTextModel", run_whole_text, ("pooler_output",)),
    "clip_vision_model": Family("CLIPVisionModel", run_image, ("pooler_output", "cls")),
    "siglip_vision_model": Family("SiglipVisionModel", run_image, ("pooler_output",)),
    "vit": Family("ViTModel", run_image, ("cls",), _NO_POOLER),
    "dinov2": Family("Dinov2Model", run_image, ("cls",)),
    "timm_wrapper": Family("TimmWrapperModel", run_image, ("pooler_output",)),
    "resnet": Family("ResNetModel", run_image, ("pooler_output",)),
    "whisper": Family(
        "transformers.models.whisper.modeling_whisper.WhisperEncoder",
        run_whisper,
        ("mean",),
        pretrained=("WhisperModel", "encoder"),
        fields=(("encoder_layerdrop", 0.0),),
    ),
    "wav2vec2": Family("Wav2Vec2Model", run_waveform, ("mean",), fields=(*_WAVEFORM, ("add_adapter", False))),
    "hubert": Family("HubertModel", run_waveform, ("mean",), fields=_WAVEFORM),
    "audio-spectrogram-transformer": Family("ASTModel", run_spectrogram, ("pooler_output", "cls")),
    "clap_audio_model": Family(
        "ClapAudioModel", run_clap, ("pooler_output",), pretrained=("ClapAudioModelWithProjection", "audio_model")
    ),
    "videomae": Family("VideoMAEModel", run_clip, ("mean",)),
    "vit_mae": Family("ViTMAEModel", run_mae, ("cls",), fields=(("mask_ratio", 0.0),)),
}
# Checkpoints of two towers: the half that a modality needs, by the name of its sub-config.
HALVES = {
    ("clip", "text"): "text_config",
    ("clip", "image"): "vision_config",
    ("siglip", "text"): "text_config",
    ("siglip", "image"): "vision_config",
    ("clap", "audio"): "audio_config",
}
# Arguments of `from_pretrained` that say which files it takes, and from where.
HUB_OPTIONS = ("revision", "token", "cache_dir", "force_download", "local_files_only", "proxies")
# The modalities that each way of running a tower reads.
READS: dict[Callable[..., TowerOutput], tuple[str, ...]] = {
    run_text: ("text",),
    run_whole_text: ("text",),
    run_image: ("image", "video"),
    run_mae: ("image", "video"),
    run_whisper: ("audio",),
    run_waveform: ("audio",),
    run_spectrogram: ("audio",),
    run_clap: ("audio",),
    run_clip: ("video",),
}
_RUN_BY_MODALITY: dict[str, Callable[..., TowerOutput]] = {"text": run_text, "image": run_image, "video": run_image}


def tower_family(config: PreTrainedConfig, modality: str) -> Family:
    """The family of a tower; one that is not in the table runs through `AutoModel` and names no habit.

    Raises:
        ValueError: the tower reads another modality, or has no tokens that CUE could pool for this one.
    """
    if config.model_type in FAMILIES:
        family = FAMILIES[config.model_type]
        if modality not in READS[family.run]:
            fit = ", ".join(name for name, other in FAMILIES.items() if modality in READS[other.run])
            raise ValueError(
                f"a tower of family {config.model_type!r} reads {' and '.join(READS[family.run])}, not {modality}; "
                f"for {modality} use a tower of {fit}"
            )
        return family
    if config.is_encoder_decoder or modality not in _RUN_BY_MODALITY:
        raise ValueError(
            f"a tower of family {config.model_type!r} cannot be pooled for {modality}; use a tower of one of "
            f"{', '.join(FAMILIES)}, or another single encoder"
        )
    return Family("AutoModel", _RUN_BY_MODALITY[modality], ())


def tower_pooler(config: PreTrainedConfig, modality: str, wanted: str | None) -> str:
    """The name of the pooler of a tower: the one that is wanted, or the family's habit.

    Raises:
        ValueError: the tower's output does not allow the pooler that is wanted, or it has no habit.
    """
    poolers = tower_family(config, modality).poolers
    if wanted is None:
        if not poolers:
            raise ValueError(
                f"a tower of family {config.model_type!r} has no pooling habit that is known here: "
                f"choose one by poolers={{{modality!r}: 'mean'}} or 'attention'"
            )
        return poolers[0]
    if wanted not in (*poolers, "mean", "attention"):
        raise ValueError(
            f"poolers: {wanted!r} is not possible for {modality} with a tower of family {config.model_type!r}; "
            f"valid are {', '.join(dict.fromkeys((*poolers, 'mean', 'attention')))}"
        )
    return wanted


def whole_clips(config: PreTrainedConfig) -> bool:
    """Whether a tower of video reads whole clips, of `config.num_frames` frames; others read frame by frame."""
    return config.model_type in FAMILIES and FAMILIES[config.model_type].run is run_clip


def feature_size(config: PreTrainedConfig, pooler: str) -> int:
    """Width of what a pooler makes of a tower's output; see `hidden_size`."""
    if config.model_type == "siglip_text_model" and pooler == "pooler_output":
        return config.projection_size
    if config.model_type == "timm_wrapper" and pooler == "pooler_output":
        return _timm_widths(config)[1]
    return hidden_size(config)


def hidden_size(config: PreTrainedConfig) -> int:
    """Width H of a tower's tokens; its `pooler_output` has the same width, but for `feature_size`'s exceptions."""
    for name in ("hidden_size", "d_model"):
        if getattr(config, name, None) is not None:
            return getattr(config, name)
    if getattr(config, "hidden_sizes", None):
        return config.hidden_sizes[-1]
    if config.model_type == "timm_wrapper":
        return _timm_widths(config)[0]
    raise ValueError(f"the width of a tower of family {config.model_type!r} is not known: it has no hidden_size")


def _timm_widths(config: Any) -> tuple[int, int]:
    """Widths of a timm model's tokens, and of what it pools, which a convolution of its head may have widened."""
    try:
        import timm
    except ImportError as error:
        raise ImportError("a timm tower needs timm: pip install timm") from error
    with torch.device("meta"):
        model: Any = timm.create_model(
            config.architecture, pretrained=False, num_classes=0, **(config.model_args or {})
        )
    return model.num_features, getattr(model, "head_hidden_size", None) or model.num_features


def _tower_class(config: PreTrainedConfig, family: Family) -> tuple[Any, dict[str, Any]]:
    """The class of a tower, and arguments that keep it from building a pooler which nothing here reads."""
    if family.class_name == "AutoModel":
        found: Any = transformers.MODEL_MAPPING[type(config)]
        found = found[0] if isinstance(found, tuple) else found
        return found, dict(_NO_POOLER) if "add_pooling_layer" in signature(found).parameters else {}
    if "." not in family.class_name:
        return getattr(transformers, family.class_name), dict(family.init)
    module, _, name = family.class_name.rpartition(".")
    return getattr(__import__(module, fromlist=[name]), name), dict(family.init)


def _settle(config: PreTrainedConfig, family: Family) -> None:
    for field, value in family.fields:
        setattr(config, field, value)


def build_tower(config: PreTrainedConfig, modality: str) -> PreTrainedModel:
    """A tower with fresh weights, built from its configuration alone: nothing is downloaded."""
    family = tower_family(config, modality)
    _settle(config, family)
    tower_class, init = _tower_class(config, family)
    # `_from_config` sets dtype and attention of the tower, as it does for every sub-model of `transformers`.
    return tower_class._from_config(config, **init)


def load_tower(name: str, modality: str, **kwargs: Any) -> PreTrainedModel:
    """The pretrained tower `name` (a Hub repo or a local folder); only the half that `modality` needs.

    Weights are float32 unless `dtype` says otherwise. Further keyword arguments go to `from_pretrained`.

    Raises:
        ValueError: no such encoder, it cannot be pooled, or its checkpoint lacks weights of the tower.
    """
    kwargs.setdefault("dtype", torch.float32)
    options = {key: kwargs[key] for key in (*HUB_OPTIONS, "trust_remote_code") if key in kwargs}
    try:
        config = AutoConfig.from_pretrained(name, **options)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{modality} encoder {name!r} could not be loaded: give the name of a model on the Hub or a local folder "
            f"that holds a config.json ({error})"
        ) from error
    if config.model_type not in transformers.CONFIG_MAPPING:
        raise ValueError(
            f"{modality} encoder {name!r} is of the family {config.model_type!r}, which transformers does not know, "
            "so that a saved CUE could not be loaded again: register its classes by AutoConfig.register and "
            "AutoModel.register, here and wherever the CUE is loaded"
        )
    half = HALVES.get((config.model_type, "image" if modality == "video" else modality))
    config = getattr(config, half) if half else config
    family = tower_family(config, modality)
    _settle(config, family)
    if family.pretrained:
        whole, part = family.pretrained
        loader: Any = getattr(transformers, whole)
        init: dict[str, Any] = {}
    else:
        (loader, init), part = _tower_class(config, family), ""
    with _quiet():
        tower, info = loader.from_pretrained(name, config=config, output_loading_info=True, **init, **kwargs)
    if part:
        tower = getattr(tower, part)
    missing = [key for key in info["missing_keys"] if not part or f"{part}." in key]
    if missing:
        raise ValueError(
            f"{modality} encoder {name!r} has no weights for {len(missing)} tensors of its tower, such as "
            f"{sorted(missing)[0]!r}: its checkpoint does not fit its configuration"
        )
    return tower


@contextmanager
def _quiet() -> Iterator[None]:
    """Leaves out the report of weights that the checkpoint has and the tower does not: the other half is expected."""
    level = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(level)


def run_tower(
    tower: PreTrainedModel, modality: str, values: Tensor, mask: Tensor | None, *, crop_audio: bool = True,
    text_chunks: int = TEXT_CHUNKS,
) -> TowerOutput:  # fmt: skip
    """Runs a tower over one batch of its modality's input.

    Video frames come as images, (B * F, 3, H, W), but for towers of `whole_clips`: (B, F, 3, H, W).
    """
    return tower_family(tower.config, modality).run(tower, values, mask, crop=crop_audio, text_chunks=text_chunks)
