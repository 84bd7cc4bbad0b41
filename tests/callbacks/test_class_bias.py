"""Tests of the bias that is added to the logits of unseen classes."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import pytest
import torch
from conftest import Command
from torch import Tensor, nn
from torch.utils.data import DataLoader

from kd_lightning.callbacks.class_bias import ClassBias, best_bias, compare, right
from kd_lightning.data.types import Batch
from kd_lightning.modules import TeacherModule


def errors(logits: Tensor, target: Tensor, classes: Sequence[int], bias: float) -> int:
    """Count the errors with a bias, by changing the logits."""
    shifted = logits.clone()
    shifted[:, list(classes)] += bias
    return int((shifted.argmax(1) != target).sum())


class Case(NamedTuple):
    logits: Tensor
    target: Tensor
    classes: tuple[int, ...]


@pytest.fixture(params=[((3,), 4.0), ((0, 1, 2, 3, 4, 5, 6, 9), 8.0), ((0, 4), -2.0)], ids=str)
def case(request: pytest.FixtureRequest) -> Case:
    """Logits that are often right, except that some classes are shifted."""
    classes, shift = request.param
    generator = torch.Generator().manual_seed(0)
    target = torch.randint(10, (400,), generator=generator)
    logits = torch.randn(400, 10, generator=generator)
    logits[torch.arange(400), target] += 2.5
    logits[:, list(classes)] -= shift
    return Case(logits, target, classes)


def test_predictions_are_those_of_shifted_logits(case: Case) -> None:
    rows = compare(*case)
    for bias in (-5.0, 0.0, 0.7, 3.5, 20.0):
        assert int((~right(rows, bias)).sum()) == errors(*case, bias)


def test_best_bias_is_at_least_as_good_as_a_fine_grid(case: Case) -> None:
    best = errors(*case, best_bias(compare(*case)))
    assert best == min(errors(*case, bias) for bias in torch.arange(-15, 15, 0.01).tolist())
    assert best < errors(*case, 0.0)


def test_best_bias_is_the_middle_of_its_gap() -> None:
    # the predictions change at distances 1 and 3
    logits = torch.tensor([[1.0, 0.0], [3.0, 0.0]])
    assert best_bias(compare(logits, torch.tensor([1, 0]), [1])) == pytest.approx(2.0)


@pytest.mark.parametrize(("label", "sign"), [(1, 1), (0, -1)])
def test_best_bias_is_bounded_if_all_labels_are_equal(label: int, sign: int) -> None:
    logits, target = torch.randn(8, 2), torch.full((8,), label)
    bias = best_bias(compare(logits, target, [1]))
    assert errors(logits, target, [1], bias) == 0
    # half of the margin of 1 beyond the last prediction that has to change
    distances = logits[:, 0] - logits[:, 1]
    last = distances.max() if sign > 0 else distances.min()
    assert bias == pytest.approx(last.item() + sign / 2)


def test_without_unseen_classes_no_prediction_changes() -> None:
    logits, target = torch.randn(50, 3), torch.randint(3, (50,))
    rows = compare(logits, target, [])
    assert torch.equal(right(rows, 0.0), logits.argmax(1) == target)
    assert not rows[:, 3].any()


class Given(nn.Module):
    """A network whose logits are its inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        return x


def loader(logits: Tensor, target: Tensor) -> DataLoader[Any]:
    index = torch.arange(len(target))
    batches = [Batch(logits[i], target[i], i) for i in index.split(7)]
    return DataLoader(batches, batch_size=None)  # pyright: ignore[reportArgumentType]


def test_bias_is_chosen_on_validation_data_and_applied_to_the_test(case: Case) -> None:
    val, test = case._replace(logits=case.logits[:200], target=case.target[:200]), case
    module = TeacherModule(Given())
    trainer = L.Trainer(
        callbacks=[ClassBias(case.classes)],
        **{"accelerator": "cpu", "logger": False, "enable_checkpointing": False},
        **{"enable_progress_bar": False, "enable_model_summary": False},
    )
    trainer.validate(module, loader(*val[:2]), verbose=False)
    bias = trainer.callback_metrics["val/bias"].item()
    assert bias == pytest.approx(best_bias(compare(*val)))
    assert trainer.callback_metrics["val/errors_corrected"] == errors(*val, bias)
    trainer.test(module, loader(*test[:2]), verbose=False)
    figures = {k: v.item() for k, v in trainer.callback_metrics.items()}
    unseen = torch.isin(test.target, torch.tensor(case.classes))
    few = Case(test.logits[unseen], test.target[unseen], case.classes)
    assert figures["test/errors"] == errors(*test, 0.0)
    assert figures["test/errors_corrected"] == errors(*test, bias)
    assert figures["test/errors_unseen"] == errors(*few, 0.0)
    assert figures["test/errors_unseen_corrected"] == errors(*few, bias)
    assert figures["test/accuracy_corrected"] == pytest.approx(1 - errors(*test, bias) / 400)


@pytest.mark.slow
def test_two_processes_count_every_sample_once(command: Command, tmp_path: Path) -> None:
    job = ("data=digits", "model=teacher", "trainer.max_epochs=1", "trainer.devices=2")
    own = ("callbacks=[default,class_bias]", "data.exclude_classes=[3]")
    done = command(*job, *own, f"hydra.run.dir={tmp_path}", f"teacher_store={tmp_path}")
    assert done.returncode == 0, done.stderr
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    for split, size in (("val", 144), ("test", 360)):
        assert metrics[f"{split}/errors"] == round((1 - metrics[f"{split}/accuracy"]) * size)
        assert 0 < metrics[f"{split}/errors_unseen"] <= metrics[f"{split}/errors"]
    assert metrics["val/errors_corrected"] <= metrics["val/errors"]
