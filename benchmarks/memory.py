"""Memory and time of big contrastive batches: losses in strips beside whole matrices, chunks beside plain batches.

python benchmarks/memory.py losses [--rows 4096 32768] [--dim 512] [--threads 2]
python benchmarks/memory.py chunks [--batches 32 512 1024] [--chunk 32] [--captions 5] [--threads 2]
python benchmarks/memory.py activations

Every measurement is a process of its own; memory is the peak of the process, of `losses` above what stood before it
began, and freed memory goes back to the system at once: what is seen is what tensors take. That costs time, which is
therefore measured by another process, with the allocator as it is. `losses` takes InfoNCE and containment of as many
captions as images, forward and backward. `chunks` trains a ViT and a BERT with AdamW: plain batches up to the first
two sizes, chunks from the second on. `activations` counts the weights of a ViT-B/32 and a BERT base tower with their
heads, and what autograd keeps of an image and of a text in bfloat16.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

MIB = 1024
# glibc keeps what was freed, in pieces that may fit nothing that comes after; the peak would be of those. Those
# below a megabyte added up to 500 MiB after one chunk.
GIVES_BACK = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / MIB


def make_rows(count: int, dim: int, seed: int):
    from modeling_cue.cones import Cone
    from modeling_cue.training.relations import Embedded

    generator = torch.Generator().manual_seed(seed)
    axis = torch.nn.functional.normalize(torch.randn(count, dim, generator=generator), dim=-1).requires_grad_()
    radius = torch.rand(count, generator=generator).requires_grad_()
    own, none = torch.arange(1, count + 1)[:, None], torch.zeros(count, 0, dtype=torch.long)
    return Embedded(Cone(axis, radius), own[:, 0], own, own, none)


def measure_losses(method: str, rows: int, dim: int) -> dict[str, float]:
    from modeling_cue.contrastive import info_nce
    from modeling_cue.training.losses import LossWeights, compute_losses, containment_loss

    text, image = make_rows(rows, dim, 0), make_rows(rows, dim, 1)
    scalars = [torch.tensor(value, requires_grad=True) for value in (14.0, 5.0, 0.0)]

    def both(text, image):
        if method == "whole":
            # As in training, where an axis gets its gradient by the loss, and ids tell what matches.
            yield info_nce(text.cone.axis, image.cone.axis, scalars[0], text.ids, image.ids)
            related = (text.ids[:, None] == image.ids[None]).to(torch.int8)
            yield containment_loss(text.cone, image.cone, related, *scalars[1:])
        else:
            yield sum(compute_losses({"text": text, "image": image}, *scalars, LossWeights()).values())

    def run(text, image) -> float:
        value = 0.0
        for loss in both(text, image):
            loss.backward()
            value += loss.item()
        return value

    run(text[:8], image[:8])
    before, start = peak(), time.perf_counter()
    loss = run(text, image)
    return {"seconds": time.perf_counter() - start, "MiB": peak() - before, "loss": loss}


def measure_chunks(method: str, batch: int, chunk: int, captions: int) -> dict[str, float]:
    from modeling_cue import CUEConfig, CUEModel
    from modeling_cue.media_pixels import PixelSpec, normalise
    from modeling_cue.training.evaluation import embedded_kinds
    from modeling_cue.training.grad_cache import Chunks, backward_in_chunks
    from modeling_cue.training.losses import LossWeights, compute_losses, total_loss

    torch.manual_seed(0)
    layers = {"num_hidden_layers": 6, "hidden_size": 384, "intermediate_size": 1536, "num_attention_heads": 6}
    config = CUEConfig(
        text_config=layers | {"model_type": "bert"},
        image_config=layers | {"model_type": "vit", "image_size": 224, "patch_size": 32},
    )
    model, weights = CUEModel(config).train(), LossWeights()
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    spec = PixelSpec(224, (224, 224), False, 3, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), 1 / 255)

    def batch_of(first: int, size: int) -> dict:
        ids = torch.arange(first, first + size) + 1
        texts = ids.repeat_interleave(captions)
        none, tokens = torch.zeros(len(texts), 0, dtype=torch.long), torch.randint(1000, 30000, (len(texts), 16))
        kinds = {
            "text": {"ids": texts, "requires": texts[:, None], "implies": texts[:, None], "words": none},
            "image": {"ids": ids, "requires": none[:size], "implies": ids[:, None], "words": none[:size]},
        }
        inputs = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
        return {
            "model": inputs | {"pixel_values": torch.randint(256, (size, 3, 224, 224), dtype=torch.uint8)},
            "rows": kinds,
        }

    def embed(part):
        # As in training, where pixels come as bytes.
        output = model(**part["model"] | {"pixel_values": normalise(part["model"]["pixel_values"], spec)})
        return embedded_kinds(output, part), (output.logit_scale, output.containment_scale, output.containment_bias)

    def loss_of(embedded, scalars):
        return total_loss(compute_losses(embedded, *scalars, weights), weights)

    def step(size: int) -> float:
        start = time.perf_counter()
        if method == "plain":
            loss_of(*embed(batch_of(0, size))).backward()
        else:
            chunks = Chunks([batch_of(first, chunk) for first in range(0, size, chunk)])
            backward_in_chunks(model, chunks, torch.device("cpu"), embed, loss_of, lambda loss: loss.backward())
        optimizer.step()
        optimizer.zero_grad()
        return time.perf_counter() - start

    # Imports, weights and the optimiser's state are part of both: the peak is that of the process.
    step(min(batch, chunk))
    return {"seconds": step(batch), "MiB": peak()}


def count_activations() -> None:
    from modeling_cue import CUEConfig, CUEModel

    config = CUEConfig(
        text_config={"model_type": "bert"},
        image_config={"model_type": "clip_vision_model", "patch_size": 32, "hidden_size": 768},
    )
    model = CUEModel(config).train()
    for name in ("text_tower", "image_tower", "text_head", "image_head", "composition"):
        print(f"{name:12}{sum(p.numel() for p in getattr(model, name).parameters()) / 1e6:8.2f} M weights")
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def kept(**inputs: torch.Tensor) -> int:
        storages: dict[int, torch.UntypedStorage] = {}

        def pack(tensor):
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), torch.autocast("cpu"):
            model(**inputs)
        return sum(storage.nbytes() for pointer, storage in storages.items() if pointer not in weights)

    def each(make) -> float:
        # What does not grow with the batch are copies of weights in bfloat16.
        return (kept(**make(6)) - kept(**make(2))) / 4 / 2**20

    image = each(lambda n: {"pixel_values": torch.randn(n, 3, 224, 224)})
    print(f"an image keeps {image:.1f} MiB")
    for length in (8, 16, 32):
        text = each(lambda n, length=length: {"input_ids": torch.randint(1000, 30000, (n, length))})
        print(f"a text of {length} tokens keeps {text:.2f} MiB")


def measure_alone(settings: dict[str, str], *case: object) -> dict[str, float]:
    command = [sys.executable, __file__, *sys.argv[1:], "--case", json.dumps(case)]
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=os.environ | settings)
    if result.returncode:
        return {"seconds": float("nan"), "MiB": float("nan")}
    return json.loads(result.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["losses", "chunks", "activations"])
    parser.add_argument("--rows", type=int, nargs="+", default=[4096, 32768])
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--batches", type=int, nargs="+", default=[32, 512, 1024])
    parser.add_argument("--chunk", type=int, default=32)
    parser.add_argument("--captions", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--case", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.case:
        method, size = json.loads(arguments.case)
        if arguments.what == "losses":
            result = measure_losses(method, size, arguments.dim)
        else:
            result = measure_chunks(method, size, arguments.chunk, arguments.captions)
        print(json.dumps(result))
        return
    if arguments.what == "activations":
        return count_activations()
    if arguments.what == "losses":
        cases = [(m, n) for n in arguments.rows for m in ("whole", "strips") if m == "strips" or n <= 8192]
    else:
        first, second, *more = arguments.batches
        cases = [("plain", first), ("plain", second), *(("chunks", n) for n in (second, *more))]
    for method, size in cases:
        seconds, mib = measure_alone({}, method, size)["seconds"], measure_alone(GIVES_BACK, method, size)["MiB"]
        print(f"{method:8}{size:8}{seconds:10.2f} s{mib:10.0f} MiB", flush=True)


if __name__ == "__main__":
    main()
