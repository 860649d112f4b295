"""Angles, great circles and caps: against exact cases, slow twins and other people's special functions."""

import math
from pathlib import Path

import pytest
import torch
from scipy.special import betainc
from torch.nn.functional import normalize

from modeling_cue import Cone, join_many, sphere
from modeling_cue.sphere import angle, between, cap_log_share, pairwise_angle

DTYPES = [torch.float32, torch.float64]
# What `pairwise_angle` states.
PAIRWISE = 2.4e-7


def unit(*shape, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return normalize(torch.randn(*shape, generator=generator, dtype=torch.float64), dim=-1).to(dtype)


def turned(a, by, seed=1):
    """A unit vector at the angle `by` from a, in float64."""
    b = unit(*a.shape, seed=seed, dtype=torch.float64)
    # Twice, as one pass leaves a rounding error along a where b happens to be near it.
    tangent = normalize(b - (a * b).sum(-1, keepdim=True) * a, dim=-1)
    tangent = normalize(tangent - (a * tangent).sum(-1, keepdim=True) * a, dim=-1)
    return math.cos(by) * a + math.sin(by) * tangent


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", [2, 3, 64, 4096])
@pytest.mark.parametrize("true", [1e-3, 0.5, math.pi / 2, 3.0, math.pi - 1e-3])
def test_angle_is_right_to_a_few_eps(dtype, dim, true):
    a = unit(20, dim, dtype=torch.float64)
    b = turned(a, true)
    # The inputs are rounded to eps / 2 of their length each, the norms and atan2 add a few units in the last place.
    eps = torch.finfo(dtype).eps
    assert (angle(a.to(dtype), b.to(dtype)).double() - true).abs().max() <= eps * (2 + 4 * true)


@pytest.mark.parametrize("dtype", DTYPES)
def test_angle_is_exact_at_equal_and_antipodal_vectors(dtype):
    a = unit(50, 33, dtype=dtype)
    assert torch.equal(angle(a, a), torch.zeros(50, dtype=dtype))
    assert torch.equal(angle(a, -a), torch.full((50,), math.pi, dtype=dtype))
    both = pairwise_angle(a, torch.cat([a, -a]))
    assert torch.equal(both.diagonal(), torch.zeros(50, dtype=dtype))
    assert torch.equal(both[:, 50:].diagonal(), torch.full((50,), math.pi, dtype=dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", [2, 16, 1024, 4096])
def test_pairwise_angle_equals_the_loop(dtype, dim):
    a = unit(7, dim, dtype=torch.float64)
    near = [turned(a, by, seed=2) for by in (1e-7, 1e-6, 1e-5, 1e-3, 1.0, math.pi - 1e-5)]
    a, b = a.to(dtype), torch.cat([a, -a, *near]).to(dtype)
    loop = torch.stack([torch.stack([angle(x, y) for y in b]) for x in a])
    # `angle` in float32 rounds too: four units in the last place of at most pi.
    assert (pairwise_angle(a, b) - loop).abs().max() <= PAIRWISE + 4 * torch.finfo(dtype).eps * math.pi
    assert pairwise_angle(a, b).dtype == dtype


def test_pairwise_angle_has_the_gradient_of_the_loop():
    a, b = unit(5, 12, dtype=torch.float64), unit(6, 12, seed=3, dtype=torch.float64)
    b[0], b[1] = a[0], -a[1]
    weight = torch.randn(5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    gradients = []
    for angles in (pairwise_angle, lambda x, y: angle(x[:, None], y[None])):
        x, y = a.clone().requires_grad_(), b.clone().requires_grad_()
        (angles(x, y) * weight).sum().backward()
        gradients.append((x.grad, y.grad))
    for clever, slow in zip(*gradients, strict=True):
        torch.testing.assert_close(clever, slow, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients_are_finite_and_bounded_wherever_the_vectors_are(dtype):
    a = unit(8, 5, dtype=torch.float64)
    for by in (0.0, 1e-30, 1e-10, 1e-7, 1e-4, 1.0, math.pi - 1e-7, math.pi):
        for angles in (angle, lambda x, y: pairwise_angle(x, y).diagonal()):
            x = a.clone().to(dtype).requires_grad_()
            angles(x, turned(a, by).to(dtype)).sum().backward()
            assert x.grad.isfinite().all()
            # A unit tangent, or 0 where there is none; sqrt(eps) of room for the direction of a tiny difference.
            assert x.grad.norm(dim=-1).max() <= 1 + 8 * torch.finfo(torch.float32).eps ** 0.5


def test_zero_vectors_of_padding_give_no_nan():
    a = torch.zeros(2, 4, requires_grad=True)
    (angle(a, a).sum() + angle(a, unit(2, 4)).sum() + pairwise_angle(a, a).sum()).backward()
    assert a.grad.isfinite().all()


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_half_precision_and_autocast_give_float32_angles(half):
    a, b = unit(9, 64).to(half), unit(9, 64, seed=5).to(half)
    expected = angle(a.float(), b.float()), pairwise_angle(a.float(), b.float())
    assert torch.equal(angle(a, a), torch.zeros(9))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = angle(a, b), pairwise_angle(a, b)
    for value, reference in zip(got, expected, strict=True):
        assert value.dtype == torch.float32
        assert torch.equal(value, reference)


def test_without_float64_pairwise_angle_still_escapes_autocast(monkeypatch):
    monkeypatch.setattr(sphere, "_accurate_dtype", lambda device: torch.float32)
    a, b = unit(9, 64), unit(9, 64, seed=5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = pairwise_angle(a, b)
    # The angles of random vectors are near a right angle, where a product in float32 is good to a few eps.
    torch.testing.assert_close(got, angle(a[:, None], b[None]), rtol=0, atol=32 * torch.finfo(torch.float32).eps)


def test_angles_work_on_the_meta_device_and_in_batches():
    a = torch.empty(3, 4, 8, device="meta")
    assert angle(a, a).shape == (3, 4)
    assert pairwise_angle(a, a[:, :2]).shape == (3, 4, 2)
    a, b = unit(3, 4, 8), unit(3, 5, 8, seed=1)
    for row, x, y in zip(pairwise_angle(a, b), a, b, strict=True):
        torch.testing.assert_close(row, pairwise_angle(x, y), rtol=0, atol=PAIRWISE)


@pytest.mark.parametrize("call", [angle, pairwise_angle])
def test_angles_refuse_shapes_and_dtypes_that_do_not_fit(call):
    with pytest.raises(ValueError, match="8 and 7 dimensions"):
        call(unit(4, 8), unit(4, 7))
    with pytest.raises(ValueError, match="do not broadcast"):
        call(unit(2, 4, 8), unit(3, 4, 8))
    with pytest.raises(ValueError, match=r"floating-point.*int64"):
        call(torch.ones(4, 8, dtype=torch.int64), unit(4, 8))
    with pytest.raises(ValueError, match=r"shape \(\)"):
        call(torch.tensor(1.0), unit(4, 8))


def test_pairwise_angle_refuses_single_vectors():
    with pytest.raises(ValueError, match=r"\(\.\.\., N, D\)"):
        pairwise_angle(unit(8), unit(4, 8))


# ---------------------------------------------------------------- great circles


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", [2, 3, 512])
@pytest.mark.parametrize("apart", [0.0, 1e-6, 0.4, 2.9, math.pi - 1e-5, math.pi])
def test_between_walks_the_great_circle(dtype, dim, apart):
    a = unit(10, dim, dtype=torch.float64)
    a, b = a.to(dtype), turned(a, apart).to(dtype)
    tolerance = 32 * torch.finfo(dtype).eps
    for share in (-0.5, -0.2, 0.0, 0.3, 0.5):
        offset = torch.full((10,), share * apart, dtype=dtype)
        point = between(a, b, offset)
        assert (point.norm(dim=-1) - 1).abs().max() <= tolerance
        assert (angle(a, point) - (0.5 + share) * apart).abs().max() <= tolerance
        assert (angle(b, point) - (0.5 - share) * apart).abs().max() <= tolerance
        assert torch.equal(point, between(b, a, -offset))


# ---------------------------------------------------------------- caps

# (dim, radius, log share) by mpmath with 60 digits.
REFERENCE = [
    (2, 1e-12, -28.775751001777948),
    (3, 1e-06, -29.017315477048523),
    (4, 2.5, -0.05298709245084933),
    (8, 0.1, -18.053363202571123),
    (16, 3.0, -1.791887607329925e-14),
    (64, 1.0, -13.287312370311588),
    (128, 0.001, -880.6279416651819),
    (512, 1.5, -2.904602845927752),
    (512, 1.6, -0.2939211595279525),
    (1024, 0.3, -1251.394310644028),
    (2048, 1.2, -147.78814559383662),
    (4096, 1e-06, -56579.59349544579),
    (4096, 0.001, -28292.336310013525),
    (4096, 1.0, -711.2750662329257),
    (4096, 1.5, -12.74359031065185),
    (4096, 1.57, -0.7346351127909201),
    (4096, 1.58, -0.3256659501096462),
    (4096, 1.65, -1.981149014661654e-07),
]


@pytest.mark.parametrize(("dim", "radius", "expected"), REFERENCE)
def test_cap_log_share_against_arbitrary_precision(dim, radius, expected):
    value = cap_log_share(torch.tensor(radius, dtype=torch.float64), dim).item()
    assert abs(value - expected) <= 1e-12 * max(1.0, abs(expected))


@pytest.mark.parametrize("dim", [2, 3, 5, 17, 128, 1024, 4096])
def test_cap_log_share_against_the_incomplete_beta_function(dim):
    # Within six standard deviations of the equator, where the beta function does not underflow.
    radius = math.pi / 2 + torch.linspace(-1, 1, 41, dtype=torch.float64) * min(1.5, 6 / dim**0.5)
    share = betainc((dim - 1) / 2, 0.5, torch.sin(radius).numpy() ** 2) / 2
    expected = torch.where(radius <= math.pi / 2, torch.as_tensor(share), 1 - torch.as_tensor(share)).log()
    # x = sin^2 is rounded to eps / 2, and the share goes with x^(dim / 2).
    tolerance = torch.finfo(torch.float64).eps * (dim + 64)
    torch.testing.assert_close(cap_log_share(radius, dim), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("dtype", DTYPES)
def test_cap_log_share_has_the_closed_forms_of_circle_and_sphere(dtype):
    radius = torch.linspace(0.01, math.pi, 50, dtype=dtype)
    exact = radius.double().clamp(max=math.pi)
    # A radius that is off by eps / 2 moves the log by at most that over the share's own scale, the radius.
    tolerance = {"rtol": 4 * torch.finfo(dtype).eps, "atol": 4 * torch.finfo(dtype).eps}
    torch.testing.assert_close(cap_log_share(radius, 2), (exact / math.pi).log().to(dtype), **tolerance)
    torch.testing.assert_close(cap_log_share(radius, 3), ((exact / 2).sin() ** 2).log().to(dtype), **tolerance)


@pytest.mark.parametrize("dim", [2, 3, 64, 1024, 4096])
def test_cap_log_share_grows_and_its_ends_are_exact(dim):
    value = cap_log_share(torch.linspace(0, math.pi, 2001, dtype=torch.float64), dim)
    assert value[0] == -math.inf
    assert value[-1] == 0
    assert value[1000] == pytest.approx(-math.log(2), abs=1e-12)
    assert (value.diff() >= 0).all()
    assert (value.diff()[:1000] > 0).all()
    assert cap_log_share(torch.tensor(math.pi), dim) == 0


@pytest.mark.parametrize("dim", [2, 3, 10, 300, 4096])
def test_cap_log_share_has_the_gradient_of_differences(dim):
    radius = torch.tensor([0.02, 0.3, 1.0, 1.55, 1.6, 2.0], dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(cap_log_share(radius, dim).sum(), radius)
    with torch.no_grad():
        step = 1e-5 * radius
        difference = cap_log_share(radius + step, dim) - cap_log_share(radius - step, dim)
        # Central differences: the relative error is (step * dim / radius)^2, and rounding over the step.
        torch.testing.assert_close(gradient, difference / (2 * step), rtol=(1e-5 * dim) ** 2 + 1e-8, atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", [2, 3, 4096])
def test_cap_log_share_has_finite_gradients_and_zero_at_radius_zero(dtype, dim):
    radius = torch.tensor([0.0, torch.finfo(dtype).tiny, 1e-20, 1.0, math.pi], dtype=dtype, requires_grad=True)
    cap_log_share(radius, dim).nan_to_num(neginf=0.0).sum().backward()
    assert radius.grad.isfinite().all()
    assert radius.grad[0] == 0
    assert (radius.grad[1:4] > 0).all()


def test_there_is_no_arccosine_and_no_import_but_torch():
    for name in ("sphere", "cone_type", "cones"):
        source = Path(sphere.__file__).with_name(f"{name}.py").read_text()
        assert ".acos" not in source
        assert ".arccos" not in source
        imports = {
            line.split()[1].split(".")[0] for line in source.splitlines() if line.startswith(("import ", "from "))
        }
        assert imports - {""} <= {"torch", "math", "collections", "contextlib", "dataclasses", "functools", "typing"}


@pytest.mark.parametrize("function", [angle, pairwise_angle])
def test_cones_are_told_from_vectors(function):
    cone = Cone(torch.eye(3), torch.ones(3))
    with pytest.raises(
        TypeError, match=f"{function.__name__} takes unit vectors as tensors, got Cone: of a cone, give"
    ):
        function(cone, cone)
    with pytest.raises(TypeError, match=r"give Cone.stack\(cones\)"):
        join_many([cone, cone])
