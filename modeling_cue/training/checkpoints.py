"""Checkpoints that are whole or not there, and runs that go on from them to the bit.

A checkpoint is written in a folder aside and renamed when it is whole, after it has reached the disk: a run that is
killed or meets a full disk leaves the older checkpoints as they are, and nothing that looks like one and is none.
"""

import logging
import math
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from accelerate.data_loader import BatchSamplerShard
from torch import nn
from torch.utils.data import DataLoader
from torch.utils.data.sampler import BatchSampler
from transformers import Trainer, TrainerState
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import (
    PREFIX_CHECKPOINT_DIR,
    HubStrategy,
    get_last_checkpoint,
    has_length,
    rotate_checkpoints,
)

from ..modeling_base import SENTENCE_TRANSFORMERS_FILES
from ..saving import ASIDE, reach_the_disk, remove_empty, removed_if_it_fails, written_aside
from .arguments import CUETrainingArguments
from .gathering import together
from .run_record import RunRecord

logger = logging.getLogger(__name__)
# No checkpoint is looked for under this name, nor under that of what is unfinished.
REPLACED = "_replaced"


class ResumableTrainer(Trainer):
    """A Trainer that saves whole checkpoints and models or none, with the record of its run in each.

    Resumed on a CPU, with the same data and arguments, it ends with the very weights of a run that was never cut off.
    """

    args: CUETrainingArguments
    record = RunRecord()
    _aside = False  # whether a checkpoint is being written

    # ------------------------------------------------------------------ going on

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """As in `Trainer`; "last", like True, is the newest checkpoint.

        Raises:
            ValueError: there is none.
        """
        folder = str(self.args.output_dir)
        if self.is_local_process_zero():
            sweep(folder)
        self.accelerator.wait_for_everyone()
        if str(resume_from_checkpoint).lower() in ("true", "last"):
            resume_from_checkpoint = get_last_checkpoint(folder)
            if resume_from_checkpoint is None:
                raise ValueError(f"resume_from_checkpoint: there is no checkpoint in {folder} to go on from")
        if resume_from_checkpoint or self.args.load_best_model_at_end:
            self._check_that_all_see(folder)
        if resume_from_checkpoint and self.is_world_process_zero():
            changes = self.record.changes(str(resume_from_checkpoint), self.args)
            if changes:
                logger.warning(
                    "this run differs from the one that wrote %s, and will not end as that one would have: %s",
                    resume_from_checkpoint, "; ".join(changes),
                )  # fmt: skip
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def _check_that_all_see(self, folder: str) -> None:
        """Raises `ValueError` in all processes where some machine has another `output_dir`, and so no checkpoint."""
        mark = Path(folder) / f"{ASIDE}_mark"
        try:
            if self.is_world_process_zero():
                mark.parent.mkdir(parents=True, exist_ok=True)
                mark.touch()
            self.accelerator.wait_for_everyone()
            if not all(together(mark.exists)):
                raise ValueError(
                    f"output_dir={folder!r} is not the same folder on all machines, so that they cannot load the "
                    "checkpoints that one of them writes: name one on a common disk, or set load_best_model_at_end to "
                    "false (--load_best_model_at_end false) and do not resume"
                )
        finally:
            if self.is_world_process_zero():
                mark.unlink(missing_ok=True)

    def _init_training_state(
        self, max_steps: int, num_update_steps_per_epoch: int, num_train_epochs: int, resume: str | None, trial: Any
    ) -> tuple[int, int]:
        place = super()._init_training_state(max_steps, num_update_steps_per_epoch, num_train_epochs, resume, trial)
        if resume is None or self.args.ignore_data_skip or has_length(self.train_dataset):
            return place
        # The Trainer takes all the steps of a stream for one epoch, and would look for its place in the first.
        saved = TrainerState.load_from_json(os.path.join(resume, TRAINER_STATE_NAME))
        part, whole = math.modf(saved.epoch or 0.0)
        return int(whole), round(part * saved.max_steps * self.args.gradient_accumulation_steps)

    def get_train_dataloader(self) -> DataLoader:
        """As in `Trainer`; what seeds worker processes is not drawn from the random state of the model."""
        loader: Any = super().get_train_dataloader()
        loader.base_dataloader.generator = torch.Generator().manual_seed(self.args.seed)
        return loader

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        # Accelerate does not reach every sampler of a loader that it shards and skips batches of, nor, where it
        # reaches the sampler of one that it shards, the data.
        hearers: list[Any] = [sampler_of(kwargs["train_dataloader"]), self.train_dataset]
        for told in hearers:
            if hasattr(told, "set_epoch"):
                told.set_epoch(kwargs["epoch"])
        stream: Any = self.train_dataset
        if hasattr(stream, "unread"):
            # A stream is read again up to its place; what is decoded begins there.
            resumed = kwargs["resume_from_checkpoint"] is not None and kwargs["epoch"] == kwargs["epochs_trained"]
            batches = kwargs["steps_trained_in_current_epoch"] if resumed and not self.args.ignore_data_skip else 0
            stream.unread = (batches, self._train_batch_size * self.args.world_size)
        super()._run_epoch(*args, **kwargs)

    # ------------------------------------------------------------------ saving

    def _get_output_dir(self, trial: Any) -> str:
        folder = super()._get_output_dir(trial)
        return os.path.join(folder, ASIDE) if self._aside else folder

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        folder = Path(self._get_output_dir(trial))
        name = f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        aside, whole = folder / ASIDE / name, folder / name
        with removed_if_it_fails(aside):
            self._aside = True
            try:
                super()._save_checkpoint(model, trial)
            finally:
                self._aside = False
            if self.state.best_global_step == self.state.global_step:
                self.state.best_model_checkpoint = str(whole)
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                self.state.save_to_json(str(aside / TRAINER_STATE_NAME))
                self.record.save(aside, self.args)
                put_in_place(aside, whole)
            self.accelerator.wait_for_everyone()
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(whole))
        if self.args.should_save:
            rotate_checkpoints(
                str(folder), self.args.save_total_limit, self.state.best_model_checkpoint, use_mtime=True
            )

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        if self._aside:  # uploading goes on while training does: the folder must have its last name
            return
        if self.is_world_process_zero() and self.args.hub_strategy != HubStrategy.END:
            # The Trainer takes configuration and weights along, not the code that they name.
            for path in Path(checkpoint_folder).iterdir():
                target = Path(str(self.args.output_dir)) / path.name
                if path.suffix == ".py" or (path.name in SENTENCE_TRANSFORMERS_FILES and not target.exists()):
                    shutil.copy(path, target)
        super()._push_from_checkpoint(checkpoint_folder)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        folder = Path(output_dir or str(self.args.output_dir))
        if self._aside or not self.args.should_save:
            super()._save(str(folder), state_dict)
            return
        with written_aside(folder) as aside:
            super()._save(str(aside), state_dict)
            self.record.save(aside, self.args)


def sampler_of(loader: DataLoader) -> Any:
    """What gives a loader its items in order, in this process's share of it too; None where there is no such thing."""
    batches: Any = loader.batch_sampler
    if isinstance(batches, BatchSamplerShard):
        batches = batches.batch_sampler
    return batches.sampler if isinstance(batches, BatchSampler) else None


# ---------------------------------------------------------------------- folders


def put_in_place(written: Path, whole: Path) -> None:
    """Renames a folder that is written to the end. One of that name is renamed first and deleted last."""
    reach_the_disk(written)
    replaced = whole.parent / REPLACED
    if whole.exists():
        replaced.mkdir(exist_ok=True)
        os.replace(whole, replaced / whole.name)
    os.replace(written, whole)
    shutil.rmtree(replaced, ignore_errors=True)
    remove_empty(written.parent)


def sweep(folder: str | Path) -> None:
    """Deletes what a killed run left half-written in its output folder, and puts back what it had just put away."""
    folder = Path(folder)
    for replaced in (folder / REPLACED).glob("*"):
        if not (folder / replaced.name).exists():
            os.replace(replaced, folder / replaced.name)
    for name in (ASIDE, REPLACED):
        shutil.rmtree(folder / name, ignore_errors=True)
