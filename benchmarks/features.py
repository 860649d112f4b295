"""Frozen towers: a training step from cached features beside one that runs the towers, and what filling costs.

python benchmarks/features.py [--rows 512] [--captions 5] [--batch 32] [--rounds 5] [--steps 20] [--threads 1]
                              [--size small] [--losses all]

A ViT and a BERT, built here, stay frozen; heads are trained by contrast, containment and composition, or by contrast
alone, which is what other contrastive trainers do. Rows are
procedural images of 256 pixels (JPEG, decoded and prepared in every step that runs the towers) with captions of words
drawn here. A step is everything: rows to a batch, forward, backward, AdamW. In each round both kinds of step are timed
in turns, as is filling a cache anew and an epoch of (image, caption) pairs with the towers running, which is the
number of its steps times what a step takes. Printed are the median (smallest, largest) of each and of the ratios.
"""

import argparse
import io
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import transformers as hf
from datasets import Dataset, Features, List, Value
from datasets import Image as ImageFeature
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from modeling_cue import CUEConfig, CUEModel, CUEProcessor
from modeling_cue.training.collator import CUECollator, row_phrases
from modeling_cue.training.evaluation import embedded_kinds
from modeling_cue.training.feature_filling import FeatureCache
from modeling_cue.training.features import FeatureStore
from modeling_cue.training.losses import LossWeights, compute_losses, total_loss
from modeling_cue.training.pairs import CaptionPairs

SIZES = {
    "small": {"hidden_size": 192, "intermediate_size": 768, "num_hidden_layers": 6, "num_attention_heads": 3},
    "base": {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12},
}
COLOURS, THINGS = "red green blue black white brown".split(), "dog cat man woman horse bird car boat ball tree".split()
VERBS, PLACES = "runs jumps sits waits plays sleeps".split(), "street field beach garden river house park road".split()


def make_rows(count: int, captions: int) -> Dataset:
    rng = np.random.default_rng(0)

    def photo() -> dict:
        small = Image.fromarray(rng.integers(0, 255, (16, 16, 3), dtype=np.uint8))
        buffer = io.BytesIO()
        small.resize((256, 256)).save(buffer, "JPEG")
        return {"bytes": buffer.getvalue(), "path": None}

    def caption() -> str:
        colour, thing, verb, place = (str(rng.choice(words)) for words in (COLOURS, THINGS, VERBS, PLACES))
        return f"a {colour} {thing} {verb} in the {rng.choice(COLOURS)} {place} with a {rng.choice(THINGS)}"

    columns = {
        "id": [str(i) for i in range(count)],
        "caption": [[caption() for _ in range(captions)] for _ in range(count)],
        "image": [photo() for _ in range(count)],
    }
    features = {"id": Value("string"), "caption": List(Value("string"))}
    file = {"bytes": Value("binary"), "path": Value("string")}
    rows = Dataset.from_dict(columns, features=Features(features | {"image": file}))
    return rows.cast(Features(features | {"image": ImageFeature(decode=False)}))


def make_model(size: str, vocabulary: int) -> CUEModel:
    torch.manual_seed(0)
    config = CUEConfig(
        text_config=SIZES[size] | {"model_type": "bert", "vocab_size": vocabulary},
        image_config=SIZES[size] | {"model_type": "vit", "image_size": 224, "patch_size": 16},
        projection_dim=256,
    )
    model = CUEModel(config).train()
    model.freeze(["text", "image"])
    return model


def make_processor() -> CUEProcessor:
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = ["a", "the", "in", "with", *COLOURS, *THINGS, *VERBS, *PLACES]
    vocabulary = {word: i for i, word in enumerate([*special, *words])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    core.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[(token, vocabulary[token]) for token in ("[CLS]", "[SEP]")]
    )
    tokenizer = hf.PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
        mask_token="[MASK]", model_max_length=64,
    )  # fmt: skip
    return CUEProcessor(tokenizer=tokenizer, image_processor=hf.ViTImageProcessor())


class Training:
    """Steps of heads over one kind of batch."""

    def __init__(self, model: CUEModel, collator: CUECollator, pairs: CaptionPairs, batch: int, weights: LossWeights):
        self.model, self.collator, self.pairs, self.batch, self.weights = model, collator, pairs, batch, weights
        self.optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4, fused=True)
        self.drawn = np.random.default_rng(0)

    def step(self) -> float:
        start = time.perf_counter()
        chosen = self.drawn.choice(len(self.pairs), self.batch, replace=False)
        batch = self.collator([self.pairs[int(i)] for i in chosen])
        output = self.model(**batch["model"])
        scalars = (output.logit_scale, output.containment_scale, output.containment_bias)
        terms = compute_losses(embedded_kinds(output, batch), *scalars, self.weights)
        total_loss(terms, self.weights).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return time.perf_counter() - start


def show(name: str, values: list[float], unit: str) -> None:
    middle = statistics.median(values)
    print(f"{name:58}{middle:10.4g} {unit:2} ({min(values):.4g}, {max(values):.4g})", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    numbers = (("rows", 512), ("captions", 5), ("batch", 32), ("rounds", 5), ("steps", 20), ("threads", 1))
    for name, default in numbers:
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--size", choices=SIZES, default="small", help="6 layers of width 192, or 12 of 768")
    parser.add_argument("--losses", choices=("all", "contrast"), default="all")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    rows, processor = make_rows(arguments.rows, arguments.captions), make_processor()
    model = make_model(arguments.size, len(processor.tokenizer))
    texts = [caption for row in rows for caption in row["caption"]]
    if arguments.losses == "all":
        texts += [phrase for row in rows for k in range(arguments.captions) for phrase in row_phrases(row, k)]
    weights = LossWeights() if arguments.losses == "all" else LossWeights(1.0, 0.0, 0.0)
    model.composition.requires_grad_(arguments.losses == "all")

    def collator(store: FeatureStore | None) -> CUECollator:
        every = arguments.losses == "all"
        return CUECollator(processor, modalities, 2 if every else 0, store, compounds=every)

    pairs, modalities = CaptionPairs(rows), model.config.modalities
    per_epoch = len(pairs) / arguments.batch
    found: dict[str, list[float]] = {name: [] for name in ("towers", "cached", "fill", "reuse")}
    with tempfile.TemporaryDirectory() as folder:
        store = FeatureCache(model, processor, Path(folder) / "first").store(rows, texts)
        bare = CaptionPairs(rows.remove_columns("image"))
        towers = Training(model, collator(None), pairs, arguments.batch, weights)
        cached = Training(model, collator(store), bare, arguments.batch, weights)
        towers.step(), cached.step()
        for number in range(arguments.rounds):
            found["towers"].append(towers.step())
            found["cached"].append(statistics.median(cached.step() for _ in range(arguments.steps)))
            for name in ("fill", "reuse"):
                start = time.perf_counter()
                FeatureCache(model, processor, Path(folder) / str(number)).store(rows, texts)
                found[name].append(time.perf_counter() - start)
    epochs = [step * per_epoch for step in found["towers"]]
    print(f"{len(rows)} images, {len(pairs)} captions, {len(set(texts))} texts, {per_epoch:g} steps an epoch")
    show("a step that runs both frozen towers", found["towers"], "s")
    show("a step from cached features", found["cached"], "s")
    show("  towers / cached", ratios(found["towers"], found["cached"]), "x")
    show("an epoch with the towers running", epochs, "s")
    show("filling the cache", found["fill"], "s")
    show("  filling / an epoch with the towers", ratios(found["fill"], epochs), "x")
    first = [fill + step * per_epoch for fill, step in zip(found["fill"], found["cached"], strict=True)]
    show("  an epoch with the towers / filling and the first epoch", ratios(epochs, first), "x")
    show("finding a cache that is there", found["reuse"], "s")


def ratios(above: list[float], below: list[float]) -> list[float]:
    return [a / b for a, b in zip(above, below, strict=True)]


if __name__ == "__main__":
    main()
