"""Each way of saving time or memory beside the plain way: the losses of the same steps, and how far they lie apart.

python benchmarks/curves.py [--steps 20] [--batch 32] [--threads 1]

Towers and data are those of training.py, without dropout, which each way would draw otherwise; every run has the seed
and the order of the plain one, with all losses of CUE: InfoNCE, containment and composition. Plain are captions in one
run of the tower, AdamW tensor by tensor, images decoded each time, and the whole batch at once. Printed is the largest
difference of the loss of a step over all steps, in nats, and the losses of the first and the last step.
"""

import argparse
import json
import sys
import tempfile
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import torch
from datasets import disable_progress_bars
from training_data import make_workplace

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from modeling_cue.training.building import build_model
from modeling_cue.training.parsing import parse_arguments
from modeling_cue.training.pipeline import build_trainer, load_data

# Which phrases are drawn depends on who shares a batch; with none, chunks and whole batches see the same.
WHOLE = {"phrases_per_caption": 0}
FROZEN = {"freeze": ["text", "image"], "feature_cache": "none"}


def losses(folder: Path, arguments: argparse.Namespace, flags: dict[str, Any], text_chunks: int | None) -> list[float]:
    """The loss of each step."""
    given = {
        "dataset_name": folder / "rows", "text_encoder": folder / "text", "image_encoder": folder / "image",
        "captions_per_image": "all", "test_split": "none", "output_dir": folder / "out", "max_steps": arguments.steps,
        "per_device_train_batch_size": arguments.batch, "learning_rate": 5e-5, "optim": "adamw_torch",
        "eval_strategy": "no", "save_strategy": "no", "load_best_model_at_end": "false", "disable_tqdm": "true",
        "use_cpu": "true", "logging_steps": 1, "dataloader_num_workers": 0,
    } | flags  # fmt: skip
    argv = []
    for name, value in given.items():
        argv += [f"--{name}", *(map(str, value) if isinstance(value, list) else [str(value)])]
    model_args, data_args, training_args = parse_arguments(argv)
    torch.manual_seed(training_args.seed)
    rows = load_data(data_args, model_args)
    model, processor = build_model(model_args, data_args, training_args, rows)
    if text_chunks is not None:
        model.text_chunks = text_chunks
    with redirect_stdout(sys.stderr):  # the log of each step
        trainer = build_trainer(model, processor, rows, data_args, training_args)
        trainer.train()
    return [line["loss"] for line in trainer.state.log_history if "loss" in line]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=320)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    disable_progress_bars()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        make_workplace(folder, "small", arguments.images)
        path = folder / "text" / "config.json"
        still = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        path.write_text(json.dumps(json.loads(path.read_text()) | still))
        chunks = {"per_device_train_batch_size": arguments.batch // 4, "contrastive_batch_size": arguments.batch}
        ways: dict[str, tuple[dict[str, Any], int | None]] = {
            "plain": ({}, 1),
            "captions in chunks of one length": ({}, None),
            "fused AdamW": ({"optim": "adamw_torch_fused"}, 1),
            "images decoded once (--image_cache)": ({"image_cache": folder / "images"}, 1),
            "plain, no phrases drawn": (WHOLE, 1),
            "chunks of a quarter (GradCache)": (WHOLE | chunks, 1),
            "plain, frozen towers": (FROZEN, 1),
            "cached features (--feature_cache)": (FROZEN | {"feature_cache": folder / "features"}, 1),
        }
        for name, (flags, text_chunks) in ways.items():
            found = losses(folder, arguments, flags, text_chunks)
            if name.startswith("plain"):
                plain = found
            apart = max(abs(mine - other) for mine, other in zip(found, plain, strict=True))
            print(f"{name:38}{found[0]:9.5f} ... {found[-1]:.5f}   largest difference {apart:.1e}", flush=True)


if __name__ == "__main__":
    main()
