"""Writing a run directory; what is in it stands in :mod:`kd_lightning.utils.run_directory`."""

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from kd_lightning.utils.files import write_atomically, write_text
from kd_lightning.utils.run_directory import CONFIG, DIAGNOSTICS, LAST, METRICS

OVERRIDES = ".hydra/overrides.yaml"


def start_anew(run_dir: Path) -> None:
    """Remove what would make a run look finished, or lead a resumption to an older one."""
    for name in (METRICS, LAST):
        (run_dir / name).unlink(missing_ok=True)


def plain(config: Any, resolve: bool = True) -> dict[str, Any]:
    """A section of a configuration as an ordinary dictionary."""
    values = OmegaConf.to_container(config, resolve=resolve)
    assert isinstance(values, dict)
    return {str(k): v for k, v in values.items()}


def write_config(run_dir: Path, cfg: DictConfig, overrides: Sequence[str] | None) -> None:
    """Write the resolved configuration and, where a user typed them, the overrides."""
    write_text(run_dir / CONFIG, OmegaConf.to_yaml(cfg, resolve=True))
    if overrides is not None:
        write_text(run_dir / OVERRIDES, OmegaConf.to_yaml(list(overrides)))


def write_diagnostics(run_dir: Path, tables: Mapping[str, Tensor]) -> None:
    """Write the tables for plots as float32: see :mod:`kd_lightning.metrics.diagnostics`."""
    buffer = io.BytesIO()  # np.savez seeks, which an atomic write need not allow
    arrays: dict[str, Any] = {k: table.float().cpu().numpy() for k, table in tables.items()}
    np.savez(buffer, **arrays)
    write_atomically(run_dir / DIAGNOSTICS, lambda file: file.write(buffer.getvalue()))


def write_metrics(run_dir: Path, metrics: Mapping[str, Any]) -> None:
    """Write the figures, which finishes a run directory."""
    write_text(run_dir / METRICS, json.dumps(dict(metrics), indent=2) + "\n")
