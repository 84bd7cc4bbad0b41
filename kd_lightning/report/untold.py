"""What parts runs though nobody typed it: networks of a teacher store, links of a chain."""

from collections.abc import Iterator, Sequence
from typing import Any

from kd_lightning.report.read import MISSING, Run
from kd_lightning.report.settings import TARGET, is_teacher, value

SECTIONS = ("student", "model", "method", "teacher", "trainer", "data")
OF_A_TEACHER = ("model", "trainer", "data")  # the others are the job's that wanted it
TWICE = ("model.student.", "model.teacher.", "model.objective.")  # sections have it as well
INCIDENTAL = (
    *("seed", "root", "default_root_dir", "devices", "num_nodes", "accelerator", "strategy"),
    *("enable_progress_bar", "enable_model_summary", "log_every_n_steps"),
    *("device_resident", "eval_batch_size"),
)


def untold(alike: Sequence[list[Run]]) -> list[str]:
    """The first keys of the configuration that part runs which what was typed leaves alike."""
    keys: list[str] = []
    parts = [part for part in alike if len(part) > 1]
    for key in dict.fromkeys(key for part in parts for run in part for key in _keys(run)):
        if any(_differs(part, key) for part in parts):
            keys.append(key)
            parts = [half for part in parts for half in _split(part, key)]
    return keys


def _keys(run: Run) -> list[str]:
    """The names of all settings that make a run what it is, classes first in each section."""
    found: list[str] = []
    for name in OF_A_TEACHER if is_teacher(run) else SECTIONS:
        found += sorted(_leaves(run.config.get(name), name), key=lambda k: not k.endswith(TARGET))
    return [key for key in found if not key.startswith(TWICE)]


def _leaves(found: Any, name: str) -> Iterator[str]:
    if isinstance(found, dict):
        for inner, setting in found.items():
            if inner not in INCIDENTAL:
                yield from _leaves(setting, f"{name}.{inner}")
    elif found is not None:
        yield name


def _differs(runs: list[Run], key: str) -> bool:
    """Among the runs that know it: a setting that only later code has makes no difference."""
    know = runs if key.endswith(TARGET) else [r for r in runs if r.setting(key) is not MISSING]
    return len({value(run, key) for run in know}) > 1


def _split(runs: list[Run], key: str) -> list[list[Run]]:
    parts: dict[str, list[Run]] = {}
    for run in runs:
        parts.setdefault(value(run, key), []).append(run)
    return list(parts.values())
