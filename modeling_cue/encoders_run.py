"""How towers of text, images and video are run, and their tokens pooled; `encoders_audio` holds those of audio."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel


class TowerOutput(NamedTuple):
    """What a tower says of a batch: tokens (B, T, H), mask (B, T) bool or None, pooled (B, H) or None."""

    tokens: Tensor
    mask: Tensor | None
    pooled: Tensor | None


# Texts that are padded alike run together at least in such numbers; fewer would leave an accelerator idle, while a CPU
# takes as long for a token of 8 texts as of 800 (32 captions in 4 chunks of 8: 1.2 to 1.3 times as fast as at once).
TEXTS_PER_CHUNK, TEXTS_PER_CHUNK_CPU = 64, 8
TEXT_CHUNKS = 8


def length_chunks(lengths: Tensor, count: int) -> tuple[Tensor, list[tuple[Tensor, int]]]:
    """Rows in `count` chunks of about one length: the order of all rows (N,), and each chunk's rows and longest.

    The device is waited for once, and not in every chunk.
    """
    ordered, order = lengths.sort(stable=True)
    chunks = order.chunk(count)
    ends = torch.tensor([len(rows) for rows in chunks]).cumsum(0) - 1
    return order, list(zip(chunks, ordered.clamp(min=1)[ends.to(ordered.device)].tolist(), strict=True))


def run_text(
    tower: PreTrainedModel, input_ids: Tensor, mask: Tensor | None, *, text_chunks: int, **_: Any
) -> TowerOutput:
    """A text tower in up to `text_chunks` runs over texts of about one length, each padded no further than needed.

    A token attends to no padding, so that this changes nothing but the time. Only padding is cut off; its tokens are
    returned as zeros.
    """
    mask = torch.ones_like(input_ids) if mask is None else mask
    least = TEXTS_PER_CHUNK_CPU if input_ids.device.type == "cpu" else TEXTS_PER_CHUNK
    # A compiled or exported graph has one length, and `len` of a symbolic batch would fix its size.
    chunks = 1 if torch.compiler.is_compiling() else min(text_chunks, len(input_ids) // least)
    if chunks < 2 or not bool((mask[:, :-1] >= mask[:, 1:]).all()):  # left padding would move positions
        output = tower(input_ids=input_ids, attention_mask=mask)
        return TowerOutput(output.last_hidden_state, mask.bool(), output.get("pooler_output"))
    order, parts = length_chunks(mask.sum(1), chunks)
    tokens, pooled = [], []
    for rows, longest in parts:
        output = tower(input_ids=input_ids[rows, :longest], attention_mask=mask[rows, :longest])
        tokens.append(nn.functional.pad(output.last_hidden_state, (0, 0, 0, mask.shape[1] - longest)))
        pooled.append(output.get("pooler_output"))
    back = order.argsort()
    whole = None if pooled[0] is None else torch.cat(pooled)[back]
    return TowerOutput(torch.cat(tokens)[back], mask.bool(), whole)


def run_whole_text(tower: Any, input_ids: Tensor, mask: Tensor | None, **_: Any) -> TowerOutput:
    """A text tower that was trained on texts of one length without a mask (SigLIP): it reads padding too.

    Shorter input is filled up to that length with the configuration's padding token. CUEProcessor fills it with the
    tokenizer's, which is another one in SigLIP 2.
    """
    mask = torch.ones_like(input_ids) if mask is None else mask
    missing = (0, max(0, tower.config.max_position_embeddings - input_ids.shape[1]))
    output = tower(input_ids=nn.functional.pad(input_ids, missing, value=tower.config.pad_token_id))
    return TowerOutput(output.last_hidden_state, nn.functional.pad(mask, missing).bool(), output.pooler_output)


def run_image(tower: PreTrainedModel, pixel_values: Tensor, mask: Tensor | None, **_: Any) -> TowerOutput:
    # Convolutions run faster with channels last: EfficientNet-lite0 on a CPU 1.5 times.
    output = tower(pixel_values=pixel_values.to(tower.dtype, memory_format=torch.channels_last))
    tokens, pooled = output.last_hidden_state, output.get("pooler_output")
    if tokens.ndim == 4:  # a map, (B, H, height, width) but for some of timm's
        last = getattr(getattr(tower, "timm_model", None), "output_fmt", "NCHW") == "NHWC"
        tokens = tokens.flatten(1, 2) if last else tokens.flatten(2).transpose(1, 2)
    return TowerOutput(tokens, None, None if pooled is None else pooled.flatten(1))


def run_mae(tower: Any, pixel_values: Tensor, mask: Tensor | None, **_: Any) -> TowerOutput:
    """A tower that shuffles patches by noise and hides some (ViTMAE): by growing noise they keep their places."""
    places = torch.arange(tower.embeddings.patch_embeddings.num_patches, device=pixel_values.device)
    noise = places.float().expand(len(pixel_values), -1)
    return TowerOutput(tower(pixel_values=pixel_values.to(tower.dtype), noise=noise).last_hidden_state, None, None)


def run_clip(tower: PreTrainedModel, pixel_values: Tensor, mask: Tensor | None, **_: Any) -> TowerOutput:
    """A tower of whole clips, (B, F, 3, H, W)."""
    return TowerOutput(tower(pixel_values=pixel_values.to(tower.dtype)).last_hidden_state, None, None)


def pool(output: TowerOutput, pooler: str) -> Tensor:
    """(B, H): the pooled vector by a pooler without weights: `pooler_output`, `cls` or the mean over real tokens."""
    if pooler == "pooler_output":
        assert output.pooled is not None
        return output.pooled
    if pooler == "cls":
        return output.tokens[:, 0]
    tokens = output.tokens.float()
    if output.mask is None:
        return tokens.mean(1)
    weight = output.mask.to(tokens.dtype)[..., None]
    return (tokens * weight).sum(1) / weight.sum(1).clamp(min=1)


def average_views(first: Tensor, second: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Two views of a batch as one, with their common mask (N, T): the mean of (N, H), or all tokens (N, 2T, H)."""
    if first.ndim == 2:
        return (first.float() + second.float()) / 2, mask
    return torch.cat([first, second], 1), None if mask is None else torch.cat([mask, mask], 1)
