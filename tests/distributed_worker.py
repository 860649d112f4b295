"""Run by test_distributed.py in each process: every term of the loss and its gradients over this process' samples."""

import sys

import torch
import torch.distributed as dist
from tiny import LAYERS
from torch.nn.parallel import DistributedDataParallel

from configuration_cue import CUEConfig
from modeling_cue import CUEModel
from modeling_cue.training.evaluation import embed_dataset, embedded_kinds
from modeling_cue.training.gathering import gather_kinds, this_world
from modeling_cue.training.grad_cache import Chunks, backward_in_chunks
from modeling_cue.training.losses import LossWeights, compute_losses, total_loss

SAMPLES = 6


def make_model() -> CUEModel:
    torch.manual_seed(0)
    text = LAYERS | {
        "model_type": "bert",
        "vocab_size": 40,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }
    image = LAYERS | {"model_type": "vit", "image_size": 16, "patch_size": 8, "hidden_dropout_prob": 0.0}
    config = CUEConfig(text_config=text, image_config=image, projection_dim=8, composition_dim=16)
    model = CUEModel(config)
    for linear in (model.composition.gate, model.composition.shift):
        torch.nn.init.normal_(linear.weight, std=0.3)
    return model.train()


def make_batch(samples: list[int]) -> dict:
    """Two captions, two phrases, and two compounds of each sample: of its phrases, and of its image with a phrase.

    Sample 3 has no image, and 4 has a phrase that is true of 5 too.
    """
    draw = [torch.Generator().manual_seed(100 + s) for s in samples]
    ids = torch.cat([torch.randint(3, 40, (4, 5), generator=g) for g in draw])
    order = [4 * i + k for k in range(4) for i in range(len(samples))]
    seen = [i for i, s in enumerate(samples) if s != 3]
    pixels = torch.stack([torch.randn(3, 16, 16, generator=g) for g in draw])[seen]
    n = len(samples)
    sample = torch.tensor(samples) + 1
    fact = sample * 10
    shared = torch.where(sample == 5, 60, fact + 1)

    def kind(ids, requires=None, implies=None, words=None):
        empty = torch.zeros(len(ids), 0, dtype=torch.long)
        return {
            "ids": ids, "key": 2 * ids + torch.arange(len(ids)) // n,
            "requires": empty if requires is None else requires,
            "implies": empty if implies is None else implies, "words": empty if words is None else words,
        }  # fmt: skip

    facts = torch.stack([fact, shared], 1)
    rows = {
        "text": kind(sample.repeat(2), facts.repeat(2, 1), facts.repeat(2, 1), (sample[:, None] % 3 + 1).repeat(2, 1)),
        "phrase": kind(
            sample.repeat(2), torch.cat([fact, shared])[:, None], None, (sample[:, None] % 3 + 1).repeat(2, 1)
        ),
        "image": kind(sample[seen], None, facts[seen]),
        "composed": kind(sample, facts),
        "pictured": kind(sample[seen], fact[seen, None]),
    }
    parts = torch.stack([torch.arange(n) + 2 * n, torch.arange(n) + 3 * n], 1)
    parts = torch.cat([parts, torch.stack([torch.arange(len(seen)) + 4 * n, torch.tensor(seen).long() + 2 * n], 1)])
    batch = {"model": {"input_ids": ids[order], "pixel_values": pixels, "parts": parts}, "rows": rows}
    if not seen:
        del batch["model"]["pixel_values"], rows["image"], rows["pictured"]
    return batch


def in_chunks(shares: list[list[int]], world: int) -> tuple:
    """The loss and gradients of chunks in every process, or of all samples at once in one process."""
    weights = LossWeights(containment_moves_axes=True)
    model = make_model()
    wrapped = DistributedDataParallel(model, find_unused_parameters=True) if world > 1 else model

    def embed(chunk):
        output = wrapped(**chunk["model"])
        return embedded_kinds(output, chunk), (
            output.logit_scale,
            output.containment_scale,
            output.containment_bias,
        )

    def loss_of(embedded, scalars):
        local, everywhere = gather_kinds(embedded)
        return total_loss(compute_losses(local, *scalars, weights, everywhere, this_world()), weights)

    if world == 1:
        loss = loss_of(*embed(make_batch([sample for share in shares for sample in share])))
        loss.backward()
    else:
        chunks = Chunks([make_batch(share) for share in shares])
        loss = backward_in_chunks(
            wrapped, chunks, torch.device("cpu"), embed, loss_of, lambda scalar: scalar.backward()
        )
    return loss.detach(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def main(output: str) -> None:
    rank, world = 0, 1
    if len(sys.argv) > 2:
        rank, world = int(sys.argv[3]), int(sys.argv[4])
        dist.init_process_group("gloo", init_method=f"file://{sys.argv[2]}", rank=rank, world_size=world)
    # Uneven on purpose: the first process has more samples than the second.
    share = list(range(SAMPLES)) if world == 1 else [[0, 1, 2, 3], [4, 5]][rank]
    results = {}
    for moves in (False, True):
        weights = LossWeights(containment_moves_axes=moves)
        names = None
        while names is None or names:
            model = make_model()
            wrapped = DistributedDataParallel(model, find_unused_parameters=True) if world > 1 else model
            batch = make_batch(share)
            output_ = wrapped(**batch["model"])
            local, everywhere = gather_kinds(embedded_kinds(output_, batch))
            scalars = (output_.logit_scale, output_.containment_scale, output_.containment_bias)
            terms = compute_losses(local, *scalars, weights, everywhere, this_world())
            names = list(terms) if names is None else names
            name = names.pop()
            terms[name].backward()
            gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
            results[name, moves] = (terms[name].detach(), gradients)
    # Chunks of one sample: sample 3 has no image, and the second process has fewer of them.
    for size in (1, 2):
        results["chunks", size] = in_chunks([share[i : i + size] for i in range(0, len(share), size)], world)
    # Of sample 3 alone the second process has no image.
    batches = [[[0, 1, 2], [4, 5]], [[3]]][rank] if world > 1 else [list(range(SAMPLES))]
    found = embed_dataset(make_model(), map(make_batch, batches), torch.device("cpu"), show_progress=False)
    results["evaluation"] = {kind: (rows.ids, rows.cone.axis, rows.cone.radius) for kind, rows in found.items()}
    torch.save(results, f"{output}.{rank}")
    if world > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
