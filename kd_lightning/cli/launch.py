"""Launching jobs with Hydra: readable errors, resuming, and the table of a sweep."""

import contextlib
import logging
import math
import os
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue

from kd_lightning.cli.consent import CONF, check_trust, state_trust
from kd_lightning.cli.console import fail, print_error, print_line, print_table
from kd_lightning.report.sweep import sweep_table
from kd_lightning.runs.directory import lock
from kd_lightning.runs.legacy import facts_of_old_run
from kd_lightning.runs.load import add_to_path, recorded_dirs
from kd_lightning.runs.processes import config_dirs
from kd_lightning.runs.recorded import read_yaml
from kd_lightning.utils.errors import Interrupted, UserError
from kd_lightning.utils.files import write_text
from kd_lightning.utils.reading import is_there
from kd_lightning.utils.run_directory import FACTS, METRICS

# Warnings of Lightning and torch that do not apply: a frozen teacher is in evaluation mode on
# purpose, data in memory need no workers, and the last step of an epoch is always logged.
IRRELEVANT_WARNINGS = (
    r".*in eval mode at the start of training.*",
    r".*does not have many workers.*",
    r".*smaller than the logging interval.*",
    r".*exists and is not empty.*",  # expected of the checkpoint folder of a resumed run
    r".*LeafSpec.*is deprecated.*",
    r".*torch\.jit\.trace.* is deprecated.*",  # TensorBoard's graph is drawn with it
)

ERROR = "error.txt"  # in the directory of a failed job of a sweep
INTERRUPTED = 130  # the exit code of shells for Ctrl-C

TAKE_A_VALUE = {  # Hydra's flags that are followed by a value
    *("--config-dir", "-cd", "--config-path", "-cp", "--config-name", "-cn"),
    *("--package", "-p", "--experimental-rerun"),
}


def quieten() -> None:
    """Silence messages that the user cannot act on."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in IRRELEVANT_WARNINGS:
        warnings.filterwarnings("ignore", message=message)


def run_job(job: Callable[[], float]) -> float:
    """Run one job, and print errors that the user can correct in one line.

    A single job then exits with code 1. In a sweep the failed job returns NaN, the other jobs
    continue, even after a bug, and the sweep exits with code 1 after printing its table. Ctrl-C
    ends a run, or a whole sweep, with code 130, and SIGTERM with 143.
    """
    try:
        return job()
    except (Interrupted, KeyboardInterrupt) as interruption:
        _stop(str(interruption) or "interrupted", getattr(interruption, "code", INTERRUPTED))
    except Exception as error:
        message = explain(error)
        if os.environ.get("HYDRA_FULL_ERROR") == "1":
            raise
        mode = HydraConfig.get().mode
        if message is None and mode is not RunMode.MULTIRUN:
            raise
        if message is None:  # a bug, or a full disk: the other jobs may be spared
            trace = "".join(traceback.format_exception(error))
            message = f"{type(error).__name__}: {' '.join(str(error).split())}"
            _note("traceback.txt", trace)
        if getattr(rank_zero_only, "rank", 0) == 0:
            print_error(message)
        if "LOCAL_RANK" in os.environ:
            # Code 0, because Lightning kills rank 0 as soon as another rank fails, and rank 0
            # must still report the error.
            sys.exit(0)
        if mode is RunMode.RUN:
            sys.exit(1)
        _note(ERROR, message)
        return math.nan  # a sweeper's objective; an exception would end the whole sweep


def _stop(what: str, code: int) -> NoReturn:
    """End the process after Ctrl-C or SIGTERM, with the command that continues the run."""
    if "LOCAL_RANK" not in os.environ:
        run_dir = HydraConfig.get().runtime.output_dir
        print(f"{what}; resume with: python train.py 'resume={run_dir}'", file=sys.stderr)
    sys.exit(code)


def _note(name: str, text: str) -> None:
    """Leave a text in the directory of a failed sweep job, where that is possible."""
    with contextlib.suppress(OSError):
        write_text(Path(HydraConfig.get().runtime.output_dir) / name, f"{text}\n")


def explain(error: BaseException | None) -> str | None:
    """Return a message of one line for an error that the user can correct; None for a bug."""
    # Hydra and Lightning wrap errors, so the chain of causes is searched for a known one.
    while error is not None:
        if isinstance(error, UserError | MisconfigurationException | MissingMandatoryValue):
            return " ".join(str(error).split("\n    ")[0].split())
        if isinstance(error, ModuleNotFoundError):
            advice = "" if "install" in str(error) else ": install it, or choose another option"
            return " ".join(f"{error}{advice}".split())
        if isinstance(error, InstantiationException) and isinstance(error.__cause__, TypeError):
            return " ".join(str(error).split())
        error = error.__cause__
    return None


def find_plugins() -> None:
    """Make code in the folders named by ``--config-dir`` importable, for user plugins."""
    add_to_path(config_dirs())


def arranged(argv: list[str]) -> list[str]:
    """Return the command line for Hydra: flags first, and the overrides of a resumed run.

    With ``resume=RUN_DIR`` the recorded overrides of that run come before those just typed,
    which therefore take precedence.

    Raises:
        UserError: if there is no such run.
    """
    # Hydra's parser accepts ``key=value`` arguments in one contiguous block only.
    flags, words = _flags_and_words(argv[1:])
    given = [_bare(word.removeprefix("resume=")) for word in words if word.startswith("resume=")]
    if "LOCAL_RANK" in os.environ:
        return [argv[0], *flags, *words]
    words = state_trust(words)
    if not given or given[-1] in ("", "null"):
        return [argv[0], *flags, *_compared(words)]
    run_dir = resumed_run(given[-1])
    file = run_dir / ".hydra" / "overrides.yaml"
    if not is_there(file):
        raise UserError(f"resume={given[-1]}: no run was started in {run_dir}")
    recorded = read_yaml(file)  # not as a configuration, which would resolve interpolations
    # Hydra writes this file in place: a kill right then leaves it empty, and what would be
    # resumed is the default run. A run without overrides has an empty list.
    if not isinstance(recorded, list):
        raise UserError(
            f"resume={given[-1]}: {file} does not record the overrides of the run, which was "
            "stopped as it began: start it again instead"
        )
    before = [o for o in map(str, recorded) if not o.startswith(("resume=", "trust="))]
    # Without output_subdir Hydra writes no record of its own, so a refused resumption leaves the
    # run unchanged; runs/directory.py writes the record later.
    words = [word for word in words if not word.startswith("resume=")]
    # Not the mode of an experiment that is a sweep: one of its jobs is resumed.
    settings = [f"hydra.run.dir={_quoted(run_dir)}", "hydra.output_subdir=null", "hydra.mode=RUN"]
    settings += [f"resume={_quoted(given[-1])}"]
    check_trust(run_dir, before, words, flags)
    flags = flags or [part for d in recorded_dirs(run_dir) for part in ("--config-dir", d)]
    return [argv[0], *flags, *before, *words, *settings]


def _bare(path: str) -> str:
    """A path without the quotes in which Hydra would have wanted it."""
    is_quoted = len(path) > 1 and path[0] == path[-1] and path[0] in "'\""
    return path[1:-1] if is_quoted and not Path(path).exists() else path


def _quoted(path: str | Path) -> str:
    """A path as a value of Hydra's grammar, in which commas and braces have a meaning."""
    escaped = str(path).replace("\\'", "\\\\'").replace("'", "\\'")
    return f"'{escaped}'"


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


def resumed_run(path: str) -> Path:
    """Return the run directory of ``resume=``, which is a directory or a checkpoint in one."""
    return Path(path).parent.parent if path.endswith(".ckpt") else Path(path)


class Launch(Callback):
    """Hydra callback that checks directories first and prints a sweep's table last."""

    # Checked before Hydra writes there, for an error of one line instead of a traceback.
    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        _make_folder(config.hydra.run.dir)
        self._lock(config.hydra.run.dir)  # before Hydra writes its record there

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        _make_folder(config.hydra.sweep.dir)

    def on_job_start(self, config: DictConfig, **kwargs: Any) -> None:
        if config.hydra.mode is RunMode.MULTIRUN:
            self._lock(config.hydra.runtime.output_dir)
            # Of an earlier sweep in this directory: a job that fails must not show its figures.
            for name in (METRICS, FACTS):
                (Path(config.hydra.runtime.output_dir) / name).unlink(missing_ok=True)

    def _lock(self, run_dir: str) -> None:
        try:
            self.lock = lock(Path(run_dir))  # released with the next one, or with the process
        except UserError as error:
            fail(error)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Print and write the table of the sweep; exit with code 1 if a job failed."""
        folder = Path(config.hydra.sweep.dir)
        table = sweep_table(folder, convert=facts_of_old_run)
        print_table(table)
        table.write(folder)
        for job in table.failed:
            file = folder / job / ERROR
            reason = file.read_text().strip() if file.is_file() else "see its train.log"
            print_line(f"job {job} failed: {reason}")
        if table.failed:
            fail(f"{len(table.failed)} of {len(table.rows)} jobs failed; see above")


def _make_folder(path: str) -> None:
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
        if not os.access(path, os.W_OK):
            raise PermissionError(f"no permission to write in {path}")
    except OSError as error:
        fail(f"the run directory cannot be written ({error}); see hydra.run.dir=")
