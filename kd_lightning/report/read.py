"""Run directories and sweep directories, read and checked."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from kd_lightning.utils.errors import UserError
from kd_lightning.utils.run_directory import (
    FACTS,
    METRICS,
    Record,
    RunDirectory,
    is_run,
    jobs_of,
    read_run,
)

Convert = Callable[[Path], dict[str, Any]]

# The facts that a report needs, and their types in JSON.
TYPES = {
    **{"role": str, "teacher": str, "settings": dict, "overrides": dict, "links": list},
    **{"seed": object, "processes": int},
}


def read_runs(folders: Sequence[Path], convert: Convert | None = None) -> list[RunDirectory]:
    """The runs in any mixture of run directories and sweep directories, each once.

    Args:
        folders: the directories.
        convert: gives the facts of a directory that was written before ``run.json`` was.

    Raises:
        UserError: if a directory is neither, or a file in it is damaged.
    """
    paths: dict[Path, Path] = {}
    for folder in folders:
        jobs = [folder] if is_run(folder) else jobs_of(folder)
        if not jobs:
            raise UserError(f"{folder} is neither a run directory nor a sweep directory")
        for job in jobs:
            paths.setdefault(job.resolve(), job)
    return [_read(path, convert) for path in paths.values()]


def _read(path: Path, convert: Convert | None) -> RunDirectory:
    # a job that failed early, as for a wrong option, has recorded no facts
    if not any((path / name).is_file() for name in (FACTS, METRICS)):
        return RunDirectory(
            path,
            Record(path / FACTS, {"overrides": _overrides(path, convert)}),
            Record(path / METRICS, {}),
        )
    run = read_run(path, convert)
    for name, kind in TYPES.items():
        if not isinstance(run.facts[name], kind):
            raise UserError(f"{run.facts.file}: {name!r} should be a {kind.__name__}")
    return run


def _overrides(path: Path, convert: Convert | None) -> dict[str, str]:
    """What was typed for such a job, as far as its configuration can be read."""
    try:
        return convert(path)["overrides"] if convert else {}
    except UserError:  # the configuration may be what the job failed for
        return {}
