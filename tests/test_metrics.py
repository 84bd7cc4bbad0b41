"""Tests of what is measured, against values counted by hand."""

import math

import pytest
import torch
from torch import Tensor

from kd_lightning.metrics import Evaluation, StepTerms

# six samples of three classes: the student is right on 0 and 4, the teacher on 0, 1, 3 and 4;
# they agree on 0, 4 and, wrongly, on 5
LOGITS = torch.tensor([[2.0, 0, 0], [0, 0, 1], [0, 3, 0], [1, 0, 0], [0, 4, 0], [1, 0, 0]])
TEACHER = torch.tensor([[1.0, 0, 0], [0, 5, 0], [2, 0, 0], [0, 3, 0], [0, 1, 0], [2, 1, 0]])
TARGET = torch.tensor([0, 1, 2, 1, 1, 2])


def cross_entropy(logits: Tensor, target: Tensor) -> float:
    rows = zip(logits.tolist(), target.tolist(), strict=True)
    losses = [math.log(sum(math.exp(z) for z in row)) - row[y] for row, y in rows]
    return sum(losses) / len(losses)


@pytest.mark.parametrize("sizes", [(6,), (5, 1), (1, 1, 4), (3, 0, 3)])
def test_uneven_batches_weigh_each_sample_the_same(sizes: tuple[int, ...]) -> None:
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


def test_without_a_teacher_nothing_is_said_of_one() -> None:
    evaluation = Evaluation(num_classes=3, with_teacher=False)
    evaluation.update(LOGITS, TARGET)
    assert set(evaluation.result()) == {"loss", "accuracy"}


def test_a_second_pass_starts_anew() -> None:
    evaluation = Evaluation(num_classes=3, with_teacher=True)
    evaluation.update(LOGITS, TARGET, TEACHER)
    evaluation.result()
    evaluation.update(LOGITS[1:2], TARGET[1:2], TEACHER[1:2])
    result = {name: value.item() for name, value in evaluation.result().items()}
    loss = cross_entropy(LOGITS[1:2], TARGET[1:2])
    assert result == pytest.approx(
        {"loss": loss, "accuracy": 0, "teacher_accuracy": 1, "agreement": 0}
    )


def test_one_sample_that_is_not_finite_shows_in_the_loss() -> None:
    evaluation = Evaluation(num_classes=3, with_teacher=False)
    evaluation.update(LOGITS[:5], TARGET[:5])
    evaluation.update(torch.full((1, 3), torch.nan), TARGET[5:])
    assert evaluation.result()["loss"].isnan()


def test_step_terms_are_means_since_the_last_time() -> None:
    terms = StepTerms()
    for loss, hard in [(1.0, 2.0), (3.0, 6.0), (5.0, 1.0)]:
        terms.add({"loss": torch.tensor(loss, requires_grad=True), "hard": torch.tensor(hard)})
    assert terms.flush(3) == {"loss": 3.0, "hard": 3.0}
    assert terms.flush(3) == {}
    terms.add({"loss": torch.tensor(7.0), "hard": torch.tensor(8.0)})
    assert terms.flush(4) == {"loss": 7.0, "hard": 8.0}


def test_step_terms_keep_no_graph() -> None:
    terms = StepTerms()
    terms.add({"loss": torch.tensor(1.0, requires_grad=True) * 2})
    assert not terms.rows[0].requires_grad


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_the_first_step_that_is_not_finite_is_named(bad: float) -> None:
    terms = StepTerms()
    for hard in (1.0, 2.0, bad, 4.0, bad):  # the steps 96 to 100
        terms.add({"loss": torch.tensor(0.5 + hard), "hard": torch.tensor(hard)})
    with pytest.raises(FloatingPointError, match=rf"^step 98: loss={bad:g}, hard={bad:g}$"):
        terms.flush(100)
