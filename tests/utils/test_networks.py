"""Tests of calling networks: inputs by keyword, logits in any usual output, modes restored."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from kd_lightning.utils.errors import UserError
from kd_lightning.utils.networks import call, evaluating, fitting, size_of

LOGITS = torch.tensor([[1.0, 2.0]])


class Returns(nn.Module):
    """A network that returns a given output and stores its arguments."""

    def __init__(self, output: Any) -> None:
        super().__init__()
        self.output, self.arguments = output, None

    def forward(self, *inputs: Any, **named: Any) -> Any:
        self.arguments = (inputs, named)
        return self.output


@pytest.mark.parametrize(
    "output",
    [
        LOGITS,
        {"loss": torch.tensor(0.5), "logits": LOGITS},
        SimpleNamespace(logits=LOGITS, hidden=None),
        (LOGITS, torch.zeros(1, 8)),
        [LOGITS],
    ],
    ids=["tensor", "dictionary", "object", "tuple", "list"],
)
def test_logits_are_found_in_usual_outputs(output: Any) -> None:
    assert call(Returns(output), torch.zeros(1, 4)) is LOGITS


@pytest.mark.parametrize("output", [{"loss": LOGITS}, (), None, ("text", LOGITS), {"logits": 3}])
def test_output_without_logits_is_refused(output: Any) -> None:
    with pytest.raises(UserError, match=rf"^Returns returns a {type(output).__name__} without"):
        call(Returns(output), torch.zeros(1, 4))


def test_mapping_is_passed_by_keyword_and_tensor_by_position() -> None:
    net, ids = Returns(LOGITS), torch.ones(1, 4)
    call(net, {"input_ids": ids})
    assert net.arguments == ((), {"input_ids": ids})
    call(net, ids)
    assert net.arguments == ((ids,), {})


def test_size_is_the_number_of_samples() -> None:
    assert size_of(torch.zeros(3, 4)) == 3
    assert size_of({"input_ids": torch.zeros(5, 4)}) == 5


def test_fitting_converts_floating_point_inputs_alone() -> None:
    net = nn.Linear(4, 2).bfloat16()
    inputs = {"pixels": torch.zeros(1, 4), "ids": torch.zeros(1, 4, dtype=torch.long)}
    found = fitting(inputs, net)
    assert {name: x.dtype for name, x in found.items()} == {
        "pixels": torch.bfloat16,
        "ids": torch.int64,
    }
    assert fitting(inputs, nn.Flatten()) is inputs  # no parameters, so no type to convert to


@pytest.mark.parametrize("fails", [False, True])
def test_evaluating_restores_the_mode_of_each_part(fails: bool) -> None:
    net = nn.Sequential(nn.Dropout(), nn.Sequential(nn.Dropout(), nn.Dropout()))
    net[1].eval()
    net[1][0].train()
    before = [part.training for part in net.modules()]
    try:
        with evaluating(net):
            assert not any(part.training for part in net.modules())
            if fails:
                raise RuntimeError
    except RuntimeError:
        pass
    assert [part.training for part in net.modules()] == before
