"""Jobs of a sweep that is resumed: each is finished, started or new, by its own directory.

Finished jobs return the figures they have, started ones continue at their last checkpoint, and
new ones run from the beginning. A job is told from its directory alone, so nothing depends on
the sweeper or the launcher: a search with a seed proposes the same trials again, the finished
ones answer at once, and it goes on where it stopped.
"""

import os
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException

from kd_lightning.runs.directory import FAILURE, OVERRIDES
from kd_lightning.runs.processes import own_overrides
from kd_lightning.runs.record import parse_overrides
from kd_lightning.utils.errors import UserError
from kd_lightning.utils.files import write_text
from kd_lightning.utils.run_directory import CONFIG, FACTS, METRICS, jobs_of

SWEEP = "multirun.yaml"  # in the directory of a sweep: how it was started
# Environment variable of the jobs of a resumed sweep: the keys of the overrides that are the same
# in all of them. Not an override itself, which would be one more setting of every job; through
# Hydra it reaches the workers of any launcher, and their DDP processes inherit it.
VARIABLE = "KD_RESUMED_SWEEP"
FIXED = f"hydra.job.env_set.{VARIABLE}"
# In the directory of a job of an earlier sweep, until the new sweep has begun the same job. A
# comparison of times would be wrong after the directories are copied.
EARLIER = ".hydra/.earlier"


def mark_earlier(sweep_dir: Path) -> None:
    """Mark the jobs in a directory as those of an earlier sweep than the one that begins."""
    for job in jobs_of(sweep_dir):
        (job / EARLIER).parent.mkdir(exist_ok=True)
        (job / EARLIER).touch()


def begin_anew(run_dir: Path) -> None:
    """Remove what an earlier run left in a job's directory that would be taken for this one's."""
    # Not its checkpoints, which stay until a training begins.
    for name in (METRICS, FACTS, EARLIER, *FAILURE):
        (run_dir / name).unlink(missing_ok=True)


def record_new(run_dir: Path, config: DictConfig) -> None:
    """Write the record of a resumed sweep's job that had not begun; leave others unchanged.

    Hydra writes none in a resumed sweep, because it would replace that of finished jobs.
    """
    if (run_dir / EARLIER).is_file() or _recorded_overrides(run_dir) is None:
        begin_anew(run_dir)
        job = OmegaConf.create({"hydra": config.hydra})
        rest = config.copy()
        with read_write(rest), open_dict(rest):
            del rest["hydra"]
        write_text(run_dir / CONFIG, OmegaConf.to_yaml(rest))
        write_text(run_dir / ".hydra/hydra.yaml", OmegaConf.to_yaml(job))
        # Last, because its presence marks the job as begun.
        write_text(run_dir / OVERRIDES, OmegaConf.to_yaml(config.hydra.overrides.task))


def continue_job(cfg: DictConfig) -> None:
    """Make a job of a resumed sweep continue what its directory contains.

    Raises:
        UserError: if the directory contains a job with other values of what is swept.
    """
    fixed, run_dir = os.environ.get(VARIABLE), Path(cfg.run_dir)
    if fixed is None:
        return
    own = parse_overrides(own_overrides(cfg) or [])
    found = parse_overrides(_recorded_overrides(run_dir) or [])
    swept = [key for key in own if key not in fixed.split()]
    if differing := [key for key in swept if found.get(key) != own[key]]:
        there, here = (
            ", ".join(f"{k}={values[k]}" if k in values else f"no {k}=" for k in differing)
            for values in (found, own)
        )
        raise UserError(
            f"{run_dir} was started with {there}, but the resumed sweep has {here} there, and "
            "left it as it is: start another sweep (a search can be resumed only if "
            "hydra.sweeper.sampler.seed is set)"
        )
    # run.json is written when the training starts: a job without it has nothing to continue.
    if (run_dir / FACTS).is_file():
        with read_write(cfg):
            cfg.resume = cfg.run_dir


def is_resumed(config: DictConfig) -> bool:
    """Whether the sweep of a configuration is resumed."""
    return VARIABLE in (OmegaConf.select(config, "hydra.job.env_set") or {})


def _recorded_overrides(run_dir: Path) -> list[str] | None:
    """Return the overrides of a job that has begun; None if it was stopped before."""
    try:
        recorded: Any = OmegaConf.load(run_dir / OVERRIDES)
    except (OSError, ValueError, yaml.YAMLError, OmegaConfBaseException):
        return None
    return list(map(str, recorded)) if OmegaConf.is_list(recorded) else None
