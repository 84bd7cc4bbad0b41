"""Isolation of one job's DDP processes from the other jobs of a sweep.

Lightning starts the other ranks of a DDP job by repeating the command line. In a sweep that
command line describes all jobs, so it is replaced by the job's own while the job runs.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from typing import Any

from hydra import compose
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, read_write

COMMAND = "kd_lightning.cli.train"  # module that the other ranks run
RESUME = "resume="  # says where a run goes on, not what it is
DDP_VARIABLES = (
    *("LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"),
    "OMP_NUM_THREADS",  # Lightning divides the cores among the processes of a job
)


@contextmanager
def one_job() -> Iterator[None]:
    """Restrict the other ranks to the current job, and remove the traces of DDP afterwards.

    The command line, the process group, the environment variables of DDP and the number of
    threads are restored, since the next job of a sweep may use a single process.
    """
    # Not at the top: command lines are read without it.
    import torch.distributed

    import __main__

    hydra: Any = HydraConfig.instance().cfg
    hydra = hydra.hydra
    kept = sys.argv, __main__.__spec__, hydra.run.dir
    environment, threads = {k: os.environ.get(k) for k in DDP_VARIABLES}, torch.get_num_threads()
    sys.argv = [sys.argv[0], *_own_command(hydra)]
    # Lightning starts ranks with `python -m` of this spec. Without one it would run sys.argv[0],
    # which is another program in a worker of joblib or in a notebook.
    __main__.__spec__ = find_spec(COMMAND)
    # Lightning passes hydra.run.dir to the ranks; in a sweep it would name another directory.
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
    """Return the user's overrides of this run; None for a teacher's run inside another job."""
    hydra = HydraConfig.get()
    if cfg.run_dir != hydra.runtime.output_dir:
        return None
    return [o for o in as_written(hydra.overrides.task) if not o.startswith(RESUME)]


def as_written(overrides: Any) -> list[str]:
    """Return recorded overrides as they were typed: ``${…}`` in them is not resolved."""
    plain: Any = OmegaConf.to_container(overrides, resolve=False)
    return list(map(str, plain))


def chosen_options() -> dict[str, str | None]:
    """Return the chosen option of each config group: ``net@teacher`` -> ``teacher_cnn``."""
    if not HydraConfig.initialized():
        return {}
    choices = HydraConfig.get().runtime.choices
    return {str(k): v if v is None else str(v) for k, v in choices.items() if "hydra/" not in k}


@cache
def option_alone(group: str, option: str) -> DictConfig:
    """Return the configuration with this one option chosen and nothing else overridden."""
    return compose("train", [f"{group}={option}", "run_dir=."])


def config_dirs() -> list[str]:
    """Return the folders named by ``--config-dir``."""
    return typed_dirs(HydraConfig.get().runtime.config_sources)


def typed_dirs(sources: Any) -> list[str]:
    """Return the paths of Hydra's config sources that were given on the command line."""
    return [source.path for source in sources if source.provider == "command-line"]


def _own_command(hydra: DictConfig) -> list[str]:
    """Return the arguments that compose this job alone, without the sweep."""
    searched = [o for o in hydra.overrides.hydra if "hydra.searchpath" in o]
    flags = [part for folder in config_dirs() for part in ("--config-dir", folder)]
    # Logging to stdout in the other ranks: only the first process writes train.log.
    return [*flags, *hydra.overrides.task, *searched, "hydra.mode=RUN", "hydra/job_logging=stdout"]


def _set_run_dir(hydra: DictConfig, path: str) -> None:
    with read_write(hydra.run):
        hydra.run.dir = path
