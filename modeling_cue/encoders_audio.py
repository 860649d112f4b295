"""How towers of audio are run: each clip gets the same tokens alone and in a batch of longer ones."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers.masking_utils import create_bidirectional_mask

from .encoders_run import TowerOutput


def run_whisper(tower: Any, input_features: Tensor, mask: Tensor | None, *, crop: bool, **_: Any) -> TowerOutput:
    """Whisper's encoder over the real frames only, with its position table cropped to them.

    The original refuses any length but 30 s and attends to the padding. Here padding is masked after each
    convolution and in attention, so that a clip gets the same tokens alone and in a batch of longer ones.
    """
    features = input_features.to(tower.dtype)
    if mask is None:
        mask = torch.ones(features.shape[0], features.shape[-1], dtype=torch.long, device=features.device)
    if mask.shape != (features.shape[0], features.shape[-1]):
        raise ValueError(
            f"input_features_mask has the shape {tuple(mask.shape)}, input_features {tuple(features.shape)}: give a "
            "mask with one value for each frame"
        )
    if not crop:
        return TowerOutput(tower(input_features=features).last_hidden_state, mask[:, ::2].bool(), None)
    longest = int(mask.sum(-1).max())
    features, mask = features[..., :longest], mask[:, :longest].bool()
    token_mask = mask[:, ::2]
    if token_mask.shape[1] > tower.embed_positions.num_embeddings:
        raise ValueError(
            f"the audio has {longest} frames, the tower takes at most {2 * tower.embed_positions.num_embeddings}: "
            "cut it into shorter pieces (CUEProcessor truncates)"
        )
    hidden = nn.functional.gelu(tower.conv1(features * mask[:, None])) * mask[:, None]
    hidden = nn.functional.gelu(tower.conv2(hidden)).transpose(1, 2)
    # As a module: weights that `device_map` offloaded come by its hooks.
    hidden = hidden + tower.embed_positions(torch.arange(hidden.shape[1], device=hidden.device))
    hidden = nn.functional.dropout(hidden, tower.dropout, tower.training)
    attention_mask = create_bidirectional_mask(tower.config, hidden, token_mask)
    for layer in tower.layers:
        hidden = layer(hidden, attention_mask)
    return TowerOutput(tower.layer_norm(hidden), token_mask, None)


def run_waveform(tower: Any, input_features: Tensor, mask: Tensor | None, **_: Any) -> TowerOutput:
    """Towers of bare samples (N, samples), wav2vec 2.0 and HuBERT, with padding masked all the way.

    Those whose first convolution is normalised over time (`feat_extract_norm="group"`) were trained without a mask,
    so that the original's tokens depend on the length of the padding. Here the norm sees real frames only.
    """
    values = input_features.to(tower.dtype)
    mask = torch.ones_like(input_features, dtype=torch.long) if mask is None else mask
    config = tower.config
    lengths = tower._get_feat_extract_output_lengths(mask.sum(1))
    if int(lengths.min()) < 1:
        raise ValueError(
            f"a clip of {int(mask.sum(1).min())} samples is too short for a tower of family {config.model_type!r}: "
            "fill it up with silence (CUEProcessor does)"
        )
    if config.model_type == "hubert" and config.conv_pos_batch_norm:
        raise ValueError(
            "a HuBERT with conv_pos_batch_norm=True lets padding into its tokens: use one without, such as "
            "facebook/hubert-base-ls960"
        )
    first, *others = tower.feature_extractor.conv_layers
    if config.feat_extract_norm == "group":
        hidden = first.conv(values[:, None])
        real = (mask.sum(1) - config.conv_kernel[0]) // config.conv_stride[0] + 1
        hidden = first.activation(_norm_over_time(hidden, real, first.layer_norm))
    else:
        hidden = first(values[:, None])
    for layer in others:
        hidden = layer(hidden)
    projected = tower.feature_projection(hidden.transpose(1, 2))
    hidden = projected[0] if config.model_type == "wav2vec2" else projected
    token_mask = torch.arange(hidden.shape[1], device=hidden.device) < lengths[:, None]
    return TowerOutput(tower.encoder(hidden, attention_mask=token_mask).last_hidden_state, token_mask, None)


def _norm_over_time(hidden: Tensor, lengths: Tensor, norm: nn.GroupNorm) -> Tensor:
    """Each channel of (N, C, T) normalised over the first `lengths` (N,) of its T places."""
    wide = hidden.float()
    real = (torch.arange(hidden.shape[2], device=hidden.device) < lengths[:, None])[:, None]
    count = lengths[:, None, None]
    centred = wide - (wide * real).sum(2, keepdim=True) / count
    variance = (centred.square() * real).sum(2, keepdim=True) / count
    normed = centred * torch.rsqrt(variance + norm.eps) * norm.weight[:, None] + norm.bias[:, None]
    return normed.to(hidden.dtype)


def run_spectrogram(tower: Any, input_features: Tensor, mask: Tensor | None, **_: Any) -> TowerOutput:
    """A tower of spectrograms of one length, (N, frames, mels), padding included (AST)."""
    wanted = (tower.config.max_length, tower.config.num_mel_bins)
    if tuple(input_features.shape[1:]) != wanted:
        raise ValueError(
            f"a tower of family {tower.config.model_type!r} takes spectrograms of the shape (N, {wanted[0]}, "
            f"{wanted[1]}); got {tuple(input_features.shape)}: prepare sounds with the tower's own CUEProcessor"
        )
    output = tower(input_values=input_features.to(tower.dtype))
    return TowerOutput(output.last_hidden_state, None, output.pooler_output)


def run_clap(tower: Any, input_features: Tensor, mask: Tensor | None, **_: Any) -> TowerOutput:
    """CLAP's audio tower over spectrograms (N, views, frames, mels): one view, or four where it fuses long clips.

    The extractor gives a clip that is no longer than the tower's window the same view four times, so that the views
    tell which clips to fuse. What the extractor says of it depends on the batch: it calls a random clip long where
    none is.
    """
    longer = (input_features[:, 1:] != input_features[:, :1]).flatten(1).any(1, keepdim=True)
    output = tower(input_features=input_features.to(tower.dtype), is_longer=longer)
    return TowerOutput(output.last_hidden_state.flatten(2).transpose(1, 2), None, output.pooler_output)
