import math

import pytest
import torch

from modeling_cue.contrastive import info_nce, masked_info_nce, symmetric_info_nce


def axes(rows, dim=8, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(rows, dim, generator=generator, dtype=dtype), dim=-1)


def slow_direction(logits, positive, negative):
    """The definition, term by term."""
    anchors = []
    for s, own, other in zip(logits, positive, negative, strict=True):
        terms = [-torch.log(s[p].exp() / (s[p].exp() + s[other].exp().sum())) for p in own.nonzero().flatten()]
        if terms:
            anchors.append(torch.stack(terms).mean())
    return torch.stack(anchors).mean()


@pytest.mark.parametrize("batch", [1, 2, 7])
def test_identical_embeddings_give_log_of_the_batch_size(batch):
    same = axes(1).expand(batch, -1)
    assert info_nce(same, same, 10.0).item() == pytest.approx(math.log(batch), abs=1e-12)


def test_a_perfect_match_at_a_high_scale_gives_zero():
    basis = torch.eye(6)
    assert info_nce(basis, basis, 100.0).item() < 1e-12


def test_a_perfect_mismatch_costs_the_whole_scale():
    # Each anchor's positive has cosine 0, its one negative cosine 1: log(1 + exp(100)).
    basis = torch.eye(2)
    assert info_nce(basis, basis.flip(0), 100.0).item() == pytest.approx(100.0)


def test_distinct_ids_give_the_loss_of_clip():
    a, b = axes(5, seed=1), axes(5, seed=2)
    logits = 14.3 * a @ b.T
    target = torch.arange(5)
    cross_entropy = torch.nn.functional.cross_entropy
    expected = (cross_entropy(logits, target) + cross_entropy(logits.T, target)) / 2
    assert info_nce(a, b, 14.3).item() == pytest.approx(expected.item(), rel=1e-8)
    ids = torch.tensor([11, 3, 7, 2, 5])
    order = torch.tensor([4, 0, 3, 1, 2])
    assert info_nce(a, b[order], 14.3, ids, ids[order]).item() == pytest.approx(expected.item(), rel=1e-8)


def test_positives_are_never_negatives():
    # Two captions of image 0 lie on it, one of image 1 lies on that: with other positives in the denominator the loss
    # could not fall below log 2 for image 0.
    basis = torch.eye(2)
    texts, ids = basis[[0, 0, 1]], torch.tensor([0, 0, 1])
    assert info_nce(texts, basis, 100.0, ids, torch.tensor([0, 1])).item() < 1e-12


def test_value_and_gradient_equal_the_definition():
    ids_a, ids_b = torch.tensor([1, 1, 2, 3, 9, 1]), torch.tensor([2, 1, 1, 3, 8])
    leaves = [axes(6, seed=3).requires_grad_(), axes(5, seed=4).requires_grad_()]
    scale = torch.tensor(7.0, dtype=torch.float64, requires_grad=True)
    inputs = [*leaves, scale]
    fast = info_nce(*leaves, scale, ids_a, ids_b)
    positive = ids_a[:, None] == ids_b[None]
    logits = scale * leaves[0] @ leaves[1].T
    slow = (slow_direction(logits, positive, ~positive) + slow_direction(logits.T, positive.T, ~positive.T)) / 2
    assert fast.item() == pytest.approx(slow.item(), rel=1e-8)
    for ours, reference in zip(torch.autograd.grad(fast, inputs), torch.autograd.grad(slow, inputs), strict=True):
        torch.testing.assert_close(ours, reference, rtol=1e-7, atol=1e-9)


def test_the_order_of_rows_does_not_matter():
    a, b = axes(6, seed=5), axes(4, seed=6)
    ids_a, ids_b = torch.tensor([0, 0, 1, 2, 3, 3]), torch.tensor([0, 1, 3, 2])
    p, q = torch.randperm(6), torch.randperm(4)
    expected = info_nce(a, b, 20.0, ids_a, ids_b).item()
    assert info_nce(a[p], b[q], 20.0, ids_a[p], ids_b[q]).item() == pytest.approx(expected, rel=1e-12)
    assert info_nce(b, a, 20.0, ids_b, ids_a).item() == pytest.approx(expected, rel=1e-12)


def test_an_anchor_without_positives_only_serves_as_a_negative():
    logits = torch.tensor([[2.0, 1.0], [0.5, 0.3]], dtype=torch.float64)
    positive = torch.tensor([[True, False], [False, False]])
    # Only the first row counts: -log(e^2 / (e^2 + e^1)).
    loss = masked_info_nce(logits, positive, ~positive)
    assert loss.item() == pytest.approx(math.log1p(math.exp(-1)), rel=1e-12)


def test_an_unknown_pair_has_no_part_and_no_gradient():
    logits = axes(3, 4, seed=7).mul(10).requires_grad_()
    positive, negative = torch.zeros(3, 4, dtype=torch.bool), torch.ones(3, 4, dtype=torch.bool)
    positive[0, 0] = positive[1, 2] = positive[1, 3] = True
    negative &= ~positive
    negative[0, 1] = negative[1, 0] = False
    loss = masked_info_nce(logits, positive, negative)
    assert loss.item() == pytest.approx(slow_direction(logits, positive, negative).item(), rel=1e-8)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert gradient[0, 1] == 0
    assert gradient[1, 0] == 0
    assert (gradient[2] == 0).all()
    assert (gradient[0, [0, 2, 3]] != 0).all()


def test_no_negatives_give_zero_with_a_finite_gradient():
    a = axes(3, seed=8, dtype=torch.float32).requires_grad_()
    loss = info_nce(a, axes(2, seed=9, dtype=torch.float32), 100.0, torch.zeros(3), torch.zeros(2))
    loss.backward()
    assert loss.item() == 0
    assert (a.grad == 0).all()


@pytest.mark.parametrize("rows", [(3, 2), (0, 2), (0, 0)])
def test_nothing_that_matches_gives_a_zero_in_the_graph(rows):
    a, b = axes(rows[0]).requires_grad_(), axes(rows[1])
    loss = info_nce(a, b, 100.0, torch.arange(rows[0]), 10 + torch.arange(rows[1]))
    loss.backward()
    assert loss.item() == 0
    assert torch.isfinite(a.grad).all()


def test_logits_that_float32_cannot_raise_to_e_stay_finite():
    a = torch.eye(3).requires_grad_()
    loss = info_nce(a, -torch.eye(3), 1e4)
    loss.backward()
    # Its positive has cosine -1, its two negatives 0: log(1 + 2 exp(10000)).
    assert loss.item() == pytest.approx(1e4 + math.log(2), abs=2e-3)
    assert torch.isfinite(a.grad).all()


def test_autocast_and_half_precision_are_computed_in_float32():
    a, b = axes(4, 64, seed=1, dtype=torch.float32), axes(4, 64, seed=2, dtype=torch.float32)
    expected = info_nce(a, b, 100.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = info_nce(a, b, 100.0)
    assert loss.dtype == torch.float32
    assert loss == expected
    half = info_nce(a.bfloat16(), b.bfloat16(), 100.0)
    assert half == info_nce(a.bfloat16().float(), b.bfloat16().float(), 100.0)


def test_both_directions_have_equal_weight():
    logits = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    positive = torch.eye(2, dtype=torch.bool)
    # Unit vectors are not needed to read the mean off: a = logits, b = identity.
    rows, columns = masked_info_nce(logits, positive, ~positive), masked_info_nce(logits.T, positive.T, ~positive.T)
    both = symmetric_info_nce(logits, torch.eye(2), 1.0, positive, ~positive)
    assert both.item() == pytest.approx((rows + columns).item() / 2)


def test_ids_that_do_not_fit_are_refused():
    a, ids = axes(3), torch.arange(3)
    with pytest.raises(ValueError, match="a_ids and b_ids, or neither"):
        info_nce(a, a, 1.0, a_ids=ids)
    with pytest.raises(ValueError, match="3 and 2 rows: pass the ids"):
        info_nce(a, a[:2], 1.0)
    with pytest.raises(ValueError, match="one entry per row"):
        info_nce(a, a, 1.0, ids[:2], ids)
