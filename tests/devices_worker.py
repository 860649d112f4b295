"""Run by test_devices.py through `accelerate launch`, one process of two: trains tiny CUEs and notes what came out.

devices_worker.py OUTPUT ENCODERS CASE...
"""

import json
import os
import sys
import time
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from torch.utils.data import IterableDataset, Subset
from trainers import lively, make_trainer
from transformers import TrainerCallback

from modeling_cue import CUEProcessor
from modeling_cue.training.trainer import CUETrainer

# Per case: media, items of an epoch in their order, and arguments. Twelve captions of six samples are there; two
# processes of two items each, or one of four, are a step.
ALL_ITEMS = list(range(12))
CASES = {
    "plain": (("image", "audio", "video"), ALL_ITEMS, {}),
    "uneven": (("image",), list(range(10)), {}),
    "chunks": (("image",), ALL_ITEMS, {"per_device_train_batch_size": 1, "contrastive_batch_size": 4}),
    "bf16": (("image",), ALL_ITEMS, {"bf16": True}),
    # Without phrases the compositional layer gets no gradient.
    "checkpointed": (("image",), ALL_ITEMS, {"activation_checkpointing": True}),
    "checkpoints": (
        ("image", "audio", "video"),
        ALL_ITEMS,
        {
            "save_strategy": "steps", "save_steps": 1, "eval_strategy": "steps", "eval_steps": 1,
            "load_best_model_at_end": True, "save_total_limit": 3, "metric_for_best_model": "radius_mean_image",
            "greater_is_better": True,  # so that the best is not the last: these radii shrink
        },
    ),
    "unalike": (("image",), ALL_ITEMS, {}),
    "dies": (("image",), ALL_ITEMS, {"max_steps": 1000, "num_train_epochs": 1000}),
}  # fmt: skip


class Stream(IterableDataset):
    """The items of a data set one after another, their number unknown."""

    def __init__(self, items):
        self.items = items

    def __iter__(self):
        return (self.items[number] for number in range(len(self.items)))


class Dies(TrainerCallback):
    """The second process ends in its second step, without a word."""

    def on_step_begin(self, args, state, control, **kwargs):
        if args.process_index == 1 and state.global_step == 1:
            (Path(args.output_dir).parent / "died").write_text(str(time.time()))
            os._exit(7)


def train(
    case: str, names: dict[str, str], folder: Path, items: list[int] | None = None, resume: str | None = None,
    **arguments,
) -> CUETrainer:  # fmt: skip
    modalities, own_items, given = CASES[case]
    processor = CUEProcessor.from_encoders(**names, num_frames=3)
    defaults = {"per_device_train_batch_size": 2, "max_steps": 3, "train_sampling_strategy": "sequential"}
    model = lively(names, dropout=0.0)
    trainer = make_trainer(model, processor, folder, modalities, **{**defaults, **given, **arguments})
    trainer.train_dataset = Subset(trainer.train_dataset, items or own_items)
    # All phrases in their order: processes would draw others.
    collator = getattr(trainer.data_collator, "collator", trainer.data_collator)
    collator.phrases_per_caption = 0 if case == "checkpointed" else None
    if case == "dies":
        trainer.add_callback(Dies())
    if case == "unalike" and trainer.args.process_index == 1:
        collator.modalities = ("text",)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def losses(trainer: CUETrainer) -> list[float]:
    return [log["loss"] for log in trainer.state.log_history if "loss" in log]


def shard_on_cpu() -> None:
    """Accelerate reads FSDP settings for accelerators only; PyTorch shards over gloo just as well.

    Everything but the choice is Accelerate's own: settings from its file, wrapping, optimiser, clipping, saving.
    """
    create = CUETrainer.create_accelerator_and_postprocess

    def create_sharded(self: CUETrainer) -> None:
        create(self)
        state = self.accelerator.state
        state.fsdp_plugin = FullyShardedDataParallelPlugin()
        if state.mixed_precision != "no":
            state.fsdp_plugin.set_mixed_precision(state.mixed_precision)
        state.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP
        self.is_fsdp_enabled = True

    CUETrainer.create_accelerator_and_postprocess = create_sharded


def main(output: str, encoders: str, *cases: str) -> None:
    if os.environ.get("ACCELERATE_USE_FSDP") == "true":
        shard_on_cpu()
    names = {m: f"{encoders}/{f}" for m, f in (("text", "bert"), ("image", "clip"), ("audio", "whisper"))}
    found: dict[str, object] = {}
    for case in cases:
        folder = Path(output) / case
        try:
            trainer = train(case, names | {"video": "image"}, folder)
        except ValueError as error:
            found[case] = str(error)
            continue
        found[case] = {"losses": losses(trainer), "layer": type(trainer.model.text_tower.encoder.layer[0]).__name__}
        if case == "plain":
            trainer.save_model()
            trainer.args.per_device_eval_batch_size = 1
            five = Subset(trainer.eval_dataset, range(5))  # three batches of one process, two of the other
            found[case]["evaluated"] = [
                trainer.evaluate(rows)["eval_radius_mean_text"] for rows in (five, Stream(five))
            ]
        if case == "checkpoints":
            name = "eval_radius_mean_image"
            scores = [log[name] for log in trainer.state.log_history if name in log]
            found[case] |= {"scores": scores, "best": trainer.evaluate()[name]}
            again = train(case, names | {"video": "image"}, folder, resume=str(folder / "checkpoint-2"))
            found[case]["again"] = losses(again)
    if PartialState().is_main_process:
        (Path(output) / "found.json").write_text(json.dumps(found))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
