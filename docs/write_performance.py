"""Runs the benchmarks and writes docs/performance.md from what they print.

python docs/write_performance.py [--only NAME ...] [--again] [--remark TEXT] --whisper DIR --speech DIR

What a benchmark printed is kept in runs/performance/NAME.txt and is not run again unless asked for: a series that was
cut off goes on. Nothing else should run on the machine meanwhile; --remark tells of what did. What sounds cost is
measured on a real checkpoint of Whisper and a data set of real speech, which are folders.
"""

import argparse
import os
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

from tqdm.auto import tqdm

ROOT = Path(__file__).resolve().parents[1]
KEPT = ROOT / "runs" / "performance"
PACKAGES = ("torch", "transformers", "sentence-transformers", "open_clip_torch", "faiss-cpu")


class Benchmark(NamedTuple):
    """A heading, the arguments after `python benchmarks/`, and what a reader should look for."""

    title: str
    command: str
    about: str


BENCHMARKS = {
    "training": Benchmark(
        "Training beside other libraries", "training.py --steps 4",
        "Pairs per second with both towers training, as multiples of transformers' contrastive example.",
    ),
    "frozen": Benchmark(
        "Training on frozen towers", "training.py --frozen",
        "The same with frozen towers: CUE fills its cache in the first epoch and reads it in later ones.",
    ),
    "curves": Benchmark(
        "The same losses", "curves.py",
        "What the ways of saving time and memory do to the loss of each of 20 steps.",
    ),
    "features": Benchmark(
        "The feature cache", "features.py --losses contrast",
        "A step from cached features beside one that runs the towers.",
    ),
    "text": Benchmark("Captions without waste", "text.py", "Ways of padding, forward and backward."),
    "images": Benchmark("Images", "images.py", "Decoding, resizing and normalising beside transformers' processors."),
    "audio": Benchmark(
        "Short sounds", "audio.py --seconds 1 2 3 --batch 2 --rounds 3 --tower WHISPER --data SPEECH",
        "Whisper over the real frames beside Whisper over 30 seconds.",
    ),
    "chunks": Benchmark(
        "Big contrastive batches", "memory.py chunks --threads 1",
        "Peak memory and time of a step in chunks of 32 (GradCache).",
    ),
    "losses": Benchmark(
        "Losses in strips", "memory.py losses", "Memory of InfoNCE and containment of N captions and images."
    ),
    "evaluation": Benchmark("Recall at scale", "evaluation.py", "Counting ranks beside a full sort and FAISS."),
    "embedding": Benchmark(
        "Embedding", "embedding.py",
        "Captions and images per second beside `encode`. In a profile of images, products, convolutions and attention "
        "of the tower took 78 % of CUE's time and 81 % of its peer's: with equal towers neither can be far ahead.",
    ),
    "optimizer": Benchmark("The optimiser", "optimizer.py", "Fused AdamW beside the others."),
    "index": Benchmark("Search", "index.py", "A million cones."),
}  # fmt: skip


def run(name: str, again: bool = False, folders: dict[str, str] | None = None) -> str:
    """What the benchmark prints; kept beside the runs.

    Raises:
        subprocess.CalledProcessError: it failed; what it wrote to its error stream stands above.
    """
    kept = KEPT / f"{name}.txt"
    if again or not kept.is_file():
        words = f"benchmarks/{BENCHMARKS[name].command}".split()
        command = [sys.executable, *((folders or {}).get(word, word) for word in words)]
        environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
        done = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=True)
        KEPT.mkdir(parents=True, exist_ok=True)
        kept.write_text(done.stdout)
    return kept.read_text()


def page(outputs: dict[str, str], remark: str = "") -> str:
    versions = []
    for package in PACKAGES:
        try:
            versions.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            versions.append(f"{package} absent")
    parts = [
        "# Performance",
        f"Written by `docs/write_performance.py` from the benchmarks' own output. Every benchmark runs the ways that "
        f"it compares in turns on one machine and prints ratios: median (smallest, largest). Here: {os.cpu_count()} "
        f"cores ({platform.machine()}), no GPU, Python {platform.python_version()}, {', '.join(versions)}.",
        *filter(None, [remark]),
    ]
    for name, output in outputs.items():
        benchmark = BENCHMARKS[name]
        parts += [
            f"## {benchmark.title}", benchmark.about, f"```bash\npython benchmarks/{benchmark.command}\n```",
            f"```text\n{output.strip()}\n```",
        ]  # fmt: skip
    return "\n\n".join(parts) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=BENCHMARKS, default=list(BENCHMARKS))
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--remark", default="", help="what a reader should know of how these were measured")
    parser.add_argument("--whisper", default="WHISPER", help="folder of a Whisper checkpoint")
    parser.add_argument("--speech", default="SPEECH", help="data set with speech")
    given = parser.parse_args()
    for name in tqdm(given.only, desc="benchmarks"):
        run(name, given.again, {"WHISPER": given.whisper, "SPEECH": given.speech})
    # The page has all that was ever run here.
    path = ROOT / "docs" / "performance.md"
    path.write_text(page({name: run(name) for name in BENCHMARKS if (KEPT / f"{name}.txt").is_file()}, given.remark))
    print(f"results:  {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
