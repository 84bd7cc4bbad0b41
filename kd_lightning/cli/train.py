"""``kd-train`` (``train.py`` in a clone): train, validate and test one job or a sweep.

python train.py model=student method=kd
"""

import os
import sys
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from kd_lightning.cli.command_line import arranged, find_plugins
from kd_lightning.cli.console import print_chain, print_next, print_run
from kd_lightning.cli.explain import TRACEBACKS, explain_composition, wants_tracebacks
from kd_lightning.cli.outcome import fail_once, run_job, with_advice
from kd_lightning.cli.paths import CONF
from kd_lightning.cli.quiet import quieten
from kd_lightning.runs.chain import Chain
from kd_lightning.runs.checks import check
from kd_lightning.runs.continued import continue_job
from kd_lightning.runs.job import Job
from kd_lightning.runs.naming import keep_name
from kd_lightning.runs.networks import with_own_parts
from kd_lightning.runs.ranks import ranks
from kd_lightning.utils.errors import UserError
from kd_lightning.utils.process import tune_process


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="train")
def _hydra_main(cfg: DictConfig) -> float | None:
    quieten()
    tune_process()
    find_plugins()
    return run_job(lambda: _run(cfg)[cfg.monitor])  # the objective of a sweeper such as Optuna


def main() -> None:
    """Entry point of ``train.py`` and ``kd-train``."""
    # Before hydra.main, which reads sys.argv: a resumed run needs the overrides it had.
    try:
        sys.argv = arranged(sys.argv)
    except UserError as error:
        fail_once(error)
    # Hydra then raises what is wrong with the command line, instead of printing it over several
    # lines; run_job() takes care of the jobs' own errors.
    os.environ.setdefault(TRACEBACKS, os.environ.get("HYDRA_FULL_ERROR", "0"))
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        _hydra_main()
    except Exception as error:
        message = explain_composition(error, sys.argv[1:])
        if message is None or wants_tracebacks():
            raise
        fail_once(with_advice(message, error))


def _run(cfg: DictConfig) -> dict[str, Any]:
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


if __name__ == "__main__":
    main()
