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
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException

from kd_lightning.cli.paths import CONF
from kd_lightning.runs.recorded import read_yaml
from kd_lightning.runs.trust import TRUST, is_given, strangers
from kd_lightning.utils.errors import UserError
from kd_lightning.utils.reading import texts
from kd_lightning.utils.text import one_line, printable

CONFIG_DIR = ("--config-dir", "-cd")
# Settings of launchers: lines of a shell, options of sbatch, where and how Ray runs what it gets.
RISKY = ("setup", "additional_parameters", "ray")
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
    run_dir: Path,
    recorded: Sequence[str],
    dirs: Sequence[str],
    typed: Sequence[str],
    flags: Sequence[str],
) -> None:
    """Refuse to resume a run or a sweep that names code from elsewhere, unless it is trusted.

    Args:
        run_dir: its directory.
        recorded: overrides recorded there.
        dirs: folders of ``--config-dir`` recorded there, which are used if none is typed.
        typed: overrides on the command line, without those of ``resume=`` and ``trust=``.
        flags: flags on the command line.

    Raises:
        UserError: if consent is missing; the message says what would run.
    """
    if flag := next((o for o in recorded if o.startswith("-")), None):
        raise UserError(f"resume={run_dir} records {flag!r}, which is no override")
    if is_given():
        return
    folders = typed_folders(flags)
    if dirs and not folders:
        raise UserError(
            f"resume={run_dir} would run code in {', '.join(dirs)}: name the folder with "
            "--config-dir, or add trust=true, if you trust it"
        )
    jobs = _jobs(run_dir, [*recorded, *typed])
    found = list(dict.fromkeys(n for words in jobs for n in _strangers(run_dir, words, folders)))
    mine = {word.partition("=")[2] for word in typed}
    if named := [name for name in found if name not in mine]:
        raise UserError(
            f"resume={run_dir} would run {', '.join(named)}: add trust=true if you trust this code"
        )


def _jobs(run_dir: Path, words: Sequence[str]) -> list[list[str]]:
    """Return overrides of single jobs in which each value of a sweep occurs."""
    try:
        parsed = OverridesParser.create().parse_overrides(list(words))
    except HydraException as error:
        raise UserError(f"resume={run_dir}: {one_line(error)}") from error
    values = [list(o.sweep_string_iterator()) if o.is_sweep_override() else [] for o in parsed]
    return [
        [
            f"{o.get_key_element()}={found[min(i, len(found) - 1)]}" if found else str(o.input_line)
            for o, found in zip(parsed, values, strict=True)
        ]
        for i in range(max(map(len, values), default=0) or 1)
    ]


def typed_folders(flags: Sequence[str]) -> list[Path]:
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
    yield from _of_launcher(own["launcher"])
    # Hydra writes these two to the environment, and searches the third.
    yield from (f"{name}={value}" for name, value in own["job"]["env_set"].items())
    yield from (place for place in own["searchpath"] if place not in searched)
    for name in ("job_logging", "hydra_logging"):
        yield from _in_logging(own[name])


def _of_launcher(config: Any) -> Iterator[str]:
    """Yield the commands and places of a launcher that no preset has: it runs code by them."""
    presets = (CONF / "hydra" / "launcher").glob("*.yaml")
    known = {text for file in presets for text in texts(read_yaml(file))}
    risky = [config.get(name) for name in RISKY]
    yield from (printable(text) for text in texts(risky) if text not in {*known, "auto"})


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
