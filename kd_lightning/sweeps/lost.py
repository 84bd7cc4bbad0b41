"""Jobs of a sweep that left no result, because their process died."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from omegaconf import DictConfig, open_dict

from kd_lightning.runs.directory import ERROR
from kd_lightning.utils.files import write_text


def composed(launcher: Any, overrides: Sequence[str], number: int) -> DictConfig:
    """Return the configuration of a job, with an absolute directory.

    Args:
        launcher: a launcher of Hydra, after its ``setup``.
        overrides: those of the job.
        number: of the job in the sweep.
    """
    loader = launcher.hydra_context.config_loader
    config = loader.load_sweep_config(launcher.config, list(overrides))
    with open_dict(config):
        config.hydra.job.id, config.hydra.job.num = f"job_id_for_{number}", number
        # A worker has another working directory.
        config.hydra.sweep.dir = str(Path(config.hydra.sweep.dir).absolute())
    return config


def lost(config: DictConfig, reason: str) -> JobReturn:
    """Return what stands for the result of a job, and say in its directory why it has none.

    Args:
        config: that of the job.
        reason: what the engine says, or where it says so.
    """
    # As a job that fails by itself: an exception would end the whole sweep.
    folder = Path(config.hydra.sweep.dir) / str(config.hydra.sweep.subdir)
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / ERROR, f"its worker died: {reason}\n")
    result = JobReturn(overrides=list(config.hydra.overrides.task), status=JobStatus.COMPLETED)
    result.return_value = None
    return result
