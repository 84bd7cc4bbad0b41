"""One job and its processes: what Lightning starts for a job stays inside that job.

Lightning starts the other ranks of a DDP job by repeating the command line. In a sweep that
line describes all jobs, so while one job runs it is replaced by that job's own.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import torch.distributed
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, read_write

COMMAND = "kd_lightning.cli.train"  # what the other processes run
DDP_VARIABLES = (
    *("LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"),
    "OMP_NUM_THREADS",  # Lightning divides the cores among the processes of a job
)


@contextmanager
def one_job() -> Iterator[None]:
    """Confine to one job the processes that Lightning starts and what it leaves behind.

    Restored afterwards: the command line, the process group, the environment variables of DDP
    and the number of threads. The next job of a sweep may run on one process.
    """
    import __main__

    hydra: Any = HydraConfig.instance().cfg
    hydra = hydra.hydra
    kept = sys.argv, __main__.__spec__, hydra.run.dir
    environment, threads = {k: os.environ.get(k) for k in DDP_VARIABLES}, torch.get_num_threads()
    sys.argv = [sys.argv[0], *_own_command(hydra)]
    __main__.__spec__ = find_spec(COMMAND)  # Lightning starts children with `python -m` of this
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


def chosen_options() -> dict[str, str | None]:
    """The option of each group of the configuration: ``net@teacher`` -> ``teacher_cnn``."""
    if not HydraConfig.initialized():
        return {}
    choices = HydraConfig.get().runtime.choices
    return {str(k): v if v is None else str(v) for k, v in choices.items() if "hydra/" not in k}


def config_dirs() -> list[str]:
    """The folders named by ``--config-dir``."""
    return typed_dirs(HydraConfig.get().runtime.config_sources)


def typed_dirs(sources: Any) -> list[str]:
    """Those of Hydra's configuration sources that were given on the command line."""
    return [source.path for source in sources if source.provider == "command-line"]


def _own_command(hydra: DictConfig) -> list[str]:
    """The arguments that compose this job, without the sweep around it."""
    searched = [o for o in hydra.overrides.hydra if "hydra.searchpath" in o]
    flags = [part for folder in config_dirs() for part in ("--config-dir", folder)]
    # Only the first process writes a log file.
    return [*flags, *hydra.overrides.task, *searched, "hydra.mode=RUN", "hydra/job_logging=stdout"]


def _set_run_dir(hydra: DictConfig, path: str) -> None:
    with read_write(hydra.run):
        hydra.run.dir = path
