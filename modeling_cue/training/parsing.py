"""The command line and the YAML file of a script, as its arguments; what cannot be right is refused here."""

import difflib
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, fields
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import yaml
from transformers import HfArgumentParser
from transformers.trainer_utils import HubStrategy, IntervalStrategy

from ..encoders import MODALITIES
from ..media_files import MediaError
from .arguments import ArgumentsError, CUETrainingArguments, DataArguments, ModelArguments
from .embed_arguments import EmbedArguments
from .rows import DataError

ARGUMENTS = (ModelArguments, DataArguments, CUETrainingArguments)
# Names that other trainers have for arguments of `TrainingArguments`.
USUAL_NAMES = {"epochs": "num_train_epochs", "batch_size": "per_device_train_batch_size", "lr": "learning_rate"}
SCRIPTS = {"run_contrastive.py": ARGUMENTS, "run_embed.py": (EmbedArguments,)}


def is_demo(argv: Sequence[str]) -> bool:
    """Whether a command line names neither a file nor data: data of the user's is no case for the demo's settings."""
    if argv and not argv[0].startswith("-"):
        return False
    return not any(flag.split("=")[0].replace("-", "_") == "__dataset_name" for flag in argv)


@contextmanager
def plain_errors() -> Iterator[None]:
    """Ends a script at a mistake in its arguments, data or media with what is wrong, without a traceback."""
    try:
        yield
    except (ArgumentsError, DataError, MediaError) as error:
        sys.exit(f"{Path(sys.argv[0]).name}: {error}")


def parse_arguments(argv: Sequence[str]) -> tuple[ModelArguments, DataArguments, CUETrainingArguments]:
    """Arguments from `[CONFIG.yaml] [--flag value ...]`; flags win over the file. `none` in the file is YAML's null.

    Raises:
        ArgumentsError: a file that is not there or not YAML, a key or flag that no argument has, a value out of range.
    """
    with _as_arguments_errors():
        model, data, training = _parse(argv, "run_contrastive.py", "Trains a CUE")
        _check(model, data, training)
    return model, data, training


def parse_embed_arguments(argv: Sequence[str]) -> EmbedArguments:
    """As `parse_arguments`, for `run_embed.py`."""
    with _as_arguments_errors():
        (arguments,) = _parse(argv, "run_embed.py", "Embeds a data set")
    return arguments


@contextmanager
def _as_arguments_errors() -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise ArgumentsError(str(error)) from error


def _parse(argv: Sequence[str], script: str, what: str) -> tuple[Any, ...]:
    parser = HfArgumentParser(
        SCRIPTS[script],  # type: ignore[arg-type]
        description=what,
        usage=f"{script} [CONFIG.yaml] [--flag value ...]; {script} --help lists all flags",
    )  # type: ignore[arg-type]
    flags = list(argv)
    if flags and not flags[0].startswith("-"):
        parser.set_defaults(**read_yaml(Path(flags.pop(0)), script))
    *arguments, unknown = parser.parse_args_into_dataclasses(
        flags, look_for_args_file=False, return_remaining_strings=True
    )
    if unknown:
        raise ValueError(_unknown_flag(unknown[0], script))
    return tuple(arguments)


def _unknown_flag(flag: str, script: str) -> str:
    if flag.endswith((".yaml", ".yml")):
        return f"the configuration file comes first: {script} {flag} [--flag value ...]"
    if not flag.startswith("-"):
        return f"nothing is asked for by {flag!r}: arguments are given as --flag value"
    return f"no flag is called {flag!r}{_nearest(flag.lstrip('-').split('=')[0].replace('-', '_'), script, '--')}"


def _nearest(name: str, script: str, mark: str = "") -> str:
    known = [f.name for kind in SCRIPTS[script] for f in fields(kind) if f.init]
    near = [USUAL_NAMES[name]] if name in USUAL_NAMES else difflib.get_close_matches(name, known, n=3)
    if not near:
        return f"; {script} --help lists them all"
    return f"; did you mean {' or '.join(mark + one for one in near)}?"


def read_yaml(path: Path, script: str = "run_contrastive.py") -> dict[str, Any]:
    """The arguments of a script that a YAML file sets.

    Raises:
        ValueError: no such file, not a YAML mapping, or a key that no argument has; the message names the nearest.
    """
    if not path.is_file():
        raise ValueError(f"there is no configuration file {str(path)!r}; the ones that come with CUE are in configs/")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} must hold lines of the form 'name: value'; it holds {type(values).__name__}")
    known = {f.name: f for kind in SCRIPTS[script] for f in fields(kind) if f.init}
    hints = {name: hint for kind in SCRIPTS[script] for name, hint in get_type_hints(kind).items()}
    for key in values:
        if key not in known:
            raise ValueError(f"{path}: no argument is called {key!r}{_nearest(str(key), script)}")
        # Words and numbers are the parser's to judge; what is nothing, a list or a mapping never reaches it.
        kind, allowed = type(values[key]), _kinds(hints[key])
        if list in allowed:
            allowed.add(type(None))  # of a list, nothing is an empty one
        if kind in (type(None), list, dict) and kind not in allowed:
            shown = {type(None): "nothing", list: "a list", dict: "a mapping"}[kind]
            raise ValueError(f"{path} gives {key} {shown}, which it cannot be: give a value, or leave the line out")
    return {key: _plain(value, known[key].default_factory is not MISSING) for key, value in values.items()}


def _kinds(hint: Any) -> set[Any]:
    """The types that a type hint allows."""
    parts = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    return {get_origin(part) or part for part in parts}


def _plain(value: Any, several: bool) -> Any:
    if several and not isinstance(value, list):  # `freeze: text`, as on the command line
        value = [] if value is None else str(value).split()
    # YAML 1.1 reads 5e-5 as text: what argparse gets as text, it converts to the type of the argument.
    return value if value is None or isinstance(value, bool | list | dict) else str(value)


def _check(model: ModelArguments, data: DataArguments, training: CUETrainingArguments) -> None:
    if data.captions_per_image not in ("1", "all"):
        raise ValueError(f"captions_per_image={data.captions_per_image!r} is not valid; it must be 1 or all")
    if data.on_bad_row not in ("raise", "skip"):
        raise ValueError(f"on_bad_row={data.on_bad_row!r} is not valid; it must be raise or skip")
    if data.feature_dtype not in ("float32", "float16"):
        raise ValueError(f"feature_dtype={data.feature_dtype!r} is not valid; it must be float32 or float16")
    for name in ("per_device_train_batch_size", "per_device_eval_batch_size"):
        if getattr(training, name) < 1:
            raise ValueError(f"{name}={getattr(training, name)} is not valid; it must be 1 or more")
    if not 0 <= data.whole_parts <= 1:
        raise ValueError(f"whole_parts={data.whole_parts} is not valid; it must be a share from 0 to 1")
    if not 0 < data.random_crop_scale <= 1:
        raise ValueError(
            f"random_crop_scale={data.random_crop_scale} is not valid; it must be a share above 0, at most 1"
        )
    if data.phrases_per_caption < 0:
        raise ValueError(f"phrases_per_caption={data.phrases_per_caption} is not valid; it must be zero or more")
    # A file may hold them as text.
    if len(data.split_sizes) not in (0, 2) or not all(str(size).isdecimal() for size in data.split_sizes):
        raise ValueError(f"split_sizes={data.split_sizes} is not valid; it must be two numbers, validation and test")
    data.split_sizes = [int(size) for size in data.split_sizes]
    for name, size in zip(("validation_split", "test_split"), data.split_sizes, strict=False):
        if not size:
            setattr(data, name, None)
    model.freeze = [modality for modality in model.freeze if modality != "none"]
    for modality in model.freeze:
        if modality not in MODALITIES:
            raise ValueError(f"freeze: {modality!r} is not valid; it must be text, image, audio, video or none")
    if model.lora_rank and training.push_to_hub:
        if not model.lora_merge:
            raise ValueError(
                "push_to_hub shares a model that loads by itself, and lora_rank saves an adapter beside its base: set "
                "lora_merge too (--lora_merge true)"
            )
        # Checkpoints hold adapters: none may lie beside the merged model.
        training.hub_strategy = HubStrategy.END
    for name in ("train_split", "validation_split", "test_split", "image_cache"):
        if str(getattr(data, name)).lower() == "none":
            setattr(data, name, None)
    if data.train_split is None:
        _check_evaluation(model, data, training)
    if data.validation_split is None:  # nothing to evaluate on, nor to choose by
        training.eval_strategy = IntervalStrategy.NO
        training.load_best_model_at_end = False
    if data.feature_cache is not None and data.feature_cache.lower() == "none":
        data.feature_cache = "none"  # not given at all, it may be automatic
    if model.jpeg_draft < 0:
        raise ValueError(f"jpeg_draft={model.jpeg_draft} is not valid; it must be 0 (never) or more")


def _check_evaluation(model: ModelArguments, data: DataArguments, training: CUETrainingArguments) -> None:
    if model.model_name_or_path is None:
        raise ValueError("train_split is none: name the checkpoint to evaluate (--model_name_or_path DIR)")
    if data.validation_split is None and data.test_split is None:
        raise ValueError("train_split, validation_split and test_split are all none: name the split to evaluate")
    if training.push_to_hub or training.resume_from_checkpoint or model.lora_rank:
        raise ValueError(
            "train_split is none: nothing is trained, adapted or saved; leave out push_to_hub, resume_from_checkpoint "
            "and lora_rank"
        )
