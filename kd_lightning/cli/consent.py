"""The user's consent to run code that a resumed run names: ``trust=true``.

A run directory may come from anyone, and resuming it composes a configuration from the overrides
recorded there. The composed configuration is therefore looked through before Hydra acts on it.
"""

import os
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException

from kd_lightning.runs.load import recorded_dirs
from kd_lightning.runs.trust import TRUST, is_given, strangers
from kd_lightning.utils.errors import UserError
from kd_lightning.utils.reading import texts
from kd_lightning.utils.text import one_line, printable

PACKAGE = Path(__file__).resolve().parent.parent
# A wheel contains conf/ inside the package; in a clone it lies beside the package.
CONF = next(p for p in (PACKAGE / "conf", PACKAGE.parent / "conf") if p.is_dir())

CONFIG_DIR = ("--config-dir", "-cd")
LOGGING = ("logging.", "colorlog.")  # modules whose classes Hydra's own options of logging name


def state_trust(words: Sequence[str]) -> list[str]:
    """Note whether ``trust=true`` is among the words of a command line; return the others.

    It is no setting: it holds for this command and its processes, and nothing records it.

    Raises:
        UserError: if it is neither true nor false.
    """
    values = [word.removeprefix("trust=") for word in words if word.startswith("trust=")]
    if any(value not in ("true", "false") for value in values):
        raise UserError(f"trust={values[-1]}: it is true or false")
    # Not taken over from the shell either: consent is for one command.
    os.environ.pop(TRUST, None)
    if values and values[-1] == "true":
        os.environ[TRUST] = "1"
    return [word for word in words if not word.startswith("trust=")]


def check_trust(
    run_dir: Path, recorded: Sequence[str], typed: Sequence[str], flags: Sequence[str]
) -> None:
    """Refuse to resume a run that names code from elsewhere, unless the user trusts it.

    Args:
        run_dir: the run directory.
        recorded: overrides recorded there.
        typed: overrides on the command line, without those of ``resume=`` and ``trust=``.
        flags: flags on the command line.

    Raises:
        UserError: if consent is missing; the message says what would run.
    """
    if flag := next((o for o in recorded if o.startswith("-")), None):
        raise UserError(f"{run_dir / '.hydra/overrides.yaml'} has {flag!r}, which is no override")
    if is_given():
        return
    folders = _folders(flags)
    if not flags and (dirs := recorded_dirs(run_dir)):
        raise UserError(
            f"resume={run_dir} would run code in {', '.join(dirs)}: name the folder with "
            "--config-dir, or add trust=true, if you trust it"
        )
    found = list(_strangers(run_dir, [*recorded, *typed], folders))
    mine = {word.partition("=")[2] for word in typed}
    if named := [name for name in found if name not in mine]:
        raise UserError(
            f"resume={run_dir} would run {', '.join(named)}: add trust=true if you trust this code"
        )


def _folders(flags: Sequence[str]) -> list[Path]:
    """Return the folders of code on the command line."""
    found = [value for name, value in pairwise(flags) if name in CONFIG_DIR]
    found += [flag.partition("=")[2] for flag in flags if flag.partition("=")[0] in CONFIG_DIR]
    return [Path(folder).absolute() for folder in found]


def _strangers(run_dir: Path, overrides: list[str], folders: list[Path]) -> Iterator[str]:
    """Yield all code in the composed configuration that is not known."""
    searched = [f"file://{folder}" for folder in folders]
    words = [*overrides, f"hydra.searchpath={searched}"] if searched else overrides
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            config = compose("train", words, return_hydra_config=True)
        with read_write(config), open_dict(config):
            hydra = config.hydra
            config.run_dir = str(run_dir)  # what ${hydra:…} resolves to exists in a job only
            del config["hydra"]
        # Resolved, because an interpolation may create a whole section.
        job: Any = OmegaConf.to_container(config, resolve=True)
        own: Any = OmegaConf.to_container(hydra, resolve=False)
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise UserError(f"resume={run_dir}: {one_line(error)}") from error
    yield from strangers(job, folders)
    # Some parts are resolved once more, for the job of a teacher.
    yield from (printable(text) for text in texts(job) if "${" in text)
    yield from strangers(own["callbacks"], folders)
    # Hydra writes these two to the environment, and searches the third.
    yield from (f"{name}={value}" for name, value in own["job"]["env_set"].items())
    yield from (place for place in own["searchpath"] if place not in searched)
    for name in ("job_logging", "hydra_logging"):
        yield from _in_logging(own[name])


def _in_logging(config: Any) -> Iterator[str]:
    """Yield the code named by a configuration of Python's logging."""
    for key, value in _entries(config):
        is_code = key == "()" or (key == "class" and not str(value).startswith(LOGGING))
        other = isinstance(value, str) and value.startswith("ext://") and "ext://sys." not in value
        if is_code or other:
            yield printable(str(value))


def _entries(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield str(key), inner
            yield from _entries(inner)
    elif isinstance(value, list):
        for inner in value:
            yield "", inner
            yield from _entries(inner)
