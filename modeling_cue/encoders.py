"""Towers: pretrained encoders of one modality each, and what CUE must know about their families.

Everything that differs between modalities stands in `MODALITIES`, everything that differs between families of towers
in `FAMILIES`; the rest of the code loops over these tables.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import transformers
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.masking_utils import create_bidirectional_mask


class TowerOutput(NamedTuple):
    """What a tower says of a batch: tokens (B, T, H), mask (B, T) bool or None, pooled (B, H) or None."""

    tokens: Tensor
    mask: Tensor | None
    pooled: Tensor | None


@dataclass(frozen=True)
class Modality:
    """One use of a tower: its letter in metric names, its argument of `forward`, and the mask beside it."""

    letter: str
    input_name: str
    mask_name: str | None


MODALITIES = {
    "text": Modality("t", "input_ids", "attention_mask"),
    "image": Modality("i", "pixel_values", None),
    "audio": Modality("a", "input_features", "input_features_mask"),
    "video": Modality("v", "pixel_values_videos", None),
}


# Texts that are padded alike run together at least in such numbers; fewer would leave an accelerator idle, while a CPU
# takes as long for a token of 8 texts as of 800 (32 captions in 4 chunks of 8: 1.2 to 1.3 times as fast as at once).
TEXTS_PER_CHUNK, TEXTS_PER_CHUNK_CPU = 64, 8
TEXT_CHUNKS = 8


def _run_text(
    tower: PreTrainedModel, input_ids: Tensor, mask: Tensor | None, *, text_chunks: int, **_: Any
) -> TowerOutput:
    """A text tower in up to `text_chunks` runs over texts of about one length, each padded no further than needed.

    A token attends to no padding, so that this changes nothing but the time. What is cut off are places that hold
    padding, whose tokens come back as zeros.
    """
    mask = torch.ones_like(input_ids) if mask is None else mask
    least = TEXTS_PER_CHUNK_CPU if input_ids.device.type == "cpu" else TEXTS_PER_CHUNK
    chunks = min(text_chunks, len(input_ids) // least)
    if chunks < 2 or not bool((mask[:, :-1] >= mask[:, 1:]).all()):  # left padding would move positions
        output = tower(input_ids=input_ids, attention_mask=mask)
        return TowerOutput(output.last_hidden_state, mask.bool(), output.get("pooler_output"))
    lengths = mask.sum(1)
    order = lengths.argsort(stable=True)
    tokens, pooled = [], []
    for rows in order.chunk(chunks):
        longest = max(1, int(lengths[rows].max()))
        output = tower(input_ids=input_ids[rows, :longest], attention_mask=mask[rows, :longest])
        tokens.append(nn.functional.pad(output.last_hidden_state, (0, 0, 0, mask.shape[1] - longest)))
        pooled.append(output.get("pooler_output"))
    back = order.argsort()
    whole = None if pooled[0] is None else torch.cat(pooled)[back]
    return TowerOutput(torch.cat(tokens)[back], mask.bool(), whole)


def _run_image(tower: PreTrainedModel, pixel_values: Tensor, mask: Tensor | None, **_: Any) -> TowerOutput:
    # Convolutions run faster with channels last: EfficientNet-lite0 on a CPU 1.5 times.
    output = tower(pixel_values=pixel_values.to(tower.dtype, memory_format=torch.channels_last))
    tokens, pooled = output.last_hidden_state, output.get("pooler_output")
    if tokens.ndim == 4:  # a convolutional map (B, H, height, width)
        tokens = tokens.flatten(2).transpose(1, 2)
    return TowerOutput(tokens, None, None if pooled is None else pooled.flatten(1))


def _run_whisper(tower: Any, input_features: Tensor, mask: Tensor | None, *, crop: bool, **_: Any) -> TowerOutput:
    """Whisper's encoder over the real frames only, with its position table cropped to them.

    The original refuses any length but 30 s and attends to the padding. Here padding is masked after each
    convolution and in attention, so that a clip gets the same tokens alone and in a batch of longer ones.
    """
    features = input_features.to(tower.dtype)
    if mask is None:
        mask = torch.ones(features.shape[0], features.shape[-1], dtype=torch.long, device=features.device)
    if not crop:
        return TowerOutput(tower(input_features=features).last_hidden_state, mask[:, ::2].bool(), None)
    longest = int(mask.sum(-1).max())
    features, mask = features[..., :longest], mask[:, :longest].bool()
    token_mask = mask[:, ::2]
    if token_mask.shape[1] > tower.embed_positions.num_embeddings:
        raise ValueError(
            f"the audio has {longest} frames, the tower takes at most {2 * tower.embed_positions.num_embeddings}: "
            "cut it into shorter pieces (CUEProcessor truncates)"
        )
    hidden = nn.functional.gelu(tower.conv1(features * mask[:, None])) * mask[:, None]
    hidden = nn.functional.gelu(tower.conv2(hidden)).transpose(1, 2)
    hidden = hidden + tower.embed_positions.weight[: hidden.shape[1]]
    hidden = nn.functional.dropout(hidden, tower.dropout, tower.training)
    attention_mask = create_bidirectional_mask(tower.config, hidden, token_mask)
    for layer in tower.layers:
        if tower.training and tower.layerdrop > 0 and torch.rand([]) < tower.layerdrop:
            continue
        hidden = layer(hidden, attention_mask)
    return TowerOutput(tower.layer_norm(hidden), token_mask, None)


@dataclass(frozen=True)
class Family:
    """A family of towers.

    `poolers` are the poolers its output allows beside `mean` and `attention`, which all allow; the first of the
    tuple is the family's habit. `init` are arguments of the class that keep random parts from being built.
    """

    class_name: str
    run: Callable[..., TowerOutput]
    poolers: tuple[str, ...]
    init: tuple[tuple[str, Any], ...] = ()
    pretrained: tuple[str, str] | None = None  # class to load a checkpoint by, and the part of it that is the tower


_NO_POOLER = (("add_pooling_layer", False),)
FAMILIES = {
    "bert": Family("BertModel", _run_text, ("mean", "cls"), _NO_POOLER),
    "mpnet": Family("MPNetModel", _run_text, ("mean", "cls"), _NO_POOLER),
    "clip_text_model": Family("CLIPTextModel", _run_text, ("pooler_output",)),
    "clip_vision_model": Family("CLIPVisionModel", _run_image, ("pooler_output", "cls")),
    "vit": Family("ViTModel", _run_image, ("cls",), _NO_POOLER),
    "timm_wrapper": Family("TimmWrapperModel", _run_image, ("pooler_output",)),
    "resnet": Family("ResNetModel", _run_image, ("pooler_output",)),
    "whisper": Family(
        "transformers.models.whisper.modeling_whisper.WhisperEncoder",
        _run_whisper,
        ("mean",),
        (),
        ("WhisperModel", "encoder"),
    ),
}
# Checkpoints of two towers: the half that a modality needs, by the name of its sub-config.
HALVES = {("clip", "text"): "text_config", ("clip", "image"): "vision_config"}
# Arguments of `from_pretrained` that say which files it takes, and from where.
HUB_OPTIONS = ("revision", "token", "cache_dir", "force_download", "local_files_only", "proxies")
# The modalities that each way of running a tower reads.
READS: dict[Callable[..., TowerOutput], tuple[str, ...]] = {
    _run_text: ("text",),
    _run_image: ("image", "video"),
    _run_whisper: ("audio",),
}
_RUN_BY_MODALITY: dict[str, Callable[..., TowerOutput]] = {"text": _run_text, "image": _run_image, "video": _run_image}


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


def hidden_size(config: PreTrainedConfig) -> int:
    """Width H of a tower's tokens and of its pooled vector (its `pooler_output` has the same width)."""
    for name in ("hidden_size", "d_model"):
        if getattr(config, name, None) is not None:
            return getattr(config, name)
    if getattr(config, "hidden_sizes", None):
        return config.hidden_sizes[-1]
    if config.model_type == "timm_wrapper":
        features = (config.pretrained_cfg or {}).get("num_features")
        return features or _timm_num_features(config.architecture, config.model_args)
    raise ValueError(f"the width of a tower of family {config.model_type!r} is not known: it has no hidden_size")


def _timm_num_features(architecture: str, model_args: dict | None) -> int:
    try:
        import timm
    except ImportError as error:
        raise ImportError("a timm tower needs timm: pip install timm") from error
    with torch.device("meta"):
        model: Any = timm.create_model(architecture, pretrained=False, num_classes=0, **(model_args or {}))
        return model.num_features


def _tower_class(family: Family) -> Any:
    if "." not in family.class_name:
        return getattr(transformers, family.class_name)
    module, _, name = family.class_name.rpartition(".")
    return getattr(__import__(module, fromlist=[name]), name)


def build_tower(config: PreTrainedConfig, modality: str) -> PreTrainedModel:
    """A tower with fresh weights, built from its configuration alone: nothing is downloaded."""
    family = tower_family(config, modality)
    tower_class = _tower_class(family)
    # `_from_config` sets dtype and attention of the tower, as it does for every sub-model of `transformers`.
    if tower_class is AutoModel:
        return AutoModel.from_config(config)
    return tower_class._from_config(config, **dict(family.init))


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
    half = HALVES.get((config.model_type, "image" if modality == "video" else modality))
    config = getattr(config, half) if half else config
    family = tower_family(config, modality)
    if family.pretrained:
        whole, part = family.pretrained
        loader, init = getattr(transformers, whole), {}
    else:
        loader, init, part = _tower_class(family), dict(family.init), ""
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
    """Runs a tower over one batch of its modality's input; video frames come as images, (B * F, 3, H, W)."""
    return tower_family(tower.config, modality).run(tower, values, mask, crop=crop_audio, text_chunks=text_chunks)


def pool(output: TowerOutput, pooler: str) -> Tensor:
    """(B, H): the pooled vector by a pooler without weights: `pooler_output`, `cls` or the mean over real tokens."""
    if pooler == "pooler_output":
        assert output.pooled is not None
        return output.pooled
    if pooler == "cls":
        return output.tokens[:, 0]
    tokens = output.tokens.float()
    if output.mask is None:
        return tokens.mean(1)
    weight = output.mask.to(tokens.dtype)[..., None]
    return (tokens * weight).sum(1) / weight.sum(1).clamp(min=1)


def average_views(first: Tensor, second: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Two views of a batch as one, with their common mask (N, T): the mean of (N, H), or all tokens (N, 2T, H)."""
    if first.ndim == 2:
        return (first.float() + second.float()) / 2, mask
    return torch.cat([first, second], 1), None if mask is None else torch.cat([mask, mask], 1)
