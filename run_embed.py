#!/usr/bin/env python
"""Embeds a data set or a folder as a data set of cones: run_embed.py [CONFIG.yaml] [--flag value ...].

python run_embed.py --model_name_or_path org/cue --dataset_name org/data --split test --output_dir cones
accelerate launch run_embed.py --model_name_or_path runs/demo --dataset_name photos --output_dir cones
"""

import sys

from modeling_cue.training.embed import embed, finish, load_model, load_source, open_store, start
from modeling_cue.training.embed_store import Totals
from modeling_cue.training.parsing import parse_embed_arguments, plain_errors


def main(argv: list[str]) -> Totals | None:
    # 1. Arguments: a YAML file, and flags over it; and which process this is.
    arguments = parse_embed_arguments(argv)
    state = start(arguments)

    # 2. Model and processor, from a checkpoint.
    model, processor = load_model(arguments, state)

    # 3. Data: rows of captions and media, or of one of them.
    source = load_source(arguments, model, state)

    # 4. The output folder, new or unfinished.
    store = open_store(arguments, model, processor, source)

    # 5. Embed this process's share, shard by shard.
    embedder = embed(arguments, model, processor, source, store)

    # 6. Make a data set of the shards, and print.
    totals = finish(embedder, source, store)
    state.destroy_process_group()
    return totals


if __name__ == "__main__":
    with plain_errors():
        main(sys.argv[1:])
