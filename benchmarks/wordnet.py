"""Link prediction in the WordNet noun taxonomy: free cones beside baselines, by F1 (protocol of Ganea et al., 2018).

python benchmarks/wordnet.py --data DIR [--subset mammals] [--test FILE] [--dim 5 10] [--percent 0 10 25 50]
    [--seed 0 1 2] [--methods cones order ...] [--steps N] [--threads 1] [--output results.json]

DIR holds mammals/ and nouns/, each with nodes.parquet (node, lemma), train_00, _10, _25 and _50.parquet (child,
parent) and val.parquet (child, parent, label). A method sees the training edges of its column: the basic ones, and
that share of the others; their transitive closure is computed nowhere. F1 is in percent: of each half of the
validation pairs with the threshold that is best on the other half, the mean; or of FILE, pairs as in val.parquet, with
the threshold that is best on all validation pairs. A cell is the mean over seeds, and the standard deviation of more
than one. A dimension counts the numbers of a node: an axis in R^dim has one fewer, and the radius makes up for it
(the tables of both kinds of cones on the sphere store dim + 1). Settings of all methods were chosen on validation.

The cones start nested, from the roots down, by the given edges alone; for a tree that start is already nearly the
answer, so two more rows belong to the default table: cones-no-training (the start, untrained) and cones-no-start
(trained from random cones, as the baselines are, in four times the steps). What cones know and the baselines do not
is that siblings, and nodes of one level, lie apart; cones-corrupted trains from random cones with the baselines'
negatives in place of that, random wrong pairs. cones-no-siblings and cones-no-peers leave out one loss.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from wordnet_baselines import train_disks, train_entailment, train_order
from wordnet_data import best_threshold, cross_f1, f1_score, read_pairs, read_taxonomy
from wordnet_methods import PARTS, RANDOM, Scores, train_cones

PERCENT = (0, 10, 25, 50)
# Steps and edges per step of the cones, with two peers for an edge; a baseline takes twice the steps, each of fewer
# edges with ten corrupted ones for every edge: two to four times the pairs of the cones, on nouns half of the edges.
SIZES = {"mammals": (600, 1024), "nouns": (400, 16384)}
BASELINE_EDGES = {"mammals": 512, "nouns": 4096}
METHODS: dict[str, Callable[..., Scores]] = {
    "cones": train_cones,
    "order": train_order,
    "entailment": train_entailment,
    "disks": train_disks,
    **{f"cones-no-{part}": partial(train_cones, leave_out=(part,)) for part in PARTS},
    "cones-corrupted": partial(train_cones, leave_out=("start", "siblings", "peers"), corrupted=True),
}
TITLES = {
    "cones": "cones, this package",
    "cones-no-training": "their nested start, untrained",
    "cones-no-start": "cones from a random start",
    "cones-corrupted": "the same, with the baselines' negatives",
    "order": "order embeddings, run here",
    "entailment": "hyperbolic entailment cones, run here",
    "disks": "spherical disks, run here",
}
DEFAULT = tuple(TITLES)
# Of nouns, at dimension 5 and 10, as published by Ganea et al. (ICML 2018), table 1.
PUBLISHED = {
    "order embeddings, published *": {5: (34.4, 70.2, 75.9, 81.7), 10: (43.0, 69.7, 79.4, 84.1)},
    "hyperbolic entailment cones, published *": {5: (29.2, 80.1, 86.0, 92.8), 10: (32.2, 85.9, 91.0, 94.4)},
}


def measure(name: str, folder: Path, test: Path | None, dim: int, percent: int, seed: int, steps: int | None) -> dict:
    """One training: F1 in percent, and what it cost."""
    taxonomy = read_taxonomy(folder, percent)
    validation = read_pairs(folder / "val.parquet", taxonomy.nodes)
    pairs = read_pairs(test, taxonomy.nodes) if test else validation
    own_steps, batch = SIZES[folder.name]
    own_steps = steps or own_steps
    if not name.startswith("cones"):
        own_steps, batch = 2 * own_steps, BASELINE_EDGES[folder.name]
    if name in ("cones-no-start", "cones-corrupted"):
        own_steps *= RANDOM.length
    wall, processor = time.perf_counter(), time.process_time()
    scores = METHODS[name](taxonomy, dim, seed, own_steps, batch)
    spent = {"seconds": time.perf_counter() - wall, "processor_seconds": time.process_time() - processor}
    found, labels = scores(validation), validation[:, 2]
    f1 = f1_score(scores(pairs), pairs[:, 2], best_threshold(found, labels)) if test else cross_f1(found, labels)
    run = {"method": name, "subset": folder.name, "dim": dim, "percent": percent, "seed": seed}
    run |= {"test": test.name if test else None, "steps_given": steps}
    return run | {"steps": own_steps, "batch": batch, "f1": 100 * f1} | spent


def cell(runs: list[dict], name: str, dim: int, percent: int) -> str:
    found = [run["f1"] for run in runs if (run["method"], run["dim"], run["percent"]) == (name, dim, percent)]
    if not found:
        return "-"
    spread = f" ± {statistics.stdev(found):.1f}" if len(found) > 1 else ""
    return f"{statistics.mean(found):.1f}{spread}"


def table(runs: list[dict], names: list[str], dims: list[int], percents: list[int], published: bool) -> str:
    """The figures as a Markdown table, dimensions within a cell; nothing stands in it that was not measured."""
    rows = [[f"F1, dim {' / '.join(map(str, dims))}", *(f"{percent} %" for percent in percents)]]
    for name in names:
        figures = (" / ".join(cell(runs, name, dim, percent) for dim in dims) for percent in percents)
        rows.append([TITLES.get(name, name), *figures])
    if published and set(dims) <= {5, 10}:
        for title, figures in PUBLISHED.items():
            columns = [PERCENT.index(percent) for percent in percents]
            rows.append([title, *(" / ".join(f"{figures[dim][at]}" for dim in dims) for at in columns)])
    rows.insert(1, ["---"] * len(rows[0]))
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    if any("published" in row[0] for row in rows):
        lines += ["", "* of other splits of the nouns by the same protocol"]
    return "\n".join(lines)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--subset", choices=SIZES, default="mammals")
    parser.add_argument("--test", type=Path, help="parquet of child, parent, label; default: halves of val.parquet")
    parser.add_argument("--dim", type=int, nargs="+", default=[5, 10])
    parser.add_argument("--percent", type=int, nargs="+", default=list(PERCENT), choices=PERCENT)
    parser.add_argument("--seed", type=int, nargs="+", default=[0])
    parser.add_argument("--methods", nargs="+", default=list(DEFAULT), choices=METHODS)
    parser.add_argument("--steps", type=int, help="of the cones; baselines take twice as many")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    if min(arguments.dim) < 2:
        parser.error("--dim must be at least 2: a sphere needs two dimensions")
    if arguments.steps is not None and arguments.steps < 1:
        parser.error("--steps must be at least 1; the start alone is --methods cones-no-training")
    for option in ("dim", "percent", "seed", "methods"):
        values = getattr(arguments, option)
        if len(set(values)) < len(values):
            parser.error(f"--{option} names a value twice: {' '.join(map(str, values))}; runs would count twice")
    if arguments.output:  # before hours of work, not after
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
    return arguments


def main() -> None:
    arguments = parse()
    torch.set_num_threads(arguments.threads)
    runs: list[dict] = []
    for name in arguments.methods:
        for percent in arguments.percent:
            for dim in arguments.dim:
                for seed in arguments.seed:
                    folder = arguments.data / arguments.subset
                    runs.append(measure(name, folder, arguments.test, dim, percent, seed, arguments.steps))
                    print(json.dumps(runs[-1]), file=sys.stderr, flush=True)
                    if arguments.output:
                        # After every run, so that a long series that is cut off keeps what it found.
                        found = {"command": sys.argv, "threads": arguments.threads, "runs": runs}
                        arguments.output.write_text(json.dumps(found, indent=1) + "\n")
    print(f"{arguments.subset}, seeds {' '.join(map(str, arguments.seed))}", end="; ")
    print(f"{arguments.test or 'halves of the validation pairs'}; at most", end=" ")
    print(f"{max(run['seconds'] for run in runs):.0f} s a run, {arguments.threads} threads\n")
    print(table(runs, arguments.methods, arguments.dim, arguments.percent, arguments.subset == "nouns"))


if __name__ == "__main__":
    try:
        main()
    except (ValueError, FileNotFoundError) as problem:
        sys.exit(f"wordnet.py: {problem}")
