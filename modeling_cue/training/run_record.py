"""run.json: what a run was started with, beside its model and in each of its checkpoints."""

import json
import os
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from datasets import Dataset

from .arguments import CUETrainingArguments, DataArguments, ModelArguments
from .fingerprint import rows_fingerprint

FILE = "run.json"
PACKAGES = ("cue-embedder", "torch", "transformers", "datasets", "accelerate", "peft", "numpy")
HIDDEN = "<hidden>"
HUB_TOKEN = re.compile(r"hf_\w{8,}")
# Arguments that decide where a run writes, what it tells and how fast it is, not what it learns.
WITHOUT_EFFECT = re.compile(
    r"(training\.(output_dir|resume_from_checkpoint|report_to|run_name|project|disable_tqdm|ddp_timeout"
    r"|(log|save(?!_strategy|_steps)|hub|push|trackio|skip_memory|include|label_names|remove_unused)_?\w*"
    r"|per_device_eval_batch_size|dataloader_(?!drop_last|num_workers)\w+)"
    r"|data\.(data_cache_dir|feature_cache|image_cache)|model\.lora_merge|command|python)"
)


@dataclass(frozen=True)
class RunRecord:
    """What is known of a run beside its `TrainingArguments`.

    Args:
        command: the command line. model, data: the arguments of `run_contrastive.py`.
        rows: of each split, what `describe_rows` says of it.
        All are empty where a script of one's own trains.
    """

    command: Sequence[str] = ()
    model: ModelArguments | None = None
    data: DataArguments | None = None
    rows: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def to_dict(self, training: CUETrainingArguments) -> dict[str, Any]:
        """All of it as JSON has it. No token is in it, and the home folder is ~."""
        record = {
            "command": list(self.command),
            "seed": training.seed,
            "processes": training.world_size,
            "device": training.device.type,
            "model": None if self.model is None else asdict(self.model),
            "data": None if self.data is None else asdict(self.data),
            "training": {k: v for k, v in training.to_dict().items() if not k.endswith("_token")},
            "rows": {split: dict(known) for split, known in self.rows.items()},
            "python": platform.python_version(),
            "packages": {name: found for name in PACKAGES if (found := _version(name))},
        }
        # As it will be read again: no tuple, no enumeration.
        whole = json.loads(json.dumps(record, default=str))
        return _public(whole, training.hub_token)

    def save(self, folder: str | Path, training: CUETrainingArguments) -> None:
        """Writes `run.json` into a folder, all at once."""
        path = Path(folder) / FILE
        aside = path.with_name(f"_{FILE}")
        aside.write_text(json.dumps(self.to_dict(training), indent=2) + "\n", encoding="utf-8")
        os.replace(aside, path)

    def changes(self, folder: str | Path, training: CUETrainingArguments) -> list[str]:
        """What this run has otherwise than the one that wrote a checkpoint, in words; nothing where it left no record.

        Left out is what has no effect on the weights.
        """
        path = Path(folder) / FILE
        if not path.is_file():
            return []
        before, now = _flat(json.loads(path.read_text(encoding="utf-8"))), _flat(self.to_dict(training))
        # Only a stream's order depends on the number of processes that read it.
        skipped = () if self.data is not None and self.data.streaming else ("training.dataloader_num_workers",)
        return [
            f"{name} was {before.get(name)!r} and is {now.get(name)!r}"
            for name in sorted(before.keys() | now.keys())
            if before.get(name) != now.get(name) and not WITHOUT_EFFECT.fullmatch(name) and name not in skipped
        ]


def describe_rows(rows: Any) -> dict[str, Any]:
    """The number of rows of a split, and the fingerprint of what they hold; None of a stream, which is read later."""
    if not isinstance(rows, Dataset):
        return {"count": None, "fingerprint": None}
    return {"count": len(rows), "fingerprint": rows_fingerprint(rows)}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _public(value: Any, token: str | None) -> Any:
    if isinstance(value, dict):
        return {name: _public(inner, token) for name, inner in value.items()}
    if isinstance(value, list):
        return [_public(inner, token) for inner in value]
    if not isinstance(value, str):
        return value
    if token:
        value = value.replace(token, HIDDEN)
    home = str(Path.home())
    value = re.sub(rf"(?<![\w/]){re.escape(home)}(?=/|$)", "~", value) if home != "/" else value
    return HUB_TOKEN.sub(HIDDEN, value)


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    """Nested values by dotted names; lists and what is empty are values."""
    if not isinstance(value, dict) or not value:
        return {name: value}
    inner = [_flat(held, f"{name}.{key}" if name else key) for key, held in value.items()]
    return {key: held for part in inner for key, held in part.items()}
