import math

import pytest
import torch

from modeling_cue.training.metrics_calibration import calibration_metrics, reliability
from modeling_cue.training.metrics_counts import Counts

SCALE, BIAS = 4.0, 0.3


@pytest.fixture
def pairs():
    """Margins of 4,000 pairs and labels drawn with the very probability that the margins stand for."""
    generator = torch.Generator().manual_seed(0)
    margin = torch.rand(4000, generator=generator, dtype=torch.float64) * 3 - 1.8
    labels = torch.rand(4000, generator=generator, dtype=torch.float64) < torch.sigmoid(SCALE * (margin + BIAS))
    return margin, labels.int()


def test_reliability_equals_a_loop_over_pairs(pairs):
    margin, labels = pairs
    curve = reliability(Counts.of(margin, labels), SCALE, BIAS, bins=10)
    weight = torch.where(labels == 1, 0.5 / (labels == 1).sum(), 0.5 / (labels == 0).sum())
    probability = torch.sigmoid(SCALE * (margin + BIAS))
    for k, (mass, mean, share) in enumerate(curve.tolist()):
        here = (probability >= k / 10) & (probability < (k + 1) / 10)
        total = weight[here].sum().item()
        assert mass == pytest.approx(total, abs=2e-3)  # a pair on the border may fall on either side of it
        assert mean == pytest.approx((weight * probability)[here].sum().item() / total, abs=1e-3)
        assert share == pytest.approx(weight[here & (labels == 1)].sum().item() / total, abs=1e-2)
    assert curve[:, 0].sum() == pytest.approx(1)


def test_true_probabilities_are_calibrated_and_others_are_not(pairs):
    margin, labels = pairs
    # Equal mass for both sides moves the odds by those of the labels, which a bias takes back.
    odds = math.log((labels == 1).sum() / (labels == 0).sum())
    counts = Counts.of(margin, labels)
    right = calibration_metrics("c2i", counts, SCALE, BIAS - odds / SCALE)
    assert right["containment_ece_c2i"] < 0.03
    for scale, bias in ((SCALE, BIAS + 0.5), (40.0, BIAS)):
        assert calibration_metrics("c2i", counts, scale, bias)["containment_ece_c2i"] > 0.1


def test_active_pairs_are_those_with_a_slope():
    margin = torch.tensor([-3.0, -1.0, 0.0, 1.0, 3.0], requires_grad=True)
    labels = torch.tensor([1, 0, 1, 0, 1])
    z = 2.0 * margin
    torch.nn.functional.softplus(torch.where(labels == 1, -z, z)).sum().backward()
    active = margin.grad.abs() / 2 >= 0.05  # the largest slope is the scale
    expected = (active[labels == 1].double().mean() + active[labels == 0].double().mean()) / 2
    found = calibration_metrics("x", Counts.of(margin.detach(), labels), 2.0, 0.0)
    assert found["containment_active_x"] == pytest.approx(expected.item())
    assert 0 < expected < 1


def test_an_empty_interval_is_not_a_number():
    curve = reliability(Counts.of(torch.tensor([0.5, -0.5]), torch.tensor([1, 0])), 10.0, 0.0)
    assert curve[0].tolist() == pytest.approx([0.5, 1 / (1 + math.exp(5)), 0.0], abs=1e-3)
    assert curve[7, 0] == 0
    assert curve[7, 1:].isnan().all()
