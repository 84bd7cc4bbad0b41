"""How a job ends: its figures, or one line that says what is wrong and how to go on."""

import contextlib
import shlex
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

from kd_lightning.cli.console import fail, print_error
from kd_lightning.cli.explain import disk_error, explain, wants_tracebacks
from kd_lightning.runs.continued import SWEEP
from kd_lightning.runs.directory import (
    ERROR,
    FAILURE,
    HELD,
    LOCK,
    OVERRIDES,
    SWEEP_LOCK,
    TRACEBACK,
)
from kd_lightning.runs.ranks import ranks
from kd_lightning.utils.errors import Interrupted
from kd_lightning.utils.files import write_text

LOST = "Connection closed by peer"  # what gloo raises in the other processes if one has ended
INTERRUPTED = 130  # the exit code of shells for Ctrl-C


def run_job(job: Callable[[], float]) -> float | None:
    """Run one job, and print errors that the user can correct in one line.

    A single job then exits with code 1. In a sweep the failed job returns None, the other jobs
    continue, even after a bug, and the sweep exits with code 1 after printing its table. Ctrl-C
    ends a run, or a whole sweep, with code 130, and SIGTERM with 143.
    """
    try:
        result = job()
        _forget_failure()
        return result
    except (Interrupted, KeyboardInterrupt) as interruption:
        _stop(str(interruption) or "interrupted", getattr(interruption, "code", INTERRUPTED))
    except Exception as error:
        message = explain(error)
        message = message and with_advice(message, error, _how_to_resume())
        if wants_tracebacks():
            raise
        if ranks().is_child and LOST in str(error):
            sys.exit(0)  # the process that failed has said why
        mode = HydraConfig.get().mode
        if message is None and mode is not RunMode.MULTIRUN:
            raise
        if message is None:  # a bug: the other jobs may be spared
            trace = "".join(traceback.format_exception(error))
            message = f"{type(error).__name__}: {' '.join(str(error).split())}"
            _note(TRACEBACK, trace)
        if not ranks().is_main:
            return _end_other(message, mode)
        print_error(message)
        ranks().tell_failure()
        if mode is RunMode.RUN:
            sys.exit(1)
        _note(ERROR, message)
        # An exception would end the whole sweep, and NaN as an objective a search by Optuna.
        return None


def _end_other(message: str, mode: RunMode | None) -> None:
    """End a process other than the first, which usually reports the same error."""
    if ranks().is_child:
        # Code 0, because Lightning kills the first process as soon as another one fails, and it
        # must still report the error.
        sys.exit(0)
    if not ranks().main_has_failed():
        print_error(f"process {ranks().rank}: {message}")
    if mode is RunMode.RUN:
        sys.exit(1)


def fail_once(error: object) -> NoReturn:
    """Exit with code 1; of processes that are started together, the first one says why."""
    if not ranks().is_main:
        ranks().main_has_failed()
        sys.exit(1)
    fail(error)


def _stop(what: str, code: int) -> NoReturn:
    """End the process after Ctrl-C or SIGTERM, with the command that continues the run."""
    if ranks().is_main:
        print(f"{what}; {_how_to_resume()}", file=sys.stderr)
    sys.exit(code)


def _how_to_resume() -> str:
    """Return the advice that continues the current job, or its sweep."""
    hydra = HydraConfig.get()
    is_sweep = hydra.mode is RunMode.MULTIRUN
    return _resume_with(hydra.sweep.dir if is_sweep else hydra.runtime.output_dir)


def _resume_with(folder: str | Path) -> str:
    return f"resume with: python train.py {shlex.quote(f'resume={folder}')}"


def with_advice(message: str, error: BaseException, advice: str = "") -> str:
    """Add to the message of a full disk what to do once there is room.

    Args:
        message: explains the error.
        error: what was raised.
        advice: how to resume; by default, from what this process had recorded, as Hydra writes
            the records before it starts a job.
    """
    if disk_error(error) is None:
        return message
    records = {SWEEP_LOCK: SWEEP, LOCK: OVERRIDES}
    for name, record in records.items():
        if not advice and name in HELD:
            folder = Path(str(HELD[name].lock_file).removesuffix(name))
            file = folder / record
            is_written = file.is_file() and file.stat().st_size > 0
            advice = _resume_with(folder) if is_written else ""
    return f"{message}; once that is mended, {advice or 'start again'}"


def _note(name: str, text: str) -> None:
    """Leave a text in the directory of a failed sweep job, where that is possible."""
    with contextlib.suppress(OSError):
        write_text(Path(HydraConfig.get().runtime.output_dir) / name, f"{text}\n")


def _forget_failure() -> None:
    """Remove the message of an earlier failure of a job that has succeeded."""
    if ranks().is_main:
        for name in FAILURE:
            (Path(HydraConfig.get().runtime.output_dir) / name).unlink(missing_ok=True)
