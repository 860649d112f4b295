"""The arguments of `run_contrastive.py`: data classes, from a YAML file and flags over it."""

import logging
import os
import sys
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import TrainingArguments

from .argument_checks import LOWER_IS_BETTER, check_loading, refuse_what_has_no_effect

logger = logging.getLogger(__name__)

ORDERS = ["random", "sequential", "group_by_length"]
TOWERS = ["whole", "reference"]


def flag(default: Any, text: str, **metadata: Any) -> Any:
    """A field with its default, told by `text` on the command line."""
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata={"help": text, **metadata})
    return field(default=default, metadata={"help": text, **metadata})


class ArgumentsError(ValueError):
    """Arguments that cannot be right; the message says what to change."""


@dataclass
class ModelArguments:
    """Which towers, and the shape of what is trained over them."""

    model_name_or_path: str | None = flag(None, "A CUE checkpoint to go on from, in place of encoders.")
    text_encoder: str | None = flag(None, "Hub name or folder of the text tower.")
    image_encoder: str | None = flag(None, "Hub name or folder of the image tower.")
    audio_encoder: str | None = flag(None, "Hub name or folder of the audio tower.")
    video_encoder: str | None = flag(None, "'image': the image tower over frames; or a tower of images or video.")
    projection_dim: int = flag(512, "Dimension of the shared space.")
    text_pooler: str | None = flag(None, "pooler_output, cls, mean or attention; default: the tower's own habit.")
    image_pooler: str | None = flag(None, "As text_pooler, for images.")
    audio_pooler: str | None = flag(None, "As text_pooler, for audio.")
    pooler_queries: int = flag(1, "Learned queries of each attention pooler.")
    head_hidden_dim: int = flag(0, "Width of the residual MLP of each projection head; 0: a linear head.")
    head_dropout: float = flag(0.0, "Dropout on the input of each projection head.")
    signed_sqrt: list[str] = flag([], "Modalities whose heads take the signed square root of the features.")
    token_dropout: float = flag(0.0, "Share of tokens or patches hidden from attention poolers in training.")
    composition_dropout: float = flag(0.0, "Dropout of the compositional layer.")
    whole_image: bool = flag(False, "Squash the whole image to the tower's size, in place of cropping the middle.")
    fast_images: bool = flag(
        True, "Crop and resize images in one step and normalise by batch; false: as the tower's image processor does."
    )
    jpeg_draft: int = flag(
        0,
        "Decode JPEGs at a half, a quarter or an eighth while this many times the tower's pixels remain along each "
        "side: 1 (fastest) or 2 (closer to the whole); 0: never.",
    )
    average_mirror: bool = flag(
        False, "Outside training, features of an image are the mean over it and its mirror image; twice the cost."
    )
    num_frames: int | None = flag(None, "Frames that a video is sampled to; default: 8, or the video tower's own.")
    logit_scale_init: float | None = flag(None, "Log of the initial InfoNCE scale; default ln(1/0.07).")
    text_prefix: str | None = flag(None, "Prefix of every text; default: the tower's habit ('query: ' for E5).")
    max_text_length: int | None = flag(None, "Longest text in tokens; default: the tokenizer's own.")
    pad_audio_to_30s: bool = flag(False, "Whisper over padded 30 s as in the original, not over real frames only.")
    attn_implementation: str | None = flag(None, "eager, sdpa or flash_attention_2, for every tower.")
    trust_remote_code: bool = flag(False, "Let towers run code from their own repos.")
    freeze: list[str] = flag([], "Modalities whose towers stay frozen, such as: --freeze text image; or none.")
    lora_rank: int = flag(0, "Rank of LoRA adapters in the towers that are not frozen; 0: train whole towers.")
    lora_alpha: int = flag(32, "Scale of the LoRA adapters.")
    lora_dropout: float = flag(0.05, "Dropout of the LoRA adapters.")
    lora_merge: bool = flag(False, "Save one merged checkpoint at the end, in place of base and adapter.")


@dataclass
class SourceArguments:
    """Where rows come from, and how they are read."""

    dataset_name: str = flag(
        "scenes", "Hub data set, folder, or csv, tsv, json, jsonl, parquet or arrow file; 'scenes': the demo data."
    )
    image_column: str | None = flag(None, "Column of images, where the name is not found by itself.")
    caption_column: str | None = flag(None, "Column of captions.")
    audio_column: str | None = flag(None, "Column of audio.")
    video_column: str | None = flag(None, "Column of videos.")
    id_column: str | None = flag(None, "Column of sample ids.")
    split_column: str | None = flag(None, "Column that names the split of each row.")
    streaming: bool = flag(False, "Read rows as they come, without downloading or indexing the whole.")
    on_bad_row: str = flag("raise", "What a broken row does: raise stops the run, skip leaves it out and counts it.")
    data_cache_dir: str | None = flag(None, "Where downloaded data is kept; default: the Hugging Face cache.")
    dataset_config_name: str | None = flag(None, "Configuration of a data set that has several.")
    dataset_revision: str | None = flag(None, "Branch, tag or commit of a data set on the Hub.")
    check_counts: bool = flag(True, "Known data sets must have their known numbers of images and captions.")


@dataclass
class DataArguments(SourceArguments):
    """Which data to train on, how much of it, and what is made of it."""

    split_sizes: list[int] = flag(
        [], "Images of validation and of test, such as: --split_sizes 1000 1000; for data that comes in one piece."
    )
    split_seed: int = flag(0, "Decides what split_sizes makes: keep it through runs that are compared.")
    train_split: str | None = flag("train", "Split to train on; none: model_name_or_path is evaluated, not saved.")
    validation_split: str | None = flag("validation", "Split to choose the best checkpoint on; none to do without.")
    test_split: str | None = flag("test", "Split that is read once, at the end; none to leave it out.")
    max_train_samples: int | None = flag(None, "Read only so many training rows.")
    max_eval_samples: int | None = flag(None, "Read only so many rows of validation and of test.")
    shuffle_buffer_size: int = flag(1000, "Rows in the shuffle buffer of a stream.")
    captions_per_image: str = flag("1", "1: an epoch is every (image, caption) pair; all: every image, all captions.")
    phrases_per_caption: int = flag(2, "Phrases drawn of each caption for containment and composition, at most.")
    whole_parts: float = flag(
        0.0,
        "Share of training's compounds made of whole captions of an image, of its sound where it has one, or of the "
        "image itself and phrases, in place of phrases alone; with captions_per_image all.",
    )
    feature_cache: str | None = flag(
        None,
        "Folder where features of frozen towers are kept: these run once, the other towers as ever. Default: when "
        "every tower is frozen, cue/features in the assets of the Hugging Face cache (HF_ASSETS_CACHE; may be deleted "
        "at any time), else none. none: frozen towers run each time, as they always do with streaming.",
    )
    image_cache: str | None = flag(
        None,
        "Folder for decoded, resized images: each file is decoded once, not every epoch. Takes N x H x W x 3 bytes: "
        "147 KiB an image at 224 x 224, 4.3 GiB for the 31,014 of Flickr30k. Not with streaming.",
    )
    random_crop_scale: float = flag(
        1.0,
        "Training sees a random part of each image, of at least this share of its area; 1: the whole. Not where the "
        "features of a frozen image tower are cached.",
    )
    mirror_images: bool = flag(False, "Training sees each image or its mirror image at random.")
    feature_dtype: str = flag("float32", "float32 or float16: how cached features are stored.")


@dataclass
class CUETrainingArguments(TrainingArguments):
    """`TrainingArguments` with the weights of CUE's losses.

    Defaults that differ from the parent: output_dir runs/cue, batch 32 (training and evaluation), weight_decay 0.01,
    warmup_steps 0.05 (a share of all steps), evaluation and saving each epoch, two checkpoints kept, the best by rsum
    loaded at the end, remove_unused_columns False, report_to none, accelerate hands whole batches to each process,
    as many data loading processes as there are cores to spare.
    """

    output_dir: str | None = flag("runs/cue", "Where checkpoints, results and the model go.")
    per_device_train_batch_size: int = flag(32, "Samples per device and step.")
    per_device_eval_batch_size: int = flag(32, "Samples per device in evaluation.")
    weight_decay: float = flag(0.01, "Weight decay of AdamW.")
    warmup_steps: float = flag(0.05, "Warm-up: steps, or a share of all steps when below 1.")
    eval_strategy: str = flag("epoch", "When to evaluate: no, steps or epoch.")
    save_strategy: str = flag("epoch", "When to save: no, steps, epoch or best.")
    save_total_limit: int | None = flag(2, "Checkpoints kept, the best among them.")
    load_best_model_at_end: bool = flag(True, "Go back to the best checkpoint at the end.")
    metric_for_best_model: str | None = flag("rsum", "What the best checkpoint is best in.")
    remove_unused_columns: bool = flag(False, "Rows keep their columns: the collator chooses.")
    report_to: list[str] = flag(["none"], "Loggers, such as: --report_to tensorboard trackio; or none.")
    logging_steps: float = flag(10, "Steps between two log lines.")
    logging_nan_inf_filter: bool = flag(False, "Leave losses that are not finite out of the log; CUE stops at them.")
    dataloader_num_workers: int | None = flag(  # type: ignore[assignment]
        None,
        "Processes that load and decode data, per device. Default: the cores of this process, less one for an "
        "accelerator's or two for the CPU's computing, at most 8; one for streams; 0 where nothing is decoded.",
    )
    dataloader_persistent_workers: bool | None = flag(  # type: ignore[assignment]
        None, "Keep these processes from epoch to epoch. Default: where there are any."
    )
    lr_scheduler_type: str = flag("cosine", "Schedule of the learning rate.")
    train_sampling_strategy: str = flag(
        "random",
        "Order of training rows: random; sequential; or group_by_length: batches of captions of about one length, "
        "which have less padding, but it changes the negatives: a caption is compared with others of its length only.",
        choices=ORDERS,
    )

    resume_from_checkpoint: str | None = flag(
        None, "Go on from a checkpoint: its folder, or last, the newest in output_dir."
    )
    save_towers: str = flag(
        "whole",
        "What checkpoints and the model hold of frozen towers: whole; or reference: their names, revisions and "
        "fingerprints, so that a checkpoint is a few MB and loading fetches them. Towers that train are held whole.",
        choices=TOWERS,
    )
    head_learning_rate: float | None = flag(None, "Learning rate of all that is not a tower; default: learning_rate.")
    contrastive_weight: float = flag(1.0, "Weight of InfoNCE between modalities.")
    containment_weight: float = flag(0.1, "Weight of the containment loss.")
    phrase_containment_weight: float = flag(
        1.0,
        "Weight, within the containment loss, of 'phrase contains caption', beside 1 of 'caption contains image' and "
        "the like. Phrases and captions share a head: what tells them apart also spreads the radii of captions.",
    )
    composition_weight: float = flag(0.1, "Weight of the composition loss.")
    contrastive_batch_size: int | None = flag(
        None,
        "Samples that a step compares with one another, over all processes, embedded in chunks of "
        "per_device_train_batch_size (GradCache): memory does not grow with it. Default: what a step holds anyway.",
    )
    containment_moves_axes: bool = flag(False, "Containment gradients reach the axes too, not only the radii.")

    def __post_init__(self) -> None:
        for name in ("contrastive_weight", "containment_weight", "phrase_containment_weight", "composition_weight"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name}={getattr(self, name)} is not valid; it must be zero or more")
        if self.train_sampling_strategy not in ORDERS:
            raise ValueError(
                f"train_sampling_strategy={self.train_sampling_strategy!r} is not valid; it must be one of "
                f"{', '.join(ORDERS)}"
            )
        if self.save_towers not in TOWERS:
            raise ValueError(f"save_towers={self.save_towers!r} is not valid; it must be {' or '.join(TOWERS)}")
        on_cpu = self.use_cpu or not torch.accelerator.is_available()
        if on_cpu:
            self.dataloader_pin_memory = False  # there is no device to pin for, and PyTorch would warn
        self._choose_workers(on_cpu)
        saved, evaluated = (str(getattr(s, "value", s)) for s in (self.save_strategy, self.eval_strategy))
        if self.load_best_model_at_end and (saved == "no" or evaluated == "no" or saved not in ("best", evaluated)):
            logger.warning(
                "load_best_model_at_end is off: with eval_strategy=%s and save_strategy=%s no checkpoint is measured",
                evaluated, saved,
            )  # fmt: skip
            self.load_best_model_at_end = False
        if self.greater_is_better is None and any(part in str(self.metric_for_best_model) for part in LOWER_IS_BETTER):
            self.greater_is_better = False
        super().__post_init__()
        refuse_what_has_no_effect(self)
        check_loading(self)
        self._keep_to_one_device()
        checkpointing: Any = self.gradient_checkpointing_kwargs or {}
        if self.ddp_find_unused_parameters is None and not checkpointing.get("use_reentrant"):
            # Which weights get a gradient depends on poolers and on what a batch holds. The Trainer looks for those
            # that get none too, but not under activation checkpointing, as its reentrant kind forbids it.
            self.ddp_find_unused_parameters = True
        chunks = self.train_batch_size * self.world_size
        size = self.contrastive_batch_size
        if size is not None and (size < 1 or size % chunks):
            lower = max(1, size // chunks) * chunks
            raise ValueError(
                f"contrastive_batch_size={size} is not valid: it must be a multiple of "
                f"per_device_train_batch_size times the number of processes, {chunks}, such as {lower} or "
                f"{lower + chunks}"
            )

    def __getstate__(self) -> dict[str, Any]:
        # `training_args.bin` is this object pickled, and it is pushed with the model: for all to read.
        return self.__dict__ | {"hub_token": None}

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        copied = memo[id(self)] = object.__new__(type(self))
        copied.__dict__.update(deepcopy(self.__dict__, memo))
        return copied

    def __copy__(self) -> Any:
        copied = object.__new__(type(self))
        copied.__dict__.update(self.__dict__)
        return copied

    def _keep_to_one_device(self) -> None:
        """One process that sees several GPUs uses the first: `DataParallel`, the Trainer's way, would cut batches
        whose rows are named by their number in the whole batch."""
        if self.n_gpu > 1:
            logger.warning(
                "%d GPUs and one process, which uses the first of them: start with `accelerate launch` to use all",
                self.n_gpu,
            )
            self._n_gpu = 1

    def _choose_workers(self, on_cpu: bool) -> None:
        self.workers_are_given = self.dataloader_num_workers is not None
        if self.dataloader_num_workers is None:
            # What is set for worker processes asks for one.
            least = int(self.dataloader_prefetch_factor is not None or bool(self.dataloader_persistent_workers))
            self.dataloader_num_workers = max(least, spare_cores(on_cpu))
            self.workers_are_given = bool(least)
        if self.dataloader_persistent_workers is None:
            self.dataloader_persistent_workers = self.dataloader_num_workers > 0

    def limit_workers(self, most: int) -> None:
        """At most so many data loading processes, where their number was not given."""
        if not self.workers_are_given and (self.dataloader_num_workers or 0) > most:
            self.dataloader_num_workers = most
            self.dataloader_persistent_workers = self.dataloader_persistent_workers and most > 0


def spare_cores(on_cpu: bool) -> int:
    """Cores for data loading, of those that each process on this machine has to itself, from 0 to 8.

    Args:
        on_cpu: whether the model runs on the CPU too.
    """
    return min(8, max(0, own_cores() - (2 if on_cpu else 1)))


def own_cores() -> int:
    """Cores of this machine for each process on it that runs together with this one."""
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    return cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
