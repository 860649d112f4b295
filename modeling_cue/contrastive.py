"""Multi-positive InfoNCE on unit axes.

For an anchor i with positives P(i) and negatives N(i), and s = scale * cosine, the loss of a positive pair is

    l(i, p) = -log( exp(s_ip) / (exp(s_ip) + sum over n in N(i) of exp(s_in)) )

It is InfoNCE (van den Oord et al., "Representation learning with contrastive predictive coding", 2018). With one
positive for each anchor, taken both ways, it is CLIP's loss (Radford et al., ICML 2021). With several, the mean over
positives stands outside the log, as in the supervised contrastive loss (Khosla et al., NeurIPS 2020, equation 2), but
the other positives are left out of the denominator, as in SINCERE (Feeney and Hughes, 2023): else each positive would
push the others away.
"""

import torch
from torch import Tensor

from .sphere import wide_dtype, without_autocast


def info_nce(
    a: Tensor, b: Tensor, logit_scale: Tensor | float, a_ids: Tensor | None = None, b_ids: Tensor | None = None
) -> Tensor:
    """Symmetric multi-positive InfoNCE between unit axes: scalar >= 0, float32 or better whatever the autocast.

    Rows with equal ids match, all others are negatives. With distinct ids it is CLIP's loss: log B where all
    embeddings are identical, 0 for a perfect match at a high scale. Rows that match nothing count only as negatives;
    where nothing matches at all the loss is 0, still connected to the graph.

    Args:
        a, b: (N, D) and (M, D), unit vectors.
        logit_scale: scalar, the scale itself (not its log).
        a_ids, b_ids: (N,) and (M,) integers, or both None: row i of a matches row i of b and nothing else.

    Raises:
        ValueError: one of the ids is missing, ids that do not fit the rows, or N != M without ids.
    """
    if (a_ids is None) != (b_ids is None):
        raise ValueError("info_nce needs a_ids and b_ids, or neither; got only one of them")
    if a_ids is None or b_ids is None:
        if len(a) != len(b):
            raise ValueError(f"without ids rows must match one to one; got {len(a)} and {len(b)} rows: pass the ids")
        positive = torch.eye(len(a), dtype=torch.bool, device=a.device)
    else:
        if a_ids.shape != a.shape[:1] or b_ids.shape != b.shape[:1]:
            raise ValueError(
                f"ids must have one entry per row; got {tuple(a_ids.shape)} for {len(a)} rows of a and "
                f"{tuple(b_ids.shape)} for {len(b)} rows of b"
            )
        positive = a_ids[:, None] == b_ids[None]
    return symmetric_info_nce(a, b, logit_scale, positive, ~positive)


def scaled_cosines(a: Tensor, b: Tensor, logit_scale: Tensor | float) -> Tensor:
    """Cosines (N, M) of unit axes (N, D) and (M, D) times the scale; float32 or better whatever the autocast."""
    wide = wide_dtype(a, b)
    with without_autocast(a.device):
        return a.to(wide) @ b.to(wide).T * logit_scale


def symmetric_info_nce(
    a: Tensor, b: Tensor, logit_scale: Tensor | float, positive: Tensor, negative: Tensor
) -> Tensor:
    """The mean of `masked_info_nce` of both directions: scalar; pairs in neither mask do not exist for it.

    Args:
        a, b: (N, D) and (M, D), unit vectors. logit_scale: scalar. positive, negative: (N, M) bool.
    """
    with without_autocast(a.device):
        logits = scaled_cosines(a, b, logit_scale)
        return (masked_info_nce(logits, positive, negative) + masked_info_nce(logits.T, positive.T, negative.T)) / 2


def masked_info_nce(logits: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
    """InfoNCE with the rows as anchors: scalar, the mean of `anchor_losses` over anchors that have a positive."""
    return anchor_losses(logits, positive, negative).sum() / positive.any(1).sum().clamp(min=1)


def anchor_losses(logits: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
    """The loss of each row as an anchor: (N,), the mean over its positives; 0 for an anchor without one.

    Args:
        logits: (N, M), float32 or better. positive, negative: (N, M) bool, disjoint; what is in neither is unknown
            and gets no gradient.
    """
    # A finite stand-in for -inf keeps the gradient of an anchor without negatives finite (and 0).
    lowest = torch.finfo(logits.dtype).min
    against = logits.masked_fill(~negative, lowest).logsumexp(dim=1, keepdim=True)
    losses = torch.nn.functional.softplus(against - logits).masked_fill(~positive, 0.0)
    return losses.sum(dim=1) / positive.sum(dim=1).clamp(min=1)
