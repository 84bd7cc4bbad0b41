"""Tests of the figures of one pass, against values computed by hand."""

import math

import pytest
import torch
from torch import Tensor

from kd_lightning.metrics.evaluation import Evaluation
from kd_lightning.modules.base import StepTerms

# Six samples of three classes. The student is right on 0 and 4, the teacher on 0, 1, 3 and 4; they
# agree on 0 and 4 and, wrongly, on 5.
LOGITS = torch.tensor([[2.0, 0, 0], [0, 0, 1], [0, 3, 0], [1, 0, 0], [0, 4, 0], [1, 0, 0]])
TEACHER = torch.tensor([[1.0, 0, 0], [0, 5, 0], [2, 0, 0], [0, 3, 0], [0, 1, 0], [2, 1, 0]])
TARGET = torch.tensor([0, 1, 2, 1, 1, 2])


def cross_entropy(logits: Tensor, target: Tensor) -> float:
    rows = zip(logits.tolist(), target.tolist(), strict=True)
    losses = [math.log(sum(math.exp(z) for z in row)) - row[y] for row, y in rows]
    return sum(losses) / len(losses)


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


def test_step_terms_are_means_since_the_last_flush() -> None:
    terms = StepTerms()
    for loss, hard in [(1.0, 2.0), (3.0, 6.0), (5.0, 1.0)]:
        terms.add({"loss": torch.tensor(loss, requires_grad=True), "hard": torch.tensor(hard)})
    assert terms.flush(3) == {"loss": 3.0, "hard": 3.0}
    assert terms.flush(3) == {}
    terms.add({"loss": torch.tensor(7.0), "hard": torch.tensor(8.0)})
    assert terms.flush(4) == {"loss": 7.0, "hard": 8.0}


def test_step_terms_are_detached() -> None:
    terms = StepTerms()
    terms.add({"loss": torch.tensor(1.0, requires_grad=True) * 2})
    assert not any(term.requires_grad for term in terms.rows[0])


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_step_terms_name_the_first_step_that_is_not_finite(bad: float) -> None:
    terms = StepTerms()
    for hard in (1.0, 2.0, bad, 4.0, bad):  # the steps 96 to 100
        terms.add({"loss": torch.tensor(0.5 + hard), "hard": torch.tensor(hard)})
    with pytest.raises(FloatingPointError, match=rf"^step 98: loss={bad:g}, hard={bad:g}$"):
        terms.flush(100)
