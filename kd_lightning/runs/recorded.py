"""Reading of the configurations that Hydra and a run record in ``.hydra/``.

The files may come from anyone: they are plain YAML of a bounded size, without the references that
let a few lines unfold to gigabytes.
"""

import io
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from kd_lightning.runs.processes import typed_dirs
from kd_lightning.utils.errors import UserError
from kd_lightning.utils.reading import check_text, is_there, read_text
from kd_lightning.utils.text import one_line

MOST_BYTES = 2**20  # two hundred times what a run records
MOST_DEPTH = 100  # nested collections
DAMAGE = (ValueError, TypeError, AttributeError, OSError, RecursionError, yaml.YAMLError)

Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # with libyaml, ten times faster


def read_yaml(file: Path) -> Any:
    """Read a YAML file as plain values.

    Raises:
        UserError: if the file cannot be read, or is no plain YAML.
    """
    text = _checked(file)
    try:
        return yaml.load(text, Loader=Loader)
    except DAMAGE as error:
        raise _damaged(file, error) from error


def read_config(file: Path) -> DictConfig | ListConfig:
    """Read a YAML file as a configuration, with OmegaConf's notation of numbers.

    Raises:
        UserError: if the file cannot be read, or is no plain YAML.
    """
    text = _checked(file)
    try:
        return OmegaConf.load(io.StringIO(text))
    except (*DAMAGE, OmegaConfBaseException) as error:
        raise _damaged(file, error) from error


def _checked(file: Path) -> str:
    """Return the text of a YAML file that holds plain values only."""
    text, depth = read_text(file, MOST_BYTES), 0
    try:
        # Event by event, before anything is built from them.
        for event in yaml.parse(text, Loader=Loader):
            depth += isinstance(event, yaml.CollectionStartEvent)
            depth -= isinstance(event, yaml.CollectionEndEvent)
            if isinstance(event, yaml.AliasEvent):
                raise UserError(f"{file} cannot be read: it has references (*{event.anchor})")
            if depth > MOST_DEPTH:
                raise UserError(f"{file} cannot be read: it is nested too deeply")
            if isinstance(event, yaml.ScalarEvent):
                check_text(file, event.value)
    except UserError:
        raise
    except DAMAGE as error:
        raise _damaged(file, error) from error
    return text


def _damaged(file: Path, error: Exception) -> UserError:
    return UserError(f"{file} cannot be read: {one_line(error)}")


def recorded_dirs(run_dir: Path) -> list[str]:
    """Return the folders that a run was given with ``--config-dir``."""
    file = run_dir / ".hydra" / "hydra.yaml"
    record = read_config(file) if is_there(file) else OmegaConf.create()
    try:
        found = OmegaConf.select(record, "hydra.runtime.config_sources") or []
        return [str(folder) for folder in typed_dirs(found)]
    except (OmegaConfBaseException, AttributeError, TypeError) as error:
        raise UserError(f"{file} does not record where the configuration came from") from error
