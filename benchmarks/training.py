"""Training speed beside the peers that a package index has: pairs per second with equal towers, data and batches.

pip install sentence-transformers 'open_clip_torch[training]'
python benchmarks/training.py [--size small] [--captions 1 5] [--frozen] [--rounds 3] [--steps 10] [--threads 1]

Towers are a ViT and a BERT with fresh weights, saved once and loaded by all (open_clip builds its own of the same
shape); data are photographs drawn here, 500 x 375 JPEG, with captions of 8 to 25 words. Each trains as its own example
does: transformers' contrastive example (VisionTextDualEncoder, Trainer, captions padded to 128), open_clip's
`train_one_epoch` (context 77), sentence-transformers' Trainer with the symmetric ranking loss, and CUE's pipeline with
InfoNCE alone. Every measurement is a process of its own, in turns; a pair is an image with one caption. Printed are
the median (smallest, largest) over the rounds of the ratio to transformers' example, and the peak memory.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import training_methods as methods
from datasets import disable_progress_bars
from training_data import SIZES, make_workplace


def measure(name: str, folder: Path, arguments: argparse.Namespace) -> dict[str, float]:
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    found = getattr(methods, name)(folder, arguments)
    return found | {"MiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def measure_alone(name: str, folder: Path) -> dict[str, float] | None:
    command = [sys.executable, "-W", "ignore", __file__, *sys.argv[1:], "--only", name, "--folder", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        print(f"{name}: {done.stderr.strip().splitlines()[-1] if done.stderr.strip() else 'failed'}", file=sys.stderr)
        return None
    return json.loads(done.stdout.strip().splitlines()[-1])


def report(runs: dict[str, list[dict[str, float] | None]], base: str, key: str) -> None:
    for name, found in runs.items():
        both = [(mine, other) for mine, other in zip(found, runs[base], strict=True) if mine and other]
        if not both:
            print(f"{name:24} did not run")
            continue
        ratios = [mine[key] / other[key] for mine, other in both]
        speed = statistics.median(mine[key] for mine, _ in both)
        memory = statistics.median(mine["MiB"] for mine, _ in both)
        print(
            f"{name:24}{speed:10.2f} pairs/s{statistics.median(ratios):9.2f} x "
            f"({min(ratios):.2f}, {max(ratios):.2f}){memory:8.0f} MiB",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--captions", type=int, nargs="+", default=[1, 5], choices=[1, 5])
    parser.add_argument("--frozen", action="store_true", help="frozen towers: the example beside CUE's cache")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--images", type=int, default=320)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.only:
        print(json.dumps(measure(arguments.only, arguments.folder, arguments)))
        return
    if arguments.frozen:
        names = ["example_frozen", "cue_frozen"]
    else:
        names = ["example", "open_clip", "sentence_transformers", *(f"cue_{n}" for n in arguments.captions)]
    with tempfile.TemporaryDirectory() as folder:
        disable_progress_bars()
        make_workplace(Path(folder), arguments.size, arguments.images)
        runs: dict[str, list] = {name: [] for name in names}
        for number in range(arguments.rounds):
            for name in names:
                runs[name].append(measure_alone(name, Path(folder)))
            print(f"round {number + 1} of {arguments.rounds}", file=sys.stderr, flush=True)
    for key in ("first epoch", "later epochs") if arguments.frozen else ("training",):
        print(key)
        report(runs, names[0], key)


if __name__ == "__main__":
    main()
