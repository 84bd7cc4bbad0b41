"""Who started this process, and what the processes of a run agree on before they train.

A run of several processes is started in one of two ways. By default one process is started, and
Lightning starts the others as its children once training begins. torchrun, srun, and anything
else that sets ``RANK`` and ``WORLD_SIZE`` start all of them at once: each then composes the same
configuration, and they agree through a store on one run directory and on who goes first.
"""

import os
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING

from kd_lightning.utils.errors import UserError

if TYPE_CHECKING:  # command lines are read without torch and Lightning
    import lightning as L
    from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment

    from kd_lightning.runs.meeting import Meeting

SECONDS_TO_SPEAK = 5


@dataclass(frozen=True)
class Place:
    """Where a process stands among those that were started together.

    Attributes:
        starter: the program that started them, for messages.
        rank: number of this process.
        size: number of processes.
        local_rank: number of this process on its node.
        node: number of its node.
        address: host of the first process.
        port: port of that host at which they meet first.
    """

    starter: str
    rank: int
    size: int
    local_rank: int
    node: int
    address: str
    port: int


@dataclass
class Ranks:
    """This process among the processes of its run; see :func:`ranks`.

    Attributes:
        place: among processes that another program started; None otherwise.
        child: rank of a process that Lightning started; 0 in all others.
        restarts: how often torchrun or Slurm has started this job again.
    """

    place: Place | None
    child: int
    restarts: int
    _is_alone: bool = False  # while the first process works and the others wait
    _turns: int = 0
    _groups: int = 0
    _meeting: "Meeting | None" = field(default=None, repr=False)

    @property
    def rank(self) -> int:
        """Number of this process; 0 if it is the first or the only one."""
        return self.place.rank if self.place else self.child

    @property
    def is_main(self) -> bool:
        """Whether this process writes the run directory and speaks for the run."""
        return self.rank == 0

    @property
    def is_child(self) -> bool:
        """Whether Lightning started this process."""
        return self.child > 0

    @property
    def are_external(self) -> bool:
        """Whether another program started all processes of the run."""
        return self.place is not None and not self._is_alone

    def plugins(self) -> "list[ClusterEnvironment]":
        """Return what tells Lightning the rank of this process, where it would guess wrongly."""
        from kd_lightning.runs.meeting import LightningEnvironment, Started

        if self.are_external:
            return [Started(self)]
        # Lightning believes in Slurm wherever its variables are set, even if srun was not used.
        is_misled = self.place is not None or "SLURM_NTASKS" in os.environ
        return [LightningEnvironment()] if is_misled else []

    def check(self, trainer: "L.Trainer") -> None:
        """Check that there are as many processes as the trainer asks for.

        Raises:
            UserError: if there are more or fewer.
        """
        devices, nodes = trainer.num_devices, trainer.num_nodes
        asked = f"trainer.devices={devices} and trainer.num_nodes={nodes}"
        if self._is_alone and devices * nodes > 1:
            assert self.place is not None
            raise UserError(
                f"{asked} need more than the one process that trains it under "
                f"{self.place.starter}: leave them out, or train it before with model=teacher"
            )
        if self.place is None and nodes > 1:
            raise UserError(
                f"trainer.num_nodes={nodes} needs a process on each node, and this command starts "
                f"them on one only: use torchrun --nnodes={nodes} or srun --nodes={nodes}"
            )
        if self.are_external and self.place and devices * nodes != self.place.size:
            raise UserError(
                f"{self.place.starter} has started {self.place.size} processes, but {asked} need "
                f"{devices * nodes}: the processes must be devices × nodes"
            )

    def agree(self, name: str, value: object) -> str:
        """Return the first process's value, which stays the same if the job is restarted."""
        if not self.are_external:
            return str(value)
        meeting = self._met()
        if self.is_main:
            meeting.set_once(name, str(value))
        return meeting.get(name)

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """Let the first process go through a block, alone, before the others enter it."""
        if not self.are_external:
            yield
            return
        self._turns += 1
        name = f"{self.restarts}/turn {self._turns}"
        if not self.is_main:
            self._met().get(name)
            yield
            return
        self._is_alone = True
        try:
            yield
        finally:
            self._is_alone = False
        self._met().set_once(name, "done")

    def next_port(self) -> int:
        """Return a port of the first process's host for the next process group of the run.

        Each link of a chain has a group of its own, and so has a job that is restarted. A second
        group in the same store, as torchrun's is, finds the addresses of the first one.
        """
        os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "False"
        self._groups += 1
        with socket.socket() as free:
            free.bind(("", 0))
            return int(self.agree(f"{self.restarts}/group {self._groups}", free.getsockname()[1]))

    def tell_failure(self) -> None:
        """Tell the other processes that this one, the first, has reported a failure."""
        if self._meeting is not None:
            self._meeting.set_once(f"{self.restarts}/failed", "yes")

    def main_has_failed(self) -> bool:
        """Whether the first process reports a failure now, too, so that this one need not."""
        if self._meeting is None:
            # Before anything was agreed on, all have the same reason. torchrun ends all processes
            # as soon as one has failed, so the first gets the time to say it.
            time.sleep(SECONDS_TO_SPEAK)
            return True
        return self._meeting.is_set_soon(f"{self.restarts}/failed")

    def _met(self) -> "Meeting":
        if self._meeting is None:
            from kd_lightning.runs.meeting import Meeting

            assert self.place is not None
            self._meeting = Meeting(self.place)
        return self._meeting


@cache
def ranks() -> Ranks:
    """Return this process among the processes of its run."""
    # Cached, and first called before any training: Lightning sets LOCAL_RANK while it trains.
    return found_in(os.environ)


def found_in(variables: Mapping[str, str]) -> Ranks:
    """Return what environment variables say about a process.

    >>> found_in({"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "a", "MASTER_PORT": "1"}).is_main
    False
    """
    place = _by_variables(variables) or _by_slurm(variables)
    child = 0 if place else int(variables.get("LOCAL_RANK", 0))
    restarted = ("SLURM_RESTART_COUNT", "TORCHELASTIC_RESTART_COUNT")
    return Ranks(place, child, sum(int(variables.get(name) or 0) for name in restarted))


def _by_variables(variables: Mapping[str, str]) -> Place | None:
    if not {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= variables.keys():
        return None  # Lightning's children have no RANK
    return Place(
        starter="torchrun" if "TORCHELASTIC_RUN_ID" in variables else "another program",
        rank=int(variables["RANK"]),
        size=int(variables["WORLD_SIZE"]),
        local_rank=int(variables.get("LOCAL_RANK", 0)),
        node=int(variables.get("GROUP_RANK", 0)),
        address=variables["MASTER_ADDR"],
        port=int(variables["MASTER_PORT"]),
    )


def _by_slurm(variables: Mapping[str, str]) -> Place | None:
    """Return the place among the tasks of srun; None for a single task, or without srun."""
    # A script of sbatch, or a shell of salloc, is no step: it is like any other machine, and so
    # is a step of one task, which may start children.
    size = int(variables.get("SLURM_STEP_NUM_TASKS", 1))
    if "SLURM_STEP_ID" not in variables or size == 1:
        return None
    job, step = int(variables.get("SLURM_JOB_ID", 0)), int(variables["SLURM_STEP_ID"])
    nodes = variables.get("SLURM_STEP_NODELIST", "127.0.0.1")
    first = "127.0.0.1"
    if variables.get("SLURM_STEP_NUM_NODES", "1") != "1":
        from lightning.fabric.plugins.environments.slurm import SLURMEnvironment

        first = SLURMEnvironment.resolve_root_node_address(nodes)
    return Place(
        starter="Slurm",
        rank=int(variables["SLURM_PROCID"]),
        size=size,
        local_rank=int(variables["SLURM_LOCALID"]),
        node=int(variables["SLURM_NODEID"]),
        address=variables.get("MASTER_ADDR", first),
        # Steps of different jobs may share a node.
        port=int(variables.get("MASTER_PORT", 15_000 + (31 * job + step) % 17_000)),
    )
