"""The parts of a CUEProcessor, where they come from, and the habits of the towers they belong to."""

import re
from collections.abc import Mapping
from typing import Any

import transformers
from transformers import AutoFeatureExtractor, AutoImageProcessor, AutoTokenizer, PreTrainedConfig
from transformers.utils import is_torchvision_available

# Towers that were trained with a prefix, by the name of their repo or folder: the habit of E5 (Wang et al., 2022),
# whose instruction-tuned variants want whole instructions instead. Folders above it say nothing of the tower.
PREFIX_HABITS = ((re.compile(r"(^|[/_-])e5([_-](?!.*instruct)[^/]*)?/?$", re.IGNORECASE), "query: "),)
# The part that prepares each modality, and the class that loads it, in the order of CUEProcessor's arguments.
PARTS: dict[str, Any] = {
    "tokenizer": AutoTokenizer,
    "image_processor": AutoImageProcessor,
    "feature_extractor": AutoFeatureExtractor,
    "frame_image_processor": AutoImageProcessor,
}
# What CUEProcessor calls its input of each modality.
ARGUMENTS = {"text": "text", "image": "images", "audio": "audio", "video": "videos"}
# Arguments of `from_pretrained` that say which files it takes, and from where.
HUB_OPTIONS = ("revision", "token", "cache_dir", "force_download", "local_files_only", "proxies", "trust_remote_code")
# Families whose text tower reads padding too, as it was trained on texts of one length.
WHOLE_TEXTS = ("siglip", "siglip_text_model")
# Families that number the places of a text from behind the padding token's id on, and that id where it is fixed.
PLACES_BEHIND_PADDING = {"roberta": None, "xlm-roberta": None, "mpnet": 1}
LONGEST_TEXT = 512  # tokens, where neither a tokenizer nor its tower states a length


def longest_text(tokenizer: Any) -> int:
    """The length in tokens at which texts are cut, where nothing else is said."""
    stated = tokenizer.model_max_length
    return stated if stated < 100_000 else LONGEST_TEXT


def check_text_length(name: str, length: int, tokenizer: Any, places: int | None = None) -> None:
    """Refuses, by a ValueError, a length in tokens that leaves no room for text, or exceeds a text tower's places."""
    # With no room beside its special tokens a tokenizer silently cuts nothing.
    least = 1 if tokenizer is None else 1 + tokenizer.num_special_tokens_to_add()
    if length < least:
        raise ValueError(f"{name}={length} is not valid; it must be {least} or more, or None")
    if places is not None and length > places:
        raise ValueError(f"{name}={length} is not valid: the text tower has places for {places} tokens")


def length_of_call(wanted: int | None, longest: int, tokenizer: Any) -> int:
    """The length in tokens at which a call cuts texts, of a processor that cuts them at `longest`.

    Raises:
        ValueError: a length without room for text, or a greater one.
    """
    if wanted is None or wanted == longest:
        return longest
    check_text_length("max_length", wanted, tokenizer)
    if wanted > longest:
        raise ValueError(
            f"max_length={wanted} is not valid: this processor cuts texts at {longest} tokens, as its text tower may "
            "have places for no more; where it has, set processor.max_text_length"
        )
    return wanted


def text_habits(name: str, tokenizer: Any, wanted: int | None = None, **options: Any) -> dict[str, Any]:
    """Settings of a CUEProcessor that are the habit of a text tower; `wanted` is the length that somebody asks for.

    Raises:
        ValueError: the tower has fewer places.
    """
    habits: dict[str, Any] = {}
    habits["text_prefix"] = next((prefix for pattern, prefix in PREFIX_HABITS if pattern.search(name)), "")
    config = _stated(name, **options)
    if config.get("model_type") in WHOLE_TEXTS:
        text = transformers.AutoConfig.for_model(**config)
        text = getattr(text, "text_config", text)
        habits |= {"text_padding": "max_length", "max_text_length": text.max_position_embeddings}
    elif wanted:
        check_text_length("max_text_length", wanted, tokenizer, text_places(config))
    elif (places := text_places(config)) and places < longest_text(tokenizer):
        habits["max_text_length"] = places
    return habits


def text_places(config: Mapping[str, Any]) -> int | None:
    """How many tokens a text tower has places for, by its configuration; None where it does not say."""
    config = config.get("text_config") or config
    places, family = config.get("max_position_embeddings"), config.get("model_type")
    if places and family in PLACES_BEHIND_PADDING:
        padding = PLACES_BEHIND_PADDING[family]
        return places - 1 - (config.get("pad_token_id", 1) if padding is None else padding)
    return places


def video_habits(name: str, **options: Any) -> dict[str, Any]:
    """Settings of a CUEProcessor that are the habit of a video tower: one of whole clips states its frames."""
    config = _stated(name, **options)
    return {"num_frames": config["num_frames"]} if "num_frames" in config else {}


def _stated(name: str, **options: Any) -> dict[str, Any]:
    """What a tower's config.json says; nothing where there is none."""
    try:
        return PreTrainedConfig.get_config_dict(name, **options)[0]
    except OSError:
        return {}


def load_part(part: str, name: str, **options: Any) -> Any:
    try:
        return PARTS[part].from_pretrained(name, **options)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{name!r} has no {part} that can be loaded: give the name of a model on the Hub or a local "
            f"folder that holds its files ({error})"
        ) from error


def check_processor_is_there(name: Any, **options: Any) -> None:
    """Of a folder or repo without the settings of a processor.

    Raises:
        ValueError: it is that of a CUE, which cannot do without: only the model was saved there.
    """
    options = {key: value for key, value in options.items() if key in (*HUB_OPTIONS, "subfolder")}
    if _stated(name, **options).get("model_type") == "cue":
        raise ValueError(
            f"{str(name)!r} holds a CUE without its processor: put it there with processor.save_pretrained(folder) or "
            "processor.push_to_hub(repo), or build one from the model's towers with CUEProcessor.from_encoders(...)"
        )


def image_part(saved: dict[str, Any]) -> Any:
    """An image processor from the settings that were saved of it inside a CUEProcessor's."""
    name = str(saved.get("image_processor_type"))
    if not re.fullmatch(r"\w+ImageProcessor(Pil|Fast)?", name):
        raise ValueError(f"the saved processor names no image processor ({name}): it is damaged; save it again")
    if name == "TimmWrapperImageProcessor":
        # The one image processor that looks for its settings in the model's config.json.
        return transformers.TimmWrapperImageProcessor(saved["data_config"], saved["architecture"])
    if not is_torchvision_available():
        name = f"{name.removesuffix('Pil')}Pil"
    return getattr(transformers, name).from_dict(saved)
