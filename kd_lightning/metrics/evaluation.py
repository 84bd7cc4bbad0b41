"""What is measured of a network: means over all samples of a split.

N samples, B of them in a batch; C classes. All logarithms are natural.
"""

import math
from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy

from kd_lightning.metrics.sums import Mean, Sums
from kd_lightning.metrics.temperature import Theory

BINS = 15  # of confidence, of equal width
SHOWN = (1.0, 2.0, 5.0, 20.0)  # temperatures at which the teacher's answers are kept
MOST_CLASSES = 20  # up to which every class has figures of its own

# The logits, B×C, of a network at a temperature: those of an ensemble depend on it.
LogitsAt = Callable[[float | Tensor], Tensor]


class Evaluation(nn.Module):
    """Figures of one pass over a split; over all samples of all ranks under DDP.

    - ``accuracy``: share of samples whose top class is the label.
    - ``loss``: mean cross-entropy with the labels, in nats.
    - ``teacher_accuracy``: the teacher's accuracy on the same samples.
    - ``agreement``: share of samples on which student and teacher name the same class
      (top-1 agreement: Stanton et al. 2021, arXiv 2106.05945).

    Args:
        num_classes: C.
        with_teacher: whether a teacher's logits will be given.
    """

    def __init__(self, num_classes: int, with_teacher: bool) -> None:
        super().__init__()
        names = ["accuracy", *(["teacher_accuracy", "agreement"] if with_teacher else [])]
        self.shares = nn.ModuleDict(
            {name: MulticlassAccuracy(num_classes, average="micro") for name in names}
        )
        self.loss = Mean(nan_strategy=math.nan)  # by default it leaves NaN out

    def update(self, logits: Tensor, target: Tensor, teacher_logits: Tensor | None = None) -> None:
        """Add a batch: logits B×C, target B, teacher_logits B×C."""
        if len(target) == 0:
            return  # a rank's share may end before the others'
        self.loss.update(F.cross_entropy(logits, target), weight=len(target))
        self._count("accuracy", logits, target)
        if teacher_logits is not None:
            self._count("teacher_accuracy", teacher_logits, target)
            self._count("agreement", logits, teacher_logits.argmax(1))

    def _count(self, name: str, logits: Tensor, target: Tensor) -> None:
        metric = self.shares[name]
        assert isinstance(metric, MulticlassAccuracy)
        metric.update(logits, target)

    def result(self) -> dict[str, Tensor]:
        """The figures, gathered over the ranks; starts anew."""
        metrics = {**self.shares, "loss": self.loss}
        values = {name: metric.compute() for name, metric in metrics.items()}
        for metric in metrics.values():
            metric.reset()
        return values


class Quality(Sums):
    """How good one network's probabilities p are.

    - ``loss``: mean of −log p_y, the negative log-likelihood of the label, in nats.
    - ``brier``: mean of Σ_c (p_c − [c = y])², from 0 to 2 (Brier 1950, "Verification of
      forecasts expressed in terms of probability").
    - ``ece``: expected calibration error, Σ_b n_b/N · |accuracy_b − confidence_b| over 15
      bins of equal width, confidence being the largest probability (Guo et al. 2017, arXiv
      1706.04599). It is torchmetrics' MulticlassCalibrationError with the norm l1, save for
      confidences that round to 1: they belong to the last bin here, to one of their own there.
    - ``class_accuracy``, C: accuracy among the samples of each class.

    For pictures: ``bins``, 15×3 (number of samples, mean confidence, accuracy);
    ``class_probabilities``, C×C or T×C×C (mean p by true class, at each temperature);
    ``confusion``, C×C (number of samples by true class and answer). NaN stands where there
    is no sample.

    Args:
        num_classes: C.
        temperatures: T of them, for ``class_probabilities``.
    """

    confidences: Tensor
    losses: Tensor
    answers: Tensor
    soft: Tensor

    def __init__(self, num_classes: int, temperatures: Sequence[float] = (1.0,)) -> None:
        by_class = {"answers": (num_classes,), "soft": (len(temperatures), num_classes)}
        shapes = {name: (num_classes, *shape) for name, shape in by_class.items()}
        super().__init__(confidences=(BINS, 3), losses=(1, 2), **shapes)
        self.temperatures = temperatures

    def update(self, answers: LogitsAt, target: Tensor) -> None:
        """Add a batch of targets, B, and what the network answers to it."""
        z = answers(1.0).float()
        p, classes = z.softmax(1), z.shape[1]
        confidence, answer = p.max(1)
        right = (answer == target).float()
        edges = torch.arange(1, BINS, device=z.device) / BINS
        row = torch.bucketize(confidence, edges, right=True)
        self.add("confidences", torch.stack([torch.ones_like(right), confidence, right], 1), row)
        self.add("answers", F.one_hot(answer, classes), target)
        soft = [(answers(t).float() / t).softmax(1) for t in self.temperatures]
        self.add("soft", torch.stack(soft, 1), target)
        brier = (p - F.one_hot(target, classes)).square().sum(1)
        nll = F.cross_entropy(z, target, reduction="none")
        self.add("losses", torch.stack([nll, brier], 1), torch.zeros_like(target))

    def compute(self) -> dict[str, Tensor]:
        """Figures and tables by name."""
        counts, confidence, right = self.confidences.unbind(1)
        loss, brier = self.losses[0] / counts.sum()
        sizes = self.answers.sum(1)
        return {
            "loss": loss,
            "ece": (right - confidence).abs().sum() / counts.sum(),
            "brier": brier,
            "class_accuracy": self.answers.diagonal() / sizes,
            "bins": torch.stack([counts, confidence / counts, right / counts], 1),
            "class_probabilities": (self.soft / sizes[:, None, None]).transpose(0, 1).squeeze(0),
            "confusion": self.answers,
        }


class Fidelity(Sums):
    """How near a student's answers are to its teacher's.

    - ``kl_teacher``: mean of KL(p_t ‖ p_s) at T = 1, in nats (predictive KL: Stanton et al.
      2021, arXiv 2106.05945).
    - ``kl_teacher_t``: the same, both softened by the temperature of the training; without
      the factor T² that the loss has.
    - ``inherited_errors``: agreement among the samples that the teacher gets wrong, which is
      the share of its mistakes that the student repeats.
    - ``class_agreement``, C: agreement among the samples of each class.

    NaN stands where there is no sample.

    Args:
        num_classes: C.
    """

    divergences: Tensor
    same: Tensor
    same_errors: Tensor

    def __init__(self, num_classes: int) -> None:
        super().__init__(divergences=(1, 3), same=(num_classes, 2), same_errors=(2, 2))

    def update(
        self, logits: Tensor, target: Tensor, teacher: LogitsAt, temperature: float | Tensor
    ) -> None:
        """Add a batch: the student's logits B×C, target B, the teacher, and T of the training."""
        one = torch.ones_like(target, dtype=torch.float32)
        kl = [divergence(teacher(t), logits, t) for t in (1.0, temperature)]
        self.add("divergences", torch.stack([one, *kl], 1), torch.zeros_like(target))
        answer = teacher(1.0).argmax(1)
        same = torch.stack([one, (logits.argmax(1) == answer).float()], 1)
        self.add("same", same, target)
        self.add("same_errors", same, (answer != target).long())

    def compute(self) -> dict[str, Tensor]:
        """The figures by name."""
        count, kl, kl_t = self.divergences[0]
        return {
            "kl_teacher": kl / count,
            "kl_teacher_t": kl_t / count,
            "inherited_errors": self.same_errors[1, 1] / self.same_errors[1, 0],
            "class_agreement": self.same[:, 1] / self.same[:, 0],
        }


def divergence(z_t: Tensor, z_s: Tensor, temperature: float | Tensor) -> Tensor:
    """KL(p_t ‖ p_s) of each sample, B, from logits, B×C, at one temperature."""
    log_p, log_q = ((z.float() / temperature).log_softmax(1) for z in (z_t, z_s))
    return F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(1)


class Evidence(nn.Module):
    """All that is found out of a trained network, beyond :class:`Evaluation`.

    The figures of :class:`Quality` and, with ``teacher_`` before their names, the teacher's;
    those of :class:`Fidelity`; the table of :class:`Theory`. Over all samples of all ranks
    under DDP.

    Args:
        num_classes: C.
        with_teacher: whether a teacher's answers will be given.
    """

    def __init__(self, num_classes: int, with_teacher: bool) -> None:
        super().__init__()
        self.own = Quality(num_classes)
        self.teacher = Quality(num_classes, SHOWN) if with_teacher else None
        self.fidelity = Fidelity(num_classes) if with_teacher else None
        self.theory = Theory() if with_teacher else None

    def update(
        self,
        logits: Tensor,
        target: Tensor,
        teacher: LogitsAt | None = None,
        temperature: float | Tensor = 1.0,
    ) -> None:
        """Add a batch: logits B×C, target B, the teacher, and T of the training."""
        if len(target) == 0:
            return
        self.own.update(lambda _: logits, target)
        if self.teacher is not None and self.fidelity is not None and self.theory is not None:
            assert teacher is not None
            self.teacher.update(teacher, target)
            self.fidelity.update(logits, target, teacher, temperature)
            self.theory.update(logits, teacher)

    def result(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Figures, and tables for pictures, gathered over the ranks; starts anew.

        Each class has figures of its own (``class_accuracy_3``) where there are few. A
        figure that no sample speaks of is left out.
        """
        figures, tables = {}, {}
        parts = (("", self.own), ("teacher_", self.teacher), ("", self.fidelity), ("", self.theory))
        for prefix, part in parts:
            for name, value in part.compute().items() if part is not None else ():
                kind = tables if value.dim() > 1 else figures
                kind[prefix + name] = value
            if part is not None:
                part.reset()
        if self.teacher is not None:
            tables["temperatures"] = torch.tensor(self.teacher.temperatures)
        return _by_class(figures), tables


def _by_class(figures: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Vectors taken apart, if they are short, after all else; what is 0/0 is left out."""
    apart = {name: value for name, value in figures.items() if value.dim() == 0}
    for name, value in figures.items():
        if value.dim() == 1 and len(value) <= MOST_CLASSES:
            apart |= {f"{name}_{c}": v for c, v in enumerate(value)}
    unsaid = [k for k, v in apart.items() if v.isnan() and ("class_" in k or "inherited" in k)]
    return {name: value for name, value in apart.items() if name not in unsaid}
