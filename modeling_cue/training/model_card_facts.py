"""What a model card says of a run: where towers and data are on the Hub, and what the Hub reads of the card."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.utils import HFValidationError, validate_repo_id

from .arguments import DataArguments, ModelArguments
from .report import NAMES, title

FILE = "README.md"
TAGS = ("cue", "spherical-cones", "multimodal", "embeddings", "retrieval")
# Metrics for the Hub's index, by task; the table of the card has more.
TASKS = (
    ("retrieval", "Cross-modal retrieval", re.compile(r"([tiav]2[tiav]|composition)_R@\d+|rsum")),
    ("containment", "Containment of cones", re.compile(r"containment_(auroc|ap)(_[pc]2[ciav])?")),
)


@dataclass(frozen=True)
class Run:
    """What a card tells of a run beside what the trainer knows.

    Args:
        metrics: with the prefix `test_` or `eval_`, as `Trainer.evaluate` returns them.
        model, data: the arguments of `run_contrastive.py`; None where a script of one's own trained.
        rows: rows of each split, where they can be counted.
    """

    metrics: Mapping[str, float] = field(default_factory=dict)
    model: ModelArguments | None = None
    data: DataArguments | None = None
    rows: Mapping[str, int] = field(default_factory=dict)

    @property
    def prefix(self) -> str:
        """test_ where a test split was read, else eval_."""
        return "test_" if any(key.startswith("test_") for key in self.metrics) else "eval_"

    @property
    def split(self) -> str | None:
        """The name of the split that the metrics were measured on."""
        if self.data is None:
            return None
        return self.data.test_split if self.prefix == "test_" else self.data.validation_split

    @property
    def tower_names(self) -> dict[str, str]:
        """Hub ids of the towers by modality, those that have one."""
        if self.model is None or self.model.model_name_or_path:
            return {}
        names = {m: getattr(self.model, f"{m}_encoder") for m in NAMES.values()}
        if names["video"] == "image":
            names["video"] = names["image"]
        return {modality: name for modality, name in names.items() if is_hub_id(name)}

    @property
    def base_models(self) -> list[str]:
        """Hub ids of what was trained: a checkpoint, or the towers; of a local checkpoint, what its own card names."""
        start = None if self.model is None else self.model.model_name_or_path
        if start is None:
            return list(dict.fromkeys(self.tower_names.values()))
        if is_hub_id(start):
            return [start]
        path = Path(start).expanduser() / FILE
        try:
            named = ModelCard.load(path, ignore_metadata_errors=True).data.base_model if path.is_file() else None
        except Exception:  # somebody's own card may be anything, and hours of training are to be pushed
            named = None
        listed = named if isinstance(named, list) else [named]
        return [name for name in listed if isinstance(name, str) and is_hub_id(name)]

    @property
    def dataset_id(self) -> str | None:
        """The Hub id of the data, where it has one."""
        name = None if self.data is None else self.data.dataset_name
        return name if name != "scenes" and is_hub_id(name) else None

    @property
    def dataset_words(self) -> str:
        """The data in words, for what has no Hub id."""
        if self.data is not None and self.data.dataset_name == "scenes":
            return "procedural scenes"
        return self.dataset_id or "data that is not on the Hub"


def is_hub_id(name: str | None) -> bool:
    """Whether a name that was loaded is the id of a repo on the Hub: paths of a machine stay on it."""
    if not name or Path(name).expanduser().exists():
        return False
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


# ---------------------------------------------------------------------- metadata


def metadata(
    name: str,
    run: Run,
    *,
    language: str | None = None,
    license: str | None = None,
    tags: Sequence[str] = (),
    base_models: Sequence[str] = (),
    datasets: Sequence[str] = (),
    adapter: bool = False,
) -> ModelCardData:
    """What the Hub reads: `language` and `license`, left out unless told, and more of the others.

    `adapter`: the folder holds a base and a LoRA adapter, which sentence-transformers does not load.
    """
    results = eval_results(run)
    bases = list(dict.fromkeys(base for base in (*run.base_models, *base_models) if is_hub_id(base)))
    data = list(dict.fromkeys(name for name in (run.dataset_id, *datasets) if name))
    return ModelCardData(
        language=language,
        license=license,
        library_name="transformers",
        pipeline_tag="feature-extraction",
        tags=[
            *TAGS,
            *([] if adapter else ["sentence-transformers"]),
            *(["lora"] if run.model is not None and run.model.lora_rank else []),
            *tags,
        ],
        datasets=data or None,
        base_model=bases or None,
        # The Hub takes a model of several bases for a merge of them.
        base_model_relation="finetune" if bases else None,
        model_name=name if results else None,
        eval_results=results or None,
    )


def eval_results(run: Run) -> list[EvalResult]:
    """The measured figures as the Hub's index wants them: fractions (rsum in [0, 6]), to four decimals."""
    found = {key.removeprefix(run.prefix): value for key, value in run.metrics.items() if key.startswith(run.prefix)}
    return [
        EvalResult(
            task_type=task,
            task_name=task_name,
            # The Hub takes this for the id of a data set.
            dataset_type=run.dataset_id or run.dataset_words.replace(" ", "-"),
            dataset_name=run.dataset_words,
            dataset_split=run.split,
            metric_type=key,
            metric_name=_metric_name(key),
            metric_value=round(float(value), 4),
        )
        for task, task_name, pattern in TASKS
        for key, value in found.items()
        if pattern.fullmatch(key) and float("-inf") < value < float("inf")
    ]


def _metric_name(key: str) -> str:
    name, recall, k = key.partition("_R@")
    return f"{title(name)} R@{k}" if recall else title(name)
