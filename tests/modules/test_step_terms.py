"""Tests of the means of the terms of the loss between two log entries."""

import math

import pytest
import torch

from kd_lightning.modules.step_terms import StepTerms


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
