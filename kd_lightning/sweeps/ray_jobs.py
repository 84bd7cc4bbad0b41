"""Jobs of a sweep as tasks of Ray."""

import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import ray
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, setup_globals
from hydra.types import TaskFunction
from hydra_plugins.hydra_ray_launcher._launcher_util import launch_job_on_ray, start_ray
from omegaconf import DictConfig
from ray.exceptions import RayError

from kd_lightning.sweeps.lost import composed, lost
from kd_lightning.utils.errors import first_line


def launch(
    launcher: Any, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
) -> list[JobReturn]:
    """Run jobs as the plugin does, except that a worker's death fails its own job only.

    Args:
        launcher: an instance of the plugin's launcher.
        job_overrides: those of each job.
        initial_job_idx: the number of the first job.

    Returns:
        What each job returned; the objective of a lost job is None.
    """
    setup_globals()
    start_ray(launcher.ray_cfg.init)
    task = partial(_run_there, Path.cwd(), list(sys.path), launcher.task_function)
    configs = [
        composed(launcher, overrides, number)
        for number, overrides in enumerate(job_overrides, initial_job_idx)
    ]
    remote, state = launcher.ray_cfg.remote, Singleton.get_state()
    jobs = [
        launch_job_on_ray(launcher.hydra_context, remote, config, task, state) for config in configs
    ]
    return [_result(job, config) for job, config in zip(jobs, configs, strict=True)]


def _run_there(folder: Path, path: list[str], task: TaskFunction, config: DictConfig) -> Any:
    """Run a job where the command was typed, because paths in its settings may be relative."""
    os.chdir(folder)
    sys.path += [entry for entry in path if entry not in sys.path]
    return task(config)


def _result(job: Any, config: DictConfig) -> JobReturn:
    try:
        return ray.get(job)
    except RayError as error:
        return lost(config, first_line(error))
