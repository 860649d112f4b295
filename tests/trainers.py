"""Trainers of tiny models over the rows of `samples`, and what tests see of them."""

from contextlib import contextmanager

import torch
from samples import make_rows

from modeling_cue import CUEModel
from modeling_cue.training.arguments import CUETrainingArguments
from modeling_cue.training.building import build_model
from modeling_cue.training.collator import CUECollator
from modeling_cue.training.pairs import CaptionPairs
from modeling_cue.training.parsing import parse_arguments
from modeling_cue.training.pipeline import build_trainer, load_data, save_and_share
from modeling_cue.training.trainer import CUETrainer

ALL = ("text", "image", "audio", "video")


def make_trainer(model, processor, folder, modalities=("image",), stores=None, **arguments):
    rows = make_rows(modalities)
    given = {
        "output_dir": str(folder), "per_device_train_batch_size": 4, "max_steps": 4, "logging_steps": 1,
        "eval_strategy": "no", "save_strategy": "no", "load_best_model_at_end": False, "disable_tqdm": True,
        "use_cpu": True, "learning_rate": 1e-3, "seed": 0, "max_grad_norm": 1.0,
        "dataloader_num_workers": 0,
    }  # fmt: skip
    return CUETrainer(
        model=model,
        args=CUETrainingArguments(**given | arguments),
        train_dataset=CaptionPairs(rows),
        eval_dataset=CaptionPairs(rows, every_caption=True),
        data_collator=CUECollator(processor, ALL, 2, stores, normalize=False),
        eval_collator=CUECollator(processor, ALL, None, stores),
        processing_class=processor,
    )


def steps(folder, output, *flags):
    """A run of no training: its trainer, having saved."""
    flags = ["--dataset_name", str(folder), "--output_dir", str(output), "--use_cpu", "true", *map(str, flags)]
    flags += ["--eval_strategy", "no", "--save_strategy", "no", "--load_best_model_at_end", "false"]
    model_args, data_args, training_args = parse_arguments(flags)
    rows = load_data(data_args, model_args)
    model, processor = build_model(model_args, data_args, training_args, rows)
    trainer = build_trainer(model, processor, rows, data_args, training_args)
    save_and_share(trainer, {}, model_args, rows, data_args)
    return trainer


def lively(names, dropout=0.3):
    """A tiny CUE in which much is dropped at random."""
    torch.manual_seed(0)
    model = CUEModel.from_encoders(
        **names, projection_dim=16, num_frames=3, composition_dim=16, head_dropout=dropout, token_dropout=dropout,
        poolers={"text": "attention", "image": "attention"},
    )  # fmt: skip
    for layer in model.modules():
        if isinstance(layer, torch.nn.Dropout):
            layer.p = dropout
    return model.train()


@contextmanager
def saved_bytes():
    """Counts the bytes that autograd keeps for the backward pass, each storage once."""
    kept: dict[int, int] = {}

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield kept
