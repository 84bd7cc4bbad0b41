"""Sources of a teacher: the store, given checkpoints, random weights, or none.

A source works in two steps. :meth:`TeacherSource.network` returns the network before anything
expensive happens, so networks, layers and settings are checked against one another first.
:meth:`TeacherSource.find` provides the weights afterwards, training a missing teacher.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from torch import nn

from kd_lightning.teachers.store import TeacherStore


# A protocol, because this package must not import runs, which depends on Hydra.
class Order(Protocol):
    """Specification of the teacher that a job needs.

    Implemented by :class:`kd_lightning.runs.teacher.TeacherOrder`.
    """

    @property
    def training(self) -> str:
        """How a missing teacher is trained, as in "for 5 epochs"."""
        ...

    def build(self) -> nn.Module:
        """Return the configured network with its initial weights."""
        ...

    def pretrained(self) -> nn.Module:
        """Return the configured network with the pretrained weights that it names."""
        ...

    def load(self, net: nn.Module, run_dir: Path) -> None:
        """Load the best checkpoint of a run into a network."""
        ...

    def given(self, paths: Sequence[str]) -> nn.Module:
        """Return the network in a given checkpoint, or the ensemble of several."""
        ...

    def key(self) -> str:
        """Return a key that identifies everything that determines the teacher's weights."""
        ...

    def train(self, home: Path) -> Any:
        """Train the teacher in a run directory."""
        ...


class TeacherSource:
    """Base class of teacher sources.

    Attributes:
        control: name of the control that a student of this teacher is; empty for a trained
            teacher.
    """

    control = ""

    def network(self, order: Order) -> nn.Module | None:
        """Return the teacher, possibly without trained weights; None for no teacher."""
        raise NotImplementedError

    def describe(self, order: Order) -> str:
        """Return where the weights come from, as in "from teachers/TeacherCNN-…"."""
        return self.control or "none"

    def find(self, order: Order, net: nn.Module) -> str:
        """Load the weights into the network.

        Returns:
            The teacher's name in ``run.json``; empty if it has none.
        """
        return ""


class FromStore(TeacherSource):
    """Teacher from the store, trained there first if it is missing.

    Args:
        root: folder of the store.
    """

    def __init__(self, root: str) -> None:
        self.store = TeacherStore(root)

    def network(self, order: Order) -> nn.Module:
        return order.build()

    def describe(self, order: Order) -> str:
        home = self.store.home(order.key())
        return f"from {home}" if home is not None else f"trained first, {order.training}"

    def find(self, order: Order, net: nn.Module) -> str:
        # Not in network(): training a missing teacher has to follow the checks.
        home = self.store.find_or_train(order.key(), order.train)
        order.load(net, home)
        return str(home)


class FromCheckpoint(TeacherSource):
    """Teacher from the user's checkpoints; several form an ensemble.

    Args:
        path: a run directory or checkpoint, or a list of them.
    """

    def __init__(self, path: str | Sequence[str]) -> None:
        self.paths = [path] if isinstance(path, str) else list(map(str, path))

    def network(self, order: Order) -> nn.Module:
        # Loaded with its weights already: it costs little, and a wrong checkpoint shows early.
        return order.given(self.paths)

    def describe(self, order: Order) -> str:
        return f"from {', '.join(self.paths)}"

    def find(self, order: Order, net: nn.Module) -> str:
        return ", ".join(self.paths)


class Pretrained(TeacherSource):
    """Teacher as its network is created, with the pretrained weights that its settings name.

    Its classes need not be those of the data, for methods that compare layers.
    """

    def network(self, order: Order) -> nn.Module:
        return order.pretrained()

    def describe(self, order: Order) -> str:
        return "pretrained"

    def find(self, order: Order, net: nn.Module) -> str:
        return "pretrained"


class Untrained(TeacherSource):
    """Control: a teacher with its initial random weights.

    If a student gains from it over the baseline, the gain does not come from the teacher's
    training: any smooth function of the input, or softening of the labels, has the same effect.
    """

    # find() is inherited and returns no name, since there are no trained weights to identify.
    control = "untrained"

    def network(self, order: Order) -> nn.Module:
        return order.build()


class NoTeacher(TeacherSource):
    """No teacher: the student learns from labels alone, and fidelity is not measured."""

    def network(self, order: Order) -> None:
        return None
