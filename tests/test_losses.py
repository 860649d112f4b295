import math

import pytest
import torch

from modeling_cue.cones import Cone, containment_margin
from modeling_cue.contrastive import info_nce
from modeling_cue.training.losses import (
    LossWeights,
    composition_loss,
    compute_losses,
    containment_loss,
    radius_alarm,
    total_loss,
)
from modeling_cue.training.relations import LETTERS, Embedded

LOG2 = math.log(2)


def cones(rows, dim=6, seed=0, radius=0.8, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    axis = torch.nn.functional.normalize(torch.randn(rows, dim, generator=generator, dtype=dtype), dim=-1)
    return Cone(axis, radius * torch.rand(rows, generator=generator, dtype=dtype))


def items(cone, ids, requires=None, implies=None, words=None):
    sets = [torch.zeros(len(ids), 0, dtype=torch.long) if s is None else torch.tensor(s) for s in
            (requires, implies, words)]  # fmt: skip
    return Embedded(cone, torch.tensor(ids), *sets)


def scalars(scale=10.0, bias=0.3):
    return [torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in (scale, bias)]


# ---------------------------------------------------------------------- containment


def test_margins_of_zero_cost_log_two_whatever_the_numbers_of_pairs():
    axis = torch.eye(2)[[0, 0, 0]]
    cone = Cone(axis, torch.ones(3))
    for relation in ([[1, 0, 0], [0, 0, 0], [0, 0, 0]], [[1, 1, 1], [1, 1, 1], [1, 1, 0]], [[1, 0, -1]] * 3):
        assert containment_loss(cone, cone, torch.tensor(relation), 5.0, 0.0).item() == pytest.approx(LOG2)


def test_a_known_margin_costs_what_paper_says():
    # Radii 1.0 and 0.2 on one axis: margin 0.8. On axes at a right angle: 0.8 - pi/2.
    outer, inner = Cone(torch.eye(2)[:1], torch.tensor([1.0])), Cone(torch.eye(2), torch.tensor([0.2, 0.2]))
    loss = containment_loss(outer, inner, torch.tensor([[1, 0]]), 2.0, 0.1)
    expected = (math.log1p(math.exp(-2 * 0.9)) + math.log1p(math.exp(2 * (0.9 - math.pi / 2)))) / 2
    assert loss.item() == pytest.approx(expected, rel=1e-6)


def test_positives_and_negatives_have_equal_mass():
    # One positive against 1 or 100 negatives at margin 0: its radius gets the same gradient.
    gradients = []
    for negatives in (1, 100):
        radius = torch.ones(1, requires_grad=True)
        outer = Cone(torch.eye(2)[:1], radius)
        inner = Cone(torch.eye(2)[:1].expand(1 + negatives, 2), torch.ones(1 + negatives))
        relation = torch.tensor([[1] + [0] * negatives])
        containment_loss(outer, inner, relation, 4.0, 0.0).backward()
        gradients.append(radius.grad.item())
        # Half of sigmoid(0) * scale pushes it out, as much pushes it in.
        assert radius.grad.item() == pytest.approx(0.0, abs=1e-7)
    assert gradients[0] == pytest.approx(gradients[1], abs=1e-7)


def slow_containment(outer, inner, relation, scale, bias):
    sides = {0: [], 1: []}
    for i, row in enumerate(relation.tolist()):
        for j, label in enumerate(row):
            if label >= 0:
                z = scale * (containment_margin(outer[i], inner[j]) + bias)
                sides[label].append(-torch.log(torch.sigmoid(z if label else -z)))
    return sum(torch.stack(side).mean() for side in sides.values() if side) / 2


@pytest.mark.parametrize("axes_gradient", [False, True])
def test_value_and_gradient_equal_the_definition(axes_gradient):
    outer, inner = cones(4, seed=1, radius=2.0), cones(5, seed=2)
    relation = torch.randint(-1, 2, (4, 5), generator=torch.Generator().manual_seed(0))
    leaves = [outer.axis, outer.radius, inner.axis, inner.radius]
    scale, bias = scalars()
    inputs = [leaf.requires_grad_() for leaf in leaves] + [scale, bias]
    fast = containment_loss(outer, inner, relation, scale, bias, axes_gradient)
    slow = slow_containment(outer, inner, relation, scale, bias)
    assert fast.item() == pytest.approx(slow.item(), rel=1e-9)
    ours = torch.autograd.grad(fast, inputs, allow_unused=True)
    reference = torch.autograd.grad(slow, inputs)
    for k, (mine, expected) in enumerate(zip(ours, reference, strict=True)):
        if k in (0, 2) and not axes_gradient:
            assert mine is None
        else:
            torch.testing.assert_close(mine, expected, rtol=1e-6, atol=1e-9)


def test_by_default_no_gradient_reaches_axes():
    outer, inner = cones(3, seed=1), cones(3, seed=2)
    leaves = [tensor.requires_grad_() for tensor in (outer.axis, inner.axis, outer.radius, inner.radius)]
    containment_loss(outer, inner, torch.eye(3), 10.0, 0.0).backward()
    assert leaves[0].grad is None
    assert leaves[1].grad is None
    assert (leaves[2].grad != 0).all()
    assert (leaves[3].grad != 0).all()


def test_an_unknown_pair_has_no_gradient():
    outer, inner = cones(2, seed=1), cones(2, seed=2)
    outer.radius.requires_grad_()
    inner.radius.requires_grad_()
    # All that row 1 and column 1 take part in is unknown.
    containment_loss(outer, inner, torch.tensor([[1, -1], [-1, -1]]), 10.0, 0.0).backward()
    assert outer.radius.grad[0] < 0 < inner.radius.grad[0]
    assert outer.radius.grad[1] == 0
    assert inner.radius.grad[1] == 0


def test_no_known_pair_gives_a_zero_in_the_graph():
    outer, inner = cones(2, seed=1), cones(2, seed=2)
    outer.radius.requires_grad_()
    loss = containment_loss(outer, inner, torch.full((2, 2), -1), 10.0, 0.0)
    loss.backward()
    assert loss.item() == 0
    assert (outer.radius.grad == 0).all()


def test_the_order_of_pairs_does_not_matter():
    outer, inner = cones(4, seed=1), cones(5, seed=2)
    relation = torch.randint(-1, 2, (4, 5), generator=torch.Generator().manual_seed(3))
    p, q = torch.randperm(4), torch.randperm(5)
    expected = containment_loss(outer, inner, relation, 10.0, 0.1).item()
    permuted = containment_loss(outer[p], inner[q], relation[p][:, q], 10.0, 0.1).item()
    assert permuted == pytest.approx(expected, rel=1e-12)


def test_the_loss_is_float32_under_autocast():
    outer, inner = cones(3, seed=1, dtype=torch.float32), cones(3, seed=2, dtype=torch.float32)
    expected = containment_loss(outer, inner, torch.eye(3), 10.0, 0.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert containment_loss(outer, inner, torch.eye(3), 10.0, 0.0) == expected


# ---------------------------------------------------------------------- composition


def test_compounds_retrieve_all_that_they_are_true_of_and_leave_out_the_unknown():
    composed = items(cones(2, seed=1), [1, 2], requires=[[10, 20], [30, 0]], words=[[0, 0], [300, 0]])
    images = items(cones(3, seed=2), [1, 2, 3], implies=[[10, 20], [30, 0], [10, 20]], words=[[300], [300], [300]])
    composed.cone.axis.requires_grad_()
    loss = composition_loss(composed, [images], 10.0)
    # Compound 0 is true of images 0 and 2; compound 1 of image 1, and of the others it is unknown.
    s = 10 * composed.cone.axis @ images.cone.axis.T
    nll = torch.nn.functional.softplus
    rows = ((nll(s[0, 1] - s[0, 0]) + nll(s[0, 1] - s[0, 2])) / 2 + 0 * s[1, 1]) / 2
    columns = (0 * s[0, 0] + nll(s[0, 1] - s[1, 1]) + 0 * s[0, 2]) / 3
    assert loss.item() == pytest.approx(((rows + columns) / 2).item(), rel=1e-9)


def test_composition_is_the_mean_over_wholes():
    composed = items(cones(3, seed=1), [1, 2, 3])
    image, audio = items(cones(3, seed=2), [1, 2, 3]), items(cones(2, seed=3), [3, 1])
    each = [info_nce(composed.cone.axis, w.cone.axis, 10.0, composed.ids, w.ids) for w in (image, audio)]
    assert composition_loss(composed, [image, audio], 10.0).item() == pytest.approx(sum(each).item() / 2, rel=1e-12)


def test_a_compound_with_its_picture_looks_for_the_caption_that_says_its_part():
    pictured = items(cones(2, seed=1), [1, 2], requires=[[10], [20]])
    # Of sample 1 a caption that says 10 and one that does not; another sample that says it too.
    text = items(cones(3, seed=2), [1, 1, 2], implies=[[10], [30], [10]])
    losses = compute_losses({"pictured": pictured, "text": text}, torch.tensor(10.0), *scalars(), LossWeights())
    assert list(losses) == ["composition"]
    s = 10 * pictured.cone.axis @ text.cone.axis.T
    nll = torch.nn.functional.softplus
    # Sample 2 has no caption that says 20: its compound looks for none, and is a wrong one for the first caption.
    assert losses["composition"].item() == pytest.approx(
        ((nll(s[0, 2] - s[0, 0]) + nll(s[1, 0] - s[0, 0])) / 2).item(), rel=1e-6
    )


# ---------------------------------------------------------------------- all terms


def batch():
    ids = {
        "text": [1, 1, 2, 2],
        "image": [1, 2],
        "audio": [2, 1],
        "video": [1, 2],
        "phrase": [1, 2],
        "composed": [1, 2],
    }
    return {
        kind: items(cones(len(own), seed=k), own, requires=[[i] for i in own], implies=[[i] for i in own])
        for k, (kind, own) in enumerate(ids.items())
    }


def losses(embedded, **weights):
    scale, bias = scalars()
    return compute_losses(embedded, torch.tensor(20.0, dtype=torch.float64), scale, bias, LossWeights(**weights))


def test_every_term_that_the_kinds_allow_is_named():
    pairs = ["t2i", "t2a", "t2v", "i2a", "i2v", "a2v"]
    levels = ["p2c", "c2i", "c2a", "c2v"]
    expected = [f"info_nce_{p}" for p in pairs] + [f"containment_{level}" for level in levels] + ["composition"]
    assert list(losses(batch())) == expected
    embedded = batch()
    assert list(losses({kind: embedded[kind] for kind in ("text", "phrase")})) == ["containment_p2c"]
    assert list(losses({kind: embedded[kind] for kind in ("image", "video")})) == ["info_nce_i2v"]


def test_terms_are_those_of_the_functions_and_carry_no_weight():
    embedded = batch()
    text, image = embedded["text"], embedded["image"]
    terms = losses(embedded, contrastive=7.0)
    expected = info_nce(text.cone.axis, image.cone.axis, 20.0, text.ids, image.ids)
    assert terms["info_nce_t2i"].item() == pytest.approx(expected.item(), rel=1e-12)
    relation = (text.ids[:, None] == image.ids[None]).long()
    expected = containment_loss(text.cone, image.cone, relation, 10.0, 0.3)
    assert terms["containment_c2i"].item() == pytest.approx(expected.item(), rel=1e-12)


def test_the_total_weighs_the_mean_of_each_group():
    values = {"info_nce_t2i": 1.0, "info_nce_t2a": 3.0, "containment_p2c": 5.0, "composition": 7.0}
    terms = {name: torch.tensor(value) for name, value in values.items()}
    assert total_loss(terms, LossWeights(1.0, 0.1, 0.01)).item() == pytest.approx(2 + 0.5 + 0.07)


def test_phrases_count_by_their_weight_within_containment():
    terms = {"containment_p2c": torch.tensor(5.0), "containment_c2i": torch.tensor(2.0)}
    for share, mean in ((1.0, 3.5), (0.25, (0.25 * 5 + 2) / 1.25), (0.0, 2.0)):
        weights = LossWeights(containment=0.1, phrase_containment=share)
        assert total_loss(terms, weights).item() == pytest.approx(0.1 * mean)
    alone = {"containment_p2c": torch.tensor(5.0)}
    assert total_loss(alone, LossWeights(phrase_containment=0.25)).item() == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("weight", "gone"),
    [
        ({"contrastive": 0.0}, "info_nce"),
        ({"containment": 0.0}, "containment"),
        ({"composition": 0.0}, "composition"),
        ({"phrase_containment": 0.0}, "containment_p2c"),
    ],
)
def test_a_term_of_weight_zero_is_not_computed_and_all_else_is_as_with_it(weight, gone):
    every, weights = losses(batch()), LossWeights(**weight)
    terms = losses(batch(), **weight)
    assert set(every) - set(terms) == {name for name in every if name.startswith(gone)}
    assert terms == {name: every[name] for name in terms}
    assert total_loss(terms, weights) == total_loss(every, weights)


def test_a_weight_of_zero_leaves_every_parameter_in_the_graph_without_moving_it():
    embedded = batch()
    radii = [rows.cone.radius.requires_grad_() for rows in embedded.values()]
    scale, bias = scalars()
    weights = LossWeights(containment=0.0, composition=0.0)
    total_loss(compute_losses(embedded, torch.tensor(20.0), scale, bias, weights), weights).backward()
    for unmoved in (scale, bias, *radii):
        assert not unmoved.grad.any()


@pytest.mark.parametrize("moves", [False, True])
def test_containment_moves_axes_only_where_it_is_told_to(moves):
    embedded = batch()
    axis = embedded["phrase"].cone.axis.requires_grad_()
    terms = losses(embedded, containment_moves_axes=moves)
    terms["containment_p2c"].requires_grad_().backward()
    assert (axis.grad is not None) == moves


def test_a_term_that_is_not_finite_stops_with_its_name():
    embedded = batch()
    embedded["image"].cone.radius[0] = float("nan")
    with pytest.raises(FloatingPointError, match=r"containment_c2i = nan\. .*lower the learning rate"):
        losses(embedded)


def test_what_is_not_finite_is_named_where_no_term_compares_it():
    embedded = batch()
    embedded["image"].cone.radius[0] = float("nan")
    with pytest.raises(FloatingPointError, match="the sum over the cones of image = nan"):
        losses(embedded, containment=0.0)


def test_a_batch_of_terms_without_weight_is_a_step_that_moves_nothing():
    embedded = {kind: batch()[kind] for kind in ("text", "phrase")}
    axis = embedded["text"].cone.axis.requires_grad_()
    weights = LossWeights(containment=0.0)
    total = total_loss(losses(embedded, containment=0.0), weights)
    total.backward()
    assert total == 0
    assert not axis.grad.any()


def test_a_batch_without_any_term_says_what_is_needed():
    with pytest.raises(ValueError, match="only image: a loss needs two of text, image"):
        losses({"image": batch()["image"]})


# ---------------------------------------------------------------------- alarms


def with_radii(radii):
    axis = torch.eye(2)[[0]].expand(len(radii), 2)
    return items(Cone(axis, torch.tensor(radii)), list(range(len(radii))))


def test_healthy_radii_raise_no_alarm():
    healthy = with_radii([0.5 + 0.01 * k for k in range(10)])
    assert radius_alarm({kind: healthy for kind in (*LETTERS, "phrase")}) == []
    few_at_bounds = with_radii([0.0, math.pi] + [0.5 + 0.1 * k for k in range(8)])
    assert radius_alarm({"phrase": few_at_bounds}) == []


@pytest.mark.parametrize(
    ("radii", "told"),
    [
        ([0.001 * k for k in range(10)], "gone to 0"),
        ([0.0] * 3 + [1.0] * 7, "gone to 0"),  # a part of them is enough
        ([math.pi - 0.001] * 10, "gone to pi"),
        ([1.0] * 7 + [math.pi] * 3, "gone to pi"),
        ([0.7] * 10, "one value"),
        ([0.7] * 9 + [1.7], "one value"),  # one that differs saves nothing
    ],
)
def test_collapsed_radii_raise_an_alarm_that_names_kind_and_remedy(radii, told):
    (alarm,) = radius_alarm({"text": with_radii([0.5 + 0.01 * k for k in range(10)]), "image": with_radii(radii)})
    assert alarm.startswith("image radii")
    assert told in alarm
    assert "containment_weight" in alarm


def test_few_radii_and_compounds_raise_no_alarm():
    assert radius_alarm({"text": with_radii([0.7] * 3), "composed": with_radii([0.0] * 10)}) == []
