"""Metrics as a table for people."""

from collections.abc import Sequence

from .relations import LETTERS

NAMES = {letter: modality for modality, letter in LETTERS.items()}
# Columns of the recall table: heading, what the key ends with, and how a figure is written.
COLUMNS = (
    ("R@1", "_R@1", "{:.1%}"),
    ("R@5", "_R@5", "{:.1%}"),
    ("R@10", "_R@10", "{:.1%}"),
    ("MedR", "_median_rank", "{:.1f}"),
    ("mAP@R", "_mAP@R", "{:.1%}"),
)
REFERENCES = (("chance R@1", "{}_chance_R@1"), ("ceiling R@1", "ceiling_{}_R@1"))

LEVEL_NAMES = {
    "p2c": "phrase > caption", "c2i": "caption > image", "c2a": "caption > audio", "c2v": "caption > video",
}  # fmt: skip
CONTAINMENT = (
    ("AUROC", "containment_auroc_{}"),
    ("by cosine", "containment_auroc_cosine_{}"),
    ("hard AUROC", "containment_auroc_hard_{}"),
    ("by cosine", "containment_auroc_hard_cosine_{}"),
    ("AP", "containment_ap_{}"),
    ("ECE", "containment_ece_{}"),
    ("active", "containment_active_{}"),
)


def format_table(metrics: dict[str, float]) -> str:
    """Metrics as text: recall by direction beside chance and ceiling, containment by level, other figures of
    cones, and radii by kind, widest first.

    Args:
        metrics: as `compute_all` gives them, without prefix, with any others of the form `{name}_R@k`, and
            `ceiling_{name}_R@1`, what a perfect reader reaches. Others are not shown.

    Returns:
        lines without a final newline; recall in percent, radii in radians; sections without figures are left out.
    """
    sections = (_recall(metrics), _containment(metrics), _cones(metrics), _radii(metrics))
    return "\n\n".join(_align(section) for section in sections if len(section) > 1)


def _recall(metrics: dict[str, float]) -> list[list[str]]:
    names = [key.removesuffix("_R@1") for key in metrics if key.endswith("_R@1")]
    names = [name for name in names if not name.endswith("_chance") and not name.startswith("ceiling_")]
    columns = [(head, "{}" + end, style) for head, end, style in COLUMNS]
    columns += [(head, key, "{:.1%}") for head, key in REFERENCES]
    columns = [column for column in columns if any(column[1].format(name) in metrics for name in names)]
    rows = [[title(name), *(_figure(metrics, key.format(name), style) for _, key, style in columns)] for name in names]
    if "rsum" in metrics:
        rows.append(["rsum (of 6)", f"{metrics['rsum']:.3f}"])
    return [["retrieval", *(head for head, _, _ in columns)], *rows]


def _containment(metrics: dict[str, float]) -> list[list[str]]:
    levels = [name for name in LEVEL_NAMES if f"containment_auroc_{name}" in metrics]
    columns = [column for column in CONTAINMENT if any(column[1].format(name) in metrics for name in levels)]
    rows = [
        [LEVEL_NAMES[name], *(_figure(metrics, key.format(name), "{:.3f}") for _, key in columns)] for name in levels
    ]
    return [["containment", *(head for head, _ in columns)], *rows]


def _cones(metrics: dict[str, float]) -> list[list[str]]:
    by_level = {key.format(name) for _, key in CONTAINMENT for name in LEVEL_NAMES}
    keys = [key for key in metrics if key.startswith(("containment_", "transitivity_", "radius_specificity"))]
    return [["cones", ""], *([key, f"{metrics[key]:.3f}"] for key in keys if key not in by_level)]


def _radii(metrics: dict[str, float]) -> list[list[str]]:
    start = "radius_mean_"
    kinds = [key.removeprefix(start) for key in metrics if key.startswith(start)]
    kinds.sort(key=lambda kind: -metrics[start + kind])
    columns = ("mean", "std")
    rows = [[kind, *(_figure(metrics, f"radius_{what}_{kind}", "{:.3f}") for what in columns)] for kind in kinds]
    return [["radius (rad)", *columns], *rows]


def title(name: str) -> str:
    """What a figure is called: "text -> image" for `t2i`, else the name in words."""
    if len(name) == 3 and name[1] == "2" and name[0] in NAMES and name[2] in NAMES:
        return f"{NAMES[name[0]]} -> {NAMES[name[2]]}"
    return name.replace("_", " ")


def _figure(metrics: dict[str, float], key: str, style: str) -> str:
    return style.format(metrics[key]) if key in metrics else "-"


def _align(rows: Sequence[Sequence[str]]) -> str:
    """First column to the left, the others to the right, a rule below the heading."""
    widths = [max(len(row[i]) for row in rows if i < len(row)) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        figures = (cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=False))
        lines.append("  ".join([row[0].ljust(widths[0]), *figures]).rstrip())
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])
