"""Metrics computed once for a trained network: calibration, fidelity, tables for plots.

Shapes: N rows, B per batch, C classes, T temperatures. A row is a sample, or a token of a
token classifier. Logarithms are natural.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd_lightning.metrics.sums import Sums
from kd_lightning.utils.divergence import kl_divergence

BINS = 15  # bins of confidence, of equal width, as in Guo et al. 2017
TEMPERATURES = (1.0, 2.0, 5.0, 20.0)  # temperatures of the teacher's mean probabilities
MOST_NAMED = 20  # largest number of classes with one figure per class
# Largest number of classes with tables of C×C and T×C×C. 128 classes take 0.3 MB; a vocabulary
# of 50,000 would take 40 GB.
MOST_TABULATED = 128

# Returns logits, B×C, at a temperature, on which an ensemble's mean probabilities depend.
LogitsAt = Callable[[float | Tensor], Tensor]


class Quality(Sums):
    """Accuracy and calibration of a network's probabilities p.

    - ``loss``: mean of −log p_y, in nats.
    - ``brier``: mean of Σ_c (p_c − [c = y])², from 0 to 2 (Brier 1950, "Verification of
      forecasts expressed in terms of probability").
    - ``ece``: expected calibration error, Σ_b n_b/N · |accuracy_b − confidence_b| over 15
      bins of equal width, where confidence is the largest probability (Guo et al. 2017, arXiv
      1706.04599). It equals torchmetrics' MulticlassCalibrationError with the norm l1, except
      that torchmetrics counts confidences that round to 1 in a bin of their own, and this
      class in the last bin.
    - ``class_accuracy``, C: accuracy among the rows of each class.

    Tables: ``bins``, 15×3 (number of rows, mean confidence, accuracy). With up to 128 classes
    also ``class_probabilities``, C×C or T×C×C (mean p by true class, at each temperature), and
    ``confusion``, C×C (number of rows by true class and prediction). Empty bins and classes
    are NaN.

    Args:
        num_classes: number of classes, C.
        temperatures: T temperatures for ``class_probabilities``.
        with_tables: whether to compute the tables whose size grows with C².
    """

    confidences: Tensor
    losses: Tensor
    correct: Tensor
    confusion: Tensor
    soft: Tensor

    def __init__(
        self,
        num_classes: int,
        temperatures: Sequence[float] = (1.0,),
        with_tables: bool = True,
    ) -> None:
        shapes: dict[str, tuple[int, ...]] = {
            "confidences": (BINS, 3),
            "losses": (1, 2),
            "correct": (num_classes, 2),
        }
        self.has_tables = with_tables and num_classes <= MOST_TABULATED
        if self.has_tables:
            shapes["confusion"] = (num_classes, num_classes)
            shapes["soft"] = (num_classes, len(temperatures), num_classes)
        super().__init__(**shapes)
        self.temperatures = temperatures

    def update(self, logits: LogitsAt, target: Tensor) -> None:
        """Add a batch.

        Args:
            logits: function from a temperature to the network's logits, B×C.
            target: classes, B.
        """
        z = logits(1.0).float()  # bfloat16 would round confidences to steps of 1/256
        p, classes = z.softmax(1), z.shape[1]
        confidence, prediction = p.max(1)
        right = (prediction == target).float()
        one = torch.ones_like(right)
        edges = torch.arange(1, BINS, device=z.device) / BINS
        row = torch.bucketize(confidence, edges, right=True)  # bins are closed on the left
        self.add("confidences", torch.stack([one, confidence, right], 1), row)
        self.add("correct", torch.stack([one, right], 1), target)
        if self.has_tables:
            self.add("confusion", F.one_hot(prediction, classes), target)
            soft = [(logits(t).float() / t).softmax(1) for t in self.temperatures]
            self.add("soft", torch.stack(soft, 1), target)
        brier = (p - F.one_hot(target, classes)).square().sum(1)
        nll = F.cross_entropy(z, target, reduction="none")
        self.add("losses", torch.stack([nll, brier], 1), torch.zeros_like(target))

    def compute(self) -> dict[str, Tensor]:
        """Return figures and tables by name."""
        counts, confidence, right = self.confidences.unbind(1)
        loss, brier = self.losses[0] / counts.sum()
        sizes = self.correct[:, 0]
        found = {
            "loss": loss,
            "ece": (right - confidence).abs().sum() / counts.sum(),
            "brier": brier,
            "class_accuracy": self.correct[:, 1] / sizes,
            "bins": torch.stack([counts, confidence / counts, right / counts], 1),
        }
        if self.has_tables:
            mean = self.soft / sizes[:, None, None]
            found["class_probabilities"] = mean.transpose(0, 1).squeeze(0)
            found["confusion"] = self.confusion
        return found


class Fidelity(Sums):
    """How closely a student's predictions follow its teacher's.

    - ``kl_teacher``: mean of KL(p_t ‖ p_s) at T = 1, in nats (predictive KL: Stanton et al.
      2021, arXiv 2106.05945).
    - ``kl_teacher_t``: mean of KL(p_t ‖ p_s) at the temperature of the training, without the
      factor T² of the loss.
    - ``inherited_errors``: share of the teacher's errors on which the student predicts the
      same wrong class.
    - ``class_agreement``, C: agreement among the rows of each class.

    Figures without rows, such as those of a class that the split lacks, are NaN.

    Args:
        num_classes: number of classes, C.
    """

    divergences: Tensor
    same: Tensor
    same_errors: Tensor

    def __init__(self, num_classes: int) -> None:
        super().__init__(divergences=(1, 3), same=(num_classes, 2), same_errors=(2, 2))

    def update(
        self, logits: Tensor, target: Tensor, teacher: LogitsAt, temperature: float | Tensor
    ) -> None:
        """Add a batch.

        Args:
            logits: student's logits, B×C.
            target: classes, B.
            teacher: function from a temperature to the teacher's logits, B×C.
            temperature: T of the training.
        """
        one = torch.ones_like(target, dtype=torch.float32)
        kl = [divergence(teacher(t), logits, t) for t in (1.0, temperature)]
        self.add("divergences", torch.stack([one, *kl], 1), torch.zeros_like(target))
        prediction = teacher(1.0).argmax(1)
        same = torch.stack([one, (logits.argmax(1) == prediction).float()], 1)
        self.add("same", same, target)
        self.add("same_errors", same, (prediction != target).long())

    def compute(self) -> dict[str, Tensor]:
        """Return the figures by name."""
        count, kl, kl_t = self.divergences[0]
        return {
            "kl_teacher": kl / count,
            "kl_teacher_t": kl_t / count,
            "inherited_errors": self.same_errors[1, 1] / self.same_errors[1, 0],
            "class_agreement": self.same[:, 1] / self.same[:, 0],
        }


def divergence(z_t: Tensor, z_s: Tensor, temperature: float | Tensor) -> Tensor:
    """Return KL(p_t ‖ p_s) of each row, B, from logits, B×C, at one temperature."""
    return kl_divergence(z_t.float() / temperature, z_s.float() / temperature)


class Diagnostics(nn.Module):
    """All figures and tables beyond :class:`~kd_lightning.metrics.evaluation.Evaluation`.

    They are :class:`Quality` of the student and of the teacher, the latter with the prefix
    ``teacher_``, and :class:`Fidelity`, computed over all rows of all ranks.

    Args:
        num_classes: number of classes, C.
        with_teacher: whether :meth:`update` receives a teacher.
        with_tables: whether to compute tables in addition to figures.
    """

    def __init__(self, num_classes: int, with_teacher: bool, with_tables: bool = True) -> None:
        super().__init__()
        self.own = Quality(num_classes, with_tables=with_tables)
        self.teacher = Quality(num_classes, TEMPERATURES, with_tables) if with_teacher else None
        self.fidelity = Fidelity(num_classes) if with_teacher else None

    def update(
        self,
        logits: Tensor,
        target: Tensor,
        teacher: LogitsAt | None = None,
        temperature: float | Tensor = 1.0,
    ) -> None:
        """Add a batch; see :meth:`Fidelity.update` for the arguments."""
        if len(target) == 0:
            return  # all ranks have equally many batches, so the last may be empty
        self.own.update(lambda _: logits, target)
        if self.teacher is not None and self.fidelity is not None:
            assert teacher is not None
            self.teacher.update(teacher, target)
            self.fidelity.update(logits, target, teacher, temperature)

    def result(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return figures and tables, computed over all ranks, and reset the state.

        With up to 20 classes there is one figure per class (``class_accuracy_3``). Figures
        without rows, such as the accuracy of a class that the split lacks, are left out.
        """
        figures, tables = {}, {}
        for prefix, part in (("", self.own), ("teacher_", self.teacher), ("", self.fidelity)):
            for name, value in part.compute().items() if part is not None else ():
                (tables if value.dim() > 1 else figures)[prefix + name] = value
            if part is not None:
                part.reset()
        if self.teacher is not None and self.teacher.has_tables:
            tables["temperatures"] = torch.tensor(self.teacher.temperatures)
        return _by_class(figures), tables


def _by_class(figures: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Replace vectors by one figure per class, after all other figures; drop empty ones."""
    split = {name: value for name, value in figures.items() if value.dim() == 0}
    for name, value in figures.items():
        if value.dim() == 1 and len(value) <= MOST_NAMED:
            split |= {f"{name}_{c}": v for c, v in enumerate(value)}
    # Only these may be NaN for want of rows. A NaN loss is kept: it shows a divergence.
    empty = [k for k, v in split.items() if v.isnan() and ("class_" in k or "inherited" in k)]
    return {name: value for name, value in split.items() if name not in empty}
