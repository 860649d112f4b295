"""A Trainer that evaluates a CUE: all rows of all processes embedded, then ranked and measured at once."""

import warnings
from functools import partial
from typing import Any

import numpy as np
from datasets import Dataset
from torch.utils.data import DataLoader, IterableDataset
from transformers.trainer_utils import EvalLoopOutput

from .arguments import CUETrainingArguments
from .collator import CUECollator
from .evaluation import all_threads, embed_dataset
from .gathering import together
from .light import TrainerWithLightCheckpoints
from .losses import radius_alarm
from .metrics import compute_all
from .pairs import CaptionPairs
from .sharding import equally_many, whole_scales
from .streams import Strided


class TrainerWithConeMetrics(TrainerWithLightCheckpoints):
    """Measures retrieval and cones of whole data sets, where `Trainer` would add up what batches give.

    Args:
        eval_collator: makes the batches, with all phrases of each caption. Others as in `Trainer`.
    """

    args: CUETrainingArguments

    def __init__(self, *args: Any, eval_collator: CUECollator, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.eval_collator = eval_collator

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        """Every process gets every n-th row, as many batches as the others; repeated rows are counted once later."""
        dataset: Any = self.eval_dataset if eval_dataset is None else eval_dataset
        if isinstance(dataset, str):  # `Trainer` names one of several
            several: Any = self.eval_dataset
            dataset = several[dataset]
        if dataset is None:
            raise ValueError("there is nothing to evaluate on: give an eval_dataset, or set eval_strategy to no")
        if isinstance(dataset, Dataset):  # rows as they were loaded
            dataset = CaptionPairs(dataset, every_caption=True)
        sampler: Any
        rows: Any
        workers = self.args.dataloader_num_workers or 0
        if isinstance(dataset, IterableDataset):
            sampler, rows = None, Strided(dataset, self.args.process_index, self.args.world_size)
        else:
            order = list(range(len(dataset)))
            # Of fewer rows than processes some come several times.
            order += [order[i % len(order)] for i in range(-len(order) % self.args.world_size)]
            sampler, rows = order[self.args.process_index :: self.args.world_size], dataset
        return DataLoader(
            rows,
            batch_size=self.args.eval_batch_size,
            sampler=sampler,
            collate_fn=self.eval_collator,
            num_workers=workers,
            multiprocessing_context=self.args.dataloader_multiprocessing_context if workers else None,
            pin_memory=self.args.dataloader_pin_memory,
            prefetch_factor=self.args.dataloader_prefetch_factor if workers else None,
        )

    def get_test_dataloader(self, test_dataset: Any) -> DataLoader:
        return self.get_eval_dataloader(test_dataset)

    def evaluation_loop(
        self,
        dataloader: DataLoader,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Embeds all rows of all processes and measures retrieval and cones; there is no evaluation loss."""
        self._tell_optimizer("eval")
        batches: Any = dataloader
        if self.is_fsdp_enabled and isinstance(dataloader.dataset, IterableDataset):
            batches = equally_many(dataloader, self.args.device)
        with self.compute_loss_context_manager(), self.accelerator.autocast():
            embedded = embed_dataset(
                self.model_wrapped if self.is_fsdp_enabled else self.model,
                batches,
                self.args.device,
                show_progress=self.is_world_process_zero() and not self.args.disable_tqdm,
            )
        _, scale, bias = whole_scales(self.accelerator.unwrap_model(self.model).scales)
        # One process measures for all: each has all cores for it, and would take them from the others.
        measures = self.is_world_process_zero()
        with all_threads(self.args.world_size):
            found = together(partial(compute_all, embedded, scale, bias) if measures else dict[str, float])[0]
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in found.items()}
        trained = self.state.global_step and self.args.containment_weight
        if measures and trained:  # before training all radii of a kind start at one value
            for alarm in radius_alarm(embedded):
                warnings.warn(alarm, stacklevel=2)
        samples = max(len(rows.ids.unique()) for rows in embedded.values())
        return EvalLoopOutput(predictions=np.empty(0), label_ids=None, metrics=metrics, num_samples=samples)

    def _tell_optimizer(self, mode: str) -> None:
        """As `Trainer` does: optimisers without a schedule train other weights than they evaluate."""
        change = getattr(self.optimizer, mode, None)
        if callable(change):
            change()
