"""Run by test_features.py in each process: fills a cache together with the others; notes how many rows it encoded."""

import json
import os
import signal
import sys
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from samples import make_rows

from modeling_cue import CUEModel, CUEProcessor
from modeling_cue.training import feature_keys
from modeling_cue.training.feature_filling import FeatureCache
from modeling_cue.training.features import Place

ROWS = 40


def fill(names: dict[str, str], folder: Path, dies_after: int | None = None):
    """A store of features in shards of four rows, and the numbers of images that this process encoded at once."""
    feature_keys.SHARD_ROWS = 4
    torch.manual_seed(0)
    model = CUEModel.from_encoders(**names, projection_dim=16, composition_dim=16)
    model.freeze(names)
    encoded: list[int] = []

    def note(module, args, kwargs, output):
        encoded.append(len(kwargs["pixel_values"]))
        if dies_after is not None and len(encoded) > dies_after:
            os.kill(os.getpid(), signal.SIGKILL)

    model.image_tower.register_forward_hook(note, with_kwargs=True)
    rows = make_rows(("image",), count=ROWS)
    cache = FeatureCache(model, CUEProcessor.from_encoders(**names), folder)
    return cache.store(rows, ["a dog", "a red cat"]), encoded


def main(names: str, folder: str, meeting: str, rank: str, fault: str) -> None:
    dist.init_process_group(
        "gloo", init_method=f"file://{meeting}", rank=int(rank), world_size=2, timeout=timedelta(seconds=60)
    )
    result = {}
    # Then two machines without a common disk: each process has a folder of its own.
    for name, own in (("shared", Path(folder)), ("apart", Path(f"{folder} of {rank}"))):
        store, encoded = fill(json.loads(names), own, 2 if fault == "dies" and rank == "1" else None)
        features = store.media([Place("image", row) for row in range(ROWS)])[0]
        text = store.text(["a dog"])[0][0].tolist()
        result[name] = {"encoded": sum(encoded), "sum": features.double().sum().item(), "text": text}
    Path(f"{meeting}-{rank}.json").write_text(json.dumps(result))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
