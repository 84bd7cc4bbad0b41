"""Multi-layer perceptron: numbers of parameters, shapes, dropout."""

from itertools import pairwise

import pytest
import torch
from torch import nn

from kd_lightning.nets.mlp import MLP


@pytest.mark.parametrize(
    ("hidden", "sizes"),
    [((128,), (784, 128, 10)), ((), (784, 10)), ((64, 32, 16), (784, 64, 32, 16, 10))],
)
def test_parameters_follow_the_sizes_of_the_layers(
    hidden: tuple[int, ...], sizes: tuple[int, ...]
) -> None:
    net = MLP((1, 28, 28), 10, hidden=hidden)
    expected = sum((a + 1) * b for a, b in pairwise(sizes))
    assert sum(p.numel() for p in net.parameters()) == expected


@pytest.mark.parametrize("shape", [(3, 32, 32), (17,), (4, 5)])
def test_any_input_shape_gives_one_logit_per_class(shape: tuple[int, ...]) -> None:
    assert MLP(shape, 5)(torch.randn(3, *shape)).shape == (3, 5)


def test_the_network_without_hidden_layers_is_linear() -> None:
    x, y = torch.randn(2, 4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for hidden, linear in [((), True), ((32,), False)]:
        net = MLP((6,), 3, hidden=hidden).double()
        total = net(x) + net(y) - net(torch.zeros_like(x))
        assert torch.allclose(net(x + y), total) == linear


def test_dropout_follows_every_hidden_layer_and_acts_in_training_only() -> None:
    net, x = MLP((6,), 3, hidden=(7, 5), dropout=0.5).double(), torch.randn(4, 6).double()
    kinds = [type(layer) for layer in net.layers]
    hidden = [nn.Linear, nn.ReLU, nn.Dropout]
    assert kinds == [nn.Flatten, *hidden, *hidden, nn.Linear]
    assert [m.p for m in net.modules() if isinstance(m, nn.Dropout)] == [0.5, 0.5]
    net.eval()
    first, second, last = (m for m in net.layers if isinstance(m, nn.Linear))
    torch.testing.assert_close(net(x), last(second(first(x).relu()).relu()), rtol=0, atol=0)


def test_inputs_are_dropped_in_training_only() -> None:
    net, x = MLP((1000,), 1, hidden=(), input_dropout=0.2), torch.ones(1, 1000)
    kept = net.layers[:2](x)
    assert kept.unique().tolist() == [0, 1.25]  # survivors are scaled by 1/(1 − 0.2)
    # 200 of 1000 are dropped on average, with a standard deviation of 12.6.
    assert (kept == 0).sum().item() == pytest.approx(200, abs=65)
    net.eval()
    assert torch.equal(net(x), net.layers[2](x))
    plain = MLP((64,), 3, hidden=())
    assert not any(isinstance(m, nn.Dropout) for m in plain.modules())
