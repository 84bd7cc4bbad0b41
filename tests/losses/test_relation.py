"""Relation losses: compared with NumPy loops in float64."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from kd_lightning.losses import (
    angle_relation,
    correlation_congruence,
    distance_relation,
    probabilistic_transfer,
    similarity,
)

Loss = Callable[..., Tensor]
Draw = Callable[..., tuple[Tensor, Tensor]]


@pytest.fixture
def embeddings() -> Draw:
    def draw(samples: int, d_s: int = 4, d_t: int = 6) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(samples)
        options = {"generator": generator, "dtype": torch.float64}
        e_s, e_t = torch.randn(samples, d_s, **options), torch.randn(samples, d_t, **options)
        e_s[0] *= 20  # an outlier, in the linear part of SmoothL1
        return e_s.requires_grad_(), e_t

    return draw


def smooth_l1(x: np.ndarray, y: np.ndarray) -> float:
    d = np.abs(x - y)
    return float(np.where(d < 1, d**2 / 2, d - 0.5).mean())


def cosines(e: np.ndarray) -> np.ndarray:
    return np.array([[x @ y / math.sqrt((x @ x) * (y @ y)) for y in e] for x in e])


def numpy_similarity(e_s: np.ndarray, e_t: np.ndarray) -> float:
    grams = []
    for e in (e_s, e_t):
        gram = np.array([[(x * y).sum() for y in e] for x in e])
        grams.append(np.array([row / math.sqrt((row**2).sum()) for row in gram]))
    return float(((grams[1] - grams[0]) ** 2).sum() / len(e_s) ** 2)


def distances(e: np.ndarray) -> np.ndarray:
    d = np.array([[math.sqrt(((x - y) ** 2).sum()) for y in e] for x in e])
    return d / np.mean([x for x in d.flat if x > 0])


def angles(e: np.ndarray) -> np.ndarray:
    cosine = np.zeros((len(e),) * 3)
    for i, j, k in np.ndindex(cosine.shape):
        a, b = e[j] - e[i], e[k] - e[i]
        if i not in (j, k):
            cosine[i, j, k] = a @ b / math.sqrt((a @ a) * (b @ b))
    return cosine


def numpy_distance(e_s: np.ndarray, e_t: np.ndarray) -> float:
    return smooth_l1(distances(e_s), distances(e_t))


def numpy_angle(e_s: np.ndarray, e_t: np.ndarray) -> float:
    return smooth_l1(angles(e_s), angles(e_t))


def numpy_congruence(e_s: np.ndarray, e_t: np.ndarray, gamma: float = 0.4, order: int = 2) -> float:
    def kernel(c: np.ndarray) -> np.ndarray:
        terms = [(2 * gamma) ** p / math.factorial(p) * c**p for p in range(order + 1)]
        return np.exp(-2 * gamma) * np.sum(terms, axis=0)

    return float(((kernel(cosines(e_s)) - kernel(cosines(e_t))) ** 2).mean())


def numpy_probabilistic(e_s: np.ndarray, e_t: np.ndarray) -> float:
    p_s, p_t = ((cosines(e) + 1) / 2 + 1e-7 for e in (e_s, e_t))
    p_s, p_t = (p / p.sum(axis=1, keepdims=True) for p in (p_s, p_t))
    return float((p_t * np.log(p_t / p_s)).mean())


LOSSES: dict[str, tuple[Loss, Callable[..., float]]] = {
    "similarity": (similarity, numpy_similarity),
    "distance_relation": (distance_relation, numpy_distance),
    "angle_relation": (angle_relation, numpy_angle),
    "correlation_congruence": (correlation_congruence, numpy_congruence),
    "probabilistic_transfer": (probabilistic_transfer, numpy_probabilistic),
}
each = pytest.mark.parametrize("loss", [row[0] for row in LOSSES.values()], ids=LOSSES)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("samples", [2, 3, 8])
def test_value_matches_the_paper(embeddings: Draw, name: str, samples: int) -> None:
    loss, expected = LOSSES[name]
    e_s, e_t = embeddings(samples)
    value = loss(e_s, e_t)
    assert value.shape == ()
    assert value.item() == pytest.approx(
        expected(e_s.detach().numpy(), e_t.numpy()), rel=1e-11, abs=1e-14
    )


def test_probabilistic_transfer_agrees_with_the_authors_code(embeddings: Draw) -> None:
    """The authors add 1e-7 inside the logarithm, after scaling the rows to sum 1."""
    e_s, e_t = embeddings(8)
    p_s, p_t = ((cosines(e.detach().numpy()) + 1) / 2 for e in (e_s, e_t))
    p_s, p_t = (p / p.sum(axis=1, keepdims=True) for p in (p_s, p_t))
    expected = (p_t * np.log((p_t + 1e-7) / (p_s + 1e-7))).mean()
    assert probabilistic_transfer(e_s, e_t).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("gamma", "order"), [(0.4, 1), (0.1, 3), (2.0, 5)])
def test_congruence_with_other_kernels(embeddings: Draw, gamma: float, order: int) -> None:
    e_s, e_t = embeddings(5)
    expected = numpy_congruence(e_s.detach().numpy(), e_t.numpy(), gamma, order)
    value = correlation_congruence(e_s, e_t, gamma, order)
    assert value.item() == pytest.approx(expected, rel=1e-10)


def test_a_kernel_of_high_order_is_gaussian(embeddings: Draw) -> None:
    kernels = []
    for e in embeddings(5):
        e = e.detach() / e.detach().norm(dim=1, keepdim=True)
        kernels.append(torch.exp(-0.4 * (e[:, None] - e[None]).square().sum(-1)))
    expected = (kernels[0] - kernels[1]).square().mean().item()
    assert correlation_congruence(*embeddings(5), order=20).item() == pytest.approx(expected)


@each
def test_maps_are_flattened(embeddings: Draw, loss: Loss) -> None:
    e_s, e_t = embeddings(3, d_s=12, d_t=8)
    maps = e_s.view(3, 3, 2, 2), e_t.view(3, 2, 2, 2)
    assert loss(*maps).item() == loss(e_s, e_t).item()


@each
def test_gradient_in_the_student_matches_finite_differences(embeddings: Draw, loss: Loss) -> None:
    e_s, e_t = embeddings(5)
    assert torch.autograd.gradcheck(lambda e: loss(e, e_t), e_s)


@each
def test_no_gradient_reaches_the_teacher(embeddings: Draw, loss: Loss) -> None:
    e_s, e_t = embeddings(4)
    loss(e_s, e_t.requires_grad_()).backward()
    assert e_t.grad is None
    assert e_s.grad is not None


@each
@pytest.mark.parametrize("samples", [1, 2, 5])
def test_loss_and_gradient_vanish_for_equal_embeddings(
    embeddings: Draw, loss: Loss, samples: int
) -> None:
    e_s, _ = embeddings(samples)
    value = loss(e_s, e_s.detach().clone())
    value.backward()
    assert value.item() == pytest.approx(0, abs=1e-14)
    assert e_s.grad is not None
    assert e_s.grad.abs().max() < 1e-14


@each
def test_loss_is_invariant_to_a_rotation(embeddings: Draw, loss: Loss) -> None:
    e_s, e_t = embeddings(6)
    generator = torch.Generator().manual_seed(1)
    random = torch.randn(4, 4, generator=generator, dtype=torch.float64)
    rotation = torch.linalg.qr(random).Q
    assert loss(e_s @ rotation, e_t).item() == pytest.approx(loss(e_s, e_t).item(), rel=1e-10)


@each
def test_loss_is_invariant_to_a_scaling(embeddings: Draw, loss: Loss) -> None:
    e_s, e_t = embeddings(6)
    assert loss(7 * e_s, e_t / 3).item() == pytest.approx(loss(e_s, e_t).item(), rel=1e-10)


@pytest.mark.parametrize("loss", [distance_relation, angle_relation])
def test_rkd_is_invariant_to_a_translation(embeddings: Draw, loss: Loss) -> None:
    e_s, e_t = embeddings(6)
    assert loss(e_s + 5, e_t - 2).item() == pytest.approx(loss(e_s, e_t).item(), rel=1e-10)


@each
def test_loss_and_gradient_vanish_for_a_batch_of_one(embeddings: Draw, loss: Loss) -> None:
    e_s, e_t = embeddings(1)
    with torch.autograd.set_detect_anomaly(True):  # no NaN on the way either
        value = loss(e_s, e_t)
        value.backward()
    assert value.item() == pytest.approx(0, abs=1e-14)
    assert e_s.grad is not None
    assert e_s.grad.abs().max() < 1e-14


@each
@pytest.mark.parametrize("tiny", [0.0, 1e-14])
def test_equal_samples_and_near_zeros_match_float64(
    embeddings: Draw, loss: Loss, tiny: float
) -> None:
    """An embedding of length 1e-14 counts as zero: scaled to 1, its gradient would explode."""
    exact_s, exact_t = (e.detach().clone() for e in embeddings(7))
    exact_s[1], exact_t[5] = exact_s[2], 0
    e_s, e_t = exact_s.float(), exact_t.float()
    e_s[3], e_s[4] = tiny, -tiny
    # A distance is not scaled by its own length, so RKD-D need not round it to zero.
    rounded = tiny if loss is distance_relation else 0.0
    exact_s[3], exact_s[4] = rounded, -rounded
    value, exact = loss(e_s.requires_grad_(), e_t), loss(exact_s.requires_grad_(), exact_t)
    value.backward()
    exact.backward()
    assert value.item() == pytest.approx(exact.item(), rel=1e-4)
    assert e_s.grad is not None
    torch.testing.assert_close(e_s.grad.double(), exact_s.grad, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("loss", [similarity, correlation_congruence, probabilistic_transfer])
def test_gradient_of_a_collapsed_student_matches_finite_differences(
    embeddings: Draw, loss: Loss
) -> None:
    e_s, e_t = embeddings(4)
    assert torch.autograd.gradcheck(lambda e: loss(e, e_t), torch.ones_like(e_s).requires_grad_())


@pytest.mark.parametrize(
    ("loss", "relations"), [(distance_relation, distances), (angle_relation, angles)]
)
def test_rkd_of_a_collapsed_student_has_no_gradient(
    embeddings: Draw, loss: Loss, relations: Callable[[np.ndarray], np.ndarray]
) -> None:
    e_s, e_t = embeddings(4)
    e_s = torch.ones_like(e_s).requires_grad_()
    value = loss(e_s, e_t)
    value.backward()
    assert e_s.grad is not None
    assert e_s.grad.abs().max() == 0
    expected = smooth_l1(relations(e_t.numpy()), np.array(0.0))  # all the student's are 0
    assert value.item() == pytest.approx(expected, rel=1e-12)


def test_divergence_of_opposite_samples_has_the_lower_bound_of_the_closeness() -> None:
    e_s = torch.tensor([[0.3, 0.7, 0.1], [-0.3, -0.7, -0.1]], requires_grad=True)
    value = probabilistic_transfer(e_s, e_s.detach().abs())
    value.backward()
    # The student's closeness is 1 + 1e-7 and 1e-7, the teacher's 1 and 1.
    far = 1e-7 / (1 + 2e-7)
    expected = (0.5 * math.log(0.5 / far) + 0.5 * math.log(0.5 / (1 - far))) / 2
    assert value.item() == pytest.approx(expected, rel=0.02)  # cos + 1 is rounded in float32
    assert e_s.grad is not None
    assert e_s.grad.isfinite().all()


def test_close_samples_keep_their_relations_in_single_precision() -> None:
    generator = torch.Generator().manual_seed(0)
    e_s = 100 + 0.01 * torch.randn(32, 8, generator=generator)
    e_t = torch.randn(32, 8, generator=generator)
    for loss in (distance_relation, angle_relation):
        exact = loss(e_s.double(), e_t.double()).item()
        assert loss(e_s, e_t).item() == pytest.approx(exact, rel=1e-5)


@each
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_matches_float64(embeddings: Draw, loss: Loss, dtype: torch.dtype) -> None:
    e_s, e_t = (
        (100 * e.detach().sign()).to(dtype) + e.detach().to(dtype) for e in embeddings(9, 512, 256)
    )
    value = loss(e_s.requires_grad_(), e_t)
    value.backward()
    double = e_s.detach().double().requires_grad_()
    expected = loss(double, e_t.double())
    expected.backward()
    assert value.item() == pytest.approx(expected.item(), rel=1e-3)
    assert e_s.grad is not None
    assert double.grad is not None
    largest = double.grad.abs().max().item()
    atol = max(0.01 * largest, torch.finfo(dtype).smallest_normal)
    torch.testing.assert_close(e_s.grad.double(), double.grad, rtol=0.01, atol=atol)


@each
def test_autocast_leaves_the_value_unchanged(embeddings: Draw, loss: Loss) -> None:
    e_s, e_t = (e.float() for e in embeddings(9))
    expected = loss(e_s, e_t).item()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert loss(e_s, e_t).item() == expected
