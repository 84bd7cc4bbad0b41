"""Kills runs at random moments and at their file operations, resumes them, and compares the ends.

python tests/faults.py --kills 40 --operations 40 --full 20

Each trial has a folder of its own with a run directory (or that of a chain or a sweep), a store
of teachers and a cache. The command is killed with SIGKILL, resumed with ``resume=``, and must
end with bitwise the same checkpoints, figures, curves, facts, teachers and cached outputs as the
command that was never stopped. If it was killed before anything was recorded, resuming must say
so in one line, and the command is repeated. With ``--full``, the disk is full from one operation
on instead: the command must say so in one line and end with code 1, or, where only the cache
lacks room, go on.

Commands are forked from this process, which has imported what they need.
"""

import argparse
import csv
import errno
import json
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NoReturn

import forked
import numpy as np
import torch
import yaml

from kd_lightning.runs.checkpoints import read_checkpoint
from kd_lightning.utils.files import PARTIAL
from kd_lightning.utils.hashing import mixed

TINY = (
    *("data=digits", "data.train_fraction=0.2", "trainer.max_epochs=2", "trainer.accelerator=cpu"),
    *("teacher.width=2", "pretrain.trainer.max_epochs=2", "data.batch_size=32"),
)
DROPOUT = ("net@teacher=mlp", "teacher.dropout=0.5")
RUN, SWEEP = "hydra.run.dir={}", "hydra.sweep.dir={}"
# A teacher's run is followed by a student's, which must find or repair what the first published.
TAUGHT = (*TINY[:4], "pretrain.trainer.max_epochs=2", *DROPOUT, "method=kd", "hydra.run.dir={}-2")
KINDS: dict[str, tuple[str, ...]] = {
    "student": (*TINY, RUN),
    "teacher": ("model=teacher", *TINY[:4], *DROPOUT, RUN),
    "chain": ("experiment=self_distillation", "chain.generations=2", *TINY, RUN),
    "sweep": ("-m", *TINY, "method=ce,kd", "student.width=4", SWEEP),
    "processes": (*TINY, "trainer.devices=2", RUN),
}
# Of every ten trials: those of two processes take five times as long as the others.
SHARES = ("student", "sweep", "chain", "teacher") * 2 + ("student", "processes")

NEED_ROOM = ("open", "fsync", "mkdir")
TORN = ("no run was started", "was stopped as it began", "does not record how the sweep")
TIMED = re.compile(r"seconds|ms$|_ms|time|per_second")  # figures that differ in every run


@dataclass(frozen=True)
class Fault:
    """When a command is killed.

    Attributes:
        seconds: after its start; None if it is killed at an operation.
        operation: its name and its file, as :func:`named` has them.
        count: which of these operations, from 1.
        after: whether the operation has been done.
        full: whether the disk is full from the operation on, and the command is not killed.
    """

    seconds: float | None = None
    operation: str = ""
    count: int = 0
    after: bool = False
    full: bool = False

    def __str__(self) -> str:
        if self.seconds is not None:
            return f"at {self.seconds:.2f} s"
        if self.full:
            return f"full at {self.operation} #{self.count}"
        return f"{'after' if self.after else 'before'} {self.operation} #{self.count}"


def named(operation: str, file: Path, root: Path) -> str:
    """Name an operation and its file, without what differs between trials."""
    path = re.sub(r"tfevents.*", "tfevents", str(file.relative_to(root)))
    return f"{operation} {re.sub(r'[0-9a-f]{12,}|[.][0-9]+[.]partial$', '#', path)}"


class Injector:
    """Counts a process's file operations in a folder; may kill its group at one of them.

    Or may fail at that and every later operation that needs room.

    Args:
        root: the folder.
        fault: the operation; None to write the names of all to ``log``.
        log: a file descriptor.
    """

    def __init__(self, root: Path, fault: Fault | None, log: int) -> None:
        self.root, self.fault, self.log = root, fault, log
        self.seen: Counter[str] = Counter()
        self.lock = threading.RLock()
        self.is_full = False

    def install(self) -> None:
        """Replace the functions by which Python changes files."""
        import builtins
        import io

        builtins.open = io.open = self._watched("open", open, writes=_writes_by_mode)
        os.open = self._watched("open", os.open, writes=_writes_by_flags)
        for name in ("replace", "rename", "fsync", "unlink", "mkdir"):
            setattr(os, name, self._watched(name, getattr(os, name)))
        os.remove = os.unlink

    def _watched(
        self, name: str, function: Callable[..., Any], writes: Callable[..., bool] | None = None
    ) -> Callable[..., Any]:
        def watched(*args: Any, **kwargs: Any) -> Any:
            file = args[0] if args else kwargs.get("file", kwargs.get("path", ""))
            if isinstance(file, int) and name == "fsync":
                file = Path(f"/proc/self/fd/{file}").readlink()
            file = os.fsdecode(file) if isinstance(file, bytes) else file  # TensorBoard's
            if not isinstance(file, str | os.PathLike) or (writes and not writes(*args, **kwargs)):
                return function(*args, **kwargs)
            path = Path(file).absolute()
            if not path.is_relative_to(self.root) or path == self.root:
                return function(*args, **kwargs)
            with self.lock:  # TensorBoard writes in a thread
                is_now = self._is_now(named(name, path, self.root))
                if self.fault is not None and self.fault.full:
                    self.is_full = self.is_full or is_now
                    if self.is_full and name in NEED_ROOM:
                        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                    return function(*args, **kwargs)
                if is_now and self.fault is not None and not self.fault.after:
                    kill_group()
                try:
                    return function(*args, **kwargs)
                finally:  # also if there was nothing to delete, or the folder existed
                    if is_now:
                        kill_group()

        return watched

    def _is_now(self, operation: str) -> bool:
        self.seen[operation] += 1
        if self.fault is None:
            os.write(self.log, f"{operation}\n".encode())
            return False
        return (operation, self.seen[operation]) == (self.fault.operation, self.fault.count)


def _writes_by_mode(file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> bool:
    return any(letter in mode for letter in "wax+")


def _writes_by_flags(path: Any, flags: int = 0, *args: Any, **kwargs: Any) -> bool:
    return bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))


def kill_group() -> NoReturn:
    """Kill this process and the other ranks of its job."""
    os.killpg(0, signal.SIGKILL)
    raise AssertionError("unreachable")


@dataclass
class Ended:
    """How a command ended: exit code (negative: its signal), stderr, stdout and seconds."""

    code: int
    stderr: str
    stdout: str
    seconds: float


def execute(
    arguments: Sequence[str], root: Path, fault: Fault | None = None, log: Path | None = None
) -> Ended:
    """Run a command in a forked process group, killed by a fault."""
    start = time.monotonic()
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        child = os.fork()
        if child == 0:
            os.setsid()
            os.dup2(out.fileno(), 1)
            os.dup2(err.fileno(), 2)
            if log is not None or (fault is not None and fault.operation):
                opened = os.open(log or os.devnull, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
                Injector(root, fault, opened).install()
            variables = {"KD_TEACHERS": f"{root}/teachers", "KD_CACHE": f"{root}/cache"}
            forked.execute({"arguments": arguments, "environment": variables, "cwd": str(root)})
        code = _wait(child, fault.seconds if fault is not None else None)
        seconds = time.monotonic() - start
        out.seek(0)
        err.seek(0)
        return Ended(code, err.read(), out.read(), seconds)


def _wait(child: int, seconds: float | None) -> int:
    deadline = None if seconds is None else time.monotonic() + seconds
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            break
        if deadline is not None and time.monotonic() > deadline:
            os.killpg(child, signal.SIGKILL)
            _, status = os.waitpid(child, 0)
            break
        time.sleep(0.005)
    return os.waitstatus_to_exitcode(status)


def contents(root: Path) -> dict[str, Any]:
    """What a command left that must not depend on whether it was interrupted, by file."""
    found: dict[str, Any] = {}
    for file in sorted(p for p in root.rglob("*") if p.is_file()):
        name = str(file.relative_to(root))
        # A published teacher has another record than one that was trained by a student's job.
        if name.startswith("teachers") and not name.endswith(("best.ckpt", "metrics.json")):
            continue
        if file.suffix == ".ckpt":
            checkpoint = read_checkpoint(file)
            kept = ("state_dict", "optimizer_states", "lr_schedulers", "epoch", "global_step")
            found[name] = hashable([checkpoint[k] for k in kept])
        elif file.suffix == ".pt":
            found[name] = hashable(torch.load(file, weights_only=True))
        elif file.name == "metrics.json":
            figures = json.loads(file.read_text())
            found[name] = {k: v for k, v in figures.items() if not TIMED.search(k)}
        elif file.name == "run.json":
            facts = json.loads(file.read_text().replace(str(root), ""))
            facts.pop("code", None)  # may be edited while the trials run
            figures = facts.pop("teacher_figures", {})
            found[name] = {**facts, **{k: v for k, v in figures.items() if not TIMED.search(k)}}
        elif file.name == "diagnostics.npz":
            with np.load(file) as tables:
                found[name] = {k: tables[k].tobytes() for k in tables}
        elif file.name == "metrics.csv":
            found[name] = curves(file)
        elif file.name == "sweep.csv":
            with file.open(newline="") as lines:
                rows = list(csv.DictReader(lines))
            found[name] = [{k: v for k, v in r.items() if not TIMED.search(k)} for r in rows]
        elif file.name in ("config.yaml", "overrides.yaml"):
            config = yaml.safe_load(file.read_text().replace(str(root), ""))
            found[name] = {**config, "resume": None} if isinstance(config, dict) else config
    return found


def curves(file: Path) -> dict[tuple[str, str], str]:
    """Values of ``metrics.csv`` by step and column; of a step run twice, the later ones."""
    with file.open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    return {
        (row["step"], k): v
        for row in rows
        for k, v in row.items()
        if v and k != "step" and not TIMED.search(k)
    }


def hashable(value: Any) -> Any:
    """Nested values with tensors as bytes, which compare bitwise."""
    if isinstance(value, torch.Tensor):
        return (str(value.dtype), tuple(value.shape), value.contiguous().numpy().tobytes())
    if isinstance(value, Mapping):
        return {k: hashable(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [hashable(v) for v in value]
    return value


def seconds_of(root: Path, final: bool) -> dict[str, float]:
    """Training time of each run directory: of its last checkpoint, or of its final figures."""
    if final:
        files = [f for f in root.rglob("metrics.json") if (f.parent / "checkpoints").is_dir()]
        return {
            str(f.parent.relative_to(root)): json.loads(f.read_text())["seconds"] for f in files
        }
    files = list(root.rglob("last.ckpt"))
    return {str(f.parent.parent.relative_to(root)): read_checkpoint(f)["seconds"] for f in files}


def stage(root: Path, kind: str) -> str:
    """What a killed command was doing, by what it left."""
    home = root / "run"
    record = home / ("multirun.yaml" if kind == "sweep" else ".hydra/overrides.yaml")
    if not record.is_file() or not record.stat().st_size:
        return "before the record"
    if (home / "sweep.csv").is_file() or (kind != "sweep" and (home / "metrics.json").is_file()):
        return "finished"
    if any(home.rglob("last.ckpt")):
        return "after a checkpoint"
    if any(home.rglob("run.json")):
        return "in the first epoch"
    return "before the training"


@dataclass
class Trial:
    """A command that was killed and resumed.

    Attributes:
        outcome: ``resumed``, ``repeated`` or ``not killed``; what is wrong if there is something.
    """

    kind: str
    fault: Fault
    stage: str = ""
    outcome: str = ""
    problems: list[str] = field(default_factory=list)


def words_of(kind: str, root: Path) -> list[str]:
    """The command line of a kind."""
    return [word.format(root / "run") for word in KINDS[kind]]


def follow(kind: str, root: Path) -> Ended | None:
    """Run what follows a command of a kind and is not killed."""
    if kind != "teacher":
        return None
    return execute([word.format(root / "run") for word in TAUGHT], root)


def attempt(kind: str, fault: Fault, root: Path, whole: Mapping[str, Any]) -> Trial:
    """Run a command that is killed, resume it, and compare what it left.

    Args:
        kind: of :data:`KINDS`.
        fault: when it is killed.
        root: its folder.
        whole: :func:`contents` of the uninterrupted command.
    """
    trial = Trial(kind, fault)
    root.mkdir(parents=True)
    first = execute(words_of(kind, root), root, fault)
    legs = [first]
    trial.stage = stage(root, kind)
    before = seconds_of(root, final=False)
    trial.outcome = "resumed"
    if first.code == 0:
        is_cached = "teacher outputs stay in memory" in first.stdout
        trial.outcome = "in memory" if is_cached else "not killed"
    elif fault.full:
        errors = [line for line in first.stderr.splitlines() if line.startswith("error: ")]
        full = [line for line in errors if "the disk is full" in line]
        is_one = len(errors) == 1 or kind == "sweep"  # a line for each of its jobs
        if first.code != 1 or not full or not is_one or first.stderr.count("\n") != len(errors):
            trial.problems.append(f"ended with {first.code}: {first.stderr[-3000:]}")
    elif first.code != -signal.SIGKILL:
        trial.problems.append(f"ended with {first.code}: {first.stderr[-2000:]}")
    resumed = execute([f"resume={root / 'run'}"], root)
    legs.append(resumed)
    if resumed.code and any(text in resumed.stderr for text in TORN):
        trial.outcome = "repeated"
        if resumed.stderr.count("\n") != 1 or not resumed.stderr.startswith("error: "):
            trial.problems.append(f"not one line: {resumed.stderr}")
        if trial.stage != "before the record":
            trial.problems.append(f"{trial.stage}, but {resumed.stderr}")
        resumed = execute(words_of(kind, root), root)
        legs.append(resumed)
    if resumed.code:
        trial.problems.append(f"resuming ended with {resumed.code}: {resumed.stderr[-3000:]}")
        return trial
    if (next_run := follow(kind, root)) is not None:
        legs.append(next_run)
        if next_run.code:
            trial.problems.append(f"the next run ended with {next_run.code}: {next_run.stderr}")
    if "Traceback" in resumed.stderr:
        trial.problems.append(resumed.stderr[-3000:])
    trial.problems += differences(contents(root), whole)
    trial.problems += wrong_seconds(root, before, sum(leg.seconds for leg in legs))
    trial.problems += [f"left {p}" for p in partial_files(root)]
    return trial


def partial_files(root: Path) -> list[str]:
    """Files that were being written when a process was killed."""
    found = [str(p.relative_to(root)) for p in root.rglob(f".*{PARTIAL}")]
    # Of a teacher that was being published: the next job that needs it removes them.
    done = [str(p.parent.relative_to(root)) for p in root.glob("teachers/*/metrics.json")]
    return [p for p in found if not p.startswith("teachers/") or p.startswith(tuple(done))]


def differences(found: Mapping[str, Any], whole: Mapping[str, Any]) -> list[str]:
    """Describe what differs from the uninterrupted command."""
    # A run killed as it would publish its teacher leaves that to the next run that needs it.
    needed = [name for name in whole if not name.startswith("teachers")]
    problems = [f"no {name}" for name in needed if name not in found]
    problems += [
        f"one more file: {name}" for name in found if name not in whole and "teachers" not in name
    ]
    for name in whole:
        one, two = found.get(name), whole[name]
        if name in found and one != two:
            keys = ""
            if isinstance(one, dict) and isinstance(two, dict):
                keys = str([k for k in {**one, **two} if one.get(k) != two.get(k)][:5])
            problems.append(f"{name} differs {keys}")
    return problems


def wrong_seconds(root: Path, before: Mapping[str, float], spent: float) -> list[str]:
    """Describe training times that do not include all legs, or more than these took."""
    after = seconds_of(root, final=True)
    return [
        f"{name} took {seconds} s: {before.get(name, 0):.2f} s before the kill, {spent:.2f} s all"
        for name, seconds in after.items()
        if not before.get(name, 0) - 0.01 <= seconds <= spent + 0.01
    ]


@dataclass
class Whole:
    """A command that was never stopped: what it left, its operations and its seconds."""

    contents: dict[str, Any]
    operations: Counter[str]
    seconds: float


def uninterrupted(kind: str, folder: Path) -> Whole:
    """Run the command of a kind to its end."""
    root = folder / f"whole-{kind}"
    root.mkdir(parents=True)
    log = folder / f"{kind}.log"
    done = execute(words_of(kind, root), root, log=log)
    assert done.code == 0, done.stderr
    after = follow(kind, root)
    assert after is None or after.code == 0, after
    return Whole(contents(root), Counter(log.read_text().splitlines()), done.seconds)


def faults_at_operations(whole: Whole, draw: random.Random, number: int) -> list[Fault]:
    """Choose operations: every name once before any name twice."""
    chosen: list[Fault] = []
    while len(chosen) < number:
        names = sorted(whole.operations)
        draw.shuffle(names)
        for name in names:
            count = draw.randint(1, whole.operations[name])
            chosen.append(Fault(None, name, count, draw.random() < 0.5))
    return chosen[:number]


def plan(
    wholes: Mapping[str, Whole], kills: int, operations: int, full: int, draw: random.Random
) -> list[tuple[str, Fault]]:
    """Choose the trials."""
    kinds = [kind for kind in SHARES if kind in wholes]
    moments = [kinds[i % len(kinds)] for i in range(kills)]
    chosen = [(k, Fault(draw.uniform(0.05, wholes[k].seconds))) for k in moments]
    counts = Counter(kinds[i % len(kinds)] for i in range(operations))
    for kind, number in counts.items():
        chosen += [(kind, f) for f in faults_at_operations(wholes[kind], draw, number)]
    for kind, number in Counter(kinds[i % len(kinds)] for i in range(full)).items():
        needing = {k: n for k, n in wholes[kind].operations.items() if k.startswith(NEED_ROOM)}
        room = replace(wholes[kind], operations=Counter(needing))
        found = faults_at_operations(room, draw, number)
        chosen += [(kind, replace(fault, after=False, full=True)) for fault in found]
    return chosen


def run(folder: Path, kinds: Sequence[str], counts: Sequence[int], seed: int) -> list[Trial]:
    """Run all trials, two at a time; folders of trials without problems are deleted."""
    with ThreadPoolExecutor(2) as pool:
        wholes = dict(zip(kinds, pool.map(lambda k: uninterrupted(k, folder), kinds), strict=True))
        trials = plan(wholes, *counts, random.Random(mixed(seed)))

        def one(number: int) -> Trial:
            kind, fault = trials[number]
            root = folder / f"{number}-{kind}"
            trial = attempt(kind, fault, root, wholes[kind].contents)
            print(f"{number:4} {kind:10} {fault}: {trial.stage}, {trial.outcome}", flush=True)
            for problem in trial.problems:
                print(f"       {problem}", flush=True)
            if not trial.problems:
                shutil.rmtree(root)
            return trial

        return list(pool.map(one, range(len(trials))))


def table(trials: Sequence[Trial]) -> str:
    """Count the trials by kind, by how and where they were killed, and by their outcome."""
    cells: dict[tuple[str, str, str], Counter[str]] = defaultdict(Counter)
    for trial in trials:
        how = "moment" if trial.fault.seconds is not None else "operation"
        how = "full disk" if trial.fault.full else how
        cells[trial.kind, how, trial.stage]["wrong" if trial.problems else trial.outcome] += 1
    lines = [f"{'kind':10} {'killed at':10} {'stage':20} outcome"]
    for (kind, how, where), counts in sorted(cells.items()):
        outcomes = ", ".join(f"{n} {name}" for name, n in sorted(counts.items()))
        lines.append(f"{kind:10} {how:10} {where:20} {outcomes}")
    return "\n".join(lines)


def main() -> None:
    """Entry point; exits with code 1 if a command did not end as the uninterrupted one."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=40, help="at random moments")
    parser.add_argument("--operations", type=int, default=40, help="at file operations")
    parser.add_argument("--full", type=int, default=0, help="disks that are full at an operation")
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=list(KINDS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="keeps the folders of failed trials")
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = (given.folder or Path(temporary)).resolve()
        counts = (given.kills, given.operations, given.full)
        trials = run(folder, given.kinds, counts, given.seed)
    print(table(trials))
    sys.exit(any(trial.problems for trial in trials))


if __name__ == "__main__":
    main()
