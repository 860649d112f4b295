"""Composition on real data: what the compositional layer adds to the mean of its parts.

python benchmarks/composition.py --models runs/flickr8k_42 runs/flickr8k_43 runs/flickr8k_44 --dataset_name DIR \
    [--split test] [--max_samples N] [--output composition.json]

The models are trained CUEs (several seeds of one recipe); DIR is any data that `run_contrastive.py` reads. Queries are
put together from parts that are embedded one by one, and look for the image (or the caption) that they come from among
all of the split:

- phrases: the phrases of a caption, by the package's splitter, of every caption with at least two;
- captions: one to five captions of an image, each by another person;
- image + phrase: an image and a phrase of one of its captions, looking for that caption;
- sound + phrase: an image's spoken caption and a phrase of another caption, looking for the image.

Beside the compound stand the mean of the parts' axes, their geometric meet (one after the other), each part alone,
the whole caption, and the best part: of each query the one that happens to rank highest, which no method can choose.
Printed are R@1, R@5 and R@10 in percent, mean over the models and standard deviation; and how often a compound's cone
lies inside all its parts where these overlap.
"""

import argparse
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm
from transformers import AutoModel, AutoProcessor

import modeling_cue  # noqa: F401  (registers CUE with the Auto classes)
from modeling_cue.cones import Cone, containment_margin, meet
from modeling_cue.processing_parts import ARGUMENTS
from modeling_cue.training.data import load_rows
from modeling_cue.training.phrases import split_phrases

RECALL_AT = (1, 5, 10)
Ranks = dict[str, torch.Tensor]


@torch.no_grad()
def embed(model: Any, processor: Any, modality: str, values: Sequence[Any], batch: int = 64) -> Cone:
    """Cones (N,) of values of one modality, in their order."""
    name = ARGUMENTS[modality]
    # Texts of one length together: less padding.
    order = (
        sorted(range(len(values)), key=lambda i: len(values[i])) if modality == "text" else list(range(len(values)))
    )
    cones = []
    for start in tqdm(range(0, len(order), batch), desc=modality, leave=False):
        chosen = [values[i] for i in order[start : start + batch]]
        inputs = {key: value.to(model.device) for key, value in processor(**{name: chosen}).items()}
        cone = getattr(model, f"get_{modality}_cones")(**inputs)
        cones.append(Cone(cone.axis.cpu(), cone.radius.cpu()))
    found = Cone.cat(cones)
    return found[torch.tensor(order).argsort()]


def ranks(axis: torch.Tensor, items: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """The rank of each query's target among the items by cosine, from 1; what ties with it stands before it."""
    found = []
    for some, own in zip(axis.split(1024), target.split(1024), strict=True):
        scores = some @ items.T
        found.append((scores >= scores.gather(1, own[:, None])).sum(1))
    return torch.cat(found)


def folded_meet(parts: Cone, mask: torch.Tensor) -> Cone:
    """The meet of the parts (B, K), one after the other in their order."""
    result = parts[:, 0]
    for k in range(1, parts.radius.shape[1]):
        both, here = meet(result, parts[:, k]), mask[:, k]
        result = Cone(
            torch.where(here[:, None], both.axis, result.axis), torch.where(here, both.radius, result.radius)
        )
    return result


@torch.no_grad()
def compare(model: Any, parts: Cone, mask: torch.Tensor, items: Cone, target: torch.Tensor) -> tuple[Ranks, float]:
    """Ranks by every way of composing parts (B, K), and the share of compounds inside all parts that overlap."""
    found: dict[str, list[torch.Tensor]] = {"compound": [], "mean of axes": [], "meet": [], "best part": []}
    inside = together = 0
    for start in range(0, len(target), 512):
        here = slice(start, start + 512)
        some, here_mask, own = parts[here], mask[here], target[here]
        some_there = Cone(some.axis.to(model.device), some.radius.to(model.device))
        made = model.compose(some_there, here_mask.to(model.device))
        compound = Cone(made.axis.cpu(), made.radius.cpu(), made.empty.cpu())
        mean = torch.nn.functional.normalize((some.axis * here_mask[..., None]).sum(1), dim=-1)
        met = folded_meet(some, here_mask)
        for name, axis in (("compound", compound.axis), ("mean of axes", mean), ("meet", met.axis)):
            found[name].append(ranks(axis, items.axis, own))
        each = torch.stack(
            [ranks(some.axis[:, k], items.axis, own) for k in range(some.radius.shape[1])], dim=1
        ).masked_fill(~here_mask, len(items.radius) + 1)
        found["best part"].append(each.min(1).values)
        margin = containment_margin(some, Cone(compound.axis[:, None], compound.radius[:, None]))
        met_all = ~compound.empty
        inside += int(((margin >= -1e-6) | ~here_mask).all(1)[met_all].sum())
        together += int(met_all.sum())
    return {name: torch.cat(rows) for name, rows in found.items()}, inside / max(together, 1)


def padded(lines: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """(B, K) indices, 0 where there is none, and a mask."""
    width = max(map(len, lines))
    index = torch.tensor([[*line, *[-1] * (width - len(line))] for line in lines])
    return index.clamp(min=0), index >= 0


def measure(name: str, rows: Any) -> dict[str, dict[str, Any]]:
    """All tasks that the rows allow, by name: `recall` by way of composing, `inside`, `queries`, `items`."""
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    model, processor = AutoModel.from_pretrained(name).eval().to(device), AutoProcessor.from_pretrained(name)
    captions = [row["caption"] for row in rows]
    flat = [caption for line in captions for caption in line]
    image_of = torch.tensor([i for i, line in enumerate(captions) for _ in line])
    first = [0]
    for line in captions:
        first.append(first[-1] + len(line))
    phrases = [split_phrases(caption) for caption in flat]
    known = {phrase: place for place, phrase in enumerate(dict.fromkeys(p for line in phrases for p in line))}

    images = embed(model, processor, "image", [row["image"] for row in rows])
    texts = embed(model, processor, "text", flat)
    parts = embed(model, processor, "text", list(known))
    tasks: dict[str, dict[str, Any]] = {}

    def add(task: str, found: tuple[Ranks, float], items: Cone, **others: torch.Tensor) -> None:
        ways = found[0] | others
        tasks[task] = {
            "recall": {way: {str(k): (r <= k).double().mean().item() for k in RECALL_AT} for way, r in ways.items()},
            "inside": found[1], "queries": len(found[0]["compound"]), "items": len(items.radius),
        }  # fmt: skip

    chosen = [i for i, line in enumerate(phrases) if len(line) > 1]
    index, mask = padded([[known[p] for p in phrases[i]] for i in chosen])
    target = image_of[chosen]
    whole = ranks(texts.axis[chosen], images.axis, target)
    add("phrases", compare(model, parts[index], mask, images, target), images, **{"whole caption": whole})

    for count in range(1, min(map(len, captions)) + 1):
        # Every image once, its captions in their order, turned so that each stands first equally often.
        lines = [
            [first[i] + (i + k) % len(line) for k in range(count)] for i, line in enumerate(captions)
        ]  # fmt: skip
        index, mask = padded(lines)
        single = torch.stack(
            [ranks(texts.axis[index[:, k]], images.axis, torch.arange(len(rows))) for k in range(count)]
        )
        found = compare(model, texts[index], mask, images, torch.arange(len(rows)))
        add(f"{count} captions", found, images, **{"one caption": single.flatten()})

    # The phrase is the longest of its caption, so that it says something of it.
    longest = torch.tensor([known[max(phrases[i], key=len)] for i in chosen])
    both = Cone.stack([images[target], parts[longest]], dim=1)
    alone = {
        "image alone": ranks(images.axis[target], texts.axis, torch.tensor(chosen)),
        "phrase alone": ranks(parts.axis[longest], texts.axis, torch.tensor(chosen)),
    }
    found = compare(model, both, torch.ones(len(chosen), 2, dtype=torch.bool), texts, torch.tensor(chosen))
    add("image + phrase -> caption", found, texts, **alone)

    if "audio" in rows.column_names and "audio" in model.config.modalities:
        sounds = embed(model, processor, "audio", [row["audio"] for row in rows], batch=16)
        # The sound is the first caption read aloud: phrases of the others.
        pairs = [(i, c) for i, line in enumerate(captions) for c in range(first[i] + 1, first[i + 1])]
        sound_of = torch.tensor([i for i, _ in pairs])
        said = torch.tensor([known[max(phrases[c], key=len)] for _, c in pairs])
        both = Cone.stack([sounds[sound_of], parts[said]], dim=1)
        alone = {
            "sound alone": ranks(sounds.axis[sound_of], images.axis, sound_of),
            "phrase alone": ranks(parts.axis[said], images.axis, sound_of),
        }
        found = compare(model, both, torch.ones(len(pairs), 2, dtype=torch.bool), images, sound_of)
        add("sound + phrase", found, images, **alone)
    return tasks


def table(runs: Sequence[dict[str, dict[str, Any]]]) -> str:
    """Recall in percent, mean and standard deviation over the runs, as a Markdown table a task."""
    lines = []
    for task, first in runs[0].items():
        inside = statistics.mean(run[task]["inside"] for run in runs)
        title = "1 caption" if task == "1 captions" else task
        lines += [
            f"**{title}**: {first['queries']:,} queries, {first['items']:,} items; {inside:.1%} of the compounds of "
            "overlapping parts lie inside all of them",
            "",
            "| R@k, % | " + " | ".join(map(str, RECALL_AT)) + " |",
            "|---" * (len(RECALL_AT) + 1) + "|",
        ]
        for way in first["recall"]:
            cells = []
            for k in RECALL_AT:
                values = [100 * run[task]["recall"][way][str(k)] for run in runs]
                spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
                cells.append(f"{statistics.mean(values):.1f}{spread}")
            lines.append(f"| {way} | " + " | ".join(cells) + " |")
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", required=True)
    parser.add_argument("--dataset_name", required=True)
    parser.add_argument("--split", default="test")
    parser.add_argument("--max_samples", type=int)
    parser.add_argument("--output", type=Path, default=Path("runs/composition.json"))
    arguments = parser.parse_args()
    rows = load_rows(arguments.dataset_name, arguments.split, max_samples=arguments.max_samples)
    runs = [measure(name, rows) for name in tqdm(arguments.models, desc="models")]
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps({"models": arguments.models, "runs": runs}, indent=1))
    print(table(runs))
    print(f"results:  {arguments.output}")


if __name__ == "__main__":
    main()
