"""Towers, photographs and captions of `training.py`, drawn from seeds: nothing is downloaded."""

import csv
import io
import json
from pathlib import Path

import numpy as np
from datasets import Dataset, Features, Image, List, Value
from PIL import Image as Pictures
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast, ViTConfig, ViTImageProcessor, ViTModel

TEXT = {"hidden_size": 384, "intermediate_size": 1536, "num_attention_heads": 6, "num_hidden_layers": 6}
SIZES = {
    "small": {"hidden_size": 384, "intermediate_size": 1536, "num_attention_heads": 6, "num_hidden_layers": 6},
    "base": {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "num_hidden_layers": 12},
}
IMAGE_SIZE, PATCH = 224, 32
VOCABULARY = 30522  # BERT's
CAPTIONS = 5
LONGEST = 128  # what transformers' example pads to


def make_workplace(folder: Path, size: str, images: int) -> None:
    """Fills `folder` with towers (text/, image/) and one data set in the form that each library reads."""
    words = [f"w{number}" for number in range(5000)]
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    vocabulary = {word: number for number, word in enumerate([*special, *words])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    core.normalizer, core.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.BertPreTokenizer()
    ends = [("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])]
    core.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
        model_max_length=LONGEST,
    ).save_pretrained(folder / "text")  # fmt: skip
    BertModel(BertConfig(vocab_size=VOCABULARY, **TEXT)).save_pretrained(folder / "text")
    ViTModel(ViTConfig(image_size=IMAGE_SIZE, patch_size=PATCH, **SIZES[size])).save_pretrained(folder / "image")
    ViTImageProcessor(size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}).save_pretrained(folder / "image")

    rng = np.random.default_rng(0)
    (folder / "photographs").mkdir()
    rows, pairs = [], []
    for number in range(images):
        path = folder / "photographs" / f"{number}.jpg"
        path.write_bytes(_photograph(rng))
        # Lengths as of human captions: most about a dozen words, a few twice that.
        lengths = np.clip(rng.lognormal(2.45, 0.35, CAPTIONS).astype(int), 6, 40)
        captions = [" ".join(rng.choice(words, length)) for length in lengths]
        rows.append({"image": {"bytes": path.read_bytes(), "path": None}, "caption": captions, "img_id": str(number)})
        pairs += [{"image": str(path), "caption": caption} for caption in captions]
    features = Features({"image": Image(), "caption": List(Value("string")), "img_id": Value("string")})
    (folder / "rows").mkdir()
    Dataset.from_list(rows, features).to_parquet(folder / "rows" / "train.parquet")
    Dataset.from_list([row | {"img_id": f"v{row['img_id']}"} for row in rows[:8]], features).to_parquet(
        folder / "rows" / "validation.parquet"
    )
    order = rng.permutation(len(pairs))
    (folder / "pairs.json").write_text(json.dumps([pairs[i] for i in order]))
    with open(folder / "pairs.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, ["image", "caption"], delimiter="\t")
        writer.writeheader()
        writer.writerows(pairs[i] for i in order)


def _photograph(rng: np.random.Generator) -> bytes:
    """Smooth colours with grain: about as many bytes as a photograph of its size."""
    coarse = rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)
    smooth = np.asarray(Pictures.fromarray(coarse).resize((500, 375), Pictures.Resampling.BICUBIC), dtype=np.int16)
    grain = rng.normal(0, 9, smooth.shape).astype(np.int16)
    file = io.BytesIO()
    Pictures.fromarray(np.clip(smooth + grain, 0, 255).astype(np.uint8)).save(file, "JPEG", quality=88)
    return file.getvalue()
