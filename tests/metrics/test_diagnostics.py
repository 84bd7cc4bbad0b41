"""Tests of the diagnostics of a trained network, against values computed by hand."""

import math
from collections.abc import Iterable
from functools import partial

import pytest
import torch
from samples import LOGITS, TARGET, TEACHER, cross_entropy
from torch import Tensor
from torchmetrics.classification import MulticlassCalibrationError

from kd_lightning.metrics.diagnostics import MOST_TABULATED, Diagnostics
from kd_lightning.nets.ensemble import mean_probabilities


def softmax(z: list[float], temperature: float = 1.0) -> list[float]:
    weights = [math.exp(value / temperature) for value in z]
    return [weight / sum(weights) for weight in weights]


def kl(p: list[float], q: list[float]) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def mean(values: Iterable[float]) -> float:
    values = list(values)
    return sum(values) / len(values)


def found(
    sizes: tuple[int, ...] = (6,), temperature: float | Tensor = 4.0
) -> tuple[dict[str, float], dict[str, Tensor]]:
    """Return figures and tables of the six samples, given in batches."""
    diagnostics, start = Diagnostics(num_classes=3, with_teacher=True), 0
    for size in sizes:
        part = slice(start, start + size)
        t = temperature[part] if isinstance(temperature, Tensor) else temperature
        diagnostics.update(LOGITS[part], TARGET[part], lambda _, part=part: TEACHER[part], t)
        start += size
    figures, tables = diagnostics.result()
    return {name: value.item() for name, value in figures.items()}, tables


@pytest.mark.parametrize("sizes", [(6,), (5, 1), (1, 1, 4), (3, 0, 3)])
def test_quality_and_fidelity_equal_values_computed_by_hand(sizes: tuple[int, ...]) -> None:
    figures, _ = found(sizes)
    z_s, z_t, y = LOGITS.tolist(), TEACHER.tolist(), TARGET.tolist()
    rows = [(softmax(s), softmax(t), c) for s, t, c in zip(z_s, z_t, y, strict=True)]
    soft = [(softmax(s, 4.0), softmax(t, 4.0)) for s, t in zip(z_s, z_t, strict=True)]

    def brier(p: list[float], label: int) -> float:
        return sum((share - (c == label)) ** 2 for c, share in enumerate(p))

    expected = {
        "loss": cross_entropy(LOGITS, TARGET),
        "teacher_loss": cross_entropy(TEACHER, TARGET),
        "brier": mean(brier(p, c) for p, _, c in rows),
        "teacher_brier": mean(brier(p, c) for _, p, c in rows),
        "kl_teacher": mean(kl(t, s) for s, t, _ in rows),
        "kl_teacher_t": mean(kl(t, s) for s, t in soft),
        "inherited_errors": 1 / 2,  # of the teacher's errors, 2 and 5, the student shares 5
        # class 0 is sample 0; class 1 is 1, 3 and 4; class 2 is 2 and 5
        **{"class_accuracy_0": 1, "class_accuracy_1": 1 / 3, "class_accuracy_2": 0},
        **{"class_agreement_0": 1, "class_agreement_1": 1 / 3, "class_agreement_2": 1 / 2},
        **{f"teacher_class_accuracy_{c}": share for c, share in enumerate((1, 1, 0))},
    }
    assert {name: figures[name] for name in expected} == pytest.approx(expected, rel=1e-5)
    assert set(figures) - set(expected) == {"ece", "teacher_ece"}


def test_calibration_error_of_two_bins_equals_the_definition() -> None:
    # Two samples with confidence 0.9, in the bin from 13/15, one of them right; two with 0.62, in
    # the bin from 9/15, both right.
    p = torch.tensor([[0.9, 0.1], [0.1, 0.9], [0.62, 0.38], [0.62, 0.38]])
    diagnostics = Diagnostics(num_classes=2, with_teacher=False)
    diagnostics.update(p.log(), torch.tensor([0, 0, 0, 0]))
    figures, tables = diagnostics.result()
    assert figures["ece"].item() == pytest.approx(0.5 * abs(0.5 - 0.9) + 0.5 * abs(1 - 0.62))
    bins = tables["bins"]
    torch.testing.assert_close(bins[13], torch.tensor([2.0, 0.9, 0.5]))
    torch.testing.assert_close(bins[9], torch.tensor([2.0, 0.62, 1.0]))
    assert bins[:, 0].sum() == 4
    assert bins[bins[:, 0] == 0][:, 1:].isnan().all()


def test_calibration_error_equals_torchmetrics_below_certainty() -> None:
    torch.manual_seed(0)
    logits, target = 2 * torch.randn(500, 7), torch.randint(7, (500,))
    metric = MulticlassCalibrationError(7, n_bins=15, norm="l1")
    diagnostics = Diagnostics(num_classes=7, with_teacher=False)
    for z, y in zip(logits.split(64), target.split(64), strict=True):
        metric.update(z.softmax(1), y)
        diagnostics.update(z, y)
    torch.testing.assert_close(diagnostics.result()[0]["ece"], metric.compute())


def test_confidence_of_one_belongs_to_the_last_bin() -> None:
    diagnostics = Diagnostics(num_classes=2, with_teacher=False)
    diagnostics.update(torch.tensor([[200.0, 0.0], [4.0, 0.0]]), torch.tensor([1, 0]))
    figures, tables = diagnostics.result()
    sure = softmax([4.0, 0.0])[0]
    assert tables["bins"][-1, 0] == 2
    assert figures["ece"].item() == pytest.approx(abs(0.5 - (1 + sure) / 2))


def test_tables_contain_counts_and_mean_probabilities_by_true_class() -> None:
    _, tables = found((4, 2))
    # rows are true classes; the student predicts 0, 2, 1, 0, 1, 0
    assert tables["confusion"].tolist() == [[1, 0, 0], [1, 1, 1], [1, 1, 0]]
    for c, members in enumerate(([0], [1, 3, 4], [2, 5])):
        own = LOGITS[members].softmax(1).mean(0)
        torch.testing.assert_close(tables["class_probabilities"][c], own)
        for t, table in zip((1, 2, 5, 20), tables["teacher_class_probabilities"], strict=True):
            torch.testing.assert_close(table[c], (TEACHER[members] / t).softmax(1).mean(0))
    assert tables["teacher_bins"][:, 0].sum() == 6


def test_each_sample_may_have_its_own_temperature() -> None:
    temperatures = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])[:, None]
    figures, _ = found((4, 2), temperatures)
    rows = zip(LOGITS.tolist(), TEACHER.tolist(), (1, 2, 3, 4, 5, 6), strict=True)
    expected = mean(kl(softmax(t, at), softmax(s, at)) for s, t, at in rows)
    assert figures["kl_teacher_t"] == pytest.approx(expected, rel=1e-5)


def test_ensemble_averages_probabilities_at_each_temperature() -> None:
    members = torch.stack([TEACHER, LOGITS], dim=1)
    diagnostics = Diagnostics(num_classes=3, with_teacher=True)
    diagnostics.update(LOGITS, TARGET, partial(mean_probabilities, members), 4.0)
    figures, tables = diagnostics.result()
    both = [(LOGITS / 4).softmax(1), ((LOGITS / 4).softmax(1) + (TEACHER / 4).softmax(1)) / 2]
    expected = mean(kl(t, s) for s, t in zip(*(p.tolist() for p in both), strict=True))
    assert figures["kl_teacher_t"].item() == pytest.approx(expected, rel=1e-4)
    at_five = (members / 5).softmax(2).mean(1)[:1].mean(0)
    torch.testing.assert_close(tables["teacher_class_probabilities"][2][0], at_five)


def test_figures_without_samples_are_left_out() -> None:
    diagnostics = Diagnostics(num_classes=3, with_teacher=True)
    part = TARGET == 1  # where this teacher makes no mistake
    diagnostics.update(LOGITS[part], TARGET[part], lambda _: TEACHER[part], 2.0)
    figures, tables = diagnostics.result()
    assert "inherited_errors" not in figures
    assert {name for name in figures if "class_" in name} == {
        f"{name}_1" for name in ("class_accuracy", "class_agreement", "teacher_class_accuracy")
    }
    assert not [name for name, value in figures.items() if value.isnan()]
    assert tables["class_probabilities"][0].isnan().all()


def test_many_classes_have_no_figures_per_class() -> None:
    for classes, expected in ((20, 20), (21, 0)):
        diagnostics = Diagnostics(classes, with_teacher=False)
        diagnostics.update(torch.eye(classes), torch.arange(classes))
        figures, tables = diagnostics.result()
        assert len([name for name in figures if "class_" in name]) == expected
        assert tables["confusion"].diagonal().sum() == classes


def test_result_resets_the_state_and_is_in_float32() -> None:
    diagnostics = Diagnostics(num_classes=3, with_teacher=True)
    for _ in range(2):
        diagnostics.update(LOGITS.bfloat16(), TARGET, lambda _: TEACHER.bfloat16(), 2.0)
        figures, tables = diagnostics.result()
        assert tables["confusion"].sum() == 6
        assert {value.dtype for value in (*figures.values(), *tables.values())} == {torch.float32}
    assert figures["loss"].item() == pytest.approx(cross_entropy(LOGITS, TARGET), rel=1e-5)


@pytest.mark.parametrize("classes", [MOST_TABULATED, MOST_TABULATED + 1])
def test_large_vocabularies_have_figures_but_no_tables_by_class(classes: int) -> None:
    diagnostics = Diagnostics(classes, with_teacher=True)
    z = 5 * torch.eye(classes)[:4]
    diagnostics.update(z, torch.arange(4), lambda _: z, 2.0)
    figures, tables = diagnostics.result()
    assert figures["loss"].item() == pytest.approx(cross_entropy(z, torch.arange(4)), rel=1e-5)
    assert ("confusion" in tables) == (classes <= MOST_TABULATED)
    assert ("class_probabilities" in tables) == (classes <= MOST_TABULATED)
    assert tables["bins"].shape == (15, 3)


def test_state_stays_in_float32_in_a_half_precision_module() -> None:
    diagnostics = Diagnostics(num_classes=3, with_teacher=False)
    diagnostics.bfloat16()
    diagnostics.to(torch.bfloat16)
    for _ in range(400):  # in bfloat16, 256 + 1 is 256
        diagnostics.update(LOGITS.bfloat16(), TARGET)
    figures, tables = diagnostics.result()
    assert figures["loss"].item() == pytest.approx(cross_entropy(LOGITS, TARGET), rel=1e-5)
    assert tables["confusion"].sum() == 400 * 6
