"""What networks are said to cost."""

import torch
from torch import nn

from kd_lightning.metrics.cost import costs, latency
from kd_lightning.nets.cnn import StudentCNN


def test_the_reference_student() -> None:
    found = costs(StudentCNN((1, 28, 28), 10), torch.zeros(2, 1, 28, 28))
    assert found["parameters"] == 27_210
    assert found["bytes"] == 4 * 27_210
    assert found["multiply_adds"] == 16 * 26 * 26 * 9 + 2704 * 10
    assert found["latency_ms"] > 0


def test_buffers_are_bytes_but_no_parameters() -> None:
    found = costs(
        nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 2).half().float()), torch.zeros(2, 3)
    )
    assert found["parameters"] == 2 * 3 + 3 * 2 + 2
    assert found["bytes"] == 4 * (14 + 2 * 3) + 8  # running mean and variance, a counter


def test_a_network_is_left_as_it_was() -> None:
    net = nn.Sequential(nn.BatchNorm1d(3), nn.Dropout(0.5))
    net[1].eval()
    mean = net[0].running_mean.clone()
    latency(net, torch.ones(1, 3))
    assert (net.training, net[0].training, net[1].training) == (True, True, False)
    assert torch.equal(net[0].running_mean, mean)
