"""Functions that write a run directory; see :mod:`kd_lightning.utils.run_directory`."""

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout
from omegaconf import DictConfig, OmegaConf

from kd_lightning.runs.ranks import ranks
from kd_lightning.utils.errors import UserError
from kd_lightning.utils.files import write_atomically, write_text
from kd_lightning.utils.run_directory import (
    CONFIG,
    DIAGNOSTICS,
    LAST,
    METRICS,
    remove_leftovers,
)

if TYPE_CHECKING:  # command lines are read without torch
    from torch import Tensor

FAILURE = ERROR, TRACEBACK = "error.txt", "traceback.txt"  # of a failed job of a sweep
OVERRIDES = ".hydra/overrides.yaml"
LOCK = ".hydra/.lock"  # hidden, because it stays: deleting it could let two processes in
SWEEP_LOCK = ".lock"  # in the directory of a sweep
HELD: dict[str, FileLock] = {}  # by this process: the run's, and the sweep's


def lock(run_dir: Path, name: str = LOCK) -> None:
    """Keep other runs out of a run directory, until this process locks another; or a sweep's.

    Two runs would mix their files. The system releases the lock when a process ends, however it
    ends, so a stale lock file is no obstacle. The other processes of a run share the
    first one's.

    Args:
        run_dir: the directory.
        name: of the lock file in it.

    Raises:
        UserError: if another process is using the directory.
    """
    if not ranks().is_main:
        return
    (run_dir / name).parent.mkdir(parents=True, exist_ok=True)
    found = FileLock(run_dir / name)
    try:
        found.acquire(timeout=0)
    except Timeout as error:
        raise UserError(
            f"another process is using the run directory {run_dir}: wait for it, or choose "
            "another hydra.run.dir="
        ) from error
    HELD[name] = found
    remove_leftovers(run_dir)


def start_anew(run_dir: Path) -> None:
    """Prepare a directory for a new run in place of an older one."""
    # metrics.json would mark the new run as finished, and last.ckpt would be resumed from.
    for name in (METRICS, LAST, *FAILURE):
        (run_dir / name).unlink(missing_ok=True)


def plain(config: Any, resolve: bool = True) -> dict[str, Any]:
    """Convert a section of a configuration to an ordinary dictionary."""
    values = OmegaConf.to_container(config, resolve=resolve)
    assert isinstance(values, dict)
    return {str(k): v for k, v in values.items()}


def write_config(run_dir: Path, cfg: DictConfig, overrides: Sequence[str] | None) -> None:
    """Write the resolved configuration, and the overrides of a run that the user started."""
    # Replaces Hydra's unresolved file: ${hydra:…} cannot be resolved outside of the run.
    write_text(run_dir / CONFIG, OmegaConf.to_yaml(cfg, resolve=True))
    if overrides is not None:
        write_text(run_dir / OVERRIDES, OmegaConf.to_yaml(list(overrides)))


def write_diagnostics(run_dir: Path, tables: Mapping[str, "Tensor"]) -> None:
    """Write the tables for plots as float32; see :mod:`kd_lightning.metrics.diagnostics`."""
    import numpy as np

    buffer = io.BytesIO()  # np.savez seeks, which write_atomically() does not promise to allow
    arrays: dict[str, Any] = {k: table.float().cpu().numpy() for k, table in tables.items()}
    np.savez(buffer, **arrays)
    write_atomically(run_dir / DIAGNOSTICS, lambda file: file.write(buffer.getvalue()))


def write_metrics(run_dir: Path, metrics: Mapping[str, Any]) -> None:
    """Write the figures, which marks the run as finished."""
    write_text(run_dir / METRICS, json.dumps(dict(metrics), indent=2) + "\n")
