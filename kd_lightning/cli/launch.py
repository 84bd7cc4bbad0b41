"""Launching jobs with Hydra: readable errors, resuming, and the table of a sweep."""

import contextlib
import logging
import os
import shlex
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf

from kd_lightning.cli.consent import state_trust
from kd_lightning.cli.console import fail, print_error, print_line, print_next, print_table
from kd_lightning.cli.explain import disk_error, explain, wants_tracebacks
from kd_lightning.cli.paths import CONF, with_quoted_path
from kd_lightning.cli.resume import resumed
from kd_lightning.report.sweep import sweep_table
from kd_lightning.runs.continued import SWEEP, begin_anew, is_resumed, mark_earlier, prepare_job
from kd_lightning.runs.directory import ERROR, FAILURE, LOCK, OVERRIDES, TRACEBACK, lock
from kd_lightning.runs.legacy import facts_of_old_run
from kd_lightning.runs.load import add_to_path
from kd_lightning.runs.networks import added
from kd_lightning.runs.processes import RESUME, config_dirs
from kd_lightning.utils.errors import Interrupted, UserError
from kd_lightning.utils.files import write_text

# Warnings of Lightning and torch that do not apply: a frozen teacher is in evaluation mode on
# purpose, data in memory need no workers, and the last step of an epoch is always logged.
IRRELEVANT_WARNINGS = (
    r".*in eval mode at the start of training.*",
    r".*does not have many workers.*",
    r".*smaller than the logging interval.*",
    r".*exists and is not empty.*",  # expected of the checkpoint folder of a resumed run
    r".*LeafSpec.*is deprecated.*",
    r".*sparse tensor invariants.*",  # of a checkpoint that is refused
    # Where SLURM is installed but has not started this process, as on its login node: once for
    # each trainer and each training. Lightning starts the processes of a job by itself there.
    r".*`srun` command is available.*",
)

LOCKS: dict[str, Any] = {}  # held by this process; not in the callback, which joblib pickles
FINISHED: list[JobReturn] = []  # by the last job of a sweep in this process
SWEEP_LOCK = ".lock"  # in the directory of a sweep
LOST = "Connection closed by peer"  # what gloo raises in the other processes if one has ended
INTERRUPTED = 130  # the exit code of shells for Ctrl-C

TAKE_A_VALUE = {  # Hydra's flags that are followed by a value
    *("--config-dir", "-cd", "--config-path", "-cp", "--config-name", "-cn"),
    *("--package", "-p", "--experimental-rerun"),
}


def quieten() -> None:
    """Silence messages that the user cannot act on."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.FileHandler):
            handler.handleError = partial(_on_log_error, handler)
    threading.excepthook = _on_thread_error
    for message in IRRELEVANT_WARNINGS:
        warnings.filterwarnings("ignore", message=message)


# A full disk is reported once, by the checkpoint or the figures that could not be written; the log
# and TensorBoard's thread would each print a traceback of their own before.
def _on_log_error(handler: logging.Handler, record: logging.LogRecord) -> None:
    if not isinstance(sys.exc_info()[1], OSError):
        logging.Handler.handleError(handler, record)


def _on_thread_error(args: threading.ExceptHookArgs) -> None:
    # TensorBoard raises it again in the main thread.
    if not isinstance(args.exc_value, OSError):
        threading.__excepthook__(args)


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
        if "LOCAL_RANK" in os.environ and LOST in str(error):
            sys.exit(0)  # the process that failed has said why
        mode = HydraConfig.get().mode
        if message is None and mode is not RunMode.MULTIRUN:
            raise
        if message is None:  # a bug: the other jobs may be spared
            trace = "".join(traceback.format_exception(error))
            message = f"{type(error).__name__}: {' '.join(str(error).split())}"
            _note(TRACEBACK, trace)
        if getattr(rank_zero_only, "rank", 0) == 0:
            print_error(message)
        if "LOCAL_RANK" in os.environ:
            # Code 0, because Lightning kills rank 0 as soon as another rank fails, and rank 0
            # must still report the error.
            sys.exit(0)
        if mode is RunMode.RUN:
            sys.exit(1)
        _note(ERROR, message)
        # An exception would end the whole sweep, and NaN as an objective a search by Optuna.
        return None


def _stop(what: str, code: int) -> NoReturn:
    """End the process after Ctrl-C or SIGTERM, with the command that continues the run."""
    if "LOCAL_RANK" not in os.environ:
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
        if not advice and name in LOCKS:
            folder = Path(str(LOCKS[name].lock_file).removesuffix(name))
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
    if "LOCAL_RANK" not in os.environ:
        for name in FAILURE:
            (Path(HydraConfig.get().runtime.output_dir) / name).unlink(missing_ok=True)


def find_plugins() -> None:
    """Make code in the folders named by ``--config-dir`` importable, for user plugins."""
    add_to_path(config_dirs())


def arranged(argv: list[str]) -> list[str]:
    """Return the command line for Hydra: flags first, and the overrides of what is resumed.

    Raises:
        UserError: if there is no run or sweep in the directory of ``resume=``.
    """
    # Hydra's parser accepts ``key=value`` arguments in one contiguous block only.
    flags, words = _flags_and_words(argv[1:])
    given = [word.removeprefix(RESUME) for word in words if word.startswith(RESUME)]
    if "LOCAL_RANK" in os.environ:
        return [argv[0], *flags, *words]
    words = [with_quoted_path(added(word)) for word in state_trust(words)]
    if not given or given[-1] in ("", "null"):
        return [argv[0], *flags, *_compared(words)]
    return [argv[0], *resumed(given[-1], flags, words)]


def _compared(words: list[str]) -> list[str]:
    """Let ``method=`` beside an experiment that compares methods replace the last of them.

    Otherwise ``experiment=compare method=dkd`` would run dkd alone and compare nothing.
    """
    experiment = next((w.partition("=")[2] for w in words if w.startswith("experiment=")), "")
    file = CONF / "experiment" / f"{experiment}.yaml"
    typed = [word for word in words if word.startswith("method=")]
    is_single = "hydra.mode=RUN" in words or any("(" in word for word in typed)
    if not typed or not file.is_file() or is_single:
        return words
    methods = OmegaConf.select(OmegaConf.load(file), "hydra.sweeper.params.method")
    if methods is None:
        return words
    *others, _ = methods.split(",")
    own = [name for name in typed[-1].partition("=")[2].split(",") if name not in others]
    kept = [word for word in words if word not in typed]
    return [*kept, f"method={','.join([*others, *own])}"]


def _flags_and_words(arguments: list[str]) -> tuple[list[str], list[str]]:
    flags: list[str] = []
    words: list[str] = []
    for before, argument in zip(["", *arguments], arguments, strict=False):
        is_flag = argument.startswith("-") or before in TAKE_A_VALUE
        (flags if is_flag else words).append(argument)
    return flags, words


@contextlib.contextmanager
def _ending_on_a_full_disk() -> Iterator[None]:
    """Exit if the disk is full: Hydra makes warnings of what its callbacks raise, and goes on."""
    try:
        yield
    except OSError as error:
        message = explain(error)
        if message is None:
            raise
        fail(with_advice(message, error))


class Launch(Callback):
    """Hydra callback that checks directories first and prints a sweep's table last."""

    # Checked before Hydra writes there, for an error of one line instead of a traceback.
    @_ending_on_a_full_disk()
    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        _make_folder(config.hydra.run.dir)
        self._lock(config.hydra.run.dir)  # before Hydra writes its record there

    @_ending_on_a_full_disk()
    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        folder = Path(config.hydra.sweep.dir)
        _make_folder(str(folder))
        self._lock(str(folder), SWEEP_LOCK)
        if not is_resumed(config):
            mark_earlier(folder)
        # Not every sweeper writes this record.
        write_text(folder / SWEEP, OmegaConf.to_yaml(config))

    @_ending_on_a_full_disk()
    def on_job_start(self, config: DictConfig, **kwargs: Any) -> None:
        if config.hydra.mode is RunMode.MULTIRUN:
            run_dir = Path(config.hydra.runtime.output_dir)
            self._lock(str(run_dir))
            if is_resumed(config):
                prepare_job(run_dir, config)
            else:
                # Of an earlier sweep: a job that fails must not show its figures.
                begin_anew(run_dir)

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        # A launcher keeps what every job returns until the last one ends, and sweepers need the
        # value only; the two configurations take 0.4 MB. Those of this job are dropped with the
        # next one's end, because other callbacks may still want them.
        for finished in FINISHED:
            finished.cfg = finished.hydra_cfg = None
        FINISHED[:] = [job_return]

    def _lock(self, run_dir: str, name: str = LOCK) -> None:
        try:
            # Released with the next lock of that name, or with the process.
            LOCKS[name] = lock(Path(run_dir), name)
        except UserError as error:
            fail(error)

    @_ending_on_a_full_disk()
    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Print and write the table of the sweep; exit with code 1 if a job failed."""
        folder = Path(config.hydra.sweep.dir)
        table = sweep_table(folder, convert=facts_of_old_run)
        print_table(table)
        table.write(folder)
        print_next(folder)
        # Without figures, or with those that the job had before it failed.
        failed = [row[0] for row in table.rows if row[0] in table.failed or _error(folder, row[0])]
        for job in failed:
            reason = _error(folder, job) or "see its train.log"
            print_line(f"job {job} failed: {reason}")
        if failed:
            fail(f"{len(failed)} of {len(table.rows)} jobs failed; see above")


def _error(folder: Path, job: str) -> str:
    """Why a job of a sweep failed; empty if it did not, or left no message."""
    file = folder / job / ERROR
    return file.read_text(encoding="utf-8").strip() if file.is_file() else ""


def _make_folder(path: str) -> None:
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
        if not os.access(path, os.W_OK):
            raise PermissionError(f"no permission to write in {path}")
    except OSError as error:
        fail(f"the run directory cannot be written ({error}); see hydra.run.dir=")
