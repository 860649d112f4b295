"""Tables of docs/results.md: figures of several runs as mean and standard deviation."""

import json
import statistics
from collections.abc import Sequence
from pathlib import Path

LEVELS = {"p2c": "phrase contains caption", "c2i": "caption contains image", "c2a": "caption contains sound"}
KINDS = {"phrase": "phrases", "text": "captions", "image": "images", "audio": "sounds", "video": "clips"}
# By ranking: the metrics of cones, of the cosine, and of radii alone.
RANKINGS = {
    ", as often as it is said": ("auroc", "auroc_cosine", ""),
    ", the same, hard": ("auroc_hard", "auroc_hard_cosine", ""),
    ", each distinct one once": ("concepts_all", "concepts_all_cosine", "concepts_all_radius"),
    ", each by itself, mean": ("concepts_query", "concepts_query_cosine", ""),
    ", each by itself, hard, mean": ("concepts_query_hard", "concepts_query_hard_cosine", ""),
}
WAYS = {"t": "text", "i": "image", "a": "sound", "v": "clip"}

Runs = list[dict[str, float]]


def read(folders: Sequence[str]) -> Runs:
    """The metrics of the test split of each run, without their prefix."""
    found = []
    for folder in folders:
        metrics = json.loads((Path(folder) / "all_results.json").read_text())
        found.append({key.removeprefix("test_"): value for key, value in metrics.items() if key.startswith("test_")})
    return found


def cell(runs: Runs, key: str, factor: float = 100, digits: int = 1) -> str:
    """Mean ± standard deviation over the runs; a dash where the figure does not exist."""
    values = [factor * run[key] for run in runs if key in run]
    if not values:
        return "-"
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{spread}"


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def retrieval(runs: Runs, ways: Sequence[str], **names: str) -> str:
    rows = []
    called = WAYS | names
    for way in ways:
        figures = [cell(runs, f"{way}_R@{k}") for k in (1, 5, 10)]
        chance = " / ".join(f"{100 * runs[0][f'{way}_chance_R@{k}']:.1f}" for k in (1, 5, 10))
        rows.append([f"{called[way[0]]} -> {called[way[2]]}", *figures, cell(runs, f"{way}_median_rank", 1), chance])
    return markdown(["%", "R@1", "R@5", "R@10", "median rank", "chance R@1 / 5 / 10"], rows)


def containment(runs: Runs) -> str:
    """By level: cones beside the cosine and radii alone, in every ranking; calibration; both levels in one ranking."""
    levels = [level for level in LEVELS if f"containment_auroc_{level}" in runs[0]]
    rows = []
    for level in levels:
        for ranking, (cones, cosine, radius) in RANKINGS.items():
            key, plain = f"containment_{cones}_{level}", f"containment_{cosine}_{level}"
            if key not in runs[0]:
                continue
            gain = [{"gain": run[key] - run[plain]} for run in runs]
            alone = cell(runs, f"containment_{radius}_{level}") if radius else ""
            rows.append([f"{LEVELS[level]}{ranking}", cell(runs, key), cell(runs, plain), alone, cell(gain, "gain")])
    head = ["AUROC, %", "cones", "cosine", "radii alone", "cones - cosine"]
    names = ("ap", "ece", "active")
    others = [
        [
            LEVELS[level],
            *(cell(runs, f"containment_{name}_{level}", digits=2 if name == "ece" else 1) for name in names),
        ]
        for level in levels
    ]
    pooled = [
        ["cones", cell(runs, "containment_pooled_auroc")],
        ["cosine and the best constant radius of each kind", cell(runs, "containment_pooled_auroc_constant_radius")],
        ["cosine", cell(runs, "containment_pooled_auroc_cosine")],
    ]
    return "\n\n".join(
        [
            markdown(head, rows),
            markdown(["%", "average precision", "calibration error", "still active"], others),
            markdown(["both levels in one ranking, %", "AUROC"], pooled),
        ]
    )


def radii(runs: Runs) -> str:
    rows = [
        [name, cell(runs, f"radius_mean_{kind}", 1, 3), cell(runs, f"radius_std_{kind}", 1, 3)]
        for kind, name in KINDS.items()
        if f"radius_mean_{kind}" in runs[0]
    ]
    rest = (
        f"Spearman of a phrase's radius with the log of how many samples it is true of: "
        f"{cell(runs, 'radius_specificity_spearman', 1, 2)}. Of the truly nested triples of phrase, caption, image, "
        f"{cell(runs, 'transitivity_chains')} % are nested at both steps; of these the phrase does not contain the "
        f"image in {cell(runs, 'transitivity_violations')} %."
    )
    if "transitivity_false_pairs" in runs[0]:
        rest += f" Of the false pairs of phrase and image, {cell(runs, 'transitivity_false_pairs')} % are nested too."
    return markdown(["radius (rad)", "mean", "standard deviation within the kind"], rows) + "\n\n" + rest
