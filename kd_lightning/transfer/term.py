"""What the terms have in common: which layers they compare, their weight, their own layers."""

from collections.abc import Sequence

from torch import Tensor, nn

from kd_lightning.nets.taps import Outputs, dry_run, embedding, layers, pairs
from kd_lightning.schedules import Schedule
from kd_lightning.utils.errors import UserError

ROLES = ("map", "maps", "embedding")  # see Term.role
Paths = str | int | Sequence[str | int] | None  # unnamed layers have numbers


class Term(nn.Module):
    """A loss between layers of the student and of the teacher.

    Subclasses make their layers in :meth:`build`, if they need any, and compare in
    :meth:`compare`.

    Args:
        student: path of a layer, or several; those that correspond where not given.
        teacher: the same for the teacher, as many.
        weight: β of this term, a number or a schedule.
        lr: learning rate of the term's own layers; the student's where not given.
    """

    role = "map"  # what is taken where no layer is named: last "map", all "maps", "embedding"

    def __init__(
        self,
        student: Paths = None,
        teacher: Paths = None,
        weight: float | Schedule = 1.0,
        lr: float | None = None,
    ) -> None:
        super().__init__()
        self.student, self.teacher = _as_list(student), _as_list(teacher)
        self.weight, self.lr = weight, lr

    def connect(
        self, student: nn.Module, teacher: nn.Module, sample: Tensor, labels: Tensor
    ) -> None:
        """Choose the layers that were left open, and make what their shapes ask for.

        Args:
            student: the network in training.
            teacher: the frozen one.
            sample: a batch of inputs, of any content.
            labels: class of each training sample, N.

        Raises:
            UserError: if the layers do not exist or do not fit the term.
        """
        if not self.student or not self.teacher:
            proposed = propose(self.role, student, teacher, sample)
            self.student = self.student or [s for s, _ in proposed]
            self.teacher = self.teacher or [t for _, t in proposed]
        self.student, self.teacher = _apart(self.student), _apart(self.teacher)
        if len(self.student) != len(self.teacher):
            raise UserError(
                f"layers are compared in pairs: {len(self.student)} of the student "
                f"({', '.join(self.student)}) and {len(self.teacher)} of the teacher "
                f"({', '.join(self.teacher)}) do not fit"
            )
        f_s = dry_run(student, sample, self.student)
        f_t = dry_run(teacher, sample, self.teacher)
        self._check_shapes(f_s, f_t)
        self.build([f_s[p] for p in self.student], [f_t[p] for p in self.teacher], labels)

    def build(self, f_s: list[Tensor], f_t: list[Tensor], labels: Tensor) -> None:
        """Make the term's own layers, from features as they will come."""

    def compare(self, f_s: list[Tensor], f_t: list[Tensor], index: Tensor) -> Tensor:
        """The term's value, a scalar; ``index`` is the samples' place in the training set."""
        raise NotImplementedError

    def forward(self, student: Outputs, teacher: Outputs, index: Tensor) -> Tensor:
        f_s = [student[path] for path in self.student]
        f_t = [teacher[path].detach().to(f_s[0].dtype) for path in self.teacher]
        return self.compare(f_s, f_t, index)

    def _check_shapes(self, f_s: Outputs, f_t: Outputs) -> None:
        if self.role == "embedding":
            return
        sides = (("student", self.student, f_s), ("teacher", self.teacher, f_t))
        for network, paths, features in sides:
            for path in paths:
                if features[path].dim() != 4:
                    shape = "×".join(["B", *map(str, features[path].shape[1:])])
                    raise UserError(
                        f"maps are compared (B×C×H×W), but {path} of the {network} gives {shape}"
                    )


def propose(
    role: str, student: nn.Module, teacher: nn.Module, sample: Tensor
) -> list[tuple[str, str]]:
    """Layers of student and teacher that correspond.

    Raises:
        UserError: if a network has no maps and maps are asked for.
    """
    of_student, of_teacher = layers(student, sample), layers(teacher, sample)
    if role == "embedding":
        return [(embedding(of_student).path, embedding(of_teacher).path)]
    found = [(s.path, t.path) for s, t in pairs(of_student, of_teacher)]
    if not found:
        raise UserError(
            f"{type(student).__name__} and {type(teacher).__name__} have no maps (B×C×H×W) to "
            "compare; methods on embeddings (rkd, cc, pkt, crd) do without"
        )
    return found if role == "maps" else found[-1:]


def _apart(paths: list[str]) -> list[str]:
    """A layer called ``logits`` under a name that is not the network's answer's."""
    return ["logits:" if path == "logits" else path for path in paths]


def _as_list(paths: Paths) -> list[str]:
    if paths is None:
        return []
    several = list(paths) if isinstance(paths, Sequence) and not isinstance(paths, str) else [paths]
    if numbers := [path for path in several if isinstance(path, float)]:  # 0.1, or 0.10 once
        quoted = f"\"'{numbers[0]}'\""
        raise UserError(f"a path that looks like {numbers[0]} needs two quotes: {quoted}")
    return [str(path) for path in several]
