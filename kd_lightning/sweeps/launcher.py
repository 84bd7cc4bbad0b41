"""The launcher behind ``hydra/launcher=vectorized``: one process, jobs in order, as Hydra's own.

Each job has its turn, with its own directory, log and callbacks. Jobs that can be trained
together are trained at the turn of the first, and the others then only write what was found.
"""

import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, configure_log, filter_overrides, run_job, setup_globals
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from kd_lightning.runs.continued import is_resumed
from kd_lightning.runs.directory import plain
from kd_lightning.runs.job import Finished
from kd_lightning.sweeps.compose import Composer
from kd_lightning.sweeps.grouping import signature, why_alone
from kd_lightning.sweeps.members import MEMBERS
from kd_lightning.utils.errors import UserError
from kd_lightning.utils.run_directory import FACTS

log = logging.getLogger(__name__)

MODES = ("auto", "always")
LONE = "no other job differs from it in seed, temperature, weights or learning rate alone"
MOST = 64  # students of a group: more gain nothing on a CPU, and their activations fill a GPU


class VectorizedSweep:
    """Runs the jobs of a sweep, those that can be together.

    Args:
        mode: ``auto`` or ``always``.
        hydra_context: Hydra's loader of configurations and callbacks.
        task_function: runs one job.
        config: configuration of the sweep.

    Raises:
        UserError: if there is no such mode.
    """

    def __init__(
        self,
        mode: str,
        hydra_context: HydraContext,
        task_function: TaskFunction,
        config: DictConfig,
    ) -> None:
        if mode not in MODES:
            raise UserError(f"hydra.launcher.mode must be one of {', '.join(MODES)}, got {mode}")
        self.mode, self.task_function, self.config = mode, task_function, config
        self.composer = Composer(hydra_context.config_loader)
        self.hydra_context: Any = hydra_context
        self.hydra_context.config_loader = self.composer  # which the sweeper asks, too

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> list[JobReturn]:
        """Run the jobs with the given overrides; their numbers count from ``initial_job_idx``."""
        setup_globals()
        self._configure_log()
        Path(str(self.config.hydra.sweep.dir)).mkdir(parents=True, exist_ok=True)
        log.info("Launching %d jobs locally", len(job_overrides))
        configs: list[Any] = [
            self._composed(list(overrides), initial_job_idx + i)
            for i, overrides in enumerate(job_overrides)
        ]
        self._plan(configs)
        returned = []
        try:
            for i, overrides in enumerate(job_overrides):
                shown = " ".join(filter_overrides(overrides))
                log.info("\t#%d : %s", initial_job_idx + i, shown)
                returned.append(self._run(configs[i]))
                configs[i] = None  # 0.2 MB each
                self._configure_log()
        finally:
            MEMBERS.clear()
        return returned

    def _run(self, config: DictConfig) -> JobReturn:
        return run_job(
            hydra_context=self.hydra_context,
            task_function=self.task_function,
            config=config,
            job_dir_key="hydra.sweep.dir",
            job_subdir_key="hydra.sweep.subdir",
        )

    def _configure_log(self) -> None:
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)

    def _composed(self, overrides: list[str], number: int) -> DictConfig:
        config = self.composer.compose(self.config, overrides)
        with open_dict(config), read_write(config.hydra):
            config.hydra.job.id = config.hydra.job.num = number
        return config

    def _plan(self, configs: Sequence[DictConfig]) -> None:
        """Find the groups, and say why the other jobs run by themselves."""
        from kd_lightning.sweeps.group import Group, Seat

        groups: dict[Any, list[Seat]] = {}
        alone: dict[str, int] = {}
        for config in configs:
            run_dir, resolved, reason = _resolved(config)
            if reason := reason or why_alone(resolved):
                alone[reason] = alone.get(reason, 0) + 1
            else:
                # By the method, too: a baseline keeps its own α, whatever is typed.
                method = str(config.hydra.runtime.choices.get("method"))
                key = (method, signature(resolved))
                groups.setdefault(key, []).append(Seat(config, run_dir))
        for seats in groups.values():
            if len(seats) == 1:
                alone[LONE] = alone.get(LONE, 0) + 1
                continue
            parts = -(-len(seats) // MOST)
            for part in (seats[i::parts] for i in range(parts)):
                group = Group(part, self.mode)
                for seat in part:
                    MEMBERS[seat.run_dir] = partial(_take_turn, group, seat)
        for reason, count in alone.items():
            what = "1 job runs by itself" if count == 1 else f"{count} jobs run one by one"
            log.info("%s: %s", what, reason)


def _take_turn(group: Any, seat: Any, finished: Finished) -> dict[str, Any] | None:
    """Return the figures of a job of a group; None if it has to run by itself."""
    from kd_lightning.sweeps.writing import Writer

    MEMBERS.pop(seat.run_dir, None)  # with the last of them, the weights of the group are freed
    if not group.train(finished) or seat not in group.seats:
        return None
    return Writer(group, seat)(finished)


def _resolved(config: DictConfig) -> tuple[str, dict[str, Any], str]:
    """Return the run directory and the resolved configuration of a job, or why it has none."""
    hydra: Any = HydraConfig.instance()
    before = hydra.cfg
    try:
        hydra.cfg = config
        # As run_job() does when the job's turn comes.
        folder = Path(str(OmegaConf.select(config, "hydra.sweep.dir")))
        folder = (folder / str(OmegaConf.select(config, "hydra.sweep.subdir"))).absolute()
        with read_write(config.hydra.runtime), open_dict(config.hydra.runtime):
            config.hydra.runtime.output_dir = str(folder)
        if is_resumed(config) and (folder / FACTS).is_file():
            return str(folder), {}, "begun before the sweep was resumed"
        task = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
        return str(folder), plain(task), ""
    # Whatever is wrong with its configuration, the job reports it at its turn.
    except Exception as error:
        return "", {}, f"its configuration cannot be read ({type(error).__name__})"
    finally:
        hydra.cfg = before
