"""Time of a run by phase (``profile=true``)."""

import re
import time
from collections import defaultdict
from contextlib import nullcontext
from typing import Any

from lightning.pytorch.profilers import PassThroughProfiler, Profiler
from torch import nn

from kd_lightning import STARTED

IMPORTED = time.perf_counter()  # torch and Lightning, which take seconds, are imported by now

OUTSIDE = "set-up and files"
# Regular expressions for Lightning's names of its actions. The first that matches counts, so
# specific ones come first and the empty one, which matches every name, comes last.
PHASES = {
    "teacher": r"teacher",
    "data": r"_next$|batch_to_device|batch_transfer|transfer_batch",
    "student forward": r"\.training_step$",
    "backward": r"\.backward$",
    "optimizer": r"optimizer|gradient_clipping",
    "evaluation": r"\.(validation|test)_step$",
    "logging and checkpoints": r"^\[Callback\]|checkpoint|on_train_batch_end|_epoch_end$",
    "Lightning's loop": r"",
}


class Unprofiled(PassThroughProfiler):
    """A profiler that does nothing, at less cost than Lightning's own.

    Lightning enters a profiler context 60 times per step; its own builds a generator each time.
    """

    # one shared context: nullcontext has no state, so it can be entered again while it is open
    nothing: Any = nullcontext()

    def profile(self, action_name: str) -> Any:
        return self.nothing


class PhaseProfiler(Profiler):
    """Attribute all time of a run to the phase of the innermost running action.

    On a GPU, a phase includes the time for launching its kernels and for waiting, not that of
    the kernels themselves.
    """

    # Innermost instead of inclusive, as in Lightning's SimpleProfiler: phases then add up to the
    # whole run, and their shares to 100 %.

    def __init__(self) -> None:
        super().__init__()
        self.seconds = defaultdict(float, {"imports, once a process": IMPORTED - STARTED})
        self.running: list[str] = []
        self.last = time.perf_counter()

    def start(self, action_name: str) -> None:
        self._credit()
        self.running.append(next(p for p, name in PHASES.items() if re.search(name, action_name)))

    def stop(self, action_name: str) -> None:
        self._credit()
        self.running.pop()

    def watch(self, teacher: nn.Module) -> None:
        """Attribute the teacher's forward passes to a phase of their own.

        Args:
            teacher: the network; hooks are registered on it.
        """
        # hooks, because Lightning has no action for a call inside the training step
        teacher.register_forward_pre_hook(lambda *_: self.start("teacher"))
        teacher.register_forward_hook(lambda *_: self.stop("teacher"))

    def summary(self) -> str:
        """Return a table with the seconds and the share of each phase of this job."""
        self._credit()
        whole = sum(self.seconds.values())
        rows = sorted(self.seconds.items(), key=lambda row: -row[1])
        return "".join(f"{s:8.2f} s  {100 * s / whole:5.1f} %  {phase}\n" for phase, s in rows)

    def describe(self) -> None:
        """Do nothing. Lightning reports after every stage; ours is printed once, at the end."""

    def _credit(self) -> None:
        now = time.perf_counter()
        self.seconds[self.running[-1] if self.running else OUTSIDE] += now - self.last
        self.last = now
