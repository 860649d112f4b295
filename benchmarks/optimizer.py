"""AdamW fused, by groups of tensors, and tensor by tensor, over the weights of a CUE: time of a step.

python benchmarks/optimizer.py [--rounds 5] [--steps 3] [--width 384] [--threads 1]

Weights, gradients and learning rates are those of CUETrainer: a group for towers and one for heads, each with and
without decay. Steps are taken in turns; printed are the median (smallest, largest) ratio to the step tensor by tensor,
and how far the weights lie apart after all steps.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

METHODS = {"single": {"foreach": False, "fused": False}, "foreach": {"foreach": True}, "fused": {"fused": True}}


def make_model(width: int):
    from modeling_cue import CUEConfig, CUEModel

    torch.manual_seed(0)
    layers = {
        "num_hidden_layers": 6, "hidden_size": width, "intermediate_size": 4 * width, "num_attention_heads": 6,
    }  # fmt: skip
    config = CUEConfig(
        text_config=layers | {"model_type": "bert"},
        image_config=layers | {"model_type": "vit", "image_size": 224, "patch_size": 32},
    )
    return CUEModel(config)


def make_optimizer(model: torch.nn.Module, options: dict) -> torch.optim.Optimizer:
    from transformers import Trainer

    # What Trainer decays, and what CUETrainer gives a rate of its own.
    decayed = set(Trainer.get_decay_parameter_names(None, model))
    groups: dict[tuple[bool, bool], list] = {}
    for name, parameter in model.named_parameters():
        groups.setdefault(("_tower." in name, name in decayed), []).append(parameter)
    return torch.optim.AdamW(
        [
            {"params": p, "lr": 5e-5 if tower else 5e-4, "weight_decay": 0.01 * decays}
            for (tower, decays), p in groups.items()
        ],
        **options,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("rounds", 5), ("steps", 3), ("width", 384), ("threads", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    models = {method: make_model(arguments.width) for method in METHODS}
    optimizers = {method: make_optimizer(models[method], options) for method, options in METHODS.items()}
    for several in zip(*(model.parameters() for model in models.values()), strict=True):
        gradient = torch.randn_like(several[0])
        for parameter in several:
            parameter.grad = gradient
    for optimizer in optimizers.values():
        optimizer.step()  # makes the states
    seconds: dict[str, list[float]] = {method: [] for method in METHODS}
    for _ in range(arguments.rounds):
        for method, optimizer in optimizers.items():
            start = time.perf_counter()
            for _ in range(arguments.steps):
                optimizer.step()
            seconds[method].append((time.perf_counter() - start) / arguments.steps)
    count = sum(p.numel() for p in models["single"].parameters())
    print(f"{count / 1e6:.1f} M weights, {len(list(models['single'].parameters()))} tensors")
    for method, taken in seconds.items():
        ratios = [base / mine for mine, base in zip(taken, seconds["single"], strict=True)]
        apart = max(
            (one - other).abs().max().item()
            for one, other in zip(models[method].parameters(), models["single"].parameters(), strict=True)
        )
        print(
            f"{method:8}{1000 * statistics.median(taken):9.1f} ms  {statistics.median(ratios):.2f}x "
            f"({min(ratios):.2f}, {max(ratios):.2f})  largest difference {apart:.1e}"
        )


if __name__ == "__main__":
    main()
