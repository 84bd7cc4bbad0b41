"""Tests of the costs of networks, against counts by hand."""

import time

import pytest
import torch
import torchvision
from torch import Tensor, nn

from kd_lightning.metrics.cost import costs, latency, multiply_adds
from kd_lightning.nets.cnn import StudentCNN


def test_costs_of_the_reference_student() -> None:
    found = costs(StudentCNN((1, 28, 28), 10), torch.zeros(2, 1, 28, 28))
    assert found["parameters"] == 27_210
    assert found["bytes"] == 4 * 27_210
    assert found["multiply_adds"] == 16 * 26 * 26 * 9 + 2704 * 10


def test_buffers_count_as_bytes_but_not_as_parameters() -> None:
    found = costs(
        nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 2).half().float()), torch.zeros(2, 3)
    )
    assert found["parameters"] == 2 * 3 + 3 * 2 + 2
    assert found["bytes"] == 4 * (14 + 2 * 3) + 8  # running mean and variance, a counter


class Clocked(nn.Module):
    """A network whose forward passes take given milliseconds on a fake clock."""

    def __init__(self, durations: list[float]) -> None:
        super().__init__()
        self.now, self.durations, self.passes = 0.0, durations, 0

    def forward(self, x: Tensor) -> Tensor:
        self.now += self.durations[min(self.passes, len(self.durations) - 1)] / 1000
        self.passes += 1
        return x


@pytest.mark.parametrize(
    ("durations", "expected", "passes"),
    [
        ([900.0, 1.0], 1.0, 1 + 30),  # the first pass is not timed
        ([900.0, 50.0, 70.0], 70.0, 1 + 4),  # 190 ms after three passes, so a fourth starts
        ([900.0, 400.0], 400.0, 1 + 1),
    ],
)
def test_latency_is_the_median_of_limited_passes(
    monkeypatch: pytest.MonkeyPatch, durations: list[float], expected: float, passes: int
) -> None:
    net = Clocked(durations)
    monkeypatch.setattr(time, "perf_counter", lambda: net.now)
    assert latency(net, torch.ones(1, 3)) == pytest.approx(expected)
    assert net.passes == passes


def test_latency_restores_the_mode_and_changes_no_statistics() -> None:
    net = nn.Sequential(nn.BatchNorm1d(3), nn.Dropout(0.5))
    net[1].eval()
    mean = net[0].running_mean.clone()
    latency(net, torch.ones(1, 3))
    assert (net.training, net[0].training, net[1].training) == (True, True, False)
    assert torch.equal(net[0].running_mean, mean)


# Multiply-adds in G as torchvision publishes them ("GFLOPS" in its tables of weights).
PUBLISHED = {
    **{"resnet18": 1.814, "resnet50": 4.089, "resnet101": 7.801, "vgg16": 15.47},
    **{"mobilenet_v3_small": 0.057, "mobilenet_v3_large": 0.217, "densenet121": 2.834},
    **{"efficientnet_b0": 0.386, "convnext_tiny": 4.456, "swin_t": 4.491, "vit_b_16": 17.564},
}


@pytest.mark.parametrize(("name", "published"), PUBLISHED.items())
def test_multiply_adds_equal_those_published_for_torchvision(name: str, published: float) -> None:
    with torch.device("meta"):  # shapes alone decide
        net = getattr(torchvision.models, name)()
        counted = multiply_adds(net, torch.zeros(1, 3, 224, 224))[""]
    assert round(counted / 1e9, 3) == published
    assert torch.backends.mha.get_fastpath_enabled()
