"""What a run directory is: the names of its files, and its facts and figures.

.hydra/           config.yaml (resolved), overrides.yaml, hydra.yaml
run.json          facts, flat: what this run is (see :mod:`kd_lightning.runs.record`)
metrics.json      figures, flat: what came out (see :mod:`kd_lightning.metrics.figures`);
                  written last, so its presence says that the run is finished
diagnostics.npz   tables for plots, of the best epoch on validation data
checkpoints/      best.ckpt, last.ckpt
links/            of a chain: a run directory for each link
tensorboard/  metrics.csv  train.log

Nothing heavy is imported here: reports read hundreds of run directories.
"""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from kd_lightning.utils.errors import UserError

CONFIG, FACTS, METRICS = ".hydra/config.yaml", "run.json", "metrics.json"
DIAGNOSTICS, CURVES, LINKS = "diagnostics.npz", "metrics.csv", "links"
BEST, LAST = "checkpoints/best.ckpt", "checkpoints/last.ckpt"
FORMAT = 1  # of run.json


class Record(dict[str, Any]):
    """The content of a JSON file; a missing key is an error of one line that names the file."""

    def __init__(self, file: Path, content: dict[str, Any]) -> None:
        super().__init__(content)
        self.file = file

    def __missing__(self, name: str) -> Any:
        raise UserError(f"{self.file} has no {name!r}")


@dataclass(frozen=True, eq=False)
class RunDirectory:
    """A run, finished or not.

    Attributes:
        path: the directory, as the user gave it.
        facts: ``run.json``.
        metrics: ``metrics.json``; empty while the run is not finished.
    """

    path: Path
    facts: Record = field(repr=False)
    metrics: Record = field(repr=False)

    @cached_property
    def is_finished(self) -> bool:
        return bool(self.metrics)

    @property
    def role(self) -> str:
        """``teacher``, ``student``, ``baseline``, or ``control: permuted`` and the like."""
        return self.facts["role"]

    @property
    def seed(self) -> str:
        return str(self.facts["seed"])

    @property
    def overrides(self) -> dict[str, str]:
        """What was typed for this run: value by key."""
        return self.facts["overrides"]

    @property
    def settings(self) -> dict[str, Any]:
        """What defines its result, apart from the seed: value by dotted key."""
        return self.facts["settings"]

    def number(self, name: str) -> float | None:
        """A figure of ``metrics.json``; None where it is missing or not finite."""
        return finite(self.metrics.get(name))


def read_run(
    path: str | Path, convert: Callable[[Path], dict[str, Any]] | None = None
) -> RunDirectory:
    """Read the facts and figures of a run directory.

    Args:
        path: the directory.
        convert: gives the facts of a directory that was written before ``run.json`` was.

    Raises:
        UserError: if there is no run, or a file of it is damaged.
    """
    path = Path(path)
    if (path / FACTS).is_file():
        facts = read_json(path / FACTS)
        if facts.get("format") != FORMAT:
            raise UserError(
                f"{path / FACTS} has format {facts.get('format')!r}, this version reads {FORMAT}"
            )
    elif convert is not None and is_run(path):
        facts = convert(path)
    else:
        raise UserError(f"{path} is not a run directory: it has no {FACTS}")
    metrics = read_json(path / METRICS) if (path / METRICS).is_file() else {}
    return RunDirectory(path, Record(path / FACTS, facts), Record(path / METRICS, metrics))


def is_run(folder: Path) -> bool:
    """Whether a run was started in a folder, by this version or an earlier one."""
    return any((folder / name).is_file() for name in (FACTS, CONFIG, METRICS))


def jobs_of(folder: Path) -> list[Path]:
    """The run directories in a sweep's directory, in the order of their numbers."""
    return sorted((p for p in folder.glob("*") if p.is_dir() and is_run(p)), key=_number)


def find_checkpoint(path: str | Path, name: str = "best") -> Path:
    """A checkpoint file: the path itself, or the one of that name in a run directory.

    Of a chain it is that of its last link.
    """
    path = Path(path)
    if not path.is_dir():
        return path
    links = sorted((path / LINKS).glob("[0-9]*"), key=lambda link: int(link.name))
    return (links or [path])[-1] / "checkpoints" / f"{name}.ckpt"


def read_json(file: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        UserError: if the file cannot be read or holds something else.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file} cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise UserError(f"{file} holds a {type(content).__name__}, not an object")
    return content


def finite(value: Any) -> float | None:
    """A number as a float; None for anything else, and for what is not finite."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:  # an integer of hundreds of digits is valid JSON
        return None


def _number(job: Path) -> tuple[int, str]:
    return (int(job.name), "") if job.name.isdecimal() else (-1, job.name)
