"""Attention pooling and the universal projection head: from a tower's output to a spherical cone."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from transformers import initialization as init

from .cones import Cone
from .dropout import ByteDropout
from .encoders_run import length_chunks
from .sphere import wide_dtype, without_autocast

# Rows that are pooled together at least, and the most chunks that a batch is pooled in.
ROWS_PER_CHUNK, CHUNKS = 64, 8
MOST_LOGIT_SCALE = math.log(100.0)


class AttentionPooler(nn.Module):
    """Learned queries beside the mean: tokens (B, T, H) and a mask (B, T) -> (B, (1 + queries) * H).

    Each query scores every token by a linear map and takes the average of the tokens by the softmax of the scores; the
    masked mean stands beside these averages, so that pooling is never worse informed than the mean. `positions` adds a
    learned embedding of the token's place to what is scored, which video needs to tell motion from its reverse.

    Args:
        hidden_size: H. queries: number of learned queries.
        token_dropout: share of tokens that are hidden in training, in [0, 1).
        positions: number of places that have an embedding; 0 for none.
    """

    def __init__(self, hidden_size: int, queries: int = 1, token_dropout: float = 0.0, positions: int = 0):
        super().__init__()
        self.token_dropout = token_dropout
        self.norm = nn.LayerNorm(hidden_size)
        self.score = nn.Linear(hidden_size, queries)
        self.position = nn.Parameter(torch.zeros(positions, hidden_size)) if positions else None

    def reset_parameters(self) -> None:
        if self.position is not None:
            init.normal_(self.position, std=1.0)

    def forward(self, tokens: Tensor, mask: Tensor | None) -> Tensor:
        if mask is None or len(tokens) < 2 * ROWS_PER_CHUNK or torch.compiler.is_compiling():
            return self._pool(tokens, mask)
        # Rows of about one length together, no longer than needed: of captions, most places of a batch are padding.
        places = torch.arange(1, mask.shape[1] + 1, device=mask.device)
        lengths = (mask.bool() * places).amax(1)
        order, chunks = length_chunks(lengths, min(CHUNKS, len(lengths) // ROWS_PER_CHUNK))
        pooled = [self._pool(tokens[rows, :longest], mask[rows, :longest]) for rows, longest in chunks]
        return torch.cat(pooled)[order.argsort()]

    def _pool(self, tokens: Tensor, mask: Tensor | None) -> Tensor:
        batch, length, _ = tokens.shape
        seen = torch.ones(batch, length, dtype=torch.bool, device=tokens.device) if mask is None else mask.bool()
        seen = seen | ~seen.any(1, keepdim=True)  # a row of nothing but padding, as the softmax needs one token
        if self.training and self.token_dropout:
            kept = seen & (torch.rand(seen.shape, device=seen.device) >= self.token_dropout)
            # A row that would lose every token keeps all of them.
            seen = torch.where(kept.any(1, keepdim=True), kept, seen)
        tokens = tokens.to(self.norm.weight.dtype)
        scored = self.norm(tokens)
        if self.position is not None:
            scored = scored + self.position.repeat_interleave(length // len(self.position), 0)
        share = self.score(scored).float().masked_fill(~seen[..., None], float("-inf")).softmax(1)
        mean = seen.float()[..., None] / seen.sum(1)[:, None, None].clamp(min=1)
        weights = torch.cat([mean, share], -1).to(tokens.dtype)  # (B, T, 1 + queries)
        return (weights.transpose(1, 2) @ tokens).flatten(1)


class ProjectionHead(nn.Module):
    """The universal projection head: a tower's pooled vector (B, H) -> `Cone` with axis (B, D), radius (B,).

    One class for every modality. The axis is a linear map of the normalised features, plus a residual MLP if
    `hidden_dim` > 0, brought to unit length. The radius is pi * sigmoid of an MLP on the same features, in (0, pi)
    radians; with `detach` it passes no gradient to what lies below the head. `signed_sqrt` takes sign(x) sqrt|x| of
    the features first, which evens out the bursty features of convolutional towers (Perronnin et al., ECCV 2010).
    """

    def __init__(
        self, hidden_size: int, projection_dim: int, hidden_dim: int, dropout: float, radius_hidden_dim: int,
        radius_init: float, detach: bool, signed_sqrt: bool = False,
    ):  # fmt: skip
        super().__init__()
        self.radius_init = radius_init
        self.detach = detach
        self.signed_sqrt = signed_sqrt
        self.norm = nn.LayerNorm(hidden_size)
        self.dropout = ByteDropout(dropout)
        self.projection = nn.Linear(hidden_size, projection_dim)
        self.residual = (
            nn.Sequential(
                nn.Linear(hidden_size, hidden_dim),
                nn.GELU(),
                ByteDropout(dropout),
                nn.Linear(hidden_dim, projection_dim),
            )
            if hidden_dim
            else None
        )
        self.radius: Any = nn.Sequential(
            nn.LayerNorm(hidden_size),
            nn.Linear(hidden_size, radius_hidden_dim),
            nn.GELU(),
            nn.Linear(radius_hidden_dim, 1),
        )

    def reset_parameters(self) -> None:
        init.normal_(self.projection.weight, std=self.projection.in_features**-0.5)
        init.constant_(self.radius[-1].bias, _radius_logit(self.radius_init))

    @property
    def has_initial_radius(self) -> bool:
        """Whether the bias of the radius still has its initial value: nothing has been learned of radii."""
        bias = self.radius[-1].bias
        return torch.equal(bias, torch.full_like(bias, _radius_logit(self.radius_init)))

    @torch.no_grad()
    def set_initial_radius(self, radius: float) -> None:
        """Moves every radius so that an average one lies near `radius`, radians in (0, pi)."""
        self.radius[-1].bias.fill_(_radius_logit(radius))

    def forward(self, features: Tensor) -> Cone:
        # Autocast would round the last layers to bfloat16, and radii to steps of 0.003 rad and more.
        with without_autocast(features.device):
            return self._cone(features.to(self.norm.weight.dtype))  # a quantised projection has another dtype

    def _cone(self, features: Tensor) -> Cone:
        if self.signed_sqrt:
            # The gradient of a square root at 0 is infinite.
            features = features.sign() * (features.abs() + 1e-6).sqrt()
        normed = self.dropout(self.norm(features))
        axis = self.projection(normed)
        if self.residual is not None:
            axis = axis + self.residual(normed)
        norm, *layers = self.radius
        # Dropped out as for the axis: a radius that knows each training caption by heart says nothing of others.
        radius = self.dropout(norm(features.detach() if self.detach else features))
        for layer in layers:
            radius = layer(radius)
        radius = radius.squeeze(-1)
        wide = wide_dtype(axis)
        return Cone(nn.functional.normalize(axis.to(wide), dim=-1), math.pi * torch.sigmoid(radius.to(wide)))


def _radius_logit(radius: float) -> float:
    return math.log(radius / (math.pi - radius))


class _Bounded(torch.autograd.Function):
    """The lesser of a tensor and a bound; at the bound and over it a gradient still leads back, and none further."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, most: float) -> Tensor:
        ctx.save_for_backward(value)
        ctx.most = most
        return value.clamp(max=most)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (value,) = ctx.saved_tensors
        return torch.where(value >= ctx.most, gradient.clamp(min=0), gradient), None


class Scales(nn.Module):
    """The learned scalars of the losses: returns (logit_scale, containment_scale, containment_bias), float32.

    `logit_scale` is exp of its parameter, at most 100 (Radford et al., CLIP, ICML 2021).
    """

    def __init__(self, logit_scale_init: float, containment_scale_init: float):
        super().__init__()
        self.initial = (logit_scale_init, containment_scale_init)
        # One element in one dimension: FSDP shards along the first dimension, and refuses a scalar.
        self.logit_scale = nn.Parameter(torch.tensor([logit_scale_init]))
        self.containment_scale = nn.Parameter(torch.tensor([containment_scale_init]))
        self.containment_bias = nn.Parameter(torch.tensor([0.0]))

    def reset_parameters(self) -> None:
        init.constant_(self.logit_scale, self.initial[0])
        init.constant_(self.containment_scale, self.initial[1])
        init.zeros_(self.containment_bias)

    def forward(self) -> tuple[Tensor, Tensor, Tensor]:
        return (
            _Bounded.apply(self.logit_scale.float(), MOST_LOGIT_SCALE).exp().squeeze(0),
            self.containment_scale.float().exp().squeeze(0),
            # A copy: DistributedDataParallel takes a parameter that is itself an output for an unused one.
            self.containment_bias.float().clone().squeeze(0),
        )
