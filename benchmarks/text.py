"""Padding of captions: four ways through a text tower, forward and backward.

python benchmarks/text.py [--texts 256] [--batches 5] [--rounds 3] [--threads 1] [--layers 3] [--width 384]

`padded`: every caption to 128 tokens; `dynamic`: to the longest of its batch; `chunks`: that, and in a few runs over
captions of about one length, which is what CUE does; `grouped`: whole batches of about one length, which CUE does with
--train_sampling_strategy group_by_length, and which changes the negatives. Lengths are log-normal around 15 tokens,
90 % of them from 8 to 29 as in captions of photographs, at most 128. Batches are run in turns; printed are the median
(smallest, largest) ratio of texts/s to `dynamic`, and how far the gradients lie apart.
"""

import argparse
import copy
import statistics
import sys
import time
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

LONGEST = 128
METHODS = ("padded", "dynamic", "chunks", "grouped")


def make_lengths(count: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return (15 * torch.exp(0.39 * torch.randn(count, generator=generator))).round().long().clamp(5, LONGEST)


def make_batch(rows: list[int], lengths: Tensor, tokens: Tensor, padded: bool) -> tuple[Tensor, Tensor]:
    width = LONGEST if padded else int(lengths[rows].max())
    mask = (torch.arange(width) < lengths[rows][:, None]).long()
    return tokens[rows, :width] * mask, mask


def main() -> None:
    from transformers import BertConfig
    from transformers.trainer_pt_utils import get_length_grouped_indices

    from modeling_cue.encoders import build_tower, run_tower
    from modeling_cue.encoders_run import TEXT_CHUNKS, pool

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (
        ("texts", 256),
        ("batches", 5),
        ("rounds", 3),
        ("threads", 1),
        ("layers", 3),
        ("width", 384),
    ):
        parser.add_argument(f"--{name}", type=int, default=default)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    config = BertConfig(
        num_hidden_layers=arguments.layers, hidden_size=arguments.width, intermediate_size=4 * arguments.width,
        num_attention_heads=6, vocab_size=3000, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    tower = build_tower(config, "text")

    # An epoch of 50 batches, as long as those that a sampler groups at once.
    size, count = arguments.texts, 50 * arguments.texts
    lengths, tokens = make_lengths(count), torch.randint(1, 3000, (count, LONGEST))
    orders = {"random": torch.randperm(count).tolist()}
    orders["grouped"] = get_length_grouped_indices(lengths.tolist(), size, mega_batch_mult=50)
    chosen = [int(50 * (k + 0.5) / arguments.batches) for k in range(arguments.batches)]
    # Padded batches are all of one shape.
    own = {method: chosen[:1] if method == "padded" else chosen for method in METHODS}

    def step(method: str, batch: int, tower=tower) -> None:
        order = orders["grouped" if method == "grouped" else "random"]
        rows = order[batch * size : (batch + 1) * size]
        ids, mask = make_batch(rows, lengths, tokens, method == "padded")
        chunks = TEXT_CHUNKS if method == "chunks" else 1
        pooled = pool(run_tower(tower, "text", ids, mask, text_chunks=chunks), "mean")
        # A loss of which the gradient is another for each text.
        target = torch.linspace(-1, 1, pooled.numel()).view_as(pooled)
        (pooled * target.to(pooled)).sum().backward()

    # In float64, so that what is left is not the order of sums.
    gradients, exact = {}, copy.deepcopy(tower).double()
    for method in ("dynamic", "chunks"):
        exact.zero_grad()
        step(method, chosen[0], exact)
        gradients[method] = torch.cat([p.grad.flatten() for p in exact.parameters() if p.grad is not None])
    seconds: dict[str, list[float]] = {method: [] for method in METHODS}
    for _ in range(arguments.rounds):
        for method in METHODS:
            tower.zero_grad()
            start = time.perf_counter()
            for batch in own[method]:
                step(method, batch)
            seconds[method].append((time.perf_counter() - start) / len(own[method]))
    quantiles = lengths.float().quantile(torch.tensor([0.05, 0.5, 0.95])).tolist()
    print("lengths: median {1:.0f}, 90 % from {0:.0f} to {2:.0f}, longest".format(*quantiles), int(lengths.max()))
    base = gradients["dynamic"]
    for method, taken in seconds.items():
        ratios = [other / mine for mine, other in zip(taken, seconds["dynamic"], strict=True)]
        line = f"{method:8}{size / statistics.median(taken):8.1f} texts/s  "
        line += f"{statistics.median(ratios):.2f}x ({min(ratios):.2f}, {max(ratios):.2f})"
        if method in gradients:
            line += f"  gradient apart by {((gradients[method] - base).norm() / base.norm()).item():.1e} of its length"
        print(line)


if __name__ == "__main__":
    main()
