"""Pictures, names, voices and a taxonomy: every pair of modalities, and folders that contain what lies in them.

python benchmarks/stamps.py --data DIR --text_encoder DIR --image_encoder DIR --audio_encoder DIR \
    [--seed 0 1 2] [--output stamps.json]

DIR holds parquet files of the stamps of Tux Paint (image, caption, category_path, spoken names, sounds): a few hundred
of them, of which one half is drawn and the other photographed. Towers are frozen; heads and composition are trained on
their features. A stamp's folders ("animals", "mammals", "dogs") are the phrases of its name, and true of all that lies
in them. The voice is the English one where there is one, else the French one, else the sound of the thing.

Printed are, on the test split, R@1, R@5 and R@10 between every two modalities; AUROC of "this folder contains this
name / picture / voice" by cones and by the cosine; and recall of the compound of a stamp's folders, with a picture as
a hit where it lies in all of them, beside the mean of their axes.
"""

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from datasets import Audio, Image
from transformers import set_seed

from modeling_cue.training.building import build_model
from modeling_cue.training.evaluation import embed_dataset
from modeling_cue.training.metrics import compute_all
from modeling_cue.training.metrics_cones import level_counts
from modeling_cue.training.parsing import parse_arguments
from modeling_cue.training.phrases import hash_id, normalise
from modeling_cue.training.pipeline import Data, build_trainer, train
from modeling_cue.training.relations import Level
from modeling_cue.training.row_forms import dataset_of
from modeling_cue.training.rows import BadRows
from modeling_cue.training.scenes import TRUTH_COLUMNS

FEATURES = TRUTH_COLUMNS | {"image": Image(decode=False), "audio": Audio(decode=False)}
VOICES = ("audio_description", "audio_description_fr", "audio_effect")
SETTINGS = {
    "freeze": ["text", "image", "audio"], "projection_dim": 128, "head_dropout": 0.3, "num_train_epochs": 40,
    "per_device_train_batch_size": 64, "captions_per_image": "all", "phrases_per_caption": 3, "learning_rate": 2e-3,
    "weight_decay": 0.1, "warmup_steps": 0.2, "containment_weight": 0.3, "composition_weight": 0.3,
    "dataloader_drop_last": True, "eval_strategy": "no", "save_strategy": "no", "load_best_model_at_end": False,
    "logging_steps": 20, "disable_tqdm": False, "use_cpu": True, "bf16": False,
}  # fmt: skip
LEVELS = tuple(Level(f"p2{kind[0]}", "phrase", kind) for kind in ("text", "image", "audio"))


def load(folder: Path, split: str) -> Any:
    """Rows in the form of scenes: what is true of a stamp is its name and the folders that it lies in."""
    (file,) = sorted(folder.glob(f"{split}-*.parquet"))
    columns: dict[str, list] = {name: [] for name in FEATURES}
    for row in pq.read_table(file).to_pylist():
        voice = next((row[name] for name in VOICES if row[name]), None)
        if voice is None:
            continue
        name, folders = hash_id(normalise(row["caption"])), [hash_id(part) for part in row["category_path"]]
        values = {
            "id": row["stamp_id"], "caption": [row["caption"]], "phrases": [row["category_path"]],
            "phrase_facts": [folders], "caption_requires": [[name]], "caption_facts": [[name, *folders]],
            "facts": [name, *folders], "image": row["image"], "audio": voice,
        }  # fmt: skip
        for column, value in values.items():
            columns[column].append(value)
    return dataset_of(columns, FEATURES)


def measure(arguments: argparse.Namespace, seed: int) -> dict[str, float]:
    given = {name: getattr(arguments, name) for name in ("text_encoder", "image_encoder", "audio_encoder")}
    with tempfile.TemporaryDirectory() as folder:
        flags = {**SETTINGS, **given, "seed": seed, "output_dir": folder, "dataset_name": str(arguments.data)}
        if arguments.feature_cache:
            flags["feature_cache"] = arguments.feature_cache
        argv = []
        for name, value in flags.items():
            argv += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
        model, data, training = parse_arguments(argv)
        set_seed(training.seed)
        splits = {"train": "train", "validation": "val", "test": "test"}
        rows = Data(**{s: load(arguments.data, file) for s, file in splits.items()}, bad_rows=BadRows("raise"))
        cue, processor = build_model(model, data, training, rows)
        trainer = build_trainer(cue, processor, rows, data, training)
        train(trainer)
        trainer.eval_collator = trainer.test_collator
        loader = trainer.get_eval_dataloader(trainer.test_rows)
        embedded = embed_dataset(trainer.model, loader, training.device, show_progress=False)
    found = compute_all(embedded)
    for level in LEVELS:
        counts = level_counts(embedded[level.outer], embedded[level.inner], level)
        found |= {
            f"folder_{level.inner}": counts.margins.auroc(),
            f"folder_{level.inner}_cosine": counts.cosines.auroc(),
        }
    return found


def table(runs: list[dict[str, float]]) -> str:
    """Mean and standard deviation over the runs, in percent, as Markdown."""

    def cell(key: str) -> str:
        values = [100 * run[key] for run in runs]
        return f"{statistics.mean(values):.1f}" + (f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else "")

    names = {"t": "name", "i": "picture", "a": "voice"}
    lines = ["| % | R@1 | R@5 | R@10 | chance R@1 |", "|---|---|---|---|---|"]
    for way in ("t2i", "i2t", "a2t", "t2a", "a2i", "i2a"):
        cells = [cell(f"{way}_R@{k}") for k in (1, 5, 10)] + [cell(f"{way}_chance_R@1")]
        lines.append(f"| {names[way[0]]} -> {names[way[2]]} | " + " | ".join(cells) + " |")
    for key, name in (("composition", "folders composed -> picture"), ("composition_mean", "mean of their axes")):
        lines.append(f"| {name} | " + " | ".join(cell(f"{key}_R@{k}") for k in (1, 5, 10)) + " | |")
    lines += ["", "| AUROC, % | by cones | by cosine |", "|---|---|---|"]
    for level in LEVELS:
        kind = level.inner
        lines.append(
            f"| folder contains {names[kind[0]]} | {cell(f'folder_{kind}')} | {cell(f'folder_{kind}_cosine')} |"
        )
    spearman = [run["radius_specificity_spearman"] for run in runs]
    lines += ["", f"Spearman of a folder's radius with the log of what lies in it: {statistics.mean(spearman):.2f}"]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    for modality in ("text", "image", "audio"):
        parser.add_argument(f"--{modality}_encoder", required=True)
    parser.add_argument("--seed", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--feature_cache", help="folder of features that seeds share; default: that of the package")
    parser.add_argument("--output", type=Path, default=Path("runs/stamps.json"))
    arguments = parser.parse_args()
    runs = [measure(arguments, seed) for seed in arguments.seed]
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps({"seeds": arguments.seed, "runs": runs}, indent=1))
    print(table(runs))
    print(f"results:  {arguments.output}")


if __name__ == "__main__":
    main()
