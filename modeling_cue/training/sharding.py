"""What FSDP must know of a CUE: which modules are gathered one at a time, and what every process must do alike.

A sharded module is gathered by all processes together each time it runs. So every process must run the same modules
equally often, and nothing may use the weights of a wrapped module without calling it: only the layers of towers are
wrapped, since towers themselves are run in parts (Whisper's over real frames only).
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from accelerate.utils import FullyShardedDataParallelPlugin
from torch import nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy
from torch.distributed.fsdp.wrap import size_based_auto_wrap_policy, transformer_auto_wrap_policy
from torch.distributed.tensor import DTensor

from ..encoders import MODALITIES
from ..modeling_cue import CUEModel

T = TypeVar("T")
INPUTS = (*(spec.input_name for spec in MODALITIES.values()), *(f"{m}_features" for m in MODALITIES), "parts")


def prepare_for_fsdp(model: nn.Module, plugin: FullyShardedDataParallelPlugin, device: torch.device) -> None:
    """Fits the plugin to the model and the model to sharding, before Accelerate shards it.

    Raises:
        ValueError: version 1 of FSDP, or wrapping by size.
    """
    if plugin.fsdp_version != 2 or plugin.auto_wrap_policy is size_based_auto_wrap_policy:
        raise ValueError(
            "CUE trains with version 2 of FSDP and wrapping by layers: set fsdp_version: 2 and "
            "fsdp_auto_wrap_policy: TRANSFORMER_BASED_WRAP, as configs/accelerate/fsdp2.yaml does"
        )
    if plugin.auto_wrap_policy is transformer_auto_wrap_policy and plugin.transformer_cls_names_to_wrap is None:
        plugin.transformer_cls_names_to_wrap = layer_names(model)
    # Weights are gathered in float32 and rounded by autocast, as without FSDP: a policy of bfloat16 would round the
    # learned scales and the cones too.
    plugin.mixed_precision_policy = MixedPrecisionPolicy()
    for module in model.modules():
        if isinstance(module, CUEModel):
            module.text_chunks = 1  # how many chunks there are depends on the batch
    model.register_forward_pre_hook(lambda _, __, inputs: _check_alike(inputs, device), with_kwargs=True)


def layer_names(model: nn.Module) -> list[str]:
    """The classes of the towers' layers, which stand in lists; a tower without lists is not parted.

    Convolutions over samples are left whole: `run_waveform` uses the weights of the first without calling it.
    """
    lists = [
        inner
        for cue in model.modules()
        if isinstance(cue, CUEModel)
        for tower in cue.towers.values()
        for name, inner in tower.named_modules()
        if isinstance(inner, nn.ModuleList) and not name.endswith("conv_layers")
    ]
    return sorted({type(layer).__name__ for layers in lists for layer in layers})


@torch.no_grad()
def whole_scales(scales: nn.Module) -> list[float]:
    """The learned scalars as numbers, gathered where they are sharded: a call for all processes."""
    parameters = {name: p.full_tensor() if isinstance(p, DTensor) else p for name, p in scales.named_parameters()}
    return [float(value) for value in torch.func.functional_call(scales, parameters, ())]


@contextmanager
def under_own_class(model: nn.Module) -> Iterator[None]:
    """FSDP replaces a model's class at run time; here the model has its own again, whose code is saved beside it."""
    sharded = model.__class__
    own: Any = next(kind for kind in sharded.__mro__ if not issubclass(kind, FSDPModule))
    model.__class__ = own
    try:
        yield
    finally:
        model.__class__ = sharded


def equally_many(batches: Iterable[T], device: torch.device) -> Iterator[T]:
    """The batches of this process, the last of them again while another process has more: rows count once anyway.

    Raises:
        ValueError: a process has no batch at all.
    """
    last: T | None = None
    own = iter(batches)
    while True:
        batch = next(own, None)
        last = last if batch is None else batch
        told = torch.tensor([int(batch is None), int(last is not None)], device=device)
        dist.all_reduce(told, dist.ReduceOp.MIN)
        all_done, all_have_one = told.tolist()
        if all_done:
            return
        if last is None or not all_have_one:
            raise ValueError("a process has no row to evaluate: use fewer processes, or more rows")
        yield last


def _check_alike(inputs: dict[str, Any], device: torch.device) -> None:
    given = torch.tensor([inputs.get(name) is not None for name in INPUTS], dtype=torch.int32, device=device)
    both = torch.stack([given, -given])
    dist.all_reduce(both, dist.ReduceOp.MAX)
    differ = [name for name, here, there in zip(INPUTS, *both.tolist(), strict=True) if here != -there]
    if differ:
        raise ValueError(
            f"some processes have {', '.join(differ)} in this batch and others have not, so that they would wait for "
            "one another for ever: under FSDP every batch needs every input. Use data in which every row has every "
            "modality (of parts, also composition_weight 0), or DDP (configs/accelerate/ddp.yaml)"
        )
