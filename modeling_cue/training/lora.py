"""LoRA adapters in the towers, through peft: heads and composition train whole beside them."""

import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME

from ..modeling_cue import CUEModel
from .gathering import this_process, together

# The projections of attention in every family of towers that has them, by the names their modules bear.
ATTENTION = (
    "q_proj", "k_proj", "v_proj", "query", "key", "value", "q", "k", "v", "qkv", "kv", "in_proj_qkv", "Wqkv",
    "q_lin", "k_lin", "v_lin", "query_proj", "key_proj", "value_proj",
)  # fmt: skip
BASE_FOLDER = "base"


def add_lora(model: CUEModel, *, rank: int, alpha: int, dropout: float, base: str | Path) -> PeftModel:
    """Puts adapters into the attention of every tower that is not frozen; all that is not a tower trains whole.

    `base` is where the model is saved first: what the adapter is an adapter of.

    Raises:
        ValueError: every tower is frozen, or no tower has attention projections under a known name.
    """
    free = [m for m in model.towers if m not in model.frozen_modalities]
    if not free:
        raise ValueError("lora_rank is set but every tower is frozen: take a modality out of freeze")
    for modality in free:
        if not any(name.rpartition(".")[2] in ATTENTION for name, _ in model.towers[modality].named_modules()):
            # peft would freeze it without a word, as long as another tower has adapters.
            raise ValueError(
                f"LoRA finds no attention to adapt in the {modality} tower, of family "
                f"{model.config.tower_config(modality).model_type!r}: freeze it (--freeze {modality}), or train whole "
                "towers (leave out lora_rank)"
            )
    towers = "|".join(f"{modality}_tower" for modality in free)
    targets = rf"({towers})\..*\.({'|'.join(ATTENTION)})"
    whole = [
        name
        for name, part in model.named_children()
        if not name.endswith("_tower") and any(weight.requires_grad for weight in part.parameters())
    ]
    # Under adapters no tower changes: one that is to be adapted can be named as well as a frozen one.
    together(lambda: model.save_pretrained(base, towers=model.save_towers) if this_process()[0] == 0 else None)
    # In full: the adapter is loaded from other working directories too.
    model.name_or_path = str(Path(base).resolve())
    config = LoraConfig(
        r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=targets, modules_to_save=whole, bias="none"
    )
    try:
        with _renaming_ignored():
            return get_peft_model(model, config)
    except ValueError as error:
        raise ValueError(f"LoRA found nothing to adapt in {towers}: {error}") from error


def is_adapter(folder: str | Path) -> bool:
    """Whether the folder is one that training with LoRA left."""
    return (Path(folder) / CONFIG_NAME).is_file()


def forget_adapter(folder: Path, and_base: bool) -> None:
    """Removes an adapter from a folder that gets a whole model: `AutoModel` would load the adapter in its place."""
    for name in (CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME):
        (folder / name).unlink(missing_ok=True)
    if and_base:
        shutil.rmtree(folder / BASE_FOLDER, ignore_errors=True)


def load_lora(folder: str | Path, **kwargs: Any) -> CUEModel:
    """A CUE from a folder that training with LoRA left: base and adapter, merged.

    Raises:
        ValueError: the folder holds no adapter beside its base.
    """
    folder = Path(folder)
    if not is_adapter(folder) or not (folder / BASE_FOLDER).is_dir():
        raise ValueError(f"{folder} holds no LoRA adapter with its {BASE_FOLDER}/ folder: load it with AutoModel")
    base = CUEModel.from_pretrained(folder / BASE_FOLDER, **kwargs)
    with _renaming_ignored():
        # What was frozen under the adapter may be trained again.
        return PeftModel.from_pretrained(base, folder).merge_and_unload().requires_grad_(True)


@contextmanager
def _renaming_ignored() -> Iterator[None]:
    """peft asks transformers for properties by names that have changed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        yield
