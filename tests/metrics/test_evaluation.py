"""Tests of the figures of one pass, against values computed by hand."""

import pytest
import torch
from samples import LOGITS, TARGET, TEACHER, cross_entropy

from kd_lightning.metrics.evaluation import Evaluation


@pytest.mark.parametrize("sizes", [(6,), (5, 1), (1, 1, 4), (3, 0, 3)])
def test_figures_do_not_depend_on_batch_sizes(sizes: tuple[int, ...]) -> None:
    evaluation = Evaluation(num_classes=3, with_teacher=True)
    for batch in zip(*(x.split(sizes) for x in (LOGITS, TARGET, TEACHER)), strict=True):
        evaluation.update(*batch)
    result = {name: value.item() for name, value in evaluation.result().items()}
    assert result == pytest.approx(
        {
            "loss": cross_entropy(LOGITS, TARGET),
            "accuracy": 2 / 6,
            "teacher_accuracy": 4 / 6,
            "agreement": 3 / 6,
        }
    )


def test_without_a_teacher_there_are_no_figures_of_one() -> None:
    evaluation = Evaluation(num_classes=3, with_teacher=False)
    evaluation.update(LOGITS, TARGET)
    assert set(evaluation.result()) == {"loss", "accuracy"}


def test_result_resets_the_state() -> None:
    evaluation = Evaluation(num_classes=3, with_teacher=True)
    evaluation.update(LOGITS, TARGET, TEACHER)
    evaluation.result()
    evaluation.update(LOGITS[1:2], TARGET[1:2], TEACHER[1:2])
    result = {name: value.item() for name, value in evaluation.result().items()}
    loss = cross_entropy(LOGITS[1:2], TARGET[1:2])
    assert result == pytest.approx(
        {"loss": loss, "accuracy": 0, "teacher_accuracy": 1, "agreement": 0}
    )


def test_one_nan_makes_the_loss_nan() -> None:
    evaluation = Evaluation(num_classes=3, with_teacher=False)
    evaluation.update(LOGITS[:5], TARGET[:5])
    evaluation.update(torch.full((1, 3), torch.nan), TARGET[5:])
    assert evaluation.result()["loss"].isnan()


def test_state_stays_in_float32_in_a_half_precision_module() -> None:
    evaluation = Evaluation(3, with_teacher=False)
    evaluation.bfloat16()
    evaluation.to(torch.bfloat16)
    for _ in range(400):  # in bfloat16, 256 + 1 is 256
        evaluation.update(LOGITS.bfloat16(), TARGET)
    result = evaluation.result()
    # each batch's loss is rounded to bfloat16, 8 bits; the sum over 400 batches adds no error
    assert result["loss"].item() == pytest.approx(cross_entropy(LOGITS, TARGET), rel=2**-8)
    assert result["accuracy"].item() == pytest.approx(2 / 6)
