"""What ``kd-train`` does with a composed configuration: one job, or a chain of them."""

from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from kd_lightning.cli.console import print_chain, print_next, print_run
from kd_lightning.cli.quiet import quieten
from kd_lightning.runs.chain import Chain
from kd_lightning.runs.checks import check
from kd_lightning.runs.continued import continue_job
from kd_lightning.runs.job import Job
from kd_lightning.runs.load import add_to_path
from kd_lightning.runs.naming import keep_name
from kd_lightning.runs.networks import with_own_parts
from kd_lightning.runs.processes import config_dirs
from kd_lightning.runs.ranks import ranks
from kd_lightning.sweeps.members import MEMBERS
from kd_lightning.utils.process import tune_process


def prepare_process() -> None:
    """Set up a process for jobs."""
    quieten()
    tune_process()
    find_plugins()


def find_plugins() -> None:
    """Make code in the folders named by ``--config-dir`` importable, for user plugins."""
    add_to_path(config_dirs())


def run(cfg: DictConfig) -> dict[str, Any]:
    """Check a configuration, run its job or chain, and return the figures."""
    member = MEMBERS.get(str(cfg.run_dir))  # a job that a launcher trains with others
    if member is not None and (metrics := member(_print)) is not None:
        return metrics
    continue_job(cfg)
    cfg = with_own_parts(cfg)
    check(cfg)
    cfg = keep_name(cfg)
    return run_chain(cfg) if cfg.chain is not None else train(cfg)


def train(cfg: DictConfig) -> dict[str, Any]:
    """Run one job and print its figures."""
    return Job(_print)(cfg)


def run_chain(cfg: DictConfig) -> dict[str, Any]:
    """Run a chain, in which each link's student is the next link's teacher."""
    metrics = Chain(cfg, train).run()
    if ranks().is_main:
        print_chain(Path(cfg.run_dir))
        print_next(Path(cfg.run_dir))
    return metrics


def _print(run_dir: Path, profile: str) -> None:
    print_run(run_dir)
    print(profile, end="")
    hydra = HydraConfig.get()
    if hydra.mode is RunMode.RUN and str(run_dir) == hydra.runtime.output_dir:
        print_next(run_dir)  # not after its teacher, nor after each job of a sweep
