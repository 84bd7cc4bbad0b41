"""Tests of what is found, and not refused, before a training."""

from functools import partial
from typing import Any

import pytest
import torch

from kd_lightning import DistillationModule, Objective
from kd_lightning.data.types import ImageSpec
from kd_lightning.nets.mlp import MLP
from kd_lightning.runs.arguments import check_arguments
from kd_lightning.runs.rehearsal import rehearse
from kd_lightning.tasks import Classification
from kd_lightning.utils.errors import UserError

SPEC = ImageSpec((1, 8, 8), 3, (0.5,), (0.5,))


def module(optimizer: Any, scheduler: Any = None, **settings: Any) -> DistillationModule:
    nets = MLP(*SPEC.network_arguments, hidden=(4,)), MLP(*SPEC.network_arguments, hidden=(4,))
    training = {"optimizer": optimizer, "lr_scheduler": scheduler, "task": Classification(SPEC)}
    return DistillationModule(*nets, Objective(**settings), **training)


@pytest.mark.parametrize("optimizer", [torch.optim.Adam, torch.optim.LBFGS, torch.optim.SGD])
def test_usual_optimizers_are_accepted_and_nothing_changes(optimizer: Any) -> None:
    tried = module(partial(optimizer, lr=0.1))
    before = {name: w.clone() for name, w in tried.state_dict().items()}
    generator = torch.get_rng_state()
    assert rehearse(tried) == [optimizer.__name__]
    assert all(torch.equal(before[name], w) for name, w in tried.state_dict().items())
    assert torch.equal(generator, torch.get_rng_state())


@pytest.mark.parametrize(
    ("tried", "message"),
    [
        (module(partial(torch.optim.SGD, lr=float("inf"))), "weights that are not finite"),
        (module(partial(torch.optim.Adam, lr=-1.0)), "optimizer: Invalid learning rate"),
        (
            module(torch.optim.Adam, partial(torch.optim.lr_scheduler.ConstantLR, factor=7)),
            "lr_scheduler: Constant multiplicative factor",
        ),
        (module(torch.optim.Adam, response=lambda z_s, z_t: z_s - z_t), "single number"),
        (module(torch.optim.Adam, response=lambda z_s, z_t: z_s.sum() / 0), "not finite"),
    ],
)
def test_what_would_fail_in_training_is_found(tried: DistillationModule, message: str) -> None:
    with pytest.raises(UserError, match=message):
        rehearse(tried)


class Open:
    """A user's class that reads what it is given by itself."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass


class Further(MLP):
    """A network that renames an argument of its base class."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, hidden=[kwargs.pop("wide", 8)], **kwargs)


@pytest.mark.parametrize("name", ["Open", "Further"])
def test_arguments_of_an_open_signature_are_not_refused(name: str) -> None:
    check_arguments({"_target_": f"{__name__}.{name}", "wide": 12}, "student")


def test_arguments_that_a_class_of_ours_passes_on_are_known() -> None:
    target = {"_target_": "kd_lightning.data.mnist.MNISTDataModule", "root": "."}
    check_arguments({**target, "batch_size": 8, "mean": [0.1], "std": None}, "data")
    with pytest.raises(UserError, match="has no argument 'batchsize'; did you mean batch_size"):
        check_arguments({**target, "batchsize": 8}, "data")
