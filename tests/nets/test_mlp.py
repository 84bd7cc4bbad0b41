"""Tests of the perceptron: sizes, shapes, dropout."""

from itertools import pairwise

import pytest
import torch
from torch import nn

from kd_lightning.nets.mlp import MLP


@pytest.mark.parametrize(
    ("hidden", "sizes"),
    [((128,), (784, 128, 10)), ((), (784, 10)), ((64, 32, 16), (784, 64, 32, 16, 10))],
)
def test_the_number_of_parameters_follows_the_sizes(
    hidden: tuple[int, ...], sizes: tuple[int, ...]
) -> None:
    net = MLP((1, 28, 28), 10, hidden=hidden)
    expected = sum((a + 1) * b for a, b in pairwise(sizes))
    assert sum(p.numel() for p in net.parameters()) == expected


@pytest.mark.parametrize("shape", [(3, 32, 32), (17,), (4, 5)])
def test_any_shape_of_input_gives_a_logit_for_each_class(shape: tuple[int, ...]) -> None:
    assert MLP(shape, 5)(torch.randn(3, *shape)).shape == (3, 5)


def test_it_is_linear_only_without_hidden_layers() -> None:
    x, y = torch.randn(2, 4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for hidden, linear in [((), True), ((32,), False)]:
        net = MLP((6,), 3, hidden=hidden).double()
        total = net(x) + net(y) - net(torch.zeros_like(x))
        assert torch.allclose(net(x + y), total) == linear


def test_dropout_is_a_matter_of_training() -> None:
    net, x = MLP((6,), 3, dropout=0.5), torch.randn(4, 6)
    assert any(isinstance(m, nn.Dropout) and m.p == 0.5 for m in net.modules())
    assert not torch.equal(net(x), net(x))
    net.eval()
    assert torch.equal(net(x), net(x))


def test_inputs_are_dropped_in_training_only() -> None:
    net, x = MLP((64,), 3, hidden=(), input_dropout=0.5), torch.randn(4, 64)
    assert not torch.equal(net(x), net(x))
    net.eval()
    assert torch.equal(net(x), net(x))
    plain = MLP((64,), 3, hidden=())
    assert not any(isinstance(m, nn.Dropout) for m in plain.modules())
