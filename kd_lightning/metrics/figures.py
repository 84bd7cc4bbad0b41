"""Every figure, declared once: what it is called, its unit, and which direction is better.

A figure's full name is ``SPLIT/[teacher_]NAME[_CLASS]``, as in ``val/accuracy``,
``test/teacher_ece`` and ``test/class_accuracy_3``; a cost has no split. ``metrics.json``,
TensorBoard, the tables of the command line and the report all take labels, units and the
order of their columns from here. Nothing heavy is imported: the report reads this, too.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

SPLITS = ("train", "val", "test")
TEACHER = "teacher_"

Unit = Literal["%", "nats", "", "samples", "ms", "bytes", "s", "×"]
Kind = Literal["overall", "per class", "member", "cost", "record"]


@dataclass(frozen=True)
class Figure:
    """One figure.

    Attributes:
        name: without split and prefix, as in ``accuracy``.
        label: for tables and axes.
        unit: of the stored number; ``%`` marks a share in 0…1 that is shown as a percentage.
        higher_is_better: None where neither direction is.
        kind: ``overall`` (one number a split), ``per class`` (a suffix names the class),
            ``member`` (a suffix names the student or the link of a chain), ``cost`` (of the
            network, whatever the data), ``record`` (of the training).
        definition: in one sentence, with its source.
    """

    name: str
    label: str
    unit: Unit
    higher_is_better: bool | None
    kind: Kind
    definition: str


class Name(NamedTuple):
    """The parts of a figure's full name.

    Attributes:
        figure: the declaration.
        split: ``val``, ``test``, or empty for a cost.
        of_teacher: whether it is the teacher's.
        suffix: the class, the student or the link it belongs to; empty for most.
    """

    figure: Figure
    split: str
    of_teacher: bool
    suffix: str


DECLARED = (
    Figure(
        *("accuracy", "accuracy", "%", True, "overall"),
        "Share of samples whose most probable class is the label.",
    ),
    Figure(*("loss", "loss", "nats", False, "overall"), "Mean cross-entropy with the labels."),
    Figure(
        *("agreement", "agreement", "%", True, "overall"),
        "Share of samples on which student and teacher predict the same class (top-1 agreement: "
        "Stanton et al. 2021, arXiv 2106.05945).",
    ),
    Figure(
        *("ece", "calibration error", "%", False, "overall"),
        "Expected calibration error over 15 bins of equal width (Guo et al. 2017, arXiv "
        "1706.04599).",
    ),
    Figure(
        *("brier", "Brier score", "", False, "overall"),
        "Mean squared distance of the probabilities from the one-hot label, 0 to 2 (Brier 1950).",
    ),
    Figure(
        *("kl_teacher", "KL to teacher", "nats", False, "overall"),
        "Mean KL(p_t ‖ p_s) at T = 1 (predictive KL: Stanton et al. 2021).",
    ),
    Figure(
        *("kl_teacher_t", "KL to teacher at T", "nats", False, "overall"),
        "The same at the temperature of the training, without the factor T².",
    ),
    Figure(
        *("inherited_errors", "inherited errors", "%", None, "overall"),
        "Share of the teacher's errors on which the student predicts the same wrong class.",
    ),
    Figure(
        *("class_accuracy", "accuracy of a class", "%", True, "per class"),
        "Accuracy among the samples of one class.",
    ),
    Figure(
        *("class_agreement", "agreement on a class", "%", True, "per class"),
        "Agreement with the teacher among the samples of one class.",
    ),
    Figure(*("errors", "errors", "samples", False, "overall"), "Number of wrong predictions."),
    Figure(
        *("errors_unseen", "errors on unseen classes", "samples", False, "overall"),
        "Errors among the samples of classes that the training data lack.",
    ),
    Figure(
        *("errors_corrected", "errors, corrected", "samples", False, "overall"),
        "Errors once a bias, chosen on validation data, is added to the logits of unseen classes "
        "(Hinton et al. 2015, arXiv 1503.02531, §3).",
    ),
    Figure(
        *("errors_unseen_corrected", "errors on unseen classes, corrected", "samples", False),
        "overall",
        "Errors among the samples of unseen classes with that bias.",
    ),
    Figure(
        *("accuracy_corrected", "accuracy, corrected", "%", True, "overall"),
        "Accuracy with that bias.",
    ),
    Figure(
        *("bias", "bias of unseen classes", "", None, "overall"),
        "The bias itself, chosen on validation data.",
    ),
    Figure(
        *("accuracy", "accuracy", "%", True, "member"),
        "Accuracy of one more student of mutual learning, or of one link of a chain.",
    ),
    Figure(
        *("loss", "loss", "nats", False, "member"),
        "Cross-entropy of one more student of mutual learning.",
    ),
    Figure(
        *("ensemble_accuracy", "accuracy of all links", "%", True, "overall"),
        "Accuracy of the mean of the probabilities of all links of a chain.",
    ),
    Figure(*("parameters", "parameters", "", False, "cost"), "Number of parameters."),
    Figure(
        *("parameters", "parameters", "", False, "member"),
        "Number of parameters of one more student of mutual learning.",
    ),
    Figure(
        *("bytes", "size", "bytes", False, "cost"), "Memory of parameters and buffers as stored."
    ),
    Figure(
        *("multiply_adds", "multiply-adds", "", False, "cost"),
        "Multiply-adds of convolutions and matrix products for one sample.",
    ),
    Figure(
        *("latency_ms", "latency", "ms", False, "cost"),
        "Median time of one sample's forward pass on the machine of the run.",
    ),
    Figure(
        *("compression", "compression", "×", True, "cost"),
        "Parameters of the teacher over parameters of the student.",
    ),
    Figure(*("seconds", "time", "s", False, "record"), "Duration of the training."),
    Figure(*("epochs", "epochs", "", None, "record"), "Number of epochs trained."),
)

_ALONE = {f.name: f for f in DECLARED if f.kind not in ("per class", "member")}
_WITH_SUFFIX = [f for f in DECLARED if f.kind in ("per class", "member")]


def parse(full_name: str) -> Name | None:
    """The parts of a figure's full name; None for what is no declared figure.

    >>> name = parse("test/teacher_class_accuracy_3")
    >>> name.figure.label, name.split, name.of_teacher, name.suffix
    ('accuracy of a class', 'test', True, '3')
    >>> parse("val/brightness") is None
    True
    """
    split, slash, rest = full_name.rpartition("/")
    if slash and split not in SPLITS:
        return None
    for prefix in ("", TEACHER):
        name = rest.removeprefix(prefix)
        if not rest.startswith(prefix):
            continue
        if name in _ALONE:
            return Name(_ALONE[name], split, bool(prefix), "")
        for figure in _WITH_SUFFIX:
            if name.startswith(f"{figure.name}_"):
                return Name(figure, split, bool(prefix), name.removeprefix(f"{figure.name}_"))
    return None


def show(name: str, value: float) -> str:
    """A figure's value for people, with its unit.

    >>> show("test/accuracy", 0.97734), show("parameters", 27210), show("val/loss", 0.0812)
    ('97.73 %', '27,210', '0.0812')
    """
    found = parse(name)
    return with_unit(value, found.figure.unit if found else "")


def with_unit(value: float, unit: Unit) -> str:
    """A number as text, with the sign of its unit where it has one."""
    sign = {"%": " %", "×": "×"}.get(unit, "")
    return number(value, unit) + sign


def number(value: float, unit: Unit) -> str:
    """A number as text where the unit is given elsewhere: shares in percent, large ones grouped.

    >>> number(0.97734, "%"), number(2078.5, "samples"), number(44.09, "×")
    ('97.73', '2,078.5', '44.1')
    """
    if unit == "%":
        return f"{100 * value:.2f}"
    if unit in ("×", "s"):
        return f"{value:.1f}"
    if unit == "samples" and not float(value).is_integer():
        return f"{value:,.1f}"
    if float(value).is_integer() or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4f}"
