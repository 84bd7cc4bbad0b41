"""Tests of the declared figures: unique names, and every stored key is one of them."""

import math
import re
from collections import Counter
from pathlib import Path

import pytest

from kd_lightning.metrics.figures import (
    DECLARED,
    SPLITS,
    TEACHER,
    Figure,
    Name,
    Unit,
    parse,
    show,
    with_unit,
)

WITH_SUFFIX = ("per class", "member")
CLASSES = range(10)

# The keys of metrics.json as version 0.1 wrote them, by kind of run.
COSTS = ["parameters", "bytes", "multiply_adds", "latency_ms", "seconds", "epochs", "labels"]
OF_A_SPLIT = ["accuracy", "loss", "ece", "brier"]
STUDENT_SECTIONS = [
    *("teacher_accuracy", "agreement", "teacher_loss", "teacher_ece", "teacher_brier"),
    *("kl_teacher", "kl_teacher_t", "inherited_errors"),
]
OLD_KEYS = {
    "teacher": [
        *(f"{split}/{name}" for split in ("val", "test") for name in OF_A_SPLIT),
        *(f"{split}/class_accuracy_{c}" for split in ("val", "test") for c in CLASSES),
        *COSTS,
    ],
    "student": [
        *(f"{split}/{name}" for split in ("val", "test") for name in STUDENT_SECTIONS),
        *(f"{split}/teacher_class_accuracy_{c}" for split in ("val", "test") for c in CLASSES),
        *(f"{split}/class_agreement_{c}" for split in ("val", "test") for c in CLASSES),
        *("teacher_parameters", "teacher_bytes", "teacher_multiply_adds", "teacher_latency_ms"),
        "compression",
    ],
    "mutual": [
        *("val/accuracy_second", "val/loss_second", "test/accuracy_second", "test/loss_second"),
        "parameters_second",
    ],
    "chain": [
        *("val/accuracy_0", "test/accuracy_0", "val/accuracy_1", "test/accuracy_1"),
        *("val/ensemble_accuracy", "test/ensemble_accuracy"),
    ],
    "hinton_2015": [
        *("val/bias", "val/accuracy_corrected", "val/errors", "val/errors_unseen"),
        *("val/errors_corrected", "val/errors_unseen_corrected", "test/accuracy_corrected"),
        *("test/errors", "test/errors_unseen", "test/errors_corrected"),
        "test/errors_unseen_corrected",
    ],
}


def full_name(name: Name) -> str:
    """Return the full name from its parts: the inverse of parse."""
    split = f"{name.split}/" if name.split else ""
    suffix = f"_{name.suffix}" if name.suffix else ""
    return f"{split}{TEACHER if name.of_teacher else ''}{name.figure.name}{suffix}"


def test_names_are_unique() -> None:
    names = Counter((figure.kind, figure.name) for figure in DECLARED)
    assert [name for name, count in names.items() if count > 1] == []
    # parse finds figures without a suffix by name alone, whatever their kind
    alone = Counter(figure.name for figure in DECLARED if figure.kind not in WITH_SUFFIX)
    assert [name for name, count in alone.items() if count > 1] == []


def test_every_figure_is_described() -> None:
    for figure in DECLARED:
        assert figure.label, figure.name
        assert figure.definition.endswith("."), figure.name


@pytest.mark.parametrize("figure", DECLARED, ids=lambda figure: f"{figure.kind}-{figure.name}")
@pytest.mark.parametrize("of_teacher", [False, True])
@pytest.mark.parametrize("split", ["", *SPLITS])
def test_parse_inverts_full_name(figure: Figure, of_teacher: bool, split: str) -> None:
    for suffix in ("3", "second", "0_1") if figure.kind in WITH_SUFFIX else ("",):
        name = Name(figure, split, of_teacher, suffix)
        found = parse(full_name(name))
        assert found == name
        assert found.figure is figure


@pytest.mark.parametrize("kind", OLD_KEYS)
def test_every_key_of_version_0_1_is_a_declared_figure(kind: str) -> None:
    for key in OLD_KEYS[kind]:
        name = parse(key)
        assert name is not None, key
        assert full_name(name) == key


@pytest.mark.parametrize(
    ("key", "kind", "of_teacher", "suffix"),
    [
        ("val/accuracy_0", "member", False, "0"),
        ("val/accuracy_corrected", "overall", False, ""),  # not a student called "corrected"
        ("test/errors_unseen_corrected", "overall", False, ""),
        ("test/class_accuracy_3", "per class", False, "3"),
        ("test/teacher_class_accuracy_3", "per class", True, "3"),
        ("val/teacher_accuracy", "overall", True, ""),
        ("val/kl_teacher_t", "overall", False, ""),
        ("parameters_second", "member", False, "second"),
        ("teacher_parameters", "cost", True, ""),
        ("seconds", "record", False, ""),
    ],
)
def test_similar_names_are_told_apart(key: str, kind: str, of_teacher: bool, suffix: str) -> None:
    name = parse(key)
    assert name is not None
    assert (name.figure.kind, name.of_teacher, name.suffix) == (kind, of_teacher, suffix)


@pytest.mark.parametrize(
    "key",
    [
        *("seed", "role", "commit", "teacher"),  # facts that version 0.1 kept beside the figures
        *("val/brightness", "accurac", "accuracyx", "val/class_accuracy", "", "/"),
        *("val_best/accuracy", "train/val/loss", "teacher_teacher_accuracy"),
    ],
)
def test_other_names_are_no_figures(key: str) -> None:
    assert parse(key) is None


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.97734, "%", "97.73 %"),
        (1.0, "%", "100.00 %"),
        (44.096, "×", "44.1×"),
        (12.34, "s", "12.3"),
        (0.08123, "nats", "0.0812"),
        (27210, "", "27,210"),
        (4799528.0, "bytes", "4,799,528"),
        (math.nan, "nats", "nan"),
    ],
)
def test_values_are_shown_with_their_unit(value: float, unit: Unit, text: str) -> None:
    assert with_unit(value, unit) == text


def test_unit_is_that_of_the_figure() -> None:
    assert show("val/teacher_class_accuracy_3", 0.5) == "50.00 %"
    assert show("unknown", 0.5) == "0.5000"


def test_the_table_in_the_readme_has_every_figure_with_its_unit() -> None:
    text = (Path(__file__).resolve().parents[2] / "README.md").read_text()
    rows = dict(re.findall(r"^\| `(\w+)` \| ([^|]*?) ?\| ", text, re.MULTILINE))
    for figure in DECLARED:
        name = f"{figure.name}_CLASS" if figure.kind == "per class" else figure.name
        assert rows[name].strip() == figure.unit, name
