"""Losses in strips: equal to the plain forms in value and gradient, in memory that does not grow with the pairs."""

import pytest
import torch
from embedded import world as make_world

from modeling_cue.cones import Cone
from modeling_cue.contrastive import info_nce
from modeling_cue.training import tiled_losses
from modeling_cue.training.losses import (
    LossWeights,
    World,
    composition_loss,
    compute_losses,
    containment_loss,
    total_loss,
)
from modeling_cue.training.relations import LEVELS, Embedded
from modeling_cue.training.tiled_losses import Side, containment_sums

WEIGHTS = LossWeights(containment_moves_axes=True)


def sample(samples=12, dtype=torch.float64):
    """Rows of every kind with leaves that take gradients, and the learned scalars."""
    made = make_world(torch.Generator().manual_seed(1), samples)
    made.pop("parts_mean")
    embedded = {
        kind: Embedded(
            Cone(rows.cone.axis.to(dtype).requires_grad_(), rows.cone.radius.to(dtype).requires_grad_()),
            rows.ids, rows.requires, rows.implies, rows.words,
        )
        for kind, rows in made.items()
    }  # fmt: skip
    return embedded, [torch.tensor(value, dtype=dtype, requires_grad=True) for value in (9.0, 5.0, 0.1)]


def plain_terms(embedded, logit_scale, scale, bias):
    """Every term by the plain function of whole matrices."""
    terms = {}
    kinds = {"text": "t", "image": "i", "audio": "a", "video": "v"}
    for first in kinds:
        for second in list(kinds)[list(kinds).index(first) + 1 :]:
            a, b = embedded[first], embedded[second]
            terms[f"info_nce_{kinds[first]}2{kinds[second]}"] = info_nce(
                a.cone.axis, b.cone.axis, logit_scale, a.ids, b.ids
            )
    for level in LEVELS:
        outer, inner = embedded[level.outer], embedded[level.inner]
        related = level.relation(outer, inner)
        terms[f"containment_{level.name}"] = containment_loss(outer.cone, inner.cone, related, scale, bias, True)
    wholes = [embedded[kind] for kind in ("image", "audio", "video")]
    terms["composition"] = composition_loss(embedded["composed"], wholes, logit_scale)
    return terms


def leaves(embedded, scalars):
    return [x for rows in embedded.values() for x in (rows.cone.axis, rows.cone.radius)] + scalars


@pytest.mark.parametrize("pairs", [1, 30, 2**22])
@pytest.mark.parametrize("moves", [True, False])
def test_strips_equal_whole_matrices(pairs, moves, monkeypatch):
    monkeypatch.setattr(tiled_losses, "STRIP_PAIRS", pairs)
    embedded, scalars = sample()
    weights = LossWeights(containment_moves_axes=moves)
    tiled = compute_losses(embedded, *scalars, weights)
    if moves:
        plain = plain_terms(embedded, *scalars)
    else:
        fixed = {
            kind: Embedded(Cone(r.cone.axis.detach(), r.cone.radius), r.ids, r.requires, r.implies, r.words)
            for kind, r in embedded.items()
        }
        moving = plain_terms(embedded, *scalars)
        still = plain_terms(fixed, *scalars)
        plain = {name: still[name] if name.startswith("containment") else moving[name] for name in moving}
    assert tiled.keys() == plain.keys()
    for name in plain:
        torch.testing.assert_close(tiled[name], plain[name], rtol=1e-12, atol=1e-12, msg=name)
        ours, theirs = (
            torch.autograd.grad(terms[name], leaves(embedded, scalars), retain_graph=True, allow_unused=True)
            for terms in (tiled, plain)
        )
        for one, other in zip(ours, theirs, strict=True):
            if one is None or other is None:  # no gradient may be written as zeros
                assert all(x is None or not x.any() for x in (one, other)), name
            else:
                torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12, msg=name)


def test_shares_of_two_processes_add_up(monkeypatch):
    """Each computes its own rows against all; values are global, and the mean of the gradients is the whole one."""
    monkeypatch.setattr(tiled_losses, "STRIP_PAIRS", 50)
    embedded, scalars = sample()
    expected = torch.autograd.grad(
        total_loss(compute_losses(embedded, *scalars, WEIGHTS), WEIGHTS), leaves(embedded, scalars), allow_unused=True
    )
    halves = [{k: r[: len(r) // 3] for k, r in embedded.items()}, {k: r[len(r) // 3 :] for k, r in embedded.items()}]
    reported = []
    for half in halves:  # what the collective would sum
        compute_losses(half, *scalars, WEIGHTS, embedded, World(2, lambda t: reported.append(t) or t))
    everything = World(2, lambda t: sum(reported))
    found = []
    for half in halves:
        loss = total_loss(compute_losses(half, *scalars, WEIGHTS, embedded, everything), WEIGHTS)
        torch.testing.assert_close(loss, total_loss(compute_losses(embedded, *scalars, WEIGHTS), WEIGHTS))
        found.append(torch.autograd.grad(loss, leaves(embedded, scalars), allow_unused=True))
    for whole, *shares in zip(expected, *found, strict=True):
        given = [share for share in shares if share is not None]
        if whole is not None and whole.any():
            torch.testing.assert_close(sum(given) / 2, whole, rtol=1e-9, atol=1e-12)


class Held:
    """What autograd keeps of one tensor; counts the bytes that are held at a time, and the most there were."""

    now = most = 0

    def __init__(self, tensor):
        self.tensor, self.bytes = tensor, tensor.untyped_storage().nbytes()
        Held.now += self.bytes
        Held.most = max(Held.most, Held.now)

    def __del__(self):
        Held.now -= self.bytes


def test_memory_grows_with_the_rows_not_with_the_pairs(monkeypatch):
    monkeypatch.setattr(tiled_losses, "STRIP_PAIRS", 2**12)
    most = {}
    for samples in (64, 512):
        embedded, scalars = sample(samples, torch.float32)
        Held.now = Held.most = 0
        with torch.autograd.graph.saved_tensors_hooks(Held, lambda held: held.tensor):
            total_loss(compute_losses(embedded, *scalars, WEIGHTS), WEIGHTS).backward()
        most[samples] = Held.most
    assert most[512] < 12 * most[64]  # 8 times the rows, 64 times the pairs
    assert most[512] < 4 * 1024 * 1024  # one float32 matrix of phrases by captions has 6 MiB


def test_nothing_in_common_costs_nothing():
    embedded, scalars = sample()
    apart = {kind: Embedded(r.cone, r.ids + 100 * i, r.requires, r.implies, r.words)
             for i, (kind, r) in enumerate(embedded.items())}  # fmt: skip
    terms = compute_losses(apart, *scalars, WEIGHTS)
    assert terms["info_nce_t2i"] == 0
    torch.autograd.grad(terms["info_nce_t2i"], apart["text"].cone.axis)
    outer, inner = (Side(apart[kind], apart[kind]) for kind in ("phrase", "text"))
    unknown = containment_sums(outer, inner, lambda a, b: torch.full((len(a), len(b)), -1), *scalars[1:], True)
    assert unknown.total.tolist() == [0, 0]
    assert unknown.count.tolist() == [0, 0]
