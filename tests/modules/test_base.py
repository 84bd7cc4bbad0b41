"""Tests of what makes a step cheap: it must change no number."""

import copy
import functools
from typing import Any

import pytest
import torch
from hydra.utils import instantiate
from torch import Tensor, nn

from kd_lightning.modules.base import with_channels_last
from kd_lightning.modules.supervised import TeacherModule
from kd_lightning.nets.cnn import StudentCNN
from kd_lightning.nets.mlp import MLP
from kd_lightning.objective import Objective


def gradients(net: nn.Module, x: Tensor) -> dict[str, Tensor]:
    net.zero_grad()
    net(x).square().sum().backward()
    return {name: p.grad for name, p in net.named_parameters() if p.grad is not None}


@pytest.fixture
def nets() -> tuple[nn.Module, nn.Module]:
    """The same student in float64, as it was written and as it is trained."""
    torch.manual_seed(0)
    plain = StudentCNN((1, 28, 28), 10).double()
    return plain, with_channels_last(copy.deepcopy(plain))


def test_the_order_of_channels_changes_no_gradient(nets: tuple[nn.Module, nn.Module]) -> None:
    x = torch.randn(8, 1, 28, 28, dtype=torch.float64)
    ours, plain = (gradients(net, x) for net in reversed(nets))
    assert ours.keys() == plain.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-10, atol=1e-10)


def test_a_pooling_gets_its_gradient_in_the_order_of_its_map(
    nets: tuple[nn.Module, nn.Module],
) -> None:
    seen: list[bool] = []

    def note(layer: nn.Module, args: Any, output: Tensor) -> None:
        # a later hook of the map sees what an earlier one made of the gradient
        output.register_hook(
            lambda g: seen.append(g.is_contiguous(memory_format=torch.channels_last))
        )

    for net in nets:
        net.features[2].register_forward_hook(note)
        gradients(net, torch.randn(8, 1, 28, 28, dtype=torch.float64))
    assert seen == [False, True]


def test_a_copied_student_still_trains(nets: tuple[nn.Module, nn.Module]) -> None:
    x = torch.randn(4, 1, 28, 28, dtype=torch.float64)
    original, copied = (gradients(net, x) for net in (nets[1], copy.deepcopy(nets[1])))
    assert all(torch.equal(original[name], copied[name]) for name in original)


def test_a_module_still_knows_its_parts_and_its_hook() -> None:
    spec: Any = type("Spec", (), {"input_shape": (1, 4, 4), "num_classes": 3})
    module = TeacherModule(net=MLP, spec=spec)
    module.extra = nn.Linear(2, 2)
    module._current_fx_name = "training_step"
    assert "extra.weight" in dict(module.named_parameters())
    assert module._current_fx_name == "training_step"


def test_a_configured_loss_is_called_directly() -> None:
    target = "kd_lightning.losses.response.decoupled"
    made = instantiate({"_target_": target, "_partial_": True, "non_target_weight": 2.0})
    objective = Objective(response=made, temperature=1.0, hard_weight=1.0)
    assert type(objective.response) is functools.partial  # no subclass that checks every call
    z_s, z_t, y = torch.randn(4, 3), torch.randn(4, 3), torch.tensor([0, 1, 2, 0])
    found = objective({"logits": z_s}, {"logits": z_t}, y)["response"]
    assert found == made(z_s=z_s, z_t=z_t, target=y, temperature=1.0)
