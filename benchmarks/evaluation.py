"""Recall at scale: counting ranks in tiles beside a full sort, and FAISS where it is installed.

python benchmarks/evaluation.py [--images 5000] [--captions 5] [--dim 512] [--rounds 3] [--threads 1]

Every measurement is a process of its own, in turns; memory is the peak above what the embeddings take. Printed are the
median (smallest, largest) over the rounds of the ratios to the full sort.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

METHODS = ("sort", "count", "faiss")


def embeddings(images: int, captions: int, dim: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    image = torch.nn.functional.normalize(torch.randn(images, dim, generator=generator), dim=-1)
    noise = torch.randn(images * captions, dim, generator=generator)
    text = torch.nn.functional.normalize(image.repeat_interleave(captions, 0) + 0.15 * noise, dim=-1)
    return image, text, torch.arange(images), torch.arange(images).repeat_interleave(captions)


def both(one_way):
    """Recall of `image` for `text` and back, by a method that ranks one way at a time."""

    def recall(image, text, image_ids, text_ids) -> list[float]:
        return [one_way(image, text, image_ids, text_ids), one_way(text, image, text_ids, image_ids)]

    return recall


@both
def recall_by_sort(queries, items, query_ids, item_ids) -> float:
    order = (queries @ items.T).argsort(dim=1, descending=True)
    return (item_ids[order[:, :10]] == query_ids[:, None]).any(1).float().mean().item()


def recall_by_count(image, text, image_ids, text_ids) -> list[float]:
    from modeling_cue.training.metrics_retrieval import retrieval_ranks

    return [(ranks[:, 0] <= 10).float().mean().item() for ranks in retrieval_ranks(image, text, image_ids, text_ids)]


@both
def recall_by_faiss(queries, items, query_ids, item_ids) -> float:
    import faiss

    faiss.omp_set_num_threads(torch.get_num_threads())
    index = faiss.IndexFlatIP(items.shape[1])
    index.add(items.numpy())
    found = torch.from_numpy(index.search(queries.numpy(), 10)[1])
    return (item_ids[found] == query_ids[:, None]).any(1).float().mean().item()


def peak_mib(reset: bool = False) -> float:
    """The most memory that this process has held, in MiB, since the last reset (Linux), which gives what it holds."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")  # making the embeddings took more than some methods do
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def measure(method: str, arguments: argparse.Namespace) -> None:
    torch.set_num_threads(arguments.threads)
    image, text, image_ids, text_ids = embeddings(arguments.images, arguments.captions, arguments.dim)
    recall = {"sort": recall_by_sort, "count": recall_by_count, "faiss": recall_by_faiss}[method]
    recall(image[:10], text[:100], image_ids[:10], text_ids[:100])  # imports and first calls
    before = peak_mib(reset=True)
    start = time.perf_counter()
    found = recall(image, text, image_ids, text_ids)
    seconds = time.perf_counter() - start
    print(json.dumps({"seconds": seconds, "mib": peak_mib() - before, "recall": found}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("images", 5000), ("captions", 5), ("dim", 512), ("rounds", 3), ("threads", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--only", choices=METHODS, help="measure one method here and print it as JSON")
    arguments = parser.parse_args()
    if arguments.only:
        return measure(arguments.only, arguments)
    runs: dict[str, list[dict]] = {method: [] for method in METHODS}
    for _ in range(arguments.rounds):
        for method in METHODS:
            done = subprocess.run(
                [sys.executable, __file__, *sys.argv[1:], "--only", method], capture_output=True, text=True
            )
            if done.returncode == 0:
                runs[method].append(json.loads(done.stdout))
            elif "No module named 'faiss'" not in done.stderr:
                raise SystemExit(done.stderr)
    for method, found in runs.items():
        if not found:
            print(f"{method:6} not installed: pip install faiss-cpu")
            continue
        line = f"{method:6}"
        for key, unit in (("seconds", "s"), ("mib", "MiB")):
            ratios = [mine[key] / base[key] for mine, base in zip(found, runs["sort"], strict=True)]
            middle = statistics.median(run[key] for run in found)
            line += f"  {middle:9.2f} {unit} = {statistics.median(ratios):.3f} ({min(ratios):.3f}, {max(ratios):.3f})"
        print(line, " R@10", " ".join(f"{value:.4f}" for value in found[0]["recall"]))


if __name__ == "__main__":
    main()
