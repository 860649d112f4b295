"""Draws the figures of docs/results.md from a trained model and the photographs that it was not trained on.

python docs/draw_results.py --model runs/flickr8k_42 --dataset_name DIR --composition runs/composition.json \
    [--towers docs/towers.json] [--split test] [--id_column filename] [--max_samples N] [--output docs]

Colours are those of Okabe and Ito, which people of every colour vision can tell apart. No photograph or caption of the
data is shown: their file names are, and the queries are written here.
"""

import argparse
import json
import statistics
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import AutoModel, AutoProcessor

import modeling_cue  # noqa: F401  (registers CUE with the Auto classes)
from modeling_cue.cones import pairwise_angle
from modeling_cue.training.collator import CUECollator
from modeling_cue.training.data import load_rows
from modeling_cue.training.evaluation import embed_dataset
from modeling_cue.training.metrics_calibration import BINS, calibration_metrics, reliability
from modeling_cue.training.metrics_cones import distinct_phrases, level_counts, true_of
from modeling_cue.training.pairs import CaptionPairs
from modeling_cue.training.phrases import hash_id, words
from modeling_cue.training.relations import LEVELS, UNKNOWN, Embedded, relation

ORANGE, GREEN, BLUE, RED, PURPLE = "#E69F00", "#009E73", "#0072B2", "#D55E00", "#CC79A7"
COLOURS = {"phrase": ORANGE, "text": BLUE, "image": GREEN, "audio": PURPLE}
NAMES = {"phrase": "phrases", "text": "captions", "image": "images", "audio": "sounds"}
QUERIES = (
    "a dog running through shallow water", "a man climbing a rock face", "children playing football",
    "a person riding a bicycle down a hill", "two dogs fighting over a ball", "a woman in a red coat on the street",
)  # fmt: skip
MOST_SHOWN = 200  # marks of one kind in a map
CONCEPTS = ("a dog", "a black dog", "a child", "a bicycle", "water", "a red shirt")


def radii(embedded: dict[str, Embedded]) -> Figure:
    """Histograms of radii by kind, and of phrases by how many captions they are true of."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    for kind, colour in COLOURS.items():
        if kind in embedded:
            values = embedded[kind].cone.radius.numpy()
            left.hist(
                values, bins=60, density=True, histtype="stepfilled", alpha=0.45, color=colour, label=NAMES[kind]
            )
    left.set(xlabel="radius (rad)", ylabel="density (log scale)", yscale="log", title="Radius by kind")
    left.legend(frameon=False)
    phrases = distinct_phrases(embedded["phrase"])
    count, radius = true_of(phrases, [embedded["text"]]).numpy(), phrases.cone.radius.numpy()
    edges = [1, 2, 3, 5, 10, 20, 50, 100, 10**9]
    groups = [radius[(count >= low) & (count < high)] for low, high in pairwise(edges)]
    names = [str(low) if high == low + 1 else f"{low}-{high - 1}" for low, high in pairwise(edges)]
    names[-1] = "100+"
    kept = [(name, group) for name, group in zip(names, groups, strict=True) if len(group)]
    labels = [f"{name}\n({len(group):,})" for name, group in kept]
    right.boxplot([group for _, group in kept], tick_labels=labels, showfliers=False, medianprops={"color": RED})
    right.set(xlabel="images that the phrase is true of (number of phrases)", ylabel="radius (rad)",
              title="Radius of phrases by generality")  # fmt: skip
    return figure


def calibration(embedded: dict[str, Embedded], scale: float, bias: float) -> Figure:
    """Reliability curves of the probability of containment."""
    figure, axes = plt.subplots(figsize=(4.6, 4.2), layout="constrained")
    axes.plot([0, 1], [0, 1], color="0.6", linestyle="--", label="perfect")
    titles = {"p2c": "phrase contains caption", "c2i": "caption contains image"}
    for level, colour, marker in zip(LEVELS, (ORANGE, GREEN), "os", strict=False):
        counts = level_counts(embedded[level.outer], embedded[level.inner], level).margins
        curve = reliability(counts, scale, bias).numpy()
        ece = calibration_metrics("x", counts, scale, bias)["containment_ece_x"]
        axes.plot(curve[:, 1], curve[:, 2], marker=marker, color=colour, label=f"{titles[level.name]} (ECE {ece:.3f})")
    axes.set(xlabel=f"probability of containment, {BINS} intervals", ylabel="share of true pairs", xlim=(0, 1),
             ylim=(0, 1), title="Reliability, true and false pairs of equal mass")  # fmt: skip
    axes.legend(frameon=False)
    return figure


def composed(runs: list[dict[str, Any]]) -> Figure:
    """Recall of compounds by the number of captions composed."""
    figure, axes = plt.subplots(figsize=(5.2, 4), layout="constrained")
    counts = sorted(int(task.split()[0]) for task in runs[0] if task.endswith(" captions"))
    styles = (("compound", BLUE, "o"), ("mean of axes", ORANGE, "s"), ("meet", PURPLE, "^"), ("best part", "0.5", "x"))
    for way, colour, marker in styles:
        values = np.array([[100 * run[f"{n} captions"]["recall"][way]["1"] for run in runs] for n in counts])
        spread = values.std(1, ddof=1) if len(runs) > 1 else None
        label = "best part (chosen by the answer)" if way == "best part" else way
        axes.errorbar(counts, values.mean(1), spread, color=colour, marker=marker, capsize=3, label=label)
    axes.set(xlabel="captions of one image, each by another person", ylabel="R@1 (%)", xticks=counts,
             title="Composing captions to find their image")  # fmt: skip
    axes.legend(frameon=False)
    return figure


def towers(runs: list[dict[str, Any]]) -> Figure:
    """Loss of training and recall on validation by epoch, of recipes that train the towers too and that do not."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
    for run, colour, style in zip(runs, (BLUE, GREEN, ORANGE, PURPLE, RED), ("-", "--", ":", "-", "--"), strict=False):
        left.plot(*zip(*run["loss"], strict=True), style, color=colour, label=run["recipe"])
        epochs = [line[0] for line in run["validation"]]
        right.plot(epochs, [line[7] for line in run["validation"]], f"o{style}", color=colour, label=run["recipe"])
    left.set(xlabel="epoch", ylabel="InfoNCE of training (nats)", yscale="log")
    left.yaxis.set_major_formatter("{x:g}")
    left.yaxis.set_minor_formatter("{x:g}")
    right.set(xlabel="epoch", ylabel="rsum on validation (of 6)")
    right.legend(frameon=False, fontsize=8)
    return figure


def concepts(model: Any, processor: Any, embedded: dict[str, Embedded]) -> Figure:
    """The sphere as seen from the axis of a phrase, for a handful of phrases, with what their cones contain.

    Azimuthal equidistant maps: the angle between the phrase's axis and an item's is true to scale, as the distance
    from the centre. Of all the other directions of the space only one angle can be shown, that in the plane in which
    the items that are truly meant spread most.
    """
    with torch.no_grad():
        cones = model.get_text_cones(**processor(text=list(CONCEPTS)))
    figure, panels = plt.subplots(2, 3, figsize=(11, 8.4), layout="constrained", subplot_kw={"projection": "polar"})
    kinds = [(kind, marker) for kind, marker in (("text", "o"), ("image", "^")) if kind in embedded]
    for concept, cone, panel in zip(CONCEPTS, cones, panels.flat, strict=True):
        said = torch.tensor([hash_id(word) for word in words(concept)])
        true = {kind: (embedded[kind].words[:, :, None] == said).any(1).all(1) for kind, _ in kinds}
        shown = [embedded[kind].cone.axis[true[kind]] for kind, _ in kinds]
        if sum(map(len, shown)) < 2:  # no spread: that of all items
            shown = [embedded[kind].cone.axis for kind, _ in kinds]
        plane = _spread(cone.axis, torch.cat(shown))
        told = []
        for kind, marker in kinds:
            items, truth = embedded[kind].cone, true[kind]
            angle = pairwise_angle(cone.axis[None], items.axis)[0]
            inside = cone.radius - items.radius >= angle
            shares = [f"{int((inside & side).sum())} of {int(side.sum())}" for side in (truth, ~truth)]
            told.append(f"{NAMES[kind]}: {shares[0]} that say so, {shares[1]} others")
            azimuth = torch.atan2(*(items.axis @ plane).T.flip(0))
            for sort, colour, size in ((~truth, "0.75", 5), (truth, COLOURS[kind], 14)):
                for held, fill in ((False, "none"), (True, colour)):
                    chosen = (sort & (inside == held)).nonzero()[:MOST_SHOWN, 0]
                    panel.scatter(
                        azimuth[chosen], angle[chosen], size, marker=marker, edgecolors=colour, facecolors=fill,
                        linewidths=0.6,
                    )  # fmt: skip
        circle = np.linspace(0, 2 * np.pi, 200)
        panel.plot(circle, np.full(200, float(cone.radius)), color=RED, linewidth=1.5)
        panel.set(ylim=(0, np.pi), xticklabels=[], yticks=[np.pi / 4, np.pi / 2, 3 * np.pi / 4, np.pi])
        panel.set_yticklabels(["45°", "90°", "135°", ""], fontsize=7)
        panel.set_title("\n".join([f'"{concept}" contains', *told]), fontsize=9)
    marks = [
        panels[0, 0].scatter([], [], 14, COLOURS[kind], marker=marker, label=NAMES[kind] + " that say so")
        for kind, marker in kinds
    ]
    marks.append(panels[0, 0].scatter([], [], 14, "0.75", label="others"))
    marks.append(panels[0, 0].scatter([], [], 14, edgecolors="0.4", facecolors="none", label="hollow: not contained"))
    figure.suptitle(f"Of each sort of mark at most {MOST_SHOWN} are drawn", fontsize=9)
    marks += panels[0, 0].plot([], [], color=RED, label="radius of the phrase")
    figure.legend(handles=marks, loc="outside lower center", ncols=5, frameon=False, fontsize=9)
    return figure


def _spread(axis: Tensor, items: Tensor) -> Tensor:
    """(D, 2) two directions at right angles to an axis, in which the items spread most."""
    tangent = items - (items @ axis)[:, None] * axis
    return torch.linalg.svd(tangent, full_matrices=False).Vh[:2].T


def median_angles(embedded: dict[str, Embedded]) -> list[str]:
    """The median angle between the axes of true and of false pairs, for each two kinds that are nested."""
    phrases = embedded["phrase"]
    some = embedded | {"phrase": phrases[torch.arange(0, len(phrases), 10)]}
    lines = []
    for outer, inner, same in (("phrase", "text", UNKNOWN), ("text", "image", 1), ("phrase", "image", UNKNOWN)):
        truth = relation(some[outer], some[inner], same)
        angle = torch.rad2deg(pairwise_angle(some[outer].cone.axis, some[inner].cone.axis))
        true, false = (float(angle[truth == value].median()) for value in (1, 0))
        lines.append(f"{NAMES[outer]} - {NAMES[inner]}: true {true:.0f}°, false {false:.0f}°")
    return lines


def contact_sheet(model: Any, processor: Any, images: Embedded, names: list[str]) -> Figure:
    """The file names of the best five images of each query, with cosine, and the query's words in their captions."""
    with torch.no_grad():
        cones = model.get_text_cones(**processor(text=list(QUERIES)))
    similarity = cones.axis @ images.cone.axis.T
    cells, fills = [], []
    for query, row in zip(QUERIES, similarity, strict=True):
        asked = torch.tensor([hash_id(word) for word in words(query)])
        best = row.topk(5).indices.tolist()
        said = [int(torch.isin(asked, images.words[i]).sum()) for i in best]
        cells.append(
            [f"{names[i]}\ncosine {row[i]:.2f}, {n} of {len(asked)} words" for i, n in zip(best, said, strict=True)]
        )
        fills.append(["#D6EAF8" if n == len(asked) else "white" for n in said])
    figure, axes = plt.subplots(figsize=(14, 4.4), layout="constrained")
    axes.axis("off")
    rows, columns = [f'"{query}"' for query in QUERIES], [f"rank {k}" for k in range(1, 6)]
    table = axes.table(
        cells, cellColours=fills, rowLabels=rows, colLabels=columns, loc="center", cellLoc="center"
    )  # fmt: skip
    table.auto_set_font_size(False)
    table.set_fontsize(8)
    table.scale(1, 2.6)
    axes.set_title(
        "Best photographs by file name, and how many of the query's words people used in their captions (blue: all)",
        fontsize=11,
    )
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--dataset_name", required=True)
    parser.add_argument("--composition", type=Path, required=True)
    parser.add_argument("--towers", type=Path, default=Path("docs/towers.json"))
    parser.add_argument("--split", default="test")
    parser.add_argument("--id_column", default="filename", help="the names that the contact sheet shows")
    parser.add_argument("--max_samples", type=int)
    parser.add_argument("--output", type=Path, default=Path("docs"))
    arguments = parser.parse_args()
    model, processor = (
        AutoModel.from_pretrained(arguments.model).eval(),
        AutoProcessor.from_pretrained(arguments.model),
    )
    names = arguments.id_column
    rows = load_rows(arguments.dataset_name, arguments.split, max_samples=arguments.max_samples, id_column=names)
    collator = CUECollator(processor, model.config.modalities, None)
    loader = DataLoader(CaptionPairs(rows, every_caption=True), batch_size=50, collate_fn=collator)
    embedded = embed_dataset(model, loader, torch.device("cpu"))
    with torch.no_grad():
        _, scale, bias = (float(value) for value in model.scales())
    runs = json.loads(arguments.composition.read_text())["runs"]
    figures = {
        "results_radius": radii(embedded),
        "results_calibration": calibration(embedded, scale, bias),
        "results_composition": composed(runs),
        "results_towers": towers(json.loads(arguments.towers.read_text())),
        "results_concepts": concepts(model, processor, embedded),
        "results_retrieval": contact_sheet(model, processor, embedded["image"], list(rows["id"])),
    }
    arguments.output.mkdir(parents=True, exist_ok=True)
    for name, figure in figures.items():
        path = arguments.output / f"{name}.png"
        figure.savefig(path, dpi=110, pil_kwargs={"optimize": True})
        print(f"figure:   {path}")
    print("median angles:", *median_angles(embedded), sep="\n  ")
    print(f"median radius of images: {statistics.median(embedded['image'].cone.radius.tolist()):.3f} rad")


if __name__ == "__main__":
    main()
