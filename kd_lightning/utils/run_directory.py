"""Run directories: the names of their files, and reading their facts and figures.

.hydra/           config.yaml (resolved), overrides.yaml, hydra.yaml
run.json          facts about the run (see :mod:`kd_lightning.runs.record`)
metrics.json      figures by name (see :mod:`kd_lightning.metrics.figures`); written last, so
                  its presence marks the run as finished
diagnostics.npz   tables for plots, of the best epoch on validation data
checkpoints/      best.ckpt, last.ckpt
exported/         model.onnx and export.json, of kd-export; benchmark.json, of kd-benchmark
links/            run directories of the links, in a chain's directory
tensorboard/  metrics.csv  train.log

The module imports neither torch nor Lightning, so reports and tables start quickly.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from kd_lightning.utils.errors import UserError
from kd_lightning.utils.files import remove_partial
from kd_lightning.utils.reading import is_there, read_json

CONFIG, FACTS, METRICS = ".hydra/config.yaml", "run.json", "metrics.json"
DIAGNOSTICS, CURVES, LINKS = "diagnostics.npz", "metrics.csv", "links"
EXPORTED, BENCHMARK = "exported", "exported/benchmark.json"
BEST, LAST = "checkpoints/best.ckpt", "checkpoints/last.ckpt"
FORMAT = 1  # version of run.json; readers reject other versions instead of misreading them


class Record(dict[str, Any]):
    """Content of a JSON file; reading a missing key raises a UserError that names the file."""

    def __init__(self, file: Path, content: dict[str, Any]) -> None:
        super().__init__(content)
        self.file = file

    def __missing__(self, name: str) -> Any:
        raise UserError(f"{self.file} has no {name!r}")


@dataclass(frozen=True, eq=False)
class RunDirectory:
    """Facts and figures of a run, finished or not.

    Attributes:
        path: the directory, as given by the user.
        facts: content of ``run.json``.
        metrics: content of ``metrics.json``; empty until the run is finished.
    """

    path: Path
    facts: Record = field(repr=False)
    metrics: Record = field(repr=False)

    @cached_property
    def is_finished(self) -> bool:
        return bool(self.metrics)

    @property
    def role(self) -> str:
        """Role of the run: ``teacher``, ``student``, ``baseline`` or ``control: …``."""
        return self.facts["role"]

    @property
    def seed(self) -> str:
        return str(self.facts["seed"])

    @property
    def same_as(self) -> str:
        """The job of a sweep that trained the same student, which was not trained again."""
        return str(self.facts.get("same_as") or "")

    @property
    def overrides(self) -> dict[str, str]:
        """Overrides by the user: value by key."""
        return self.facts["overrides"]

    @property
    def settings(self) -> dict[str, Any]:
        """Settings that determine the result, except the seed: value by dotted key."""
        return self.facts["settings"]

    def number(self, name: str) -> float | None:
        """Return a figure of ``metrics.json``; None if it is missing or not finite."""
        return finite(self.metrics.get(name))


def read_run(
    path: str | Path, convert: Callable[[Path], dict[str, Any]] | None = None
) -> RunDirectory:
    """Read the facts and figures of a run directory.

    Args:
        path: the directory.
        convert: returns the facts of a directory of version 0.1, which has no ``run.json``.

    Raises:
        UserError: if the directory contains no run, or a file in it is damaged.
    """
    path = Path(path)
    if is_there(path / FACTS):
        facts = read_json(path / FACTS)
        if facts.get("format") != FORMAT:
            raise UserError(
                f"{path / FACTS} has format {facts.get('format')!r}, but this version reads "
                f"{FORMAT}: use the version of kd_lightning that wrote it"
            )
    elif convert is not None and is_run(path):
        facts = convert(path)
    else:
        raise UserError(f"{path} is not a run directory: it has no {FACTS}")
    metrics = read_json(path / METRICS) if is_there(path / METRICS) else {}
    return RunDirectory(path, Record(path / FACTS, facts), Record(path / METRICS, metrics))


def is_run(folder: Path) -> bool:
    """Return whether a folder contains a run of this version or an earlier one."""
    # Any one file is enough: a job may fail before its facts or figures are written.
    return any((folder / name).is_file() for name in (FACTS, CONFIG, METRICS))


def jobs_of(folder: Path) -> list[Path]:
    """Return the run directories in a sweep's directory, in the order of their numbers."""
    # By number, since job 10 would precede job 2 in alphabetical order.
    return sorted((p for p in folder.glob("*") if p.is_dir() and is_run(p)), key=_number)


def find_runs(folders: Sequence[Path]) -> list[Path]:
    """Return the run directories among folders and in sweep directories, each once.

    Args:
        folders: run directories, sweep directories, or both.

    Raises:
        UserError: if a directory is neither.
    """
    paths: dict[Path, Path] = {}
    for folder in folders:
        jobs = [folder] if is_run(folder) else jobs_of(folder)
        if not jobs:
            raise UserError(f"{folder} is neither a run directory nor a sweep directory")
        for job in jobs:
            paths.setdefault(job.resolve(), job)
    return [*paths.values()]


def find_checkpoint(path: str | Path, name: str = "best") -> Path:
    """Return the path of a checkpoint.

    Args:
        path: a checkpoint file, which is returned unchanged, or a run directory; for a chain,
            the checkpoint of the last link is returned.
        name: ``best`` or ``last``.
    """
    path = Path(path)
    if not path.is_dir():
        return path
    numbered = (link for link in (path / LINKS).glob("*") if link.name.isdecimal())
    links = sorted(numbered, key=lambda link: int(link.name))
    return (links or [path])[-1] / "checkpoints" / f"{name}.ckpt"


def remove_leftovers(run_dir: Path) -> None:
    """Remove what a killed process left of files that it was writing; needs the run's lock."""
    # Not recursively: another program's folders, or a store in use, may lie in the directory.
    homes = [run_dir, *(run_dir / LINKS).glob("*")]
    for folder in (home / part for home in homes for part in ("", ".hydra", "checkpoints")):
        remove_partial(folder)


def finite(value: Any) -> float | None:
    """Return a finite number as a float; None for anything else."""
    # bool is a subclass of int, but True is not a figure.
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:  # JSON allows integers beyond the range of a float
        return None


def _number(job: Path) -> tuple[int, str]:
    return (int(job.name), "") if job.name.isdecimal() else (-1, job.name)
