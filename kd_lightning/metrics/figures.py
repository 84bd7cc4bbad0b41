"""Declarations of all figures: name, label, unit, and the better direction.

A figure's full name is ``SPLIT/[teacher_]NAME[_CLASS]``, such as ``val/accuracy``,
``test/teacher_ece`` and ``test/class_accuracy_3``; costs have no split. ``metrics.json``,
TensorBoard, the tables of the command line and the report take labels, units and the order of
columns from here. The module does not import torch, because the report imports it.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

SPLITS = ("train", "val", "test")
TEACHER = "teacher_"

Unit = Literal["%", "nats", "", "samples", "ms", "bytes", "s", "×"]
Kind = Literal["overall", "per class", "member", "cost", "record"]


@dataclass(frozen=True)
class Figure:
    """Declaration of a figure.

    Attributes:
        name: name without split and prefix, such as ``accuracy``.
        label: label in tables and on axes.
        unit: unit of the stored number; ``%`` marks a share in 0…1 shown as a percentage.
        higher_is_better: the better direction; None if there is none.
        kind: ``overall`` (one number per split), ``per class`` (a suffix names the class),
            ``member`` (a suffix names the student, or the link of a chain), ``cost`` (of the
            network, independent of the data), or ``record`` (of the training).
        definition: definition in one sentence, with its source.
    """

    name: str
    label: str
    unit: Unit
    higher_is_better: bool | None
    kind: Kind
    definition: str


class Name(NamedTuple):
    """Parts of a figure's full name.

    Attributes:
        figure: the declaration.
        split: ``train``, ``val``, ``test``, or empty for a cost.
        of_teacher: whether the figure is the teacher's.
        suffix: the class, student or link; empty for most figures.
    """

    figure: Figure
    split: str
    of_teacher: bool
    suffix: str


# In the order of columns in tables. A new metric is declared here and nowhere else.
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
        "Mean KL(p_t ‖ p_s) at the temperature of the training, without the factor T².",
    ),
    Figure(
        # No better direction: a faithful student inherits errors, an accurate one does not.
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
        "Errors among the samples of unseen classes once the bias is added.",
    ),
    Figure(
        *("accuracy_corrected", "accuracy, corrected", "%", True, "overall"),
        "Accuracy once the bias is added.",
    ),
    Figure(
        *("bias", "bias of unseen classes", "", None, "overall"),
        "Bias added to the logits of unseen classes, chosen on validation data.",
    ),
    # Kind "member" repeats some names: with a suffix, the figure belongs to a student or link.
    Figure(
        *("accuracy", "accuracy", "%", True, "member"),
        "Accuracy of another student in mutual learning, or of a link of a chain.",
    ),
    Figure(
        *("loss", "loss", "nats", False, "member"),
        "Cross-entropy of another student in mutual learning.",
    ),
    Figure(
        *("ensemble_accuracy", "accuracy of all links", "%", True, "overall"),
        "Accuracy of the mean of the probabilities of all links of a chain.",
    ),
    Figure(*("parameters", "parameters", "", False, "cost"), "Number of parameters."),
    Figure(
        *("parameters", "parameters", "", False, "member"),
        "Number of parameters of another student in mutual learning.",
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
        "Number of the teacher's parameters divided by the student's.",
    ),
    Figure(*("seconds", "time", "s", False, "record"), "Duration of the training."),
    Figure(*("epochs", "epochs", "", None, "record"), "Number of epochs trained."),
    Figure(
        *("labels", "labels", "samples", None, "record"),
        "Number of training samples with a label, where some have none.",
    ),
)

_ALONE = {f.name: f for f in DECLARED if f.kind not in ("per class", "member")}
_WITH_SUFFIX = [f for f in DECLARED if f.kind in ("per class", "member")]


def parse(full_name: str) -> Name | None:
    """Split a figure's full name into its parts; None if the figure is not declared.

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
        # Exact names first: accuracy_corrected is not the accuracy of a member "corrected".
        if name in _ALONE:
            return Name(_ALONE[name], split, bool(prefix), "")
        for figure in _WITH_SUFFIX:
            if name.startswith(f"{figure.name}_"):
                return Name(figure, split, bool(prefix), name.removeprefix(f"{figure.name}_"))
    return None


def show(name: str, value: float) -> str:
    """Format a figure's value with its unit.

    >>> show("test/accuracy", 0.97734), show("parameters", 27210), show("val/loss", 0.0812)
    ('97.73 %', '27,210', '0.0812')
    """
    found = parse(name)
    return with_unit(value, found.figure.unit if found else "")


def with_unit(value: float, unit: Unit) -> str:
    """Format a number with the symbol of its unit, if the unit has one."""
    sign = {"%": " %", "×": "×"}.get(unit, "")
    return number(value, unit) + sign


def number(value: float, unit: Unit) -> str:
    """Format a number without its unit: shares in percent, large numbers with separators.

    >>> number(0.97734, "%"), number(2078.5, "samples"), number(44.09, "×")
    ('97.73', '2,078.5', '44.1')
    """
    if unit == "%":  # two decimals: 0.01 % is one sample of 10,000, the size of MNIST's test set
        return f"{100 * value:.2f}"
    if unit in ("×", "s"):
        return f"{value:.1f}"
    # Means of counts over seeds are fractions; counts themselves are shown without decimals.
    if unit == "samples" and not float(value).is_integer():
        return f"{value:,.1f}"
    if float(value).is_integer() or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4f}"
