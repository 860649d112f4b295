"""Attention pooling and the universal projection head: from a tower's output to a spherical cone."""

import math

import torch
from torch import Tensor, nn
from transformers import initialization as init

from .cones import Cone


class AttentionPooler(nn.Module):
    """Learned queries attend over tokens: (B, T, H) and a mask (B, T) -> (B, H).

    The mean of `queries` multi-head cross-attentions (Lee et al., Set Transformer, ICML 2019, "PMA") plus the masked
    mean of the tokens, so that it starts near mean pooling. `positions` adds a learned embedding per token place,
    which video needs to tell motion from its reverse.

    Args:
        hidden_size: H; heads are 64 wide, or one head where 64 does not divide H.
        queries: number of learned queries.
        token_dropout: share of tokens that are hidden in training, in [0, 1).
        positions: number of token places that have an embedding; 0 for none.
    """

    def __init__(self, hidden_size: int, queries: int = 1, token_dropout: float = 0.0, positions: int = 0):
        super().__init__()
        self.heads = hidden_size // 64 if hidden_size % 64 == 0 else 1
        self.token_dropout = token_dropout
        self.query = nn.Parameter(torch.zeros(queries, hidden_size))
        self.position = nn.Parameter(torch.zeros(positions, hidden_size)) if positions else None
        self.norm = nn.LayerNorm(hidden_size)
        self.key = nn.Linear(hidden_size, hidden_size)
        self.value = nn.Linear(hidden_size, hidden_size)

    def reset_parameters(self, std: float) -> None:
        init.normal_(self.query, std=1.0)
        if self.position is not None:
            init.normal_(self.position, std=std)

    def forward(self, tokens: Tensor, mask: Tensor | None) -> Tensor:
        batch, length, hidden = tokens.shape
        seen = torch.ones(batch, length, dtype=torch.bool, device=tokens.device) if mask is None else mask.bool()
        if self.training and self.token_dropout:
            kept = seen & (torch.rand(seen.shape, device=seen.device) >= self.token_dropout)
            # A row that would lose every token keeps all of them.
            seen = torch.where(kept.any(1, keepdim=True), kept, seen)
        tokens = tokens.to(self.norm.weight.dtype)
        if self.position is not None:
            tokens = tokens + self.position.repeat_interleave(length // len(self.position), 0)
        normed = self.norm(tokens)

        def split(x: Tensor) -> Tensor:
            return x.unflatten(-1, (self.heads, -1)).transpose(-3, -2)

        query = split(self.query).to(normed.dtype).expand(batch, -1, -1, -1)
        pooled = nn.functional.scaled_dot_product_attention(
            query, split(self.key(normed)), split(self.value(normed)), attn_mask=seen[:, None, None, :]
        )
        weight = seen.to(tokens.dtype)[..., None]
        mean = (tokens * weight).sum(1) / weight.sum(1).clamp(min=1)
        return pooled.transpose(1, 2).flatten(2).mean(1) + mean


class ProjectionHead(nn.Module):
    """The universal projection head: a tower's pooled vector (B, H) -> `Cone` with axis (B, D), radius (B,).

    One class for every modality. The axis is a linear map of the normalised features, plus a residual MLP if
    `hidden_dim` > 0, brought to unit length. The radius is pi * sigmoid of an MLP on the same features, in (0, pi)
    radians; with `detach` it passes no gradient to what lies below the head.
    """

    def __init__(
        self, hidden_size: int, projection_dim: int, hidden_dim: int, dropout: float, radius_hidden_dim: int,
        radius_init: float, detach: bool,
    ):  # fmt: skip
        super().__init__()
        self.radius_init = radius_init
        self.detach = detach
        self.norm = nn.LayerNorm(hidden_size)
        self.dropout = nn.Dropout(dropout)
        self.projection = nn.Linear(hidden_size, projection_dim)
        self.residual = (
            nn.Sequential(
                nn.Linear(hidden_size, hidden_dim),
                nn.GELU(),
                nn.Dropout(dropout),
                nn.Linear(hidden_dim, projection_dim),
            )
            if hidden_dim
            else None
        )
        self.radius = nn.Sequential(
            nn.LayerNorm(hidden_size),
            nn.Linear(hidden_size, radius_hidden_dim),
            nn.GELU(),
            nn.Linear(radius_hidden_dim, 1),
        )

    def reset_parameters(self, std: float) -> None:
        init.normal_(self.projection.weight, std=self.projection.in_features**-0.5)
        init.constant_(self.radius[-1].bias, _radius_logit(self.radius_init))

    @torch.no_grad()
    def set_initial_radius(self, radius: float) -> None:
        """Moves every radius so that an average one lies near `radius`, radians in (0, pi)."""
        self.radius[-1].bias.fill_(_radius_logit(radius))

    def forward(self, features: Tensor) -> Cone:
        features = features.to(self.projection.weight.dtype)
        normed = self.dropout(self.norm(features))
        axis = self.projection(normed)
        if self.residual is not None:
            axis = axis + self.residual(normed)
        radius = self.radius(features.detach() if self.detach else features).squeeze(-1)
        # The cone itself is float32 or better whatever the autocast.
        wide = torch.promote_types(axis.dtype, torch.float32)
        return Cone(nn.functional.normalize(axis.to(wide), dim=-1), math.pi * torch.sigmoid(radius.to(wide)))


def _radius_logit(radius: float) -> float:
    return math.log(radius / (math.pi - radius))


class Scales(nn.Module):
    """The learned scalars of the losses: returns (logit_scale, containment_scale, containment_bias), float32.

    `logit_scale` is exp of its parameter, clamped to 100 (Radford et al., CLIP, ICML 2021).
    """

    def __init__(self, logit_scale_init: float, containment_scale_init: float):
        super().__init__()
        self.initial = (logit_scale_init, containment_scale_init)
        self.logit_scale = nn.Parameter(torch.tensor(logit_scale_init))
        self.containment_scale = nn.Parameter(torch.tensor(containment_scale_init))
        self.containment_bias = nn.Parameter(torch.tensor(0.0))

    def reset_parameters(self) -> None:
        init.constant_(self.logit_scale, self.initial[0])
        init.constant_(self.containment_scale, self.initial[1])
        init.zeros_(self.containment_bias)

    def forward(self) -> tuple[Tensor, Tensor, Tensor]:
        return (
            self.logit_scale.float().exp().clamp(max=100.0),
            self.containment_scale.float().exp(),
            # A copy: DistributedDataParallel takes a parameter that is itself an output for an unused one.
            self.containment_bias.float().clone(),
        )
