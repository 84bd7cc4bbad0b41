"""Base class of transfer terms: which layers are compared, their weight, their adapters."""

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from kd_lightning.nets.taps import Outputs, dry_run, embedding, layers, pairs
from kd_lightning.schedules import Schedule
from kd_lightning.utils.errors import UserError
from kd_lightning.utils.networks import Inputs

ROLES = ("map", "maps", "embedding", "any")  # see Term.role
# Selects from a layer's output the rows that a task asks for: B×L×D becomes N×D.
Rows = Callable[[Tensor], Tensor]
# nn.Sequential names its layers by numbers. Floats are refused with advice: see _as_list().
Paths = str | float | Sequence[str | float] | None


class Term(nn.Module):
    """A loss between layers of the student and layers of the teacher.

    A subclass creates its adapters in :meth:`build`, if it needs any, and computes its value
    in :meth:`compare`.

    Attributes:
        role: layers compared by default: the last ``map`` (B×C×H×W), all corresponding
            ``maps``, the ``embedding``, or ``any``: the last map where both networks have
            maps, else the embedding. The last two also accept features of other shapes.
        needs_index: whether the term needs each sample's index in the training set.
        needs_labels: whether the term needs the class of every training sample.

    Args:
        student: path of a layer of the student, or several; by default chosen by role.
        teacher: the same for the teacher; as many paths.
        weight: β of this term, a number or a schedule.
        lr: learning rate of the term's adapters; the student's by default.

    Raises:
        UserError: if a path was read as a number, or the learning rate is not positive.
    """

    # Class attributes, so that the objective can check a term's needs before it is connected.
    role = "map"
    needs_index = False
    needs_labels = False

    def __init__(
        self,
        student: Paths = None,
        teacher: Paths = None,
        weight: float | Schedule = 1.0,
        lr: float | None = None,
    ) -> None:
        super().__init__()
        if lr is not None and not lr > 0:
            raise UserError(f"the learning rate of a term must be positive, got lr={lr}")
        self.student, self.teacher = _as_list(student), _as_list(teacher)
        self.weight, self.lr = weight, lr

    def connect(
        self,
        student: nn.Module,
        teacher: nn.Module,
        sample: Inputs,
        labels: Tensor,
        rows: Rows | None = None,
    ) -> None:
        """Choose the layers not named by the user, check their shapes, and build the adapters.

        Args:
            student: the network in training.
            teacher: the frozen network.
            sample: a batch of inputs of any content: a tensor or a mapping of tensors.
            labels: class of each training row, N; may be empty unless :attr:`needs_labels`.
            rows: selects the rows to compare from a layer's output; all by default.

        Raises:
            UserError: if the layers do not exist or do not fit the term.
        """
        # A side that the user named is kept, and only the other side is proposed.
        if not self.student or not self.teacher:
            proposed = propose(self.role, student, teacher, sample)
            self.student = self.student or [s for s, _ in proposed]
            self.teacher = self.teacher or [t for _, t in proposed]
        self.student, self.teacher = _apart(self.student), _apart(self.teacher)
        if len(self.student) != len(self.teacher):
            raise UserError(
                f"layers are compared in pairs, but there are {len(self.student)} of the student "
                f"({', '.join(self.student)}) and {len(self.teacher)} of the teacher "
                f"({', '.join(self.teacher)}); name as many of each"
            )
        # Shapes come from a pass instead of from attributes of the layers: only that works for
        # networks that this package does not know.
        f_s = dry_run(student, sample, self.student)
        f_t = dry_run(teacher, sample, self.teacher)
        if rows is not None:
            f_s, f_t = ({k: rows(v) for k, v in f.items()} for f in (f_s, f_t))
        self._check_shapes(f_s, f_t)
        self.build([f_s[p] for p in self.student], [f_t[p] for p in self.teacher], labels)

    def build(self, f_s: list[Tensor], f_t: list[Tensor], labels: Tensor) -> None:
        """Create the term's adapters; nothing by default.

        Args:
            f_s: features of the student, one tensor per path, with the shapes of training.
            f_t: features of the teacher.
            labels: class of each training row, N.
        """

    def compare(self, f_s: list[Tensor], f_t: list[Tensor], index: Tensor | None) -> Tensor:
        """Compute the term's value.

        Args:
            f_s: features of the student, one tensor per path.
            f_t: features of the teacher, detached.
            index: positions of the samples in the training set, B; may be None unless
                :attr:`needs_index`.

        Returns:
            A scalar, without the weight.
        """
        raise NotImplementedError

    def forward(self, student: Outputs, teacher: Outputs, index: Tensor | None) -> Tensor:
        """Return the value for the outputs of both networks, a scalar; see :meth:`compare`."""
        f_s = [student[path] for path in self.student]
        # Detached here once for all terms: a loss with adapters on the teacher's side would
        # otherwise send gradient into the teacher. Cast, because a cache may hold features in
        # half precision and the teacher may run in another precision than the student.
        f_t = [teacher[path].detach().to(f_s[0].dtype) for path in self.teacher]
        return self.compare(f_s, f_t, index)

    def _check_shapes(self, f_s: Outputs, f_t: Outputs) -> None:
        # Losses of the other roles flatten what they are given.
        if self.role not in ("map", "maps"):
            return
        sides = (("student", self.student, f_s), ("teacher", self.teacher, f_t))
        for network, paths, features in sides:
            for path in paths:
                if features[path].dim() != 4:
                    shape = "×".join(["B", *map(str, features[path].shape[1:])])
                    raise UserError(
                        f"{path} of the {network} has shape {shape}, but this term compares "
                        f"maps (B×C×H×W): name another layer (kd-inspect lists them)"
                    )


def propose(
    role: str, student: nn.Module, teacher: nn.Module, sample: Inputs
) -> list[tuple[str, str]]:
    """Choose corresponding layers of student and teacher.

    Args:
        role: see :class:`Term`.
        student: the network in training.
        teacher: the frozen network.
        sample: a batch of inputs of any content.

    Returns:
        Pairs of a path of the student and a path of the teacher, from early to late.

    Raises:
        UserError: if the role demands maps and a network has none.
    """
    of_student, of_teacher = layers(student, sample), layers(teacher, sample)
    found = [] if role == "embedding" else pairs(of_student, of_teacher)
    if not found and role in ("map", "maps"):
        raise UserError(
            f"{type(student).__name__} and {type(teacher).__name__} have no maps (B×C×H×W) in "
            "common; use a method that compares embeddings (rkd, cc, pkt, crd, sp)"
        )
    # The embedding is also the fallback of "any".
    found = found or [(embedding(of_student), embedding(of_teacher))]
    # One pair unless all are asked for: the last one, which is closest to the logits.
    return [(s.path, t.path) for s, t in (found if role == "maps" else found[-1:])]


def _apart(paths: list[str]) -> list[str]:
    # The key "logits" of Outputs holds the network's output. A layer of that name is renamed
    # to "logits:", which taps resolve to the same module.
    return ["logits:" if path == "logits" else path for path in paths]


def _as_list(paths: Paths) -> list[str]:
    if paths is None:
        return []
    several = list(paths) if isinstance(paths, Sequence) and not isinstance(paths, str) else [paths]
    # YAML and Hydra read 0.1 and 0.10 as the same number, so the path is lost already.
    if numbers := [path for path in several if isinstance(path, float)]:
        quoted = f"\"'{numbers[0]}'\""
        raise UserError(
            f"the path {numbers[0]} was read as a number; put it in two pairs of quotes: {quoted}"
        )
    return [str(path) for path in several]
