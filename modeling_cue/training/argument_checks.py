"""What CUE cannot heed of `TrainingArguments`: refused when arguments are made, not hours later."""

from typing import Any

from transformers import TrainingArguments

# Arguments of `TrainingArguments` that CUE cannot heed: what they stay at, and why.
REFUSED: dict[str, tuple[Any, str]] = {
    "label_smoothing_factor": (0.0, "CUE's losses have no labels to smooth"),
    "remove_unused_columns": (False, "the collator needs every column"),
    "fp16_full_eval": (False, "evaluation runs as training does: set fp16"),
    "bf16_full_eval": (False, "evaluation runs as training does: set bf16"),
    "prediction_loss_only": (False, "evaluation measures metrics, and no loss"),
    "batch_eval_metrics": (False, "metrics are measured of all rows together"),
    "do_predict": (False, "the test split is read where test_split names one"),
    "deepspeed": (None, "CUE shards by FSDP 2, as in configs/accelerate/fsdp2.yaml"),
}
# Parts of the names of metrics that are better lower; all others are better higher.
LOWER_IS_BETTER = ("median_rank", "_ece", "violations", "false_pairs")


def refuse_what_has_no_effect(arguments: Any) -> None:
    """Raises `ValueError` where an argument is set that CUE would ignore, or fail at later."""
    for name, (only, reason) in REFUSED.items():
        if getattr(arguments, name) != only:
            raise ValueError(f"{name}={getattr(arguments, name)!r} is not valid: {reason}; leave it at {only!r}")
    if arguments.max_steps == 0:
        raise ValueError("max_steps=0 is not valid; to evaluate without training, set train_split to none")
    if not (arguments.contrastive_weight or arguments.containment_weight or arguments.composition_weight):
        raise ValueError(
            "contrastive_weight, containment_weight and composition_weight are all 0: nothing would be learned; set "
            "one of them above 0"
        )
    if arguments.metric_for_best_model in ("loss", "eval_loss"):
        raise ValueError(
            f"metric_for_best_model={arguments.metric_for_best_model!r} is not valid: evaluation measures no loss; "
            "name a metric, such as rsum or t2i_R@1"
        )
    if arguments.auto_find_batch_size and arguments.contrastive_batch_size is not None:
        raise ValueError(
            "auto_find_batch_size would make contrastive_batch_size smaller: leave it out, and set "
            "per_device_train_batch_size to what fits"
        )


def check_loading(arguments: TrainingArguments) -> None:
    """Every process makes batches of its own, of the size that was asked for, and as many as the others."""
    loading: Any = arguments.accelerator_config
    # Rows differ in the number of texts: a batch that one process makes for all could not be cut.
    loading.dispatch_batches = bool(loading.dispatch_batches)
    if arguments.dataloader_pin_memory:
        loading.non_blocking = True  # what pinned memory is for
    if loading.dispatch_batches or loading.split_batches or not loading.even_batches:
        raise ValueError(
            f"accelerator_config: dispatch_batches={loading.dispatch_batches}, split_batches="
            f"{loading.split_batches}, even_batches={loading.even_batches} is not valid: every process makes "
            "whole batches of its own and takes every step; leave them at false, false and true"
        )
