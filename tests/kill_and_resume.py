"""Kills runs of run_contrastive.py by SIGKILL at random moments, resumes them, and compares the weights to the bit.

python tests/kill_and_resume.py --times 20

Each run is a process of its own, forked from this one, which only imports; so a run takes a second or two.
"""

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import traceback
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
os.environ |= {"HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore"}

import torch  # noqa: E402
from samples import make_rows  # noqa: E402
from tiny import make_encoder  # noqa: E402
from transformers.trainer_utils import get_last_checkpoint  # noqa: E402

import run_contrastive  # noqa: E402
from modeling_cue.training import checkpoints  # noqa: E402
from modeling_cue.training.trainer import CUETrainer  # noqa: E402

STEPS, SAVE = 14, 3  # five and a half batches of an epoch, so that epochs end between checkpoints
COMMON = {
    "max_steps": STEPS, "save_strategy": "steps", "save_steps": SAVE, "eval_strategy": "steps", "eval_steps": SAVE,
    "save_total_limit": 2, "per_device_train_batch_size": 4, "learning_rate": "1e-2", "logging_steps": 5,
    "bf16": "false", "disable_tqdm": "true", "use_cpu": "true", "dataloader_num_workers": 0, "projection_dim": 16,
    "seed": 3, "head_dropout": 0.2, "composition_dropout": 0.2, "mirror_images": "true", "max_grad_norm": 1.0,
    "test_split": "none",
}  # fmt: skip
VARIANTS = {
    "plain": {},
    "workers": {"dataloader_num_workers": 2, "random_crop_scale": 0.5},
    "cached": {"freeze": "text image", "feature_cache": "cache"},
    "chunks": {"contrastive_batch_size": 8, "captions_per_image": "all", "whole_parts": 0.5},
    "accumulated": {"gradient_accumulation_steps": 2, "train_sampling_strategy": "group_by_length"},
    "streamed": {"streaming": "true", "dataloader_num_workers": 1, "shuffle_buffer_size": 5},
    "lora": {"lora_rank": 2, "freeze": "text"},
}
# Where a run is killed: as it calls one of these, so often that there is a checkpoint by then.
MOMENTS = {
    "before a step": (CUETrainer, "training_step", range(SAVE + 1, STEPS + 1)),
    "with the model written": (CUETrainer, "_save_optimizer_and_scheduler", range(2, 5)),
    "with the optimiser written": (CUETrainer, "_save_rng_state", range(2, 5)),
    "before the renaming": (checkpoints, "put_in_place", range(2, 5)),
    "after the renaming": (checkpoints, "rotate_checkpoints", range(2, 5)),
}


def forked(work, log):
    """The exit status of a function that runs in a process of its own; this one must run no threads."""
    child = os.fork()
    if not child:
        status = 1
        try:
            signal.alarm(900)
            with open(log, "a") as file:
                os.dup2(file.fileno(), 1)
                os.dup2(file.fileno(), 2)
            work()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(status)
    return os.waitpid(child, 0)[1]


def make_towers_and_data():
    Path("data").mkdir()
    for family in ("bert", "clip"):
        make_encoder(family, Path(family))
    for split, count in (("train", 11), ("validation", 4)):
        rows = make_rows(("image",), count=count)
        rows.map(lambda row, split=split: {"id": f"{split} {row['id']}"}).to_parquet(f"data/{split}.parquet")


def train(folder, variant, *more, killed=None):
    flags = COMMON | VARIANTS[variant]
    argv = [word for name, value in flags.items() for word in (f"--{name}", *str(value).split())]
    argv += [
        "--dataset_name",
        "data",
        "--text_encoder",
        "bert",
        "--image_encoder",
        "clip",
        "--output_dir",
        folder,
        *more,
    ]

    def work():
        torch.set_num_threads(1)
        if killed:
            owner, name, calls = killed
            original, seen = getattr(owner, name), []

            def counted(*args, **kwargs):
                seen.append(name)
                if len(seen) == calls:
                    os.kill(os.getpid(), signal.SIGKILL)
                return original(*args, **kwargs)

            setattr(owner, name, counted)
        run_contrastive.main(argv)

    return forked(work, f"{folder}.log")


def weights(folder):
    """Every file of weights in the output folder and in its newest checkpoint."""
    newest = get_last_checkpoint(folder)
    names = [path for place in (Path(folder), Path(newest)) for path in sorted(place.glob("*.safetensors"))]
    assert names, f"no weights in {folder}"
    return {str(path.relative_to(folder)): path.read_bytes() for path in names}


def kill_and_resume(variant, reference, draw):
    """Kills one run and resumes it; returns what went wrong, or ""."""
    owner, name, calls = MOMENTS[moment := draw.choice(list(MOMENTS))]
    count = draw.choice(calls)
    shutil.rmtree("killed", ignore_errors=True)
    said = f"{variant}, killed {moment}, call {count}"
    status = train("killed", variant, killed=(owner, name, count))
    if os.WTERMSIG(status) != signal.SIGKILL:
        return f"{said}: it was not killed\n{Path('killed.log').read_text()[-3000:]}"
    for checkpoint in Path("killed").glob("checkpoint-*"):
        if not {"trainer_state.json", "run.json", "rng_state.pth"} <= {path.name for path in checkpoint.iterdir()}:
            return f"{said}: {checkpoint} is half-written"
    if train("killed", variant, "--resume_from_checkpoint", "last"):
        return f"{said}: it did not go on\n{Path('killed.log').read_text()[-3000:]}"
    if leftovers := [p.name for p in Path("killed").iterdir() if p.name.startswith("_")]:
        return f"{said}: {leftovers} are left"
    return "" if weights("killed") == reference else f"{said}: other weights"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--times", type=int, default=20, help="kills of each variant")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=VARIANTS)
    arguments = parser.parse_args()
    draw, failures = random.Random(arguments.seed), 0
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        assert not forked(make_towers_and_data, "made.log"), Path("made.log").read_text()
        for variant in arguments.variants:
            assert not train(f"whole_{variant}", variant), Path(f"whole_{variant}.log").read_text()[-3000:]
            reference = weights(f"whole_{variant}")
            found = [kill_and_resume(variant, reference, draw) for _ in range(arguments.times)]
            print(*filter(None, found), sep="\n")
            print(f"{variant}: {found.count('')} of {len(found)} resumed runs ended with the same weights", flush=True)
            failures += len(found) - found.count("")
        os.chdir("/")
    return failures


if __name__ == "__main__":
    sys.exit(bool(main()))
