"""Reading and checking of run directories and sweep directories."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from kd_lightning.utils.errors import UserError
from kd_lightning.utils.run_directory import (
    FACTS,
    METRICS,
    Record,
    RunDirectory,
    find_runs,
    read_run,
)

Convert = Callable[[Path], dict[str, Any]]

# Facts that a report needs, and their types in JSON. Checked when read, since a run directory
# may have been edited or written by another version.
TYPES = {
    **{"role": str, "teacher": str, "settings": dict, "overrides": dict, "links": list},
    **{"seed": object, "processes": int},
}
MOST_LINKS = 100  # of a chain


def read_runs(folders: Sequence[Path], convert: Convert | None = None) -> list[RunDirectory]:
    """Read the runs in run directories and sweep directories, each run once.

    Args:
        folders: run directories, sweep directories, or both.
        convert: returns the facts of a directory of version 0.1, which has no ``run.json``.

    Raises:
        UserError: if a directory is neither, or a file in it is damaged.
    """
    return [_read(path, convert) for path in find_runs(folders)]


def _read(path: Path, convert: Convert | None) -> RunDirectory:
    # A job that failed early, for example because of an invalid option, has no facts.
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
    if len(run.facts["links"]) > MOST_LINKS or not all(
        isinstance(link, str) for link in run.facts["links"]
    ):
        raise UserError(f"{run.facts.file}: 'links' should be at most {MOST_LINKS} names")
    return run


def _overrides(path: Path, convert: Convert | None) -> dict[str, str]:
    """Return a failed job's overrides; empty if its configuration cannot be read."""
    try:
        return convert(path)["overrides"] if convert else {}
    except UserError:  # the configuration itself may be the reason for the failure
        return {}
