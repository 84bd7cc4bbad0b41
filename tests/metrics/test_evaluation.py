"""Tests of what is measured, against values counted by hand."""

import math
from collections.abc import Iterable
from functools import partial

import pytest
import torch
from torch import Tensor
from torchmetrics.classification import MulticlassCalibrationError

from kd_lightning.metrics.evaluation import Evaluation, Evidence
from kd_lightning.modules.step_terms import StepTerms
from kd_lightning.nets.ensemble import mean_probabilities

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
    """What is said of the six samples, in batches."""
    evidence, start = Evidence(num_classes=3, with_teacher=True), 0
    for size in sizes:
        part = slice(start, start + size)
        t = temperature[part] if isinstance(temperature, Tensor) else temperature
        evidence.update(LOGITS[part], TARGET[part], lambda _, part=part: TEACHER[part], t)
        start += size
    figures, tables = evidence.result()
    return {name: value.item() for name, value in figures.items()}, tables


@pytest.mark.parametrize("sizes", [(6,), (5, 1), (1, 1, 4), (3, 0, 3)])
def test_quality_and_fidelity_are_those_counted_by_hand(sizes: tuple[int, ...]) -> None:
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


def test_calibration_error_of_two_bins_by_hand() -> None:
    # two samples sure to 0.9, in the bin from 13/15 on, one of them right; two sure to 0.62,
    # in the bin from 9/15 on, both right
    p = torch.tensor([[0.9, 0.1], [0.1, 0.9], [0.62, 0.38], [0.62, 0.38]])
    evidence = Evidence(num_classes=2, with_teacher=False)
    evidence.update(p.log(), torch.tensor([0, 0, 0, 0]))
    figures, tables = evidence.result()
    assert figures["ece"].item() == pytest.approx(0.5 * abs(0.5 - 0.9) + 0.5 * abs(1 - 0.62))
    bins = tables["bins"]
    torch.testing.assert_close(bins[13], torch.tensor([2.0, 0.9, 0.5]))
    torch.testing.assert_close(bins[9], torch.tensor([2.0, 0.62, 1.0]))
    assert bins[:, 0].sum() == 4
    assert bins[bins[:, 0] == 0][:, 1:].isnan().all()


def test_calibration_error_is_that_of_torchmetrics_below_certainty() -> None:
    torch.manual_seed(0)
    logits, target = 2 * torch.randn(500, 7), torch.randint(7, (500,))
    metric = MulticlassCalibrationError(7, n_bins=15, norm="l1")
    evidence = Evidence(num_classes=7, with_teacher=False)
    for z, y in zip(logits.split(64), target.split(64), strict=True):
        metric.update(z.softmax(1), y)
        evidence.update(z, y)
    torch.testing.assert_close(evidence.result()[0]["ece"], metric.compute())


def test_certainty_belongs_to_the_last_bin() -> None:
    evidence = Evidence(num_classes=2, with_teacher=False)
    evidence.update(torch.tensor([[200.0, 0.0], [4.0, 0.0]]), torch.tensor([1, 0]))
    figures, tables = evidence.result()
    sure = softmax([4.0, 0.0])[0]
    assert tables["bins"][-1, 0] == 2
    assert figures["ece"].item() == pytest.approx(abs(0.5 - (1 + sure) / 2))


def test_tables_hold_counts_and_mean_probabilities_by_true_class() -> None:
    _, tables = found((4, 2))
    # rows are true classes; the student answers 0, 2, 1, 0, 1, 0
    assert tables["confusion"].tolist() == [[1, 0, 0], [1, 1, 1], [1, 1, 0]]
    for c, members in enumerate(([0], [1, 3, 4], [2, 5])):
        own = LOGITS[members].softmax(1).mean(0)
        torch.testing.assert_close(tables["class_probabilities"][c], own)
        for t, table in zip((1, 2, 5, 20), tables["teacher_class_probabilities"], strict=True):
            torch.testing.assert_close(table[c], (TEACHER[members] / t).softmax(1).mean(0))
    assert tables["teacher_bins"][:, 0].sum() == 6


def test_a_temperature_of_each_sample_softens_that_sample() -> None:
    temperatures = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])[:, None]
    figures, _ = found((4, 2), temperatures)
    rows = zip(LOGITS.tolist(), TEACHER.tolist(), (1, 2, 3, 4, 5, 6), strict=True)
    expected = mean(kl(softmax(t, at), softmax(s, at)) for s, t, at in rows)
    assert figures["kl_teacher_t"] == pytest.approx(expected, rel=1e-5)


def test_several_teachers_answer_with_their_mean_probability_at_each_temperature() -> None:
    members = torch.stack([TEACHER, LOGITS], dim=1)
    evidence = Evidence(num_classes=3, with_teacher=True)
    evidence.update(LOGITS, TARGET, partial(mean_probabilities, members), 4.0)
    figures, tables = evidence.result()
    both = [(LOGITS / 4).softmax(1), ((LOGITS / 4).softmax(1) + (TEACHER / 4).softmax(1)) / 2]
    expected = mean(kl(t, s) for s, t in zip(*(p.tolist() for p in both), strict=True))
    assert figures["kl_teacher_t"].item() == pytest.approx(expected, rel=1e-4)
    at_five = (members / 5).softmax(2).mean(1)[:1].mean(0)
    torch.testing.assert_close(tables["teacher_class_probabilities"][2][0], at_five)


def test_what_no_sample_speaks_of_is_left_out() -> None:
    evidence = Evidence(num_classes=3, with_teacher=True)
    part = TARGET == 1  # where this teacher makes no mistake
    evidence.update(LOGITS[part], TARGET[part], lambda _: TEACHER[part], 2.0)
    figures, tables = evidence.result()
    assert "inherited_errors" not in figures
    assert {name for name in figures if "class_" in name} == {
        f"{name}_1" for name in ("class_accuracy", "class_agreement", "teacher_class_accuracy")
    }
    assert not [name for name, value in figures.items() if value.isnan()]
    assert tables["class_probabilities"][0].isnan().all()


def test_many_classes_have_no_figures_of_their_own() -> None:
    for classes, expected in ((20, 20), (21, 0)):
        evidence = Evidence(classes, with_teacher=False)
        evidence.update(torch.eye(classes), torch.arange(classes))
        figures, tables = evidence.result()
        assert len([name for name in figures if "class_" in name]) == expected
        assert tables["confusion"].diagonal().sum() == classes


def test_evidence_starts_anew_and_its_figures_are_in_float32() -> None:
    evidence = Evidence(num_classes=3, with_teacher=True)
    for _ in range(2):
        evidence.update(LOGITS.bfloat16(), TARGET, lambda _: TEACHER.bfloat16(), 2.0)
        figures, tables = evidence.result()
        assert tables["confusion"].sum() == 6
        assert {value.dtype for value in (*figures.values(), *tables.values())} == {torch.float32}
    assert figures["loss"].item() == pytest.approx(cross_entropy(LOGITS, TARGET), rel=1e-5)


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
    assert not any(term.requires_grad for term in terms.rows[0])


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_the_first_step_that_is_not_finite_is_named(bad: float) -> None:
    terms = StepTerms()
    for hard in (1.0, 2.0, bad, 4.0, bad):  # the steps 96 to 100
        terms.add({"loss": torch.tensor(0.5 + hard), "hard": torch.tensor(hard)})
    with pytest.raises(FloatingPointError, match=rf"^step 98: loss={bad:g}, hard={bad:g}$"):
        terms.flush(100)


def test_the_table_of_theory_is_what_autograd_and_the_laws_say() -> None:
    torch.manual_seed(0)
    z_s, z_t = 4 * torch.randn(2, 50, 7, dtype=torch.float64)
    target = z_t.argmax(1)
    evidence = Evidence(num_classes=7, with_teacher=True)
    for part in (slice(0, 30), slice(30, 50)):  # batches of different sizes
        evidence.update(z_s[part], target[part], partial(mean_probabilities, z_t[part]))
    curves = evidence.result()[1]["temperature_curves"].double()
    for t, entropy, gradient, _ in curves.tolist()[::4]:
        z = z_s.clone().requires_grad_()
        p_t = (z_t / t).softmax(1)
        kl = (p_t * (p_t.clamp_min(1e-300).log() - (z / t).log_softmax(1))).sum()
        own = torch.autograd.grad(kl, z)[0].norm(dim=1).mean()
        assert gradient == pytest.approx(own.item(), rel=1e-4)
        expected = torch.distributions.Categorical(logits=z_t / t).entropy().mean()
        assert entropy == pytest.approx(expected.item(), rel=1e-4, abs=1e-6)
    _, entropy, gradient, distance = curves.T
    assert entropy[-1] == pytest.approx(math.log(7), rel=1e-4)
    assert gradient[-7] / gradient[-1] == pytest.approx(100, rel=0.02)  # ten times the T
    assert distance[-7] / distance[-1] == pytest.approx(10, rel=0.05)


def test_the_limit_of_an_ensemble_is_that_of_its_mean_logits() -> None:
    torch.manual_seed(0)
    z_s, z_t = torch.randn(20, 5), torch.randn(20, 3, 5)
    several, one = (Evidence(num_classes=5, with_teacher=True) for _ in range(2))
    several.update(z_s, z_s.argmax(1), partial(mean_probabilities, z_t))
    one.update(z_s, z_s.argmax(1), partial(mean_probabilities, z_t.mean(1)))
    ours, theirs = (e.result()[1]["temperature_curves"] for e in (several, one))
    torch.testing.assert_close(ours[-1, 1:3], theirs[-1, 1:3], rtol=1e-3, atol=1e-7)


def test_sums_stay_exact_whatever_the_module_becomes() -> None:
    evidence, evaluation = Evidence(num_classes=3, with_teacher=False), Evaluation(3, False)
    for part in (evidence, evaluation):
        part.bfloat16()
        part.to(torch.bfloat16)
    for _ in range(400):  # in bfloat16, 256 + 1 is 256
        evidence.update(LOGITS.bfloat16(), TARGET)
        evaluation.update(LOGITS.bfloat16(), TARGET)
    exact = cross_entropy(LOGITS, TARGET)
    assert evidence.result()[0]["loss"].item() == pytest.approx(exact, rel=1e-3)
    assert evaluation.result()["loss"].item() == pytest.approx(exact, rel=5e-3)
