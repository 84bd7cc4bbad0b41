"""Run directories, as the report sees them: what was typed, what was used, what came of it."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from kd_lightning.utils.errors import UserError

Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times faster where libyaml is there
MISSING = object()


class Figures(dict[str, Any]):
    """The figures of a file; asked for one that is not there, it says so in one line."""

    def __init__(self, file: Path, found: dict[str, Any]) -> None:
        super().__init__(found)
        self.file = file

    def __missing__(self, name: str) -> Any:
        raise UserError(f"{self.file} holds no {name}")


@dataclass(frozen=True, eq=False)
class Run:
    """One run directory.

    Attributes:
        path: as the user gave it.
        metrics: the figures of ``metrics.json``; empty while the run is not finished.
    """

    path: Path
    metrics: Figures

    @cached_property
    def config(self) -> dict[str, Any]:
        """The resolved configuration."""
        return _mapping(self._hydra("config.yaml"))

    @cached_property
    def typed(self) -> dict[str, str]:
        """What was typed for this run: keys without ``+`` or ``~``, and their values."""
        lines = self._hydra("overrides.yaml") or []
        if not isinstance(lines, list):
            raise UserError(f"{self.path / '.hydra' / 'overrides.yaml'} holds no list")
        pairs = (str(line).lstrip("+~").partition("=") for line in lines)
        return {key: value for key, _, value in pairs}

    @cached_property
    def choices(self) -> dict[str, Any]:
        """The options that were chosen, typed or not: ``method`` -> ``kd``."""
        found = _mapping(self._hydra("hydra.yaml"))
        for name in ("hydra", "runtime", "choices"):
            found = _mapping(found.get(name))
        return found

    @property
    def seed(self) -> str:
        return str(self.metrics.get("seed", self.config.get("seed", "")))

    @property
    def teacher(self) -> str:
        """Which teacher it learnt from; empty if from none."""
        return str(self.metrics.get("teacher") or "")

    def setting(self, key: str) -> Any:
        """What the configuration says under a dotted name, or ``MISSING``."""
        found: Any = self.config
        for name in key.split("."):
            found = found.get(name, MISSING) if isinstance(found, dict) else MISSING
        return found

    def number(self, name: str) -> float | None:
        """A figure, if it is there and finite."""
        return finite(self.metrics.get(name))

    def _hydra(self, name: str) -> Any:
        file = self.path / ".hydra" / name
        return load(file, lambda text: yaml.load(text, Loader=Loader)) if file.is_file() else None


def finite(value: Any) -> float | None:
    """A number as a float; None for what is none, or not finite."""
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    return None


def is_run(folder: Path) -> bool:
    """Whether a run was started here."""
    return (folder / ".hydra").is_dir() or (folder / "metrics.json").is_file()


def jobs_of(folder: Path) -> list[Path]:
    """The run directories in a sweep's directory, in the order they were numbered."""
    return sorted((p for p in folder.glob("*") if p.is_dir() and is_run(p)), key=_number)


def read_run(folder: Path) -> Run:
    """One run directory, finished or not."""
    file = folder / "metrics.json"
    metrics = load(file, json.loads) if file.is_file() else {}
    if not isinstance(metrics, dict):
        raise UserError(f"{file} holds no figures")
    return Run(folder, Figures(file, metrics))


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """The runs in any mixture of run and sweep directories, each once.

    Raises:
        UserError: for a directory that is neither.
    """
    homes: dict[Path, Path] = {}
    for folder in folders:
        jobs = [folder] if is_run(folder) else jobs_of(folder)
        if not jobs:
            raise UserError(f"{folder} is neither a run's directory nor a sweep's")
        for job in jobs:
            homes.setdefault(job.resolve(), job)
    return [read_run(home) for home in homes.values()]


def load(file: Path, parse: Callable[[str], Any]) -> Any:
    """What a file says; damage ends in one line that names it."""
    try:
        return parse(file.read_text())
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"{file} cannot be read: {' '.join(str(error).split())}") from error


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _number(job: Path) -> tuple[int, str]:
    return (int(job.name), "") if job.name.isdecimal() else (-1, job.name)
