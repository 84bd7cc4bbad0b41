"""Feature losses: compared with NumPy loops in float64."""

import math
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from kd_lightning.losses import (
    attention,
    flow,
    hierarchical_context,
    hint,
    initial_log_scale,
    neuron_selectivity,
    variational_information,
)

Loss = Callable[[Tensor, Tensor], Tensor]
Shape = tuple[int, ...]


def draw(*shapes: Shape, seed: int = 0) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)


def two_layers(f_s: Tensor, f_t: Tensor) -> Tensor:
    return flow(f_s, f_s[:, 1:, ::2, ::2], f_t, f_t[:, 1:, ::2, ::2])


LOSSES: dict[str, Loss] = {
    "hint": hint,
    "attention": attention,
    "neuron_selectivity": neuron_selectivity,
    "flow": two_layers,
    "hierarchical_context": hierarchical_context,
}


def given_scale(mean_s: Tensor, f_t: Tensor) -> Tensor:
    return variational_information(mean_s, f_t, torch.linspace(-1, 2, f_t.shape[1]))


each = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
each_and_vid = pytest.mark.parametrize(
    "loss", [*LOSSES.values(), given_scale], ids=[*LOSSES, "variational_information"]
)


def pooled(f: np.ndarray, size: tuple[int, int], reduce: Callable = np.mean) -> np.ndarray:
    """Pool adaptively: cell i of n spans floor(i·H/n) to ceil((i + 1)·H/n)."""
    out = np.empty((*f.shape[:2], *size))
    for i in range(size[0]):
        for j in range(size[1]):
            top, bottom = i * f.shape[2] // size[0], -(-(i + 1) * f.shape[2] // size[0])
            left, right = j * f.shape[3] // size[1], -(-(j + 1) * f.shape[3] // size[1])
            out[..., i, j] = reduce(f[:, :, top:bottom, left:right], axis=(2, 3))
    return out


def at_smaller_size(
    f: np.ndarray, g: np.ndarray, reduce: Callable = np.mean
) -> tuple[np.ndarray, np.ndarray]:
    size = min(f.shape[2], g.shape[2]), min(f.shape[3], g.shape[3])
    return pooled(f, size, reduce), pooled(g, size, reduce)


SIZES = [
    ((2, 3, 5, 4), (2, 5, 3, 3)),
    ((2, 3, 3, 3), (2, 5, 5, 4)),
    ((1, 2, 4, 4), (1, 2, 4, 4)),
    ((2, 3, 2, 6), (2, 4, 4, 3)),
]


def test_hint_is_the_mean_squared_error() -> None:
    f_s, f_t = draw((2, 3, 4, 4), (2, 3, 4, 4))
    expected = sum((a - b) ** 2 for a, b in zip(f_s.flatten(), f_t.flatten(), strict=True)) / 96
    assert hint(f_s, f_t).item() == pytest.approx(float(expected), rel=1e-12)


@pytest.mark.parametrize(("shape_s", "shape_t"), SIZES)
@pytest.mark.parametrize("power", [1, 2, 3])
def test_attention_is_the_distance_of_normalised_maps(
    shape_s: Shape, shape_t: Shape, power: int
) -> None:
    f_s, f_t = draw(shape_s, shape_t)
    maps = []
    for f in at_smaller_size(f_s.numpy(), f_t.numpy()):
        q = (np.abs(f) ** power).mean(axis=1).reshape(len(f), -1)
        maps.append(q / np.sqrt((q**2).sum(axis=1, keepdims=True)))
    expected = ((maps[0] - maps[1]) ** 2).mean()
    assert attention(f_s, f_t, power).item() == pytest.approx(expected, rel=1e-12)


def test_attention_has_a_default_power_of_two() -> None:
    f_s, f_t = draw((2, 3, 4, 4), (2, 5, 4, 4))
    assert attention(f_s, f_t).item() == attention(f_s, f_t, power=2).item()


@pytest.mark.parametrize(("shape_s", "shape_t"), SIZES)
def test_neuron_selectivity_is_the_mean_discrepancy_of_channels(
    shape_s: Shape, shape_t: Shape
) -> None:
    f_s, f_t = draw(shape_s, shape_t)
    pair = at_smaller_size(f_s.numpy(), f_t.numpy())

    def kernel(f: np.ndarray, g: np.ndarray) -> float:
        cosines = [
            (x * y).sum() / math.sqrt((x * x).sum() * (y * y).sum())
            for a, b in zip(f, g, strict=True)
            for x in a
            for y in b
        ]
        return float(np.mean(np.square(cosines)))

    s, t = pair
    expected = kernel(t, t) + kernel(s, s) - 2 * kernel(s, t)
    assert neuron_selectivity(f_s, f_t).item() == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("size", [(6, 5), (4, 4), (3, 2), (2, 6), (1, 1)])
def test_hierarchical_context_halves_the_weight_of_each_level(size: tuple[int, int]) -> None:
    f_s, f_t = draw((2, 3, *size), (2, 3, *size))
    errors = [((f_s - f_t) ** 2).mean().item()]
    for n in (4, 2, 1):
        if n < min(size):
            s, t = (pooled(f.numpy(), (n, n)) for f in (f_s, f_t))
            errors.append(((s - t) ** 2).mean())
    weights = [1, 1 / 2, 1 / 4, 1 / 8][: len(errors)]
    expected = np.dot(weights, errors) / sum(weights)
    assert hierarchical_context(f_s, f_t).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("sizes", [((6, 5), (3, 2)), ((3, 3), (3, 3)), ((2, 2), (5, 4))])
def test_flow_is_the_distance_of_mean_products(sizes: tuple[Shape, Shape]) -> None:
    shapes = [(2, channels, *size) for channels, size in zip((3, 4), sizes, strict=True)]
    maps = list(draw(*shapes, *shapes))
    matrices = []
    for early, late in (maps[:2], maps[2:]):
        f, g = at_smaller_size(early.numpy(), late.numpy(), np.max)
        pairs = [[(x * y).mean() for x in a for y in b] for a, b in zip(f, g, strict=True)]
        matrices.append(np.array(pairs))
    expected = ((matrices[0] - matrices[1]) ** 2).mean()
    assert flow(*maps).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (4, 3)])
def test_variational_information_is_a_negative_log_likelihood(shape: Shape) -> None:
    mean_s, f_t = draw(shape, shape)
    log_scale = torch.tensor([-4.0, 0.3, 5.0], dtype=torch.float64)
    losses = []
    for index in np.ndindex(shape):
        variance = math.log1p(math.exp(log_scale[index[1]])) + 1e-5
        squared = (mean_s[index] - f_t[index]).item() ** 2
        losses.append(0.5 * (squared / variance + math.log(variance)))
    value = variational_information(mean_s, f_t, log_scale)
    assert value.item() == pytest.approx(float(np.mean(losses)), rel=1e-12)


def test_variational_information_has_its_minimum_at_the_teacher_and_the_error_variance() -> None:
    mean_s, f_t = draw((5, 3, 2, 2), (5, 3, 2, 2))
    variance = (mean_s - f_t).square().mean((0, 2, 3))
    start = [initial_log_scale(v) for v in variance.tolist()]
    log_scale = torch.tensor(start, dtype=torch.float64, requires_grad=True)
    variational_information(mean_s, f_t, log_scale).backward()
    assert log_scale.grad is not None
    assert log_scale.grad.abs().max() < 1e-14
    mean_s = f_t.clone().requires_grad_()
    value = variational_information(mean_s, f_t, log_scale)
    value.backward()
    assert value.item() == pytest.approx(variance.log().mean().item() / 2, rel=1e-12)
    assert mean_s.grad is not None
    assert mean_s.grad.abs().max() == 0


@pytest.mark.parametrize("variance", [5.0, 1e-4, 0.3, 1e4])
def test_initial_scale_gives_its_variance(variance: float) -> None:
    s = torch.tensor(initial_log_scale(variance), dtype=torch.float64)
    softplus = torch.logaddexp(s, torch.zeros_like(s))
    assert softplus.item() + 1e-5 == pytest.approx(variance, rel=1e-10)
    assert initial_log_scale() == initial_log_scale(5.0)


@pytest.mark.parametrize("variance", [1e-5, 0.0, -1.0, math.nan])
def test_a_variance_below_the_bound_is_rejected(variance: float) -> None:
    with pytest.raises(ValueError, match="variance must be above"):
        initial_log_scale(variance)


@each
def test_gradient_in_the_student_matches_finite_differences(loss: Loss) -> None:
    f_s, f_t = draw((2, 3, 5, 5), (2, 3, 5, 5))
    assert torch.autograd.gradcheck(lambda f: loss(f, f_t), f_s.requires_grad_())


@pytest.mark.parametrize("loss", [attention, neuron_selectivity])
@pytest.mark.parametrize(("shape_s", "shape_t"), SIZES)
def test_gradient_through_the_pooling_matches_finite_differences(
    loss: Loss, shape_s: Shape, shape_t: Shape
) -> None:
    f_s, f_t = draw(shape_s, shape_t)
    assert torch.autograd.gradcheck(lambda f: loss(f, f_t), f_s.requires_grad_())


@pytest.mark.parametrize("shape", [(2, 3, 2, 2), (4, 3)])
def test_gradient_in_mean_and_scale_matches_finite_differences(shape: Shape) -> None:
    mean_s, f_t = draw(shape, shape)
    log_scale = torch.tensor([-2.0, 0.3, 5.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda m, s: variational_information(m, f_t, s), (mean_s.requires_grad_(), log_scale)
    )


@each_and_vid
def test_no_gradient_reaches_the_teacher(loss: Loss) -> None:
    f_s, f_t = (f.requires_grad_() for f in draw((2, 3, 4, 4), (2, 3, 4, 4)))
    value = loss(f_s, f_t)
    value.backward()
    assert value.shape == ()
    assert f_t.grad is None
    assert f_s.grad is not None


@each
@pytest.mark.parametrize("samples", [1, 3])
def test_loss_and_gradient_vanish_for_equal_maps(loss: Loss, samples: int) -> None:
    (f_s,) = draw((samples, 3, 5, 5))
    value = loss(f_s.requires_grad_(), f_s.detach().clone())
    value.backward()
    assert value.item() == pytest.approx(0, abs=1e-14)
    assert f_s.grad is not None
    assert f_s.grad.abs().max() < 1e-14


@pytest.mark.parametrize("loss", [attention, neuron_selectivity])
def test_loss_is_invariant_to_the_scale_of_activations(loss: Loss) -> None:
    f_s, f_t = draw((2, 3, 4, 4), (2, 3, 4, 4))
    assert loss(3 * f_s, 0.1 * f_t).item() == pytest.approx(loss(f_s, f_t).item(), rel=1e-10)


@each_and_vid
@pytest.mark.parametrize("tiny", [0.0, 1e-14])
def test_dead_maps_count_as_zeros(loss: Loss, tiny: float) -> None:
    """Scaling a map of length 1e-14 to unit length would multiply its gradient by 1e14."""
    exact_s, exact_t = draw((3, 3, 4, 4), (3, 3, 4, 4))
    f_s, f_t = exact_s.float(), exact_t.float()
    f_s[0], f_s[1, 1], f_t[2] = tiny, tiny, tiny
    exact_s[0], exact_s[1, 1], exact_t[2] = 0, 0, 0
    loss(f_s.requires_grad_(), f_t).backward()
    loss(exact_s.requires_grad_(), exact_t).backward()
    assert f_s.grad is not None
    torch.testing.assert_close(f_s.grad.double(), exact_s.grad, rtol=1e-4, atol=1e-6)
    if loss in (attention, neuron_selectivity):  # both are quadratic in a dead channel
        assert f_s.grad[0].abs().max() < 1e-12


@each_and_vid
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_matches_float64(loss: Loss, dtype: torch.dtype) -> None:
    exact = [300 * f.sign() + f.round() for f in draw((4, 8, 16, 16), (4, 8, 16, 16))]
    f_s, f_t = (f.to(dtype) for f in exact)
    value = loss(f_s.requires_grad_(), f_t)
    value.backward()
    double = f_s.detach().double().requires_grad_()
    expected = loss(double, f_t.double())
    expected.backward()
    assert value.item() == pytest.approx(expected.item(), rel=1e-3)
    assert f_s.grad is not None
    assert double.grad is not None
    largest = double.grad.abs().max().item()
    smallest = torch.finfo(dtype).smallest_normal  # below it, float16 loses digits
    atol = max(0.01 * largest, smallest)
    torch.testing.assert_close(f_s.grad.double(), double.grad, rtol=0.01, atol=atol)


@each_and_vid
def test_autocast_leaves_the_value_unchanged(loss: Loss) -> None:
    f_s, f_t = (f.float() for f in draw((2, 3, 4, 4), (2, 3, 4, 4)))
    expected = loss(f_s, f_t).item()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert loss(f_s, f_t).item() == expected


@pytest.mark.parametrize("loss", [hint, hierarchical_context, given_scale])
@pytest.mark.parametrize("shape", [(2, 1, 4, 4), (2, 3, 1, 1), (1, 3, 4, 4)])
def test_maps_of_unequal_shapes_are_rejected(loss: Loss, shape: Shape) -> None:
    f_s, f_t = draw(shape, (2, 3, 4, 4))
    with pytest.raises(ValueError, match="adapter"):
        loss(f_s, f_t)


@pytest.mark.parametrize("channels", [(1, 3), (3, 1)])
def test_flow_rejects_unequal_numbers_of_channels(channels: tuple[int, int]) -> None:
    maps = draw(*((2, c, 4, 4) for c in (*channels, 3, 3)))
    with pytest.raises(ValueError, match=r"channels, the teacher's .* use an adapter"):
        flow(*maps)
