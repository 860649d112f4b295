"""The ways to train that `training.py` measures: each returns pairs per second, by what was measured."""

import json
import sys
import time
from argparse import Namespace
from pathlib import Path
from typing import Any

import torch
from training_data import IMAGE_SIZE, LONGEST, PATCH, SIZES, TEXT, VOCABULARY
from transformers import Trainer, TrainerCallback, TrainingArguments

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

WARM_UP = 3
RATE = 5e-5


class Clock(TrainerCallback):
    """When each step of a Trainer ended, loading of data included."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.ends.append(time.perf_counter())

    def speed(self, pairs_per_step: int) -> float:
        return pairs_per_step * (len(self.ends) - WARM_UP) / (self.ends[-1] - self.ends[WARM_UP - 1])


def _arguments(folder: Path, arguments: Namespace, kind: Any = TrainingArguments, **more: Any) -> Any:
    return kind(
        output_dir=str(folder / "out"), per_device_train_batch_size=arguments.batch, learning_rate=RATE,
        max_steps=WARM_UP + arguments.steps, report_to="none", save_strategy="no", logging_steps=1000,
        disable_tqdm=True, use_cpu=True, dataloader_pin_memory=False, **more,
    )  # fmt: skip


# ---------------------------------------------------------------------- transformers' contrastive example


def example(folder: Path, arguments: Namespace, frozen: bool = False) -> dict[str, float]:
    from torchvision.io import ImageReadMode, read_image
    from torchvision.transforms import CenterCrop, ConvertImageDtype, Normalize, Resize
    from torchvision.transforms.functional import InterpolationMode
    from transformers import AutoModel, AutoTokenizer, VisionTextDualEncoderConfig, VisionTextDualEncoderModel

    text, image = AutoModel.from_pretrained(folder / "text"), AutoModel.from_pretrained(folder / "image")
    config = VisionTextDualEncoderConfig.from_vision_text_configs(image.config, text.config)
    model = VisionTextDualEncoderModel(config, image, text)
    if frozen:
        for tower in (model.vision_model, model.text_model):
            tower.requires_grad_(False)
    tokenizer = AutoTokenizer.from_pretrained(folder / "text")
    pairs = json.loads((folder / "pairs.json").read_text())
    # The example tokenises all captions ahead.
    texts = tokenizer([p["caption"] for p in pairs], max_length=LONGEST, padding="max_length", truncation=True)
    transform = torch.nn.Sequential(
        Resize([IMAGE_SIZE], interpolation=InterpolationMode.BICUBIC), CenterCrop(IMAGE_SIZE),
        ConvertImageDtype(torch.float), Normalize([0.5] * 3, [0.5] * 3),
    )  # fmt: skip

    class Pairs(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return len(pairs)

        def __getitem__(self, item: int) -> dict[str, Any]:
            pixels = transform(read_image(pairs[item]["image"], mode=ImageReadMode.RGB))
            return {"pixels": pixels, **{k: texts[k][item] for k in ("input_ids", "attention_mask")}}

    def collate(rows: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "pixel_values": torch.stack([row["pixels"] for row in rows]),
            "input_ids": torch.tensor([row["input_ids"] for row in rows]),
            "attention_mask": torch.tensor([row["attention_mask"] for row in rows]),
            "return_loss": True,
        }

    clock = Clock()
    args = _arguments(folder, arguments, remove_unused_columns=False)
    Trainer(model=model, args=args, train_dataset=Pairs(), data_collator=collate, callbacks=[clock]).train()
    speed = clock.speed(arguments.batch)
    return {"training": speed, "first epoch": speed, "later epochs": speed}


def example_frozen(folder: Path, arguments: Namespace) -> dict[str, float]:
    return example(folder, arguments, frozen=True)


# ---------------------------------------------------------------------- open_clip


def open_clip(folder: Path, arguments: Namespace) -> dict[str, float]:
    import open_clip
    from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg
    from open_clip_train.data import get_csv_dataset
    from open_clip_train.train import train_one_epoch

    shape = SIZES[arguments.size]
    model = CLIP(
        embed_dim=512,
        vision_cfg=CLIPVisionCfg(
            layers=shape["num_hidden_layers"], width=shape["hidden_size"],
            head_width=shape["hidden_size"] // shape["num_attention_heads"], patch_size=PATCH, image_size=IMAGE_SIZE,
        ),
        text_cfg=CLIPTextCfg(
            layers=TEXT["num_hidden_layers"], width=TEXT["hidden_size"], heads=TEXT["num_attention_heads"],
            vocab_size=VOCABULARY,
        ),
        output_dict=True,
    )  # fmt: skip
    words: dict[str, int] = {}

    def tokenize(captions: list[str]) -> torch.Tensor:
        # The tower's own vocabulary is not needed to measure its speed: numbers of words, its end token the largest.
        rows = torch.zeros(len(captions), 77, dtype=torch.long)
        for row, caption in zip(rows, captions, strict=True):
            numbers = [words.setdefault(word, len(words) + 1) for word in caption.split()][:75]
            row[: len(numbers) + 2] = torch.tensor([VOCABULARY - 2, *numbers, VOCABULARY - 1])
        return rows

    preprocess = open_clip.image_transform(IMAGE_SIZE, is_train=True)
    args = Namespace(
        train_data=str(folder / "pairs.csv"), csv_img_key="image", csv_caption_key="caption", csv_separator="\t",
        batch_size=arguments.batch, workers=0, distributed=False, device="cpu", precision="fp32", distill=False,
        accum_freq=1, skip_scheduler=True, grad_clip_norm=1.0, horovod=False, rank=0, local_rank=0, world_size=1,
        log_local=False, log_every_n_steps=10**9, wandb=False,
    )  # fmt: skip
    data = get_csv_dataset(args, preprocess, is_train=True, tokenizer=tokenize)
    ends: list[float] = []
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE)
    optimizer.register_step_post_hook(lambda *_: ends.append(time.perf_counter()))
    steps, loader = WARM_UP + arguments.steps, data.dataloader

    class Limited:
        num_batches, num_samples = steps, steps * arguments.batch

        def __iter__(self) -> Any:
            yield from (batch for _, batch in zip(range(steps), loader, strict=False))

    data.dataloader = Limited()
    train_one_epoch(model, {"train": data}, open_clip.ClipLoss(), 0, optimizer, None, None, None, args)
    return {"training": arguments.batch * arguments.steps / (ends[-1] - ends[WARM_UP - 1])}


# ---------------------------------------------------------------------- sentence-transformers


def sentence_transformers(folder: Path, arguments: Namespace) -> dict[str, float]:
    from datasets import Dataset, Image
    from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer
    from sentence_transformers import SentenceTransformerTrainingArguments as Arguments
    from sentence_transformers.base.modules import Dense, Router, Transformer
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesSymmetricRankingLoss
    from sentence_transformers.sentence_transformer.modules import Pooling

    def route(name: str, pooling: str, width: int) -> list[Any]:
        return [Transformer(str(folder / name)), Pooling(width, pooling), Dense(width, 512, activation_function=None)]

    width = SIZES[arguments.size]["hidden_size"]
    routes = {"text": route("text", "mean", TEXT["hidden_size"]), "image": route("image", "cls", width)}
    model = SentenceTransformer(modules=[Router(routes)], device="cpu")
    pairs = json.loads((folder / "pairs.json").read_text())
    data = Dataset.from_list(pairs).cast_column("image", Image())
    clock = Clock()
    routing = {"image": "image", "caption": "text"}
    args = _arguments(folder, arguments, Arguments, router_mapping=routing)
    SentenceTransformerTrainer(
        model=model, args=args, train_dataset=data, callbacks=[clock],
        loss=MultipleNegativesSymmetricRankingLoss(model),
    ).train()  # fmt: skip
    return {"training": clock.speed(arguments.batch)}


# ---------------------------------------------------------------------- CUE


def cue_1(folder: Path, arguments: Namespace) -> dict[str, float]:
    return _cue(folder, arguments, "1")[0]


def cue_5(folder: Path, arguments: Namespace) -> dict[str, float]:
    return _cue(folder, arguments, "all")[0]


def cue_frozen(folder: Path, arguments: Namespace) -> dict[str, float]:
    """Epochs of every image with all its captions: the first fills the cache, the others read it."""
    cache = folder / f"features-{time.time_ns()}"
    found, filling = _cue(folder, arguments, "all", ["--freeze", "text", "image", "--feature_cache", str(cache)])
    pairs = len(json.loads((folder / "pairs.json").read_text()))
    later = found["training"]
    return {"first epoch": pairs / (filling + pairs / later), "later epochs": later}


def _cue(folder: Path, arguments: Namespace, captions: str, more: tuple | list = ()) -> tuple[dict[str, float], float]:
    from modeling_cue.training.building import build_model
    from modeling_cue.training.parsing import parse_arguments
    from modeling_cue.training.pipeline import build_trainer, load_data

    flags = {
        "dataset_name": folder / "rows", "text_encoder": folder / "text", "image_encoder": folder / "image",
        "text_pooler": "mean", "captions_per_image": captions, "test_split": "none", "output_dir": folder / "out",
        "per_device_train_batch_size": arguments.batch, "max_steps": WARM_UP + arguments.steps,
        "learning_rate": RATE, "containment_weight": 0, "composition_weight": 0, "eval_strategy": "no",
        "save_strategy": "no", "load_best_model_at_end": "false", "disable_tqdm": "true", "use_cpu": "true",
        "logging_steps": 1000, "dataloader_num_workers": 0,
    }  # fmt: skip
    argv = [str(part) for name, value in flags.items() for part in (f"--{name}", value)]
    model_args, data_args, training_args = parse_arguments([*argv, *more])
    rows = load_data(data_args, model_args)
    model, processor = build_model(model_args, data_args, training_args, rows)
    start = time.perf_counter()
    trainer = build_trainer(model, processor, rows, data_args, training_args)
    filling = time.perf_counter() - start
    clock = Clock()
    trainer.add_callback(clock)
    trainer.train()
    return {"training": clock.speed(arguments.batch * (1 if captions == "1" else 5))}, filling
