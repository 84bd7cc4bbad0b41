"""Where a teacher comes from: the store, given checkpoints, nowhere, or nothing at all.

A source answers two questions, at two times. Which network? Before anything expensive, so that
networks, layers and settings are checked against one another while a mistake still costs
nothing. Which weights? Once that check has passed; a missing teacher is trained only then.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from torch import nn

from kd_lightning.teachers.store import TeacherStore


class Order(Protocol):
    """What a job knows of the teacher it wants; :mod:`kd_lightning.runs.teacher` has it."""

    def build(self) -> nn.Module:
        """The network as configured, with the weights it was made with."""
        ...

    def load(self, net: nn.Module, run_dir: Path) -> None:
        """Fill a network with the best checkpoint of a run."""
        ...

    def given(self, paths: Sequence[str]) -> nn.Module:
        """The trained network, or the ensemble of several, in given checkpoints."""
        ...

    def key(self) -> str:
        """Names everything that determines the weights of the teacher."""
        ...

    def train(self, home: Path) -> Any:
        """Train the teacher in a run directory."""
        ...


class TeacherSource:
    """Base class of the sources.

    Attributes:
        control: the name of the control that a student of such a teacher is; empty where its
            teacher has something to teach.
    """

    control = ""

    def network(self, order: Order) -> nn.Module | None:
        """The teacher, perhaps still without its weights; None for no teacher."""
        raise NotImplementedError

    def find(self, order: Order, net: nn.Module) -> str:
        """Give the network its weights.

        Returns:
            What names the teacher in the record of the run; empty if there is nothing to name.
        """
        return ""


class FromStore(TeacherSource):
    """A teacher that the store keeps, trained there first if need be.

    Args:
        root: folder of the store.
    """

    def __init__(self, root: str) -> None:
        self.store = TeacherStore(root)

    def network(self, order: Order) -> nn.Module:
        return order.build()

    def find(self, order: Order, net: nn.Module) -> str:
        home = self.store.find_or_train(order.key(), order.train)
        order.load(net, home)
        return str(home)


class FromCheckpoint(TeacherSource):
    """A teacher of the user's own; of several, the ensemble.

    Args:
        path: a run directory or checkpoint, or a list of them.
    """

    def __init__(self, path: str | Sequence[str]) -> None:
        self.paths = [path] if isinstance(path, str) else list(map(str, path))

    def network(self, order: Order) -> nn.Module:
        return order.given(self.paths)

    def find(self, order: Order, net: nn.Module) -> str:
        return ", ".join(self.paths)


class Untrained(TeacherSource):
    """A control: a teacher with the weights it was made with.

    A student that gains from it over the baseline gains nothing that was learnt: any smooth
    function of the input, or any softening of the labels, does as well.
    """

    control = "untrained"

    def network(self, order: Order) -> nn.Module:
        return order.build()


class NoTeacher(TeacherSource):
    """No teacher: the student learns from labels alone, and nothing is compared with it."""

    def network(self, order: Order) -> None:
        return None
