"""Jobs of a sweep that is resumed: each is finished, started or new, by its own directory.

Finished jobs return the figures they have, started ones continue at their last checkpoint, and
new ones run from the beginning. A job is told from its directory alone, so nothing depends on
the sweeper or the launcher: a search with a seed proposes the same trials again, the finished
ones answer at once, and it goes on where it stopped. A trial that had failed and now succeeds
changes what is proposed after it; trials that are not proposed again are kept beside the others.
"""

import itertools
import logging
import os
import shutil
from pathlib import Path

from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from kd_lightning.runs.directory import FAILURE, LOCK, OVERRIDES
from kd_lightning.runs.processes import as_written
from kd_lightning.runs.ranks import ranks
from kd_lightning.runs.record import parse_overrides
from kd_lightning.runs.recorded import read_yaml
from kd_lightning.utils.errors import UserError
from kd_lightning.utils.files import write_text
from kd_lightning.utils.run_directory import CONFIG, FACTS, METRICS, jobs_of

log = logging.getLogger(__name__)

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


def prepare_job(run_dir: Path, config: DictConfig) -> None:
    """Prepare the directory of a resumed sweep's job: one that has begun is left unchanged.

    A job that has not begun gets its record, which Hydra does not write in a resumed sweep, as it
    would replace that of finished jobs. A directory that contains a job with other values of what
    is swept is set aside.
    """
    found = None if (run_dir / EARLIER).is_file() else _recorded_overrides(run_dir)
    if found is not None and (differing := _differing(found, config)):
        there = _set_aside(run_dir)
        log.warning(
            "%s was started with %s, which this sweep does not propose there: kept in %s",
            *(run_dir, ", ".join(differing), there),
        )
        found = None
    if found is None:
        begin_anew(run_dir)
        job = OmegaConf.create({"hydra": config.hydra})
        rest = config.copy()
        with read_write(rest), open_dict(rest):
            del rest["hydra"]
        write_text(run_dir / CONFIG, OmegaConf.to_yaml(rest))
        write_text(run_dir / ".hydra/hydra.yaml", OmegaConf.to_yaml(job))
        # Last, because its presence marks the job as begun.
        write_text(run_dir / OVERRIDES, OmegaConf.to_yaml(config.hydra.overrides.task))


def _differing(found: list[str], config: DictConfig) -> list[str]:
    """Return the recorded overrides of what is swept that differ from the job's own."""
    fixed = config.hydra.job.env_set[VARIABLE].split()
    recorded, own = parse_overrides(found), parse_overrides(as_written(config.hydra.overrides.task))
    differing = [k for k in own if k not in fixed and recorded.get(k) != own[k]]
    return [f"{k}={recorded[k]}" if k in recorded else f"no {k}=" for k in differing]


def _set_aside(run_dir: Path) -> Path:
    """Move the files of a job to a new directory beside it."""
    names = (run_dir.with_name(f"{run_dir.name}-{i}") for i in itertools.count(1))
    there = next(path for path in names if not path.exists())
    (there / ".hydra").mkdir(parents=True)
    # Not the folder as a whole: this process has a lock in it, and writes a log. The overrides
    # last, so that a kill leaves a directory that still differs.
    files = [p for p in run_dir.iterdir() if p.name != ".hydra"]
    for file in [*files, *sorted((run_dir / ".hydra").iterdir(), key=_is_overrides)]:
        target = there / file.relative_to(run_dir)
        if file.suffix == ".log":
            shutil.copy2(file, target)
        elif file.name != Path(LOCK).name:
            file.rename(target)
    return there


def _is_overrides(file: Path) -> bool:
    return file.name == Path(OVERRIDES).name


def continue_job(cfg: DictConfig) -> None:
    """Let a job of a resumed sweep, or one that is started again, continue in its directory."""
    is_continued = VARIABLE in os.environ or ranks().restarts
    # run.json is written when the training starts: a job without it has nothing to continue.
    if is_continued and (Path(cfg.run_dir) / FACTS).is_file():
        with read_write(cfg):
            cfg.resume = cfg.run_dir


def is_resumed(config: DictConfig) -> bool:
    """Whether the sweep of a configuration is resumed."""
    return VARIABLE in (OmegaConf.select(config, "hydra.job.env_set") or {})


def _recorded_overrides(run_dir: Path) -> list[str] | None:
    """Return the overrides of a job that has begun; None if it was stopped before."""
    try:
        recorded = read_yaml(run_dir / OVERRIDES)
    except UserError:
        return None
    return list(map(str, recorded)) if isinstance(recorded, list) else None
