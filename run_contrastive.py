#!/usr/bin/env python
"""Trains a CUE: run_contrastive.py [CONFIG.yaml] [--flag value ...]; without a file and without data, the demo.

python run_contrastive.py
accelerate launch run_contrastive.py configs/flickr30k.yaml --output_dir runs/flickr30k
"""

import sys
from pathlib import Path

from transformers import set_seed

from modeling_cue.training.building import build_model
from modeling_cue.training.parsing import is_demo, parse_arguments, plain_errors
from modeling_cue.training.pipeline import (
    announce,
    build_trainer,
    evaluate_test,
    load_data,
    save_and_share,
    train,
)
from modeling_cue.training.run_record import RunRecord

DEMO = str(Path(__file__).parent / "configs" / "demo.yaml")


def main(argv: list[str]) -> dict[str, float]:
    # 1. Arguments: a YAML file, and flags over it.
    command = argv
    if is_demo(argv) and not {"-h", "--help"} & set(argv):  # which shows the defaults, not those of the demo
        argv = [DEMO, *argv]
    model_args, data_args, training_args = parse_arguments(argv)
    announce(argv, data_args, training_args)
    set_seed(training_args.seed)

    # 2. Data: rows of captions and media.
    rows = load_data(data_args, model_args)

    # 3. Model and processor, from encoders, from a checkpoint, or the demo's tiny towers.
    model, processor = build_model(model_args, data_args, training_args, rows)

    # 4. Train, with evaluation on the validation split.
    trainer = build_trainer(model, processor, rows, data_args, training_args)
    trainer.record = RunRecord(command, model_args, data_args, rows.described)
    train(trainer)

    # 5. Evaluate: the test split is read once, with the best checkpoint.
    metrics = evaluate_test(trainer, rows, data_args)

    # 6. Save, print, push.
    save_and_share(trainer, metrics, model_args, rows, data_args)
    return metrics


if __name__ == "__main__":
    with plain_errors():
        main(sys.argv[1:])
