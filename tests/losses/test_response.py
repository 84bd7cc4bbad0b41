"""Response losses: compared with NumPy in float64."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from kd_lightning.losses import (
    correlation,
    decoupled,
    logit_mse,
    soft_targets,
    standardized_soft_targets,
)

Logits = Callable[..., tuple[Tensor, Tensor]]


@pytest.fixture
def logits() -> Logits:
    def draw(samples: int, classes: int = 10) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(samples)
        z_s, z_t = 3 * torch.randn(2, samples, classes, generator=generator, dtype=torch.float64)
        return z_s.requires_grad_(), z_t + 1

    return draw


def labels(z: Tensor) -> Tensor:
    return torch.arange(len(z)) % z.shape[1]


def softmax(z: np.ndarray) -> np.ndarray:
    powers = np.exp(z - z.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def centred(z: np.ndarray) -> np.ndarray:
    return z - z.mean(axis=1, keepdims=True)


def kl(v: np.ndarray, q: np.ndarray) -> float:
    return float((v * np.log(v / q)).sum())


def numpy_soft_targets(z_s: np.ndarray, z_t: np.ndarray, t: np.ndarray) -> float:
    rows = zip(z_s, z_t, t, strict=True)
    return float(np.mean([u**2 * kl(softmax(b / u), softmax(a / u)) for a, b, u in rows]))


def numpy_logit_mse(z_s: np.ndarray, z_t: np.ndarray, t: np.ndarray) -> float:
    return 0.5 * ((centred(z_s) - centred(z_t)) ** 2).sum(axis=1).mean() / z_s.shape[1]


def numpy_decoupled(z_s: np.ndarray, z_t: np.ndarray, t: np.ndarray) -> float:
    losses = []
    for i, (a, b, u) in enumerate(zip(z_s, z_t, t, strict=True)):
        q, v = softmax(a / u), softmax(b / u)
        y = i % len(q)
        others = np.arange(len(q)) != y
        tckd = kl(np.array([v[y], 1 - v[y]]), np.array([q[y], 1 - q[y]]))
        nckd = kl(v[others] / v[others].sum(), q[others] / q[others].sum())
        losses.append(u**2 * (tckd + 8 * nckd))
    return float(np.mean(losses))


def numpy_correlation(z_s: np.ndarray, z_t: np.ndarray, t: np.ndarray) -> float:
    q, v = softmax(z_s / t[:, None]), softmax(z_t / t[:, None])
    inter = np.mean([1 - np.corrcoef(a, b)[0, 1] for a, b in zip(q, v, strict=True)])
    columns = zip(q.T, v.T, strict=True)
    intra = np.mean([1 - np.corrcoef(a, b)[0, 1] for a, b in columns]) if len(q) > 1 else 0
    return float((t**2).mean() * (inter + intra))


def numpy_standardized(z_s: np.ndarray, z_t: np.ndarray, t: np.ndarray) -> float:
    z_s, z_t = (centred(z) / (z.std(axis=1, ddof=1, keepdims=True) + 1e-7) for z in (z_s, z_t))
    return numpy_soft_targets(z_s, z_t, t)


Loss = Callable[[Tensor, Tensor, float | Tensor], Tensor]
LOSSES: dict[str, tuple[Loss, Callable[..., float]]] = {
    "soft_targets": (soft_targets, numpy_soft_targets),
    "logit_mse": (lambda z_s, z_t, t: logit_mse(z_s, z_t), numpy_logit_mse),
    "decoupled": (lambda z_s, z_t, t: decoupled(z_s, z_t, labels(z_s), t), numpy_decoupled),
    "correlation": (correlation, numpy_correlation),
    "standardized": (standardized_soft_targets, numpy_standardized),
}
each = pytest.mark.parametrize("loss", [pair[0] for pair in LOSSES.values()], ids=LOSSES)
tempered = [pair[0] for name, pair in LOSSES.items() if name != "logit_mse"]


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("samples", [1, 7, 23])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 5.0, 20.0, "scalar", "each"])
def test_value_matches_the_paper(
    logits: Logits, name: str, samples: int, temperature: float | str
) -> None:
    loss, expected = LOSSES[name]
    z_s, z_t = logits(samples)
    t: float | Tensor
    if temperature == "each":
        t = torch.linspace(0.5, 6, samples, dtype=torch.float64)[:, None]
    else:
        t = torch.tensor(2.5) if temperature == "scalar" else float(temperature)
    value = loss(z_s, z_t, t)
    of_each = np.broadcast_to(np.asarray(t, dtype=float).reshape(-1), samples)
    assert value.shape == ()
    assert value.item() == pytest.approx(
        expected(z_s.detach().numpy(), z_t.numpy(), of_each), rel=1e-10
    )


@pytest.mark.parametrize("loss", tempered)
@pytest.mark.parametrize("shape", [(), (3, 1)])
def test_gradients_in_logits_and_temperature_match_finite_differences(
    logits: Logits, loss: Loss, shape: tuple[int, ...]
) -> None:
    z_s, z_t = logits(3, classes=4)
    t = torch.linspace(2.5, 4, max(1, len(shape) and 3), dtype=torch.float64).view(shape)
    assert torch.autograd.gradcheck(lambda z, u: loss(z, z_t, u), (z_s, t.requires_grad_()))


def test_gradient_of_logit_mse_matches_finite_differences(logits: Logits) -> None:
    z_s, z_t = logits(3, classes=4)
    assert torch.autograd.gradcheck(lambda z: logit_mse(z, z_t), z_s)


@pytest.mark.parametrize("loss", tempered)
@pytest.mark.parametrize("shape", [(10,), (1, 10), (10, 10), (5, 1)])
def test_a_temperature_of_another_shape_is_rejected(
    logits: Logits, loss: Loss, shape: tuple[int, ...]
) -> None:
    with pytest.raises(ValueError, match=r"temperature has shape .* one value per sample as B×1"):
        loss(*logits(10), torch.ones(shape))


def test_soft_targets_converge_to_logit_mse(logits: Logits) -> None:
    z_s, z_t = logits(6)
    limit = logit_mse(z_s, z_t).item()
    errors = [abs(soft_targets(z_s, z_t, t).item() / limit - 1) for t in (100.0, 1000.0)]
    assert errors[1] < 1e-3
    assert errors[0] / errors[1] == pytest.approx(10, rel=0.1)  # the error falls as 1/T


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_the_gradient_is_scaled_by_t_squared(logits: Logits, temperature: float) -> None:
    z_s, z_t = logits(5)
    soft_targets(z_s, z_t, temperature).backward()
    assert z_s.grad is not None
    q, v = (softmax(z.detach().numpy() / temperature) for z in (z_s, z_t))
    unscaled = (q - v) / temperature / 5
    np.testing.assert_allclose(z_s.grad, temperature**2 * unscaled, atol=1e-14, rtol=1e-10)


def test_the_gradient_converges_to_that_of_logit_mse(logits: Logits) -> None:
    z_s, z_t = logits(5)
    temperature = 1e4
    (soft_targets(z_s, z_t, temperature) / temperature**2).backward()
    assert z_s.grad is not None
    difference = centred(z_s.detach().numpy()) - centred(z_t.numpy())
    limit = difference / (z_s.shape[1] * temperature**2) / 5
    error = np.linalg.norm(z_s.grad.numpy() - limit) / np.linalg.norm(limit)
    assert error < 1e-3


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_soft_targets_decompose_into_tckd_and_nckd(logits: Logits, temperature: float) -> None:
    for z_s, z_t in zip(*logits(9), strict=True):
        z_s, z_t = z_s[None], z_t[None]
        target = z_t.argmin(1)
        of_target = decoupled(z_s, z_t, target, temperature, non_target_weight=0).item()
        of_others = decoupled(z_s, z_t, target, temperature, 0, non_target_weight=1).item()
        sure = (z_t / temperature).softmax(1)[0, target].item()
        whole = soft_targets(z_s, z_t, temperature).item()
        assert whole == pytest.approx(of_target + (1 - sure) * of_others, rel=1e-12)


@pytest.mark.parametrize("parts", [(2.0, 0.0), (0.0, 3.0)])
def test_weights_scale_their_parts(logits: Logits, parts: tuple[float, float]) -> None:
    z_s, z_t = logits(6)
    ones = [float(part > 0) for part in parts]
    alone = correlation(z_s, z_t, 2.0, *ones), decoupled(z_s, z_t, labels(z_s), 2.0, *ones)
    weighted = correlation(z_s, z_t, 2.0, *parts), decoupled(z_s, z_t, labels(z_s), 2.0, *parts)
    ratio = torch.stack(weighted) / torch.stack(alone)
    np.testing.assert_allclose(ratio.detach(), sum(parts), rtol=1e-12)


@each
def test_loss_is_invariant_to_an_offset_of_a_row(logits: Logits, loss: Loss) -> None:
    z_s, z_t = logits(4)
    offset = torch.tensor([[5.0], [-3.0], [0.0], [70.0]])
    assert loss(z_s + offset, z_t, 2.0).item() == pytest.approx(loss(z_s, z_t, 2.0).item())


def test_standardised_loss_is_invariant_to_the_scale_of_logits(logits: Logits) -> None:
    z_s, z_t = logits(4)
    whole, scaled = (standardized_soft_targets(k * z_s, z_t, 2.0).item() for k in (1, 50))
    assert whole == pytest.approx(scaled, rel=1e-6)


@each
def test_no_gradient_reaches_the_teacher(logits: Logits, loss: Loss) -> None:
    z_s, z_t = logits(4)
    z_t.requires_grad_()
    loss(z_s, z_t, 5.0).backward()
    assert z_t.grad is None
    assert z_s.grad is not None


@each
@pytest.mark.parametrize("samples", [1, 4])
def test_loss_and_gradient_vanish_for_equal_logits(
    logits: Logits, loss: Loss, samples: int
) -> None:
    z_s, _ = logits(samples)
    value = loss(z_s, z_s.detach().clone(), 3.0)
    value.backward()
    assert value.item() == pytest.approx(0, abs=1e-14)
    assert z_s.grad is not None
    assert z_s.grad.abs().max() < 1e-14


def gradient_at_constant_logits(name: str, z_t: np.ndarray, t: float) -> np.ndarray:
    """Derive each loss's gradient at z_s = 0, where q = 1/C, by hand."""
    (b, c), v = z_t.shape, softmax(z_t / t)
    if name == "logit_mse":
        return -centred(z_t) / (b * c)
    if name == "standardized":  # a row without deviation is centred only
        v = softmax(centred(z_t) / (z_t.std(axis=1, ddof=1, keepdims=True) + 1e-7) / t)
    if name in ("soft_targets", "standardized"):
        return t * (1 / c - v) / b
    if name == "decoupled":
        is_target = np.eye(c)[np.arange(b) % c].astype(bool)
        v_y = v[is_target][:, None]
        tckd = (1 / c - v_y) * np.where(is_target, 1.0, -1 / (c - 1))
        nckd = np.where(is_target, 0.0, 1 / (c - 1) - v / (1 - v_y))
        return t * (tckd + 8 * nckd) / b
    # correlation: d(1 − r)/dq = −standardised v, since a constant q is centred only; then
    # through the softmax, whose Jacobian is (I − 1/C)/(C·T) here.
    rows, columns = (
        (v - v.mean(axis=d, keepdims=True)) / v.std(axis=d, keepdims=True) for d in (1, 0)
    )
    return -t * centred(rows + columns) / (b * c) / c


@pytest.mark.parametrize("name", LOSSES)
def test_gradient_at_constant_logits_matches_its_derivation(logits: Logits, name: str) -> None:
    z_t = logits(4)[1]
    z_s = torch.zeros(4, 10, requires_grad=True)  # float32: rounding must not be amplified
    LOSSES[name][0](z_s, z_t.float(), 2.0).backward()
    assert z_s.grad is not None
    expected = gradient_at_constant_logits(name, z_t.numpy(), 2.0)
    np.testing.assert_allclose(z_s.grad, expected, rtol=1e-4, atol=1e-6)


@each
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("temperature", [1.0, 20.0])
@pytest.mark.parametrize("samples", [1, 2048])
def test_half_precision_matches_float64(
    loss: Loss, dtype: torch.dtype, temperature: float, samples: int
) -> None:
    signs = torch.ones(2, samples, 10)
    signs[0, :, 1:], signs[1, :, ::3] = -1, -1  # confident in one class, in six others
    (z_s, z_t), t = 100 * signs, torch.full((samples, 1), temperature)
    grads = []
    values = []
    for kind in (dtype, torch.float64):
        student = z_s.to(kind).requires_grad_()
        value = loss(student, z_t.to(kind), t.to(kind))
        value.backward()
        assert student.grad is not None
        grads.append(student.grad.double() * samples)  # undo the mean: 1/2048 of it may underflow
        values.append(value.item())
    assert values[0] == pytest.approx(values[1], rel=1e-3, abs=1e-6)
    np.testing.assert_allclose(grads[0], grads[1], rtol=0.02, atol=1e-3)
