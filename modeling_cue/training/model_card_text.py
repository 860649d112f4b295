"""What stands in a model card for people to read."""

import importlib.metadata
import json
import math
from collections.abc import Iterator
from dataclasses import MISSING, Field, fields
from enum import Enum
from typing import Any

from ..modeling_cue import CUEModel
from .arguments import CUETrainingArguments, DataArguments, ModelArguments
from .building import OF_A_CHECKPOINT
from .model_card_facts import Run, is_hub_id
from .report import NAMES, format_table

CARD = """\
# {name}

A CUE, Universal Compositional Embedder: it embeds {modalities} as **spherical cones** in one space of {dim}
dimensions, a direction that says *what* and an angular radius, in radians, that says *how specific*. A wide cone
("an animal") contains narrow ones ("a dog"): cones are searched across modalities, asked what contains what, composed.

## Towers

| modality | tower | type | parameters | pooler | in this run |
|---|---|---|---|---|---|
{towers}

{origin}

## Results

{results}

## Training

{training}

## Use it

{use}

## Limits

{limits}

## Licence

{licence}

## Citation

```bibtex
@software{{cue,
  title = {{CUE, the Universal Compositional Embedder}},
  version = {{{version}}},
  note = {{Text, images, audio and video as spherical cones in one shared space}}
}}
```

## Versions

{versions}
"""
TOWER_LINK = "[{0}](https://huggingface.co/{0})"
# Names of things, which the card tells elsewhere where they are on the Hub, and places on the user's machine.
UNTOLD = {
    "model_name_or_path", "text_encoder", "image_encoder", "audio_encoder", "video_encoder", "trust_remote_code",
    "dataset_name", "data_cache_dir", "feature_cache", "image_cache", "check_counts",
}  # fmt: skip
# Those of TrainingArguments that shape the result: the rest has tokens, paths and what is of no interest.
TOLD = (
    "num_train_epochs", "max_steps", "per_device_train_batch_size", "contrastive_batch_size",
    "gradient_accumulation_steps", "learning_rate", "head_learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs",
    "warmup_steps", "weight_decay", "optim", "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm",
    "contrastive_weight", "containment_weight", "phrase_containment_weight", "composition_weight",
    "containment_moves_axes", "train_sampling_strategy", "bf16", "fp16", "load_best_model_at_end",
    "metric_for_best_model", "seed", "data_seed",
)  # fmt: skip
PACKAGES = ("transformers", "torch", "datasets", "huggingface_hub", "accelerate", "peft")
# What the lines of use read of each modality, by the argument of the processor.
EXAMPLES = {
    "text": 'text=["a dog", "a cat"]', "image": 'images="photo.jpg"', "audio": 'audio="sound.wav"',
    "video": 'videos="clip.mp4"',
}  # fmt: skip
LOAD = """\
import torch
from transformers import AutoModel, AutoProcessor

# The code comes with the model; it is not needed where the package is imported (import modeling_cue).
model = AutoModel.from_pretrained({name}, trust_remote_code=True).eval()
processor = AutoProcessor.from_pretrained({name}, trust_remote_code=True)
"""
LOAD_ADAPTER = """\
import torch
from modeling_cue import CUEProcessor
from modeling_cue.training.lora import load_lora

# A base and its LoRA adapter, which are merged here.
model = load_lora({name}).eval()
processor = CUEProcessor.from_pretrained({name})
"""
SENTENCE = """

With sentence-transformers, `SentenceTransformer({name}, trust_remote_code=True).encode(["a dog"])` returns axes; it
needs `pip install "sentence-transformers>=6.2" pillow av`."""
MORE = """

With CUE's own package (`modeling_cue`), containment and zero-shot classification:

```python
from modeling_cue import ZeroShotClassifier, pairwise_contains

inside = pairwise_contains(text, {other})  # (text, {other}) bool: does the text contain it?
classify = ZeroShotClassifier(model, processor, ["dog", "cat"], "a photo of a {{}}.", none_label="none of these")
answer = classify({example})  # best first: label, score, containment
```"""


def card_text(
    name: str, model: CUEModel, training: CUETrainingArguments, run: Run, *, steps: int, adapter: bool, licensed: bool
) -> str:
    """The body of a card.

    Args:
        name: Hub id, or the name of the folder where the model has none.
        steps: optimiser steps that were trained. adapter: the folder holds a base and a LoRA adapter.
        licensed: the metadata states a licence.
    """
    config = model.config
    return CARD.format(
        name=name.split("/")[-1],
        modalities=_listed(config.modalities),
        dim=config.projection_dim,
        towers="\n".join(_towers(model, run)),
        origin=_origin(run, len(config.modalities)),
        results=_results(run),
        training=_training(training, run, steps),
        use=_use(name, config.modalities, adapter),
        limits="\n".join(f"- {limit}" for limit in _limits(model, run)),
        licence=_licence(licensed),
        version=_version("cue-embedder"),
        versions="\n".join(f"- {package} {_version(package)}" for package in ("cue-embedder", *PACKAGES)),
    )


def _towers(model: CUEModel, run: Run) -> Iterator[str]:
    names = run.tower_names
    for modality in model.config.modalities:
        tower = getattr(model, model.tower_name(modality))
        weights = sum(p.numel() for name, p in tower.named_parameters() if "lora_" not in name)
        origin = TOWER_LINK.format(names[modality]) if modality in names else "-"
        shared = modality == "video" and model.config.video_uses_image_tower
        cells = (
            modality,
            "the image tower, frame by frame" if shared else origin,
            model.config.tower_config(modality).model_type,
            "shared" if shared else f"{weights:,}",
            model.pooler_name(modality),
            _trained(model, run, modality),
        )
        yield f"| {' | '.join(cells)} |"


def _trained(model: CUEModel, run: Run, modality: str) -> str:
    uses = [m for m in model.config.modalities if model.tower_name(m) == model.tower_name(modality)]
    # Adapters that are merged, or not yet, leave all weights without a gradient: what was asked for counts.
    frozen = model.frozen_modalities if run.model is None else run.model.freeze
    if set(uses) & set(frozen):
        return "frozen"
    rank = 0 if run.model is None else run.model.lora_rank
    return f"LoRA, rank {rank}" if rank else "trained whole"


def _origin(run: Run, modalities: int) -> str:
    start = None if run.model is None else run.model.model_name_or_path
    if start:
        origin = TOWER_LINK.format(start) if is_hub_id(start) else "an earlier checkpoint of a CUE"
        return f"Training went on from {origin}."
    if run.data is not None and run.data.dataset_name == "scenes" and not run.tower_names:
        return "Towers and heads started from scratch."
    unnamed = "" if len(run.tower_names) == modalities else "A tower without a name is not on the Hub. "
    return unnamed + "The projection heads of the modalities, which give axis and radius, are new."


def _results(run: Run) -> str:
    found = {key: value for key, value in run.metrics.items() if key.startswith(run.prefix)}
    table = {k.removeprefix(run.prefix): v for k, v in found.items() if isinstance(v, float) and math.isfinite(v)}
    lines = format_table(table)
    if not lines:
        return "Nothing was measured."
    split = f"the split `{run.split}` of " if run.split else ""
    where = TOWER_LINK.format(f"datasets/{run.dataset_id}") if run.dataset_id else run.dataset_words
    rows = run.rows.get("test" if run.prefix == "test_" else "validation")
    count = f", {rows:,} rows" if rows else ""
    return f"Measured on {split}{where}{count}. Recall in percent, radii in radians.\n\n```text\n{lines}\n```"


# ---------------------------------------------------------------------- training


def _training(training: CUETrainingArguments, run: Run, steps: int) -> str:
    where = TOWER_LINK.format(f"datasets/{run.dataset_id}") if run.dataset_id else run.dataset_words
    if run.data is not None and run.data.dataset_name == "scenes":
        where += ", drawn by the code: pictures, sounds and clips of shapes, with captions"
    rows = f" ({run.rows['train']:,} rows)" if "train" in run.rows else ""
    together = training.contrastive_batch_size or training.train_batch_size * training.world_size
    text = f"Data: {where}{rows}. Optimiser steps: {steps:,}, of up to {together:,} samples that are compared.\n\n"
    lines = [f"| `{name}` | `{value}` |" for name, value in _given(training, run)]
    if not lines:
        return text + "All arguments have the defaults of `run_contrastive.py`."
    head = "Arguments that differ from the defaults of `run_contrastive.py`:\n\n| argument | value |\n|---|---|\n"
    return text + head + "\n".join(lines)


def _given(training: CUETrainingArguments, run: Run) -> Iterator[tuple[str, str]]:
    """Arguments with a value of their own, as Markdown shows them."""
    for arguments in (run.model, run.data, training):
        if arguments is None:
            continue
        for spec in fields(arguments):
            value = getattr(arguments, spec.name)
            if _is_told(spec.name, arguments) and value != _default(spec) and not _is_path(value):
                value = value.value if isinstance(value, Enum) else value
                value = " ".join(map(str, value)) if isinstance(value, list) else value
                yield spec.name, str(value).replace("|", "\\|").replace("`", "'")


def _is_told(name: str, arguments: Any) -> bool:
    if isinstance(arguments, DataArguments):
        return name not in UNTOLD
    if isinstance(arguments, ModelArguments):
        # A checkpoint decides on its shape itself.
        return name not in UNTOLD and (arguments.model_name_or_path is None or name in OF_A_CHECKPOINT)
    return name in TOLD


def _default(spec: "Field[Any]") -> Any:
    return spec.default if spec.default_factory is MISSING else spec.default_factory()


def _is_path(value: Any) -> bool:
    """Whether a value names a place on this machine."""
    return isinstance(value, str) and (value.startswith("~") or any(mark in value for mark in "/\\"))


# ---------------------------------------------------------------------- use, limits, licence


def _use(name: str, modalities: tuple[str, ...], adapter: bool) -> str:
    first, *others = modalities
    if "/" not in name:  # a bare name would be looked for on the Hub
        name = f"path/to/{name}"
    lines = [(LOAD_ADAPTER if adapter else LOAD).format(name=json.dumps(name)), "with torch.no_grad():"]
    lines += [f"    {m} = model.get_{m}_cones(**processor({EXAMPLES[m]}))" for m in modalities]
    lines += [f"print({first}.axis.shape, {first}.radius)  # unit vectors (N, D), radians (N,)"]
    if others:
        lines += [f"cosines = {others[0]}.axis @ {first}.axis.T  # ({others[0]}, {first})"]
    text = "\n".join(["```python", *lines, "```"])
    if "text" in modalities and others:
        text += MORE.format(other=others[0], example=EXAMPLES[others[0]].partition("=")[2])
    if not adapter:
        text += SENTENCE.format(name=json.dumps(name))
    return text


def _limits(model: CUEModel, run: Run) -> Iterator[str]:
    config = model.config
    yield (
        "The figures hold for the data above. What the training data did not show, and what the towers got wrong or "
        "with a bias, this model does not know better."
    )
    yield "Radii and the probability of containment are learned from the data: compare them within this model."
    if len(config.modalities) > 1:
        yield "Cosines between two modalities are mostly lower than within one: compare those of one pair."
    letters = {letter for key in run.metrics if key.endswith("_R@1") for letter in key.split("_")[1].split("2")}
    unseen = [m for letter, m in NAMES.items() if m in config.modalities and letter not in letters]
    if letters & NAMES.keys() and unseen:
        yield f"No figure above is about {_listed(unseen)}."
    if "text" in config.modalities:
        yield "Texts longer than the processor's `max_text_length`, or the tokenizer's own, are cut."
    if "video" in config.modalities:
        yield f"A video is {config.num_frames} frames, sampled evenly, without its sound."


def _licence(licensed: bool) -> str:
    text = "The towers keep their licences, and so does the training data: those hold for what was made of them."
    return text if licensed else text + " None is stated here: whoever shares this model sets `license` above."


def _listed(names: Any) -> str:
    *most, last = names
    return f"{', '.join(most)} and {last}" if most else last


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        # Run from a clone that is not installed.
        return "unknown"
