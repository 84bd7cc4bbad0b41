"""The name of a method means what it says, whatever else is set.

``ce`` is a baseline, ``permuted`` a control, ``annealed`` a curriculum; each is an ordinary
configuration that other overrides can change into something else. Such a change is refused. In a
sweep, where ``method=ce,kd method.alpha=0.1,0.5`` is natural, the named method keeps its own
settings, and jobs that therefore train the same student as an earlier one are not run again.
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from kd_lightning.runs.build import make
from kd_lightning.runs.continued import EARLIER
from kd_lightning.runs.directory import plain
from kd_lightning.runs.networks import PROBE
from kd_lightning.runs.processes import chosen_options, option_alone
from kd_lightning.runs.ranks import ranks
from kd_lightning.runs.record import ROLES_WITHOUT_TEACHER
from kd_lightning.utils.errors import UserError
from kd_lightning.utils.reading import read_json
from kd_lightning.utils.run_directory import FACTS, METRICS

log = logging.getLogger(__name__)

TEACHERS = ("kd_lightning.modules.TeacherModule", PROBE)  # which have no method
IS = {  # what a run of a role is, for messages
    "baseline": "learns from labels alone",
    "control: label_smoothing": "learns from smoothed labels alone",
    "control: permuted": "has a teacher whose wrong classes are permuted",
    "control: untrained": "has an untrained teacher",
}


def role_of(cfg: DictConfig) -> str:
    """The role of a student trained by a configuration."""
    objective, control = make(cfg.method, "method"), make(cfg.teacher_from, "teacher_from").control
    return f"control: {control}" if control and objective.needs_teacher else objective.role


def keep_name(cfg: DictConfig) -> DictConfig:
    """Check that a job trains what its method is called.

    Returns:
        The configuration; in a sweep with the method's own settings instead of those that
        would change it into something else.

    Raises:
        UserError: in a single run, if a setting changes the method into something else.
    """
    method = chosen_options().get("method")
    if not method or cfg.model._target_ in TEACHERS or cfg.chain:
        return cfg
    own = option_alone("method", method)
    if own.model._target_ != cfg.model._target_:
        if method == "mutual":
            raise UserError("method=mutual needs model=mutual: leave out model=")
        return cfg  # model=mutual takes the objective of any method
    changed = _changed(cfg, own)
    if not changed:
        return cfg
    words = ", ".join(f"{key}={_text(OmegaConf.select(cfg, key))}" for key in changed)
    reason = IS.get(role_of(own), "changes its temperature while training")
    # The other processes of a sweep job, and a resumed one, take the overrides it had.
    is_single = HydraConfig.get().mode is RunMode.RUN
    if is_single and not cfg.resume and not ranks().is_child:
        raise UserError(
            f"method={method} {reason}; {words} would change that: leave it out, or use another "
            "method, such as kd"
        )
    log.info("method=%s %s: %s has no effect on it", method, reason, words)
    kept = cfg.copy()
    OmegaConf.set_struct(kept, False)
    for key in changed:
        OmegaConf.update(kept, key, OmegaConf.select(own, key), merge=False)
    return kept


def _changed(cfg: DictConfig, own: DictConfig) -> list[str]:
    """The settings that make a method something else than its name says."""
    mine, theirs = plain(cfg.method), plain(own.method)
    differing = [key for key in mine if mine[key] != theirs.get(key)]
    # A schedule or a learned temperature that became a number is no curriculum any more.
    found = [
        key
        for key in ("temperature",)  # a schedule of α, as DKD's warm-up, is a detail
        if key in differing and _is_made(theirs.get(key)) and not _is_made(mine[key])
    ]
    role = role_of(own)
    if role in IS and role != role_of(cfg):
        found += [key for key in differing if key not in found]
        if cfg.teacher_from != own.teacher_from:
            return [*(f"method.{key}" for key in found), "teacher_from"]
    return [f"method.{key}" for key in found]


def twin_of(record: Mapping[str, Any], run_dir: Path) -> Path | None:
    """An earlier job of this sweep that trained the same baseline, if there is one.

    Args:
        record: facts of the job, without its teacher.
        run_dir: of the job.
    """
    hydra = HydraConfig.get()
    if hydra.mode is not RunMode.MULTIRUN or record["role"] not in ROLES_WITHOUT_TEACHER:
        return None  # what a sweep varies has an effect on all others
    same = ("role", "task", "settings", "seed", "processes")
    for file in sorted(Path(hydra.sweep.dir).glob("*/" + METRICS), key=str):
        job = file.parent
        if job == run_dir or not (job / FACTS).is_file() or (job / EARLIER).is_file():
            continue
        found = read_json(job / FACTS)
        if all(found.get(name) == record[name] for name in same):
            return job
    return None


def _is_made(value: Any) -> bool:
    return isinstance(value, Mapping) and "_target_" in value


def _text(value: Any) -> str:
    if not OmegaConf.is_dict(value):
        return str(value)
    named = value["_target_"] if "_target_" in value else ", ".join(map(str, value))
    return str(named).rpartition(".")[2]
