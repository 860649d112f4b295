"""Containment against hard negatives that a neural encoder finds, in place of the tf-idf of every evaluation.

pip install sentence-transformers
python benchmarks/hard_negatives.py --models runs/flickr8k_42 runs/flickr8k_43 runs/flickr8k_44 --dataset_name DIR \
    --encoder sentence-transformers/all-mpnet-base-v2 [--split test] [--max_samples N] [--output hard.json]

The encoder is any SentenceTransformer but the model under test. Of each phrase the ten wrong captions, and of each
caption the ten wrong images, that are nearest by it count as negatives; an image is as near as the nearest of its
captions. Printed are AUROCs of containment margins and of the cosine in percent, mean over the models and standard
deviation: all pairs against these in one ranking, where a phrase counts as often as it is said; and the mean over
distinct phrases, and over captions, of each one's own.
"""

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import AutoModel, AutoProcessor

import modeling_cue  # noqa: F401  (registers CUE with the Auto classes)
from modeling_cue.training.collator import CUECollator, row_phrases
from modeling_cue.training.data import load_rows
from modeling_cue.training.evaluation import embed_dataset
from modeling_cue.training.metrics_cones import level_counts
from modeling_cue.training.metrics_hard import VectorSimilarity
from modeling_cue.training.pairs import CaptionPairs
from modeling_cue.training.relations import LEVELS, MEDIA

TITLES = {"p2c": "phrase contains caption", "c2i": "caption contains image"}


def similarities(rows: Any, encoder: SentenceTransformer) -> dict[str, VectorSimilarity]:
    """By level, what the encoder takes for alike; texts in the order in which evaluation embeds them."""

    def encode(texts: list[str]) -> Tensor:
        vectors = encoder.encode(texts, convert_to_tensor=True, normalize_embeddings=True, show_progress_bar=True)
        return vectors.float().cpu()

    # Without what would be decoded row by row.
    rows = rows.remove_columns([name for name in MEDIA if name in rows.column_names])
    captions = encode([caption for row in rows for caption in row["caption"]])
    phrases = [phrase for row in rows for k in range(len(row["caption"])) for phrase in row_phrases(row, k)]
    distinct = list(dict.fromkeys(phrases))
    place = {phrase: number for number, phrase in enumerate(distinct)}
    image_of = torch.tensor([number for number, row in enumerate(rows) for _ in row["caption"]])
    vectors = encode(distinct)[[place[phrase] for phrase in phrases]]
    return {"p2c": VectorSimilarity(vectors, captions), "c2i": VectorSimilarity(captions, captions, image_of)}


def measure(name: str, rows: Any, similarity: dict[str, VectorSimilarity]) -> dict[str, dict[str, float]]:
    """AUROCs in [0, 1] by level."""
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    model, processor = AutoModel.from_pretrained(name).eval().to(device), AutoProcessor.from_pretrained(name)
    collator = CUECollator(processor, model.config.modalities, None)
    loader = DataLoader(CaptionPairs(rows, every_caption=True), batch_size=50, collate_fn=collator)
    embedded = embed_dataset(model, loader, device)
    found = {}
    for level in LEVELS:
        if level.name not in similarity:
            continue
        counts = level_counts(embedded[level.outer], embedded[level.inner], level, similarity[level.name])
        each = counts.concepts.metrics(level.name)
        alone = f"containment_concepts_query_hard{{}}_{level.name}"
        found[level.name] = {
            "hard": counts.hard_margins.auroc(), "hard by cosine": counts.hard_cosines.auroc(),
            "each by itself, hard": each[alone.format("")],
            "each by itself, hard, by cosine": each[alone.format("_cosine")],
        }  # fmt: skip
    return found


def table(runs: list[dict[str, dict[str, float]]]) -> str:
    """Markdown of the runs, one for each seed."""
    head = ["AUROC, %", *runs[0]["c2i"]]
    lines = [" | ".join(["", *head, ""]).strip(), "|---" * len(head) + "|"]
    for level, title in TITLES.items():
        cells = []
        for key in runs[0][level]:
            values = [100 * run[level][key] for run in runs]
            spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.1f}{spread}")
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", required=True)
    parser.add_argument("--dataset_name", required=True)
    parser.add_argument("--encoder", required=True)
    parser.add_argument("--split", default="test")
    parser.add_argument("--max_samples", type=int)
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    rows = load_rows(given.dataset_name, given.split, max_samples=given.max_samples)
    similarity = similarities(rows, SentenceTransformer(given.encoder))
    runs = [measure(name, rows, similarity) for name in given.models]
    print(table(runs))
    if given.output:
        given.output.write_text(json.dumps({"models": given.models, "encoder": given.encoder, "runs": runs}, indent=1))
        print(f"results:  {given.output}")


if __name__ == "__main__":
    main()
