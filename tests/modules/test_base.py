"""Tests of the base module: optimisations change no number, and any form of batch works."""

import copy
import functools
from typing import Any

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from hydra.utils import instantiate
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from kd_lightning.data.types import ImageSpec
from kd_lightning.modules.supervised import TeacherModule
from kd_lightning.nets.cnn import StudentCNN
from kd_lightning.nets.memory_format import with_channels_last
from kd_lightning.nets.mlp import MLP
from kd_lightning.objective import Objective
from kd_lightning.tasks import Classification
from kd_lightning.utils.errors import UserError

SPEC = ImageSpec((1, 4, 4), 3, (0.0,), (1.0,))


def gradients(net: nn.Module, x: Tensor) -> dict[str, Tensor]:
    net.zero_grad()
    net(x).square().sum().backward()
    return {name: p.grad for name, p in net.named_parameters() if p.grad is not None}


@pytest.fixture
def nets() -> tuple[nn.Module, nn.Module]:
    """The same student in float64 as defined, and in channels-last order as it is trained."""
    torch.manual_seed(0)
    plain = StudentCNN((1, 28, 28), 10).double()
    return plain, with_channels_last(copy.deepcopy(plain))


def test_channels_last_changes_no_gradient(nets: tuple[nn.Module, nn.Module]) -> None:
    x = torch.randn(8, 1, 28, 28, dtype=torch.float64)
    ours, plain = (gradients(net, x) for net in reversed(nets))
    assert ours.keys() == plain.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-10, atol=1e-10)


def test_pooling_gets_gradient_in_order_of_its_map(
    nets: tuple[nn.Module, nn.Module],
) -> None:
    seen: list[bool] = []

    def note(layer: nn.Module, args: Any, output: Tensor) -> None:
        # runs after the hook of with_channels_last, and sees the gradient that it returns
        output.register_hook(
            lambda g: seen.append(g.is_contiguous(memory_format=torch.channels_last))
        )

    for net in nets:
        net.features[2].register_forward_hook(note)
        gradients(net, torch.randn(8, 1, 28, 28, dtype=torch.float64))
    assert seen == [False, True]


def test_copied_student_has_equal_gradients(nets: tuple[nn.Module, nn.Module]) -> None:
    x = torch.randn(4, 1, 28, 28, dtype=torch.float64)
    original, copied = (gradients(net, x) for net in (nets[1], copy.deepcopy(nets[1])))
    assert all(torch.equal(original[name], copied[name]) for name in original)


def test_attributes_set_on_a_module_are_registered() -> None:
    module = TeacherModule(net=MLP, task=Classification(SPEC))
    module.extra = nn.Linear(2, 2)
    module._current_fx_name = "training_step"
    assert "extra.weight" in dict(module.named_parameters())
    assert module._current_fx_name == "training_step"


def test_configured_loss_is_unwrapped() -> None:
    target = "kd_lightning.losses.response.decoupled"
    made = instantiate({"_target_": target, "_partial_": True, "non_target_weight": 2.0})
    objective = Objective(response=made, temperature=1.0, hard_weight=1.0)
    assert type(objective.response) is functools.partial  # no subclass that checks every call
    z_s, z_t, y = torch.randn(4, 3), torch.randn(4, 3), torch.tensor([0, 1, 2, 0])
    found = objective({"logits": z_s}, {"logits": z_t}, y)["response"]
    assert found == made(z_s=z_s, z_t=z_t, target=y, temperature=1.0)


def blobs(**loader: Any) -> DataLoader[Any]:
    """Loader of 60 points in three groups, as ``(x, y)``."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(60) % 3
    x = 2 * F.one_hot(y, 4) + 0.5 * torch.randn(60, 4, generator=generator)
    return DataLoader(TensorDataset(x, y), batch_size=20, **loader)


def as_dictionaries(batch: list[Any]) -> dict[str, Tensor]:
    x, y = (torch.stack(column) for column in zip(*batch, strict=True))
    return {"input": x, "labels": y}  # torch.nn.Linear names its argument "input"


def fit(module: L.LightningModule, loader: DataLoader[Any], epochs: int = 3) -> L.Trainer:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        enable_checkpointing=False,
        log_every_n_steps=1,
        **quiet,
    )
    trainer.fit(module, loader, loader)
    return trainer


def linear() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(4, 3)


def test_training_equals_plain_torch_loop() -> None:
    module, net = TeacherModule(linear()), linear()
    fit(module, blobs())
    optimizer = torch.optim.Adam(net.parameters())
    for _ in range(3):
        for x, y in blobs():
            optimizer.zero_grad()
            F.cross_entropy(net(x), y).backward()
            optimizer.step()
    for name, weight in net.state_dict().items():
        assert torch.equal(module.net.state_dict()[name], weight), name


def test_dictionary_batches_train_the_same_network() -> None:
    pairs, dictionaries = TeacherModule(linear()), TeacherModule(linear())
    fit(pairs, blobs())
    fit(dictionaries, blobs(collate_fn=as_dictionaries))
    assert torch.equal(pairs.net.weight, dictionaries.net.weight)


def test_validate_and_test_return_figures() -> None:
    module = TeacherModule(linear())
    trainer = fit(module, blobs())
    (x, y), net = next(iter(DataLoader(blobs().dataset, batch_size=60))), module.net.double()
    logits = net(x.double())
    expected = {
        "accuracy": (logits.argmax(1) == y).double().mean().item(),
        "loss": F.cross_entropy(logits, y).item(),
        "brier": (logits.softmax(1) - F.one_hot(y)).square().sum(1).mean().item(),
    }
    module.float()
    for split, evaluate in (("val", trainer.validate), ("test", trainer.test)):
        (found,) = evaluate(module, blobs(), verbose=False)
        measured = {name: found[f"{split}/{name}"] for name in expected}
        assert measured == pytest.approx(expected, rel=1e-5)
        classes = [(logits.argmax(1) == y)[y == c].double().mean().item() for c in range(3)]
        found_classes = [found[f"{split}/class_accuracy_{c}"] for c in range(3)]
        assert found_classes == pytest.approx(classes)


def test_predict_returns_probabilities_with_and_without_labels() -> None:
    module = TeacherModule(linear())
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False)
    x = torch.stack([sample for sample, _ in blobs().dataset])
    expected = module.net(x).softmax(-1).detach()
    for loader in (blobs(), DataLoader(x, batch_size=20)):
        found = trainer.predict(module, loader)
        assert found is not None
        torch.testing.assert_close(torch.cat(found), expected)


def test_factory_without_known_data_is_refused() -> None:
    with pytest.raises(UserError, match=r"a network must be a torch\.nn\.Module, or a factory"):
        TeacherModule(MLP)


def test_batch_of_unknown_form_is_refused() -> None:
    module = TeacherModule(linear())
    x, y = torch.zeros(2, 4), torch.zeros(2, dtype=torch.long)
    with pytest.raises(UserError, match=r"cannot tell inputs from labels in a list of 3"):
        module.validation_step([x, y, y], 0)
