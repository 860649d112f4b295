"""What a model and its processor are known by: a hash over all that their answers depend on."""

import hashlib
import json
from typing import Any

import torch

# Of a configuration or processor: where it came from, and what wrote it.
WITHOUT_EFFECT = (
    "_name_or_path", "name_or_path", "transformers_version", "auto_map", "processor_class", "tower_sources",
    "towers_by_reference",
)  # fmt: skip


def model_fingerprint(model: Any, processor: Any) -> str:
    """32 hexadecimal digits; any weight, field of the configuration or setting of the processor changes them."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}\0".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    settings = [_plain(model.config.to_dict()), _plain(processor.to_dict())]
    if processor.tokenizer is not None:
        settings.append(_tokenizer(processor.tokenizer))
    digest.update(json.dumps(settings, sort_keys=True, default=str).encode())
    return digest.hexdigest()


def _tokenizer(tokenizer: Any) -> Any:
    if not tokenizer.is_fast:
        return tokenizer.get_vocab()
    whole = json.loads(tokenizer.backend_tokenizer.to_str())
    # Set by each call, not by the checkpoint.
    return {name: part for name, part in whole.items() if name not in ("padding", "truncation")}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(inner) for key, inner in value.items() if key not in WITHOUT_EFFECT}
    return [_plain(inner) for inner in value] if isinstance(value, list | tuple) else value
