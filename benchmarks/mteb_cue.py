"""CUE in mteb, which compares embedding models: image-text retrieval and text tasks.

python benchmarks/mteb_cue.py MODEL [--tasks Flickr30kI2TRetrieval Flickr30kT2IRetrieval STSBenchmark]
python benchmarks/mteb_cue.py MODEL --dataset_name DIR [--split test] [--max_samples N]

MODEL is a trained CUE, by Hub name or local folder. The first command runs tasks of mteb, which loads their data from
the Hub. The second makes tasks of the same types from any data with captions that `run_contrastive.py` reads, offline:
image to captions, captions to image, and each image's first caption to its others. Beside mteb's hit rates it prints
the recall of CUE's own evaluation. Needs `pip install cue-embedder[mteb]`.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mteb
import torch
from datasets import Dataset, Features, Image, Value
from mteb.abstasks.retrieval import AbsTaskRetrieval
from mteb.models import SentenceTransformerEncoderWrapper
from mteb.tasks.retrieval import Flickr30kI2TRetrieval, Flickr30kT2IRetrieval, NFCorpus
from sentence_transformers import SentenceTransformer

from modeling_cue.training.data import load_rows
from modeling_cue.training.metrics_retrieval import RECALL_AT, retrieval_ranks, summarise_ranks

TASKS = ("Flickr30kI2TRetrieval", "Flickr30kT2IRetrieval", "STSBenchmark")


class CUEEncoder(SentenceTransformerEncoderWrapper):
    """A CUE as mteb runs models: text, images, audio and video by their axes, compared by cosine.

    Args:
        model: Hub name or local folder of a CUE.
        revision, device, options: as of SentenceTransformer.
    """

    def __init__(self, model: str, revision: str | None = None, device: str | None = None, **options: Any):
        super().__init__(
            SentenceTransformer(model, revision=revision, device=device, trust_remote_code=True, **options)
        )
        # mteb names models "organization/name"; and takes a model for one of texts only unless it is told more.
        name = f"local/{Path(model).resolve().name}" if Path(model).is_dir() else model
        known = {"name": name, "revision": revision, "modalities": self.model.modalities}
        self.mteb_model_meta = self.mteb_model_meta.model_copy(update=known)


def local_tasks(rows: Sequence[dict[str, Any]]) -> list[AbsTaskRetrieval]:
    """Three retrieval tasks from rows with `image` and `caption` (a list): `LocalI2T`, `LocalT2I`, `LocalT2T`.

    The first two have the types, modalities and scores of mteb's Flickr30k tasks. Row n is the image "n", its k-th
    caption is "n-k".
    """
    features = Features({"id": Value("string"), "image": Image()})
    images = Dataset.from_list([{"id": str(n), "image": row["image"]} for n, row in enumerate(rows)], features)
    captions = [
        (n, {"id": f"{n}-{k}", "text": text}) for n, row in enumerate(rows) for k, text in enumerate(row["caption"])
    ]
    texts = Dataset.from_list([caption for _, caption in captions])
    first = [caption for _, caption in captions if caption["id"].endswith("-0")]
    others = [caption for _, caption in captions if not caption["id"].endswith("-0")]
    of_image: dict[str, dict[str, int]] = {str(n): {} for n in range(len(rows))}
    of_first: dict[str, dict[str, int]] = {caption["id"]: {} for caption in first}
    for n, caption in captions:
        of_image[str(n)][caption["id"]] = 1
        if not caption["id"].endswith("-0"):
            of_first[f"{n}-0"][caption["id"]] = 1
    to_image = {caption["id"]: {str(n): 1} for n, caption in captions}
    return [
        _task("LocalI2T", Flickr30kI2TRetrieval, images, texts, of_image),
        _task("LocalT2I", Flickr30kT2IRetrieval, texts, images, to_image),
        _task("LocalT2T", NFCorpus, Dataset.from_list(first), Dataset.from_list(others), of_first),
    ]


def _task(
    name: str, like: type[AbsTaskRetrieval], queries: Dataset, corpus: Dataset, relevant: dict[str, dict[str, int]]
) -> AbsTaskRetrieval:
    source = {"path": f"local/{name}", "revision": "local"}
    metadata = like.metadata.model_copy(update={"name": name, "dataset": source, "prompt": None})
    task: AbsTaskRetrieval = type(name, (like,), {"metadata": metadata})()
    split = {"queries": queries, "corpus": corpus, "relevant_docs": relevant, "top_ranked": None}
    task.dataset = {"default": {"test": split}}
    task.data_loaded = True
    return task


def scores(
    encoder: CUEEncoder, tasks: Sequence[AbsTaskRetrieval], **encode_kwargs: Any
) -> dict[str, dict[str, float]]:
    """mteb's scores by task, of the split test: among them `main_score`, and for retrieval `hit_rate_at_{k}`."""
    result = mteb.evaluate(encoder, tasks, cache=None, encode_kwargs=encode_kwargs, show_progress_bar=False)
    return {task.task_name: task.scores["test"][0] for task in result.task_results}


def own_recall(encoder: CUEEncoder, rows: Sequence[dict[str, Any]]) -> dict[str, dict[int, float]]:
    """Recall at 1, 5 and 10, fractions, of the same three tasks by the metrics of CUE's own training."""
    model, processor = encoder.model[0].model, encoder.model[0].processor
    texts = [text for row in rows for text in row["caption"]]
    text = _embed(model, processor, "text", "text", texts)
    image = _embed(model, processor, "image", "images", [row["image"] for row in rows])
    text_ids = torch.tensor([n for n, row in enumerate(rows) for _ in row["caption"]])
    image_ids = torch.arange(len(rows))
    is_first = torch.tensor([k == 0 for row in rows for k in range(len(row["caption"]))])
    i2t, t2i = retrieval_ranks(image, text, image_ids, text_ids)
    t2t, _ = retrieval_ranks(text[is_first], text[~is_first], text_ids[is_first], text_ids[~is_first])
    found = {"LocalI2T": i2t, "LocalT2I": t2i, "LocalT2T": t2t}
    summaries = {name: summarise_ranks(name, ranks) for name, ranks in found.items()}
    return {name: {k: summary[f"{name}_R@{k}"] for k in RECALL_AT} for name, summary in summaries.items()}


@torch.no_grad()
def _embed(model: Any, processor: Any, modality: str, argument: str, values: list[Any]) -> torch.Tensor:
    axes = []
    for start in range(0, len(values), 64):
        inputs = processor(**{argument: values[start : start + 64]}).to(model.device)
        axes.append(getattr(model, f"get_{modality}_features")(**inputs).cpu())
    return torch.cat(axes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--tasks", nargs="+", default=TASKS)
    parser.add_argument("--dataset_name", help="local tasks in place of mteb's")
    parser.add_argument("--split", default="test")
    parser.add_argument("--max_samples", type=int)
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--output", type=Path, help="all scores, as JSON")
    arguments = parser.parse_args()
    encoder = CUEEncoder(arguments.model)
    recall: dict[str, dict[int, float]] = {}
    if arguments.dataset_name:
        rows = list(load_rows(arguments.dataset_name, arguments.split, max_samples=arguments.max_samples))
        tasks, recall = local_tasks(rows), own_recall(encoder, rows)
    else:
        tasks = list(mteb.get_tasks(tasks=list(arguments.tasks)))
    found = scores(encoder, tasks, batch_size=arguments.batch_size)
    for name, values in found.items():
        cells = [f"main score {values['main_score']:.5f}"]
        for k in RECALL_AT if f"hit_rate_at_{RECALL_AT[0]}" in values else ():
            own = f" (own {recall[name][k]:.5f})" if name in recall else ""
            cells.append(f"R@{k} {values[f'hit_rate_at_{k}']:.5f}{own}")
        print(f"{name}: " + ", ".join(cells))
    if arguments.output:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(json.dumps({"scores": found, "own_recall": recall}, indent=1))


if __name__ == "__main__":
    main()
