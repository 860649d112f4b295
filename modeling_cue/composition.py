"""The compositional layer: primitives in, one compound out."""

import torch
from torch import Tensor, nn
from transformers import initialization as init

from .cone_type import empty_mask
from .cones import Cone, angle, overlaps
from .dropout import ByteDropout
from .sphere import wide_dtype


class CompositionLayer(nn.Module):
    """Composes primitives of any modalities into one compound: cones (B, K, D), (B, K) -> cone (B, D), (B,).

    Learned over a geometric base. A set encoder without positions sees all parts (Lee et al., Set Transformer, ICML
    2019); the mean of what it says of them gives a gate in (0, 2) for each dimension, and a shift. The axis is the
    mean of the parts' axes times the gate plus the shift, brought to unit length. No part is weighed against another:
    from some hundreds of samples, whose pictures are soon known by heart, a weight for each part learns to trust
    pictures more than those of others deserve. The radius is a smooth minimum over the parts of theta_k - angle(mu_k,
    axis): the largest cone round that axis that all parts contain, floored at `min_radius`. The order of parts does
    not matter and one part alone comes back as it is. `dropout`, on what the set encoder reads, within it and on the
    shift, keeps the shift from knowing the training samples by heart: what remains for others is nearer to the base.

    Args:
        projection_dim: D. dim, heads, layers: shape of the set encoder. min_radius: radians in (0, pi).
        dropout: in [0, 1).
    """

    temperature = 0.02  # radians; the smooth minimum lies at most temperature * ln K below the minimum

    def __init__(
        self, projection_dim: int, dim: int, heads: int, layers: int, min_radius: float, dropout: float = 0.0
    ):
        super().__init__()
        self.min_radius = min_radius
        self.embed = nn.Linear(projection_dim + 1, dim)
        layer = nn.TransformerEncoderLayer(
            dim, heads, 2 * dim, dropout=dropout, activation="gelu", batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(dim)
        self.gate = nn.Linear(dim, projection_dim)
        self.shift = nn.Linear(dim, projection_dim)
        self.dropout = ByteDropout(dropout)

    def reset_parameters(self) -> None:
        # Gates of one and no shift: training starts from the mean of the axes.
        for linear in (self.gate, self.shift):
            init.zeros_(linear.weight)
            init.zeros_(linear.bias)

    def forward(self, cones: Cone, mask: Tensor | None = None) -> Cone:
        """Composes; `mask` (B, K) is true where there is a part.

        `empty` of the result is true where a part is empty or two do not overlap, so that nothing lies inside all of
        them. Where axes cancel each other out, the compound has that of the first part.

        Raises:
            ValueError: shapes other than (B, K, D) and (B, K), another D, or a row without any part.
        """
        cones = cones.to(wide_dtype(cones.axis, cones.radius))
        axis, radius = cones.axis, cones.radius
        if axis.ndim != 3:
            raise ValueError(
                f"compose takes a list of cones (B,), one for each part, or cones of shape (B, K); got shape "
                f"{tuple(radius.shape)}: give compose([a, b]), or Cone.stack([a, b], dim=1)"
            )
        if axis.shape[-1] != self.shift.out_features:
            raise ValueError(
                f"the cones have {axis.shape[-1]} dimensions, this layer composes cones of {self.shift.out_features}: "
                "compose with the model that embedded them"
            )
        if not axis.shape[1]:
            raise ValueError("a compound needs at least one part: K is 0")
        if not axis.shape[0]:
            return Cone(axis[:, 0], radius[:, 0], torch.zeros_like(radius[:, 0], dtype=torch.bool))
        given = mask is not None
        mask = torch.ones_like(radius, dtype=torch.bool) if mask is None else mask.bool()
        if mask.shape != radius.shape:
            raise ValueError(
                f"the mask must have the shape {tuple(radius.shape)} of the cones; got {tuple(mask.shape)}"
            )
        parts = mask.sum(-1, keepdim=True)
        if given and not torch.compiler.is_compiling() and bool((parts == 0).any()):
            raise ValueError("a compound needs at least one part: some row of the mask has none")

        tokens = self.embed(torch.cat([self.dropout(axis), radius[..., None]], -1).to(self.norm.weight.dtype))
        tokens = self.norm(self.encoder(tokens, src_key_padding_mask=~mask))
        share = (mask / parts)[..., None]
        context = (tokens * share.to(tokens.dtype)).sum(1)
        gate = 2 * self.gate(context).to(axis.dtype).sigmoid()
        total = (axis * share.to(axis.dtype)).sum(1) * gate + self.dropout(self.shift(context)).to(axis.dtype)
        compound = nn.functional.normalize(_apart_from_zero(total, axis, mask), dim=-1)

        room = (radius - angle(axis, compound[:, None])).masked_fill(~mask, float("inf"))
        smooth = -self.temperature * torch.logsumexp(-room / self.temperature, -1)
        smooth = smooth.clamp(min=self.min_radius)

        # One part alone is its own compound, exactly.
        single = parts == 1
        first = mask.int().argmax(-1)
        rows = torch.arange(len(first), device=first.device)
        compound = torch.where(single, axis[rows, first], compound)
        smooth = torch.where(single[:, 0], radius[rows, first], smooth)
        met = overlaps(Cone(axis[:, :, None], radius[:, :, None]), Cone(axis[:, None], radius[:, None]))
        apart = ~met & mask[:, :, None] & mask[:, None, :]
        nothing = (empty_mask(cones) & mask).any(1)  # no cone lies inside an empty one
        return Cone(compound, smooth, empty=apart.flatten(1).any(1) | nothing)


def _apart_from_zero(total: Tensor, axes: Tensor, mask: Tensor) -> Tensor:
    """Sums (B, D) that have a direction: where axes (B, K, D) cancel out, that of the first of them counts."""
    none = total.norm(dim=-1, keepdim=True) < 1e-4
    first = axes[torch.arange(len(axes), device=axes.device), mask.int().argmax(-1)]
    return torch.where(none, first, total)
