"""CUETrainer: Hugging Face's Trainer with CUE's losses over gathered embeddings and cone metrics."""

import math
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import torch
from accelerate.utils.memory import clear_device_cache
from torch import Tensor, nn
from torch.utils.data import IterableDataset

from ..cones import angle
from .collator import CUECollator
from .evaluation import embedded_kinds
from .evaluation_trainer import TrainerWithConeMetrics
from .gathering import gather_kinds, this_world
from .grad_cache import ChunkedCollator, Scalars, backward_in_chunks
from .losses import LossWeights, compute_losses, total_loss
from .pairs import CaptionPairs, GroupedByLength
from .relations import MEDIA, Embedded
from .sharding import prepare_for_fsdp, under_own_class


class CUETrainer(TrainerWithConeMetrics):
    """Trains a [`CUEModel`] on rows as `data.load_rows` gives them.

    Every process computes the loss over the embeddings of all processes, so the number of in-batch negatives grows
    with the number of processes. Gradient accumulation adds none. Every term of the loss is logged by its name.

    Args:
        eval_collator: makes the batches of evaluation, with all phrases of each caption.
        Others as in `Trainer`; `data_collator` is a [`CUECollator`].

    Raises:
        FloatingPointError: a term of the loss is not finite; the message names it.
    """

    test_collator: CUECollator
    test_rows: Any

    def __init__(self, *args: Any, eval_collator: CUECollator, **kwargs: Any):
        super().__init__(*args, eval_collator=eval_collator, **kwargs)
        if not eval_collator.decodes:
            self.args.limit_workers(0)
        elif isinstance(self.train_dataset, IterableDataset):
            # One reads a stream in the order that none would: that it is the same on every machine is what gives
            # each process its own share.
            self.args.limit_workers(1)
        # The loss is a mean over the batch: the Trainer divides it by the accumulated steps.
        self.loss_is_scaled_for_ga = False
        self.can_return_loss = True
        self.model_accepts_loss_kwargs = False
        if self.args.contrastive_batch_size is not None:
            # What the loader hands to a step; the collator cuts it into chunks of per_device_train_batch_size.
            self._train_batch_size = self.args.contrastive_batch_size // self.args.world_size
            collator: Any = self.data_collator
            self.data_collator = ChunkedCollator(collator, self.args.train_batch_size)
        whole: Any = self.model
        if self.is_fsdp_enabled:
            prepare_for_fsdp(whole, self.accelerator.state.fsdp_plugin, self.args.device)
        self._terms: dict[str, tuple[Tensor, int]] = {}  # the sum of each term since the last log, and of how many
        self._seen: dict[str, Embedded] = {}
        # Heads that have learned something, as those of a checkpoint, keep it.
        self._started = "text" not in whole.config.modalities or not whole.text_head.has_initial_radius
        self._processor = self.processing_class

    def train(self, *args: Any, **kwargs: Any) -> Any:
        # `Trainer` would write the tokenizer's special tokens into the configuration of the text tower, which says how
        # that tower was pretrained, and would fail at a processor without a tokenizer: it is kept out of its sight.
        self.processing_class = None
        try:
            return super().train(*args, **kwargs)
        finally:
            self.processing_class = self._processor

    def _inner_training_loop(self, *args: Any, **kwargs: Any) -> Any:
        self.processing_class = self._processor
        return super()._inner_training_loop(*args, **kwargs)

    # ------------------------------------------------------------------ loss

    @property
    def loss_weights(self) -> LossWeights:
        return LossWeights(
            self.args.contrastive_weight, self.args.containment_weight, self.args.composition_weight,
            self.args.containment_moves_axes, self.args.phrase_containment_weight,
        )  # fmt: skip

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        output, embedded = self._embed(model, inputs)
        loss = self._loss(embedded, _scalars(output))
        return (loss, output) if return_outputs else loss

    def _embed(self, model: nn.Module, inputs: dict[str, Any]) -> tuple[Any, dict[str, Embedded]]:
        # Pixels come as bytes, of which a batch of many chunks holds a lot, and are normalised on the device.
        given = self.eval_collator.processor.normalize(inputs["model"])
        # Accelerate gives autocast to every model but one that FSDP shards.
        with self.accelerator.autocast():
            output = model(**given)
        return output, embedded_kinds(output, inputs)

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """As in `Trainer`; a batch of chunks is embedded chunk by chunk and compared all at once."""
        if "chunks" not in inputs:
            loss = super().training_step(model, inputs, num_items_in_batch)
            self._start_radii()
            return loss
        model.train()
        self._tell_optimizer("train")
        steps = self.current_gradient_accumulation_steps

        def embed(chunk: Mapping[str, Any]) -> tuple[dict[str, Embedded], Scalars]:
            prepared: Any = self._prepare_inputs(dict(chunk))
            output, embedded = self._embed(model, prepared)
            return embedded, _scalars(output)

        def loss_of(embedded: dict[str, Embedded], scalars: Scalars) -> Tensor:
            return self._loss(embedded, scalars) / steps

        loss = backward_in_chunks(model, inputs["chunks"], self.args.device, embed, loss_of, self.accelerator.backward)
        self._start_radii()
        if self.args.torch_empty_cache_steps and self.state.global_step % self.args.torch_empty_cache_steps == 0:
            clear_device_cache()
        return loss

    def _prepare_input(self, data: Any) -> Any:
        # Chunks wait in pinned memory, from which nobody has to wait for a copy.
        if isinstance(data, Tensor) and data.is_pinned():
            return data.to(self.args.device, non_blocking=True)
        return super()._prepare_input(data)

    def _loss(self, embedded: dict[str, Embedded], scalars: Scalars) -> Tensor:
        if not self._started:
            self._seen = embedded
        local, everywhere = gather_kinds(embedded)
        terms = compute_losses(local, *scalars, self.loss_weights, everywhere, this_world())
        for name, value in terms.items():
            total, count = self._terms.get(name, (0.0, 0))
            self._terms[name] = (total + value.detach(), count + 1)
        return total_loss(terms, self.loss_weights)

    def _start_radii(self) -> None:
        """Text starts as wide as to contain what it matches, on average with a margin of 0: containment in balance.

        After the first backward pass: the second pass of chunks must meet the weights of the first, and FSDP has put
        the weights back in their shards.
        """
        embedded, self._seen = self._seen, {}
        if self.state.global_step or self._started:
            self._started = True
            return
        self._started = True
        model = self.accelerator.unwrap_model(self.model)
        needed = [torch.zeros(2, device=self.args.device)]
        for kind in MEDIA:
            if "text" in embedded and kind in embedded:
                text, inner = embedded["text"], embedded[kind]
                ids, order = inner.ids.sort()
                place = torch.searchsorted(ids, text.ids).clamp_(max=max(len(ids) - 1, 0))
                matched = ids[place] == text.ids if len(ids) else torch.zeros_like(text.ids, dtype=torch.bool)
                cones = inner.cone[order[place[matched]]]
                reach = angle(text.cone.axis[matched], cones.axis) + cones.radius
                needed.append(torch.stack([reach.sum(), torch.ones_like(reach).sum()]).detach().float())
        reach, count = this_world().total(torch.stack(needed).sum(0))
        if count:
            model.text_head.set_initial_radius(min(float(reach / count), 0.9 * math.pi))

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs and self._terms:
            logs |= {name: round(total.item() / count, 4) for name, (total, count) in self._terms.items()}
            self._terms.clear()
        super().log(logs, start_time)

    # ------------------------------------------------------------------ saving

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """As in `Trainer`; under FSDP whole too, also where checkpoints are kept in shards."""
        if self.is_fsdp_enabled and not _internal_call:
            self.accelerator.state.fsdp_plugin.set_state_dict_type("FULL_STATE_DICT")
        super().save_model(output_dir, _internal_call)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        model: Any = self.model
        with under_own_class(model):
            super()._save(output_dir, state_dict)

    # ------------------------------------------------------------------ optimiser

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """As in `Trainer`, without the learned scales: there is no reason to draw them towards 1 (as in CLIP)."""
        return [name for name in super().get_decay_parameter_names(model) if "scales." not in name]

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """AdamW with `head_learning_rate` for all that is not in a tower, and no decay on norms and biases."""
        if self.optimizer is None and self.args.head_learning_rate is not None:
            module: Any = self.model if model is None else model
            decayed = set(self.get_decay_parameter_names(module))
            groups: dict[tuple[bool, bool], list[nn.Parameter]] = defaultdict(list)
            for name, parameter in module.named_parameters():
                if parameter.requires_grad:
                    groups["_tower." in name, name in decayed].append(parameter)
            optimizer_class, options = self.get_optimizer_cls_and_kwargs(self.args, module)
            self.optimizer = optimizer_class(
                [
                    {
                        "params": parameters,
                        "lr": self.args.learning_rate if in_tower else self.args.head_learning_rate,
                        "weight_decay": self.args.weight_decay if decays else 0.0,
                    }
                    for (in_tower, decays), parameters in groups.items()
                ],
                **options,
            )
        return super().create_optimizer(model)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        features = self.eval_collator.features
        if features is not None and model is None:  # under FSDP no process has whole towers to compare
            features.check_towers(self.model)

    # ------------------------------------------------------------------ data

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        dataset: Any = self.train_dataset if train_dataset is None else train_dataset
        if self.args.train_sampling_strategy == "group_by_length" and isinstance(dataset, CaptionPairs):
            seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
            return GroupedByLength(self._train_batch_size, dataset.lengths(), seed)
        return super()._get_train_sampler(train_dataset)


def _scalars(output: Any) -> Scalars:
    return output.logit_scale, output.containment_scale, output.containment_bias
