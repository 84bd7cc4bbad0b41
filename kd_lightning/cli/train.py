"""``kd-train`` (``train.py`` in a clone): train, validate and test one job or a sweep.

python train.py model=student method=kd
"""

import os
import sys

import hydra
from omegaconf import DictConfig

from kd_lightning.cli.command_line import arranged
from kd_lightning.cli.explain import TRACEBACKS, explain_composition, wants_tracebacks
from kd_lightning.cli.outcome import fail_once, run_job, with_advice
from kd_lightning.cli.paths import CONF
from kd_lightning.cli.quiet import quieten_hydra, quieten_torch
from kd_lightning.utils.errors import UserError


def _job(cfg: DictConfig) -> float | None:
    # Only now, as torch and Lightning take seconds: help and wrong settings are shown at once.
    from kd_lightning.cli.job import prepare_process, run

    prepare_process()
    return run_job(lambda: run(cfg)[cfg.monitor])  # the objective of a sweeper such as Optuna


def main() -> None:
    """Entry point of ``train.py`` and ``kd-train``."""
    quieten_hydra()
    quieten_torch()
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
        # Not as a decorator: Hydra 1.4 would warn of version_base before that can be silenced.
        hydra.main(version_base="1.3", config_path=str(CONF), config_name="train")(_job)()
    except Exception as error:
        message = explain_composition(error, sys.argv[1:])
        if message is None or wants_tracebacks():
            raise
        fail_once(with_advice(message, error))


if __name__ == "__main__":
    main()
