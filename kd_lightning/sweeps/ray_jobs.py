"""Jobs of a sweep as tasks of Ray."""

import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import ray
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus, setup_globals
from hydra.types import TaskFunction
from hydra_plugins.hydra_ray_launcher._launcher_util import launch_job_on_ray, start_ray
from omegaconf import DictConfig, open_dict
from ray.exceptions import RayError

from kd_lightning.runs.directory import ERROR
from kd_lightning.utils.errors import first_line
from kd_lightning.utils.files import write_text


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
        _composed(launcher, list(overrides), number)
        for number, overrides in enumerate(job_overrides, initial_job_idx)
    ]
    remote, state = launcher.ray_cfg.remote, Singleton.get_state()
    jobs = [
        launch_job_on_ray(launcher.hydra_context, remote, config, task, state) for config in configs
    ]
    return [_result(job, config) for job, config in zip(jobs, configs, strict=True)]


def _composed(launcher: Any, overrides: list[str], number: int) -> DictConfig:
    loader = launcher.hydra_context.config_loader
    config = loader.load_sweep_config(launcher.config, overrides)
    with open_dict(config):
        config.hydra.job.id, config.hydra.job.num = f"job_id_for_{number}", number
        # A worker has another working directory.
        config.hydra.sweep.dir = str(Path(config.hydra.sweep.dir).absolute())
    return config


def _run_there(folder: Path, path: list[str], task: TaskFunction, config: DictConfig) -> Any:
    """Run a job where the command was typed, because paths in its settings may be relative."""
    os.chdir(folder)
    sys.path += [entry for entry in path if entry not in sys.path]
    return task(config)


def _result(job: Any, config: DictConfig) -> JobReturn:
    try:
        return ray.get(job)
    except RayError as error:
        message = f"its worker died: {first_line(error)}"
        folder = Path(config.hydra.sweep.dir) / config.hydra.sweep.subdir
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / ERROR, f"{message}\n")
        lost = JobReturn(overrides=list(config.hydra.overrides.task), status=JobStatus.COMPLETED)
        lost.return_value = None
        return lost
