"""Where a run's time went, in the phases a user knows (``profile=true``)."""

import re
import time
from collections import defaultdict
from contextlib import nullcontext
from typing import Any

from lightning.pytorch.profilers import PassThroughProfiler, Profiler
from torch import nn

from kd_lightning import STARTED

IMPORTED = time.perf_counter()  # all that takes long to import is there by now

OUTSIDE = "set-up and files"
PHASES = {  # by what Lightning calls its actions; the first that fits
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
    """Lightning's profiler that does nothing, at less cost: it is entered 60 times a step."""

    nothing: Any = nullcontext()

    def profile(self, action_name: str) -> Any:
        return self.nothing


class PhaseProfiler(Profiler):
    """Credits every moment to one phase: that of the innermost action that runs.

    On a GPU a phase is charged for launching its kernels and for waiting, not for the
    kernels themselves.
    """

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
        """Tell the teacher's answers apart from the step that asks for them."""
        teacher.register_forward_pre_hook(lambda *_: self.start("teacher"))
        teacher.register_forward_hook(lambda *_: self.stop("teacher"))

    def summary(self) -> str:
        """Seconds and share of each phase of this job."""
        self._credit()
        whole = sum(self.seconds.values())
        rows = sorted(self.seconds.items(), key=lambda row: -row[1])
        return "".join(f"{s:8.2f} s  {100 * s / whole:5.1f} %  {phase}\n" for phase, s in rows)

    def describe(self) -> None:
        """Lightning asks for its report after every stage; ours comes once, at the end."""

    def _credit(self) -> None:
        now = time.perf_counter()
        self.seconds[self.running[-1] if self.running else OUTSIDE] += now - self.last
        self.last = now
