"""Between Hydra and Lightning: one job stays one job, errors stay readable, runs go on.

Lightning starts the other ranks of a DDP job by repeating the command line. In a sweep
that line describes all jobs, so for the time of one job it is replaced by that job's own.
"""

import logging
import math
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch.distributed
from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf, read_write
from omegaconf.errors import MissingMandatoryValue

from kd_lightning.report.sweep import sweep_table
from kd_lightning.utils.errors import UserError

# Remarks of Lightning's that do not apply: a frozen teacher is in evaluation mode on purpose,
# data in memory needs no workers, and the last step of an epoch is always logged.
NOT_OURS = (
    r".*in eval mode at the start of training.*",
    r".*does not have many workers.*",
    r".*smaller than the logging interval.*",
    r".*exists and is not empty.*",  # a resumed run
    r".*LeafSpec.*is deprecated.*",
    r".*torch\.jit\.trace.* is deprecated.*",  # TensorBoard's graph is drawn with it
)

DDP_VARIABLES = (
    *("LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"),
    "OMP_NUM_THREADS",  # each of several processes gets its share of the cores
)

TAKE_A_VALUE = {  # Hydra's flags
    *("--config-dir", "-cd", "--config-path", "-cp", "--config-name", "-cn"),
    *("--package", "-p", "--experimental-rerun"),
}


def quieten() -> None:
    """Leave on the terminal what a user can use."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in NOT_OURS:
        warnings.filterwarnings("ignore", message=message)


def run_job(job: Callable[[], float]) -> float:
    """Run one job so that an error a user can mend ends in one line.

    A single job exits with 1. In a sweep the others go on; the failed one counts as NaN,
    and the sweep exits with 1 after its table.
    """
    try:
        return job()
    except Exception as error:
        message = explain(error)
        if message is None or os.environ.get("HYDRA_FULL_ERROR") == "1":
            raise
        if getattr(rank_zero_only, "rank", 0) == 0:
            print(f"error: {message}", file=sys.stderr, flush=True)
        if "LOCAL_RANK" in os.environ:
            sys.exit(0)  # rank 0 reports; a failing child would make Lightning kill it
        if HydraConfig.get().mode is RunMode.RUN:
            sys.exit(1)
        return math.nan


def explain(error: BaseException | None) -> str | None:
    """One line for an error that a user can mend; None for one that is our bug."""
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


@contextmanager
def one_job() -> Iterator[None]:
    """Keep the processes that Lightning starts, and what it leaves behind, inside this job."""
    import __main__

    hydra: Any = HydraConfig.instance().cfg
    hydra = hydra.hydra
    kept = sys.argv, __main__.__spec__, hydra.run.dir
    environment, threads = {k: os.environ.get(k) for k in DDP_VARIABLES}, torch.get_num_threads()
    sys.argv = [sys.argv[0], *_own_command(hydra)]
    __main__.__spec__ = find_spec("kd_lightning.cli.train")  # children run `python -m` this
    _set_run_dir(hydra, hydra.runtime.output_dir)
    try:
        yield
    finally:
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
        for name, value in environment.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})
        torch.set_num_threads(threads)
        sys.argv, __main__.__spec__, run_dir = kept
        _set_run_dir(hydra, run_dir)


def own_overrides(cfg: DictConfig) -> list[str] | None:
    """What the user typed for this run; None for a teacher's run inside another job."""
    hydra = HydraConfig.get()
    return list(hydra.overrides.task) if cfg.run_dir == hydra.runtime.output_dir else None


def config_dirs() -> list[str]:
    """The folders that ``--config-dir`` named."""
    return _typed_dirs(HydraConfig.get().runtime.config_sources)


def find_plugins() -> None:
    """Let the code in those folders be imported."""
    sys.path += [folder for folder in config_dirs() if folder not in sys.path]


def _typed_dirs(sources: Any) -> list[str]:
    return [source.path for source in sources if source.provider == "command-line"]


def _own_command(hydra: DictConfig) -> list[str]:
    """The arguments that compose this very job, without the sweep around it."""
    searched = [o for o in hydra.overrides.hydra if "hydra.searchpath" in o]
    flags = [part for folder in config_dirs() for part in ("--config-dir", folder)]
    # the job's own process alone keeps a log
    return [*flags, *hydra.overrides.task, *searched, "hydra.mode=RUN", "hydra/job_logging=stdout"]


def _set_run_dir(hydra: DictConfig, path: str) -> None:
    with read_write(hydra.run):
        hydra.run.dir = path


def arranged(argv: list[str]) -> list[str]:
    """The command line with its flags first; with ``resume=RUN_DIR`` what made that run, too.

    Hydra takes ``key=value`` words in one piece only. What is typed beside ``resume=`` comes
    on top. Hydra's own record is left to us (output_subdir), so that a resumption that is
    refused leaves the run as it was.

    Raises:
        UserError: if there is no such run.
    """
    flags, words = _flags_and_words(argv[1:])
    given = [word.removeprefix("resume=") for word in words if word.startswith("resume=")]
    if not given or given[-1] in ("", "null") or "LOCAL_RANK" in os.environ:
        return [argv[0], *flags, *words]
    run_dir = resumed_run(given[-1])
    file = run_dir / ".hydra" / "overrides.yaml"
    if not file.is_file():
        raise UserError(f"resume={given[-1]}: no run was started in {run_dir}")
    before = [o for o in map(str, OmegaConf.load(file)) if not o.startswith("resume=")]
    settings = [f"hydra.run.dir='{run_dir}'", "hydra.output_subdir=null"]
    flags = flags or [part for d in _recorded_dirs(run_dir) for part in ("--config-dir", d)]
    return [argv[0], *flags, *before, *words, *settings]


def _flags_and_words(arguments: list[str]) -> tuple[list[str], list[str]]:
    flags: list[str] = []
    words: list[str] = []
    for before, argument in zip(["", *arguments], arguments, strict=False):
        is_flag = argument.startswith("-") or before in TAKE_A_VALUE
        (flags if is_flag else words).append(argument)
    return flags, words


def _recorded_dirs(run_dir: Path) -> list[str]:
    """The folders that ``--config-dir`` named when a run began."""
    file = run_dir / ".hydra" / "hydra.yaml"
    record = OmegaConf.load(file) if file.is_file() else OmegaConf.create()
    return _typed_dirs(OmegaConf.select(record, "hydra.runtime.config_sources") or [])


def resumed_run(path: str) -> Path:
    """The run directory that ``resume=`` means: itself, or the one a checkpoint lies in."""
    return Path(path).parent.parent if path.endswith(".ckpt") else Path(path)


class Launch(Callback):
    """Hydra's hooks around a run or a sweep."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        _make_folder(config.hydra.run.dir)

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        _make_folder(config.hydra.sweep.dir)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Print and keep the table of the sweep; exit with 1 if a job failed."""
        folder = Path(config.hydra.sweep.dir)
        table = sweep_table(folder)
        table.print()
        table.write(folder)
        if table.failed:
            sys.exit(f"error: {len(table.failed)} of {len(table.rows)} jobs failed; see above")


def _make_folder(path: str) -> None:
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
        if not os.access(path, os.W_OK):
            raise PermissionError(f"no permission to write in {path}")
    except OSError as error:
        sys.exit(f"error: the run directory cannot be written ({error}); see hydra.run.dir=")
