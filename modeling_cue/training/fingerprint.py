"""What a model with its processor, and what rows, are known by: hashes over all that counts."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

# Of a configuration or processor: where it came from, and what wrote it.
WITHOUT_EFFECT = (
    "_name_or_path", "name_or_path", "transformers_version", "auto_map", "processor_class", "tower_sources",
    "towers_by_reference",
)  # fmt: skip
# Where settings came from and went to, which changes no number.
ORIGIN = {"_name_or_path", "name_or_path", "architectures", "auto_map", "processor_class", "_processor_class"}
# Media of which rows are known by every byte; of the others by their size.
SAMPLED = 32


def model_fingerprint(model: Any, processor: Any) -> str:
    """32 hexadecimal digits; any weight, field of the configuration or setting of the processor changes them."""
    digest = hashlib.blake2b(digest_size=16)
    digest.update(weights_digest(model).encode())
    settings = [_plain(model.config.to_dict()), _plain(processor.to_dict())]
    if processor.tokenizer is not None:  # of which `to_dict` says nothing
        settings.append(part_settings(processor.tokenizer))
    digest.update(json.dumps(settings, sort_keys=True, default=str).encode())
    return digest.hexdigest()


def weights_digest(tower: torch.nn.Module) -> str:
    """32 hex digits of all weights and buffers of a tower that are saved with it."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in tower.state_dict().items():
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def part_settings(part: Any) -> Any:
    """What a part of a processor does with its input: all of its settings, the tokens of a tokenizer among them."""
    if not isinstance(part, PreTrainedTokenizerBase):
        return [type(part).__name__, kept(part.to_dict())]
    if part.is_fast:
        core = json.loads(part.backend_tokenizer.to_str())
        core |= {"truncation": None, "padding": None}  # what the last call left there
    else:
        core = [kept(part.init_kwargs), part.get_vocab()]
    return [type(part).__name__, core, part.padding_side, part.truncation_side, part.model_max_length]


def kept(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings without where they came from."""
    return {name: value for name, value in settings.items() if name not in ORIGIN}


def rows_fingerprint(rows: Dataset) -> str:
    """32 hexadecimal digits of all that rows hold, in their order; the same wherever they were read from.

    To read every image would take as long as an epoch: media count by their size in bytes, or by the name of their
    file, and about `SAMPLED` of each column by their content.
    """
    digest = hashlib.blake2b(digest_size=16)
    order = pa.array(range(len(rows))) if rows._indices is None else rows._indices.column(0)
    for name in sorted(rows.column_names):
        column = rows.data.column(name)
        digest.update(f"{name}\0".encode())
        if pa.types.is_struct(column.type) and column.type.get_field_index("bytes") >= 0:
            sampled = order.take(pa.array(range(0, len(rows), max(1, len(rows) // SAMPLED))))
            for medium in column.take(sampled).to_pylist():
                digest.update(_content(medium))
            sizes = pc.binary_length(pc.struct_field(column, "bytes"))
            column = pc.if_else(pc.is_null(sizes), _names(pc.struct_field(column, "path")), sizes.cast(pa.string()))
        for chunk in column.take(order).chunks:
            digest.update("".join(f"{json.dumps(value, default=str)}\n" for value in chunk.to_pylist()).encode())
    return digest.hexdigest()


def _names(paths: pa.ChunkedArray) -> pa.ChunkedArray:
    return pc.replace_substring_regex(paths, r"^.*[/\\\\]", "")


def _content(medium: dict[str, Any] | None) -> bytes:
    if medium is None:
        return b""
    return medium["bytes"] or (Path(medium["path"]).read_bytes() if medium["path"] else b"")


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(inner) for key, inner in value.items() if key not in WITHOUT_EFFECT}
    return [_plain(inner) for inner in value] if isinstance(value, list | tuple) else value
