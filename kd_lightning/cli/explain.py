"""Errors in one line: what is wrong, where, and how to correct it."""

import errno
import os
import re
import traceback
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import (
    ConfigCompositionException,
    HydraException,
    InstantiationException,
    MissingConfigException,
    OverrideParseException,
)
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from kd_lightning.cli.paths import CONF
from kd_lightning.runs.arguments import nearest
from kd_lightning.utils.errors import UserError, causes, first_line

# Whether the user asks for tracebacks. Hydra's variable itself is always set while Hydra composes
# the configuration, because Hydra would otherwise print errors in its own way: see cli/train.py.
TRACEBACKS = "KD_FULL_ERROR"

PLUGINS = ("submitit", "ray")  # extras with plugins of Hydra for which conf/ has presets

# What is wrong with a disk, by the error of the system.
DISK = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "no larger file may be written here (see ulimit -f)",
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "there is no permission",
    errno.EPERM: "there is no permission",
}
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def wants_tracebacks() -> bool:
    """Return whether the user set HYDRA_FULL_ERROR=1."""
    return os.environ.get(TRACEBACKS, os.environ.get("HYDRA_FULL_ERROR")) == "1"


def explain(error: BaseException | None) -> str | None:
    """Return a message of one line for an error that the user can correct; None for a bug."""
    # Hydra and Lightning wrap errors, so the chain of causes is searched for a known one.
    chain = list(causes(error))
    for cause in chain:
        # By its name, because a command line is read before Lightning is imported.
        is_lightnings = type(cause).__name__ == "MisconfigurationException"
        if is_lightnings or isinstance(cause, UserError | MissingMandatoryValue):
            return _joined(str(cause).split("\n    ")[0])
        if isinstance(cause, ModuleNotFoundError):
            advice = "" if "install" in str(cause) else ": install it, or choose another option"
            return _joined(f"{cause}{advice}")
        if isinstance(cause, MissingConfigException):
            return _missing_option(cause)
        if isinstance(cause, OverrideParseException):
            return f"{cause.override} is not of the form key=value: {_joined(str(cause.message))}"
        if isinstance(cause, InstantiationException) and isinstance(cause.__cause__, TypeError):
            return _joined(str(cause))
    if (of_disk := disk_error(error)) is not None:
        what = "written" if of_disk.errno not in (errno.EACCES, errno.EPERM) else "opened"
        where = f": {of_disk.filename} cannot be {what}" if of_disk.filename else ""
        return _joined(f"{DISK[of_disk.errno or 0]}{where}")
    for cause in reversed(chain):
        if isinstance(cause, OmegaConfBaseException | HydraException):
            return _joined(str(cause).split("\n    full_key")[0])
        if _is_raised_by_lightning(cause):
            return first_line(cause)
    return None


def disk_error(error: BaseException | None) -> OSError | None:
    """Return the cause of an error that is a full disk or a lack of permission, if one is."""
    for cause in causes(error):
        # Without a file, permission was refused to something else, such as a socket.
        if isinstance(cause, OSError) and (cause.filename or cause.errno in FULL):
            return cause if cause.errno in DISK else None
    return None


def explain_composition(error: Exception, words: Sequence[str]) -> str | None:
    """Return a message of one line for an error in composing the configuration.

    Args:
        error: what Hydra raised.
        words: the overrides on the command line.
    """
    text = str(error)
    if isinstance(error, ConfigCompositionException) and text.startswith("Could not override"):
        key = text.split("'")[1]
        return f"there is no setting {key}" + _similar(key, words)
    if isinstance(error, ValueError) and text.startswith("Config group override"):
        return _no_option(words)
    if isinstance(error, RuntimeError) and text.startswith("Unknown plugin class"):
        extra = next((name for name in PLUGINS if name in text), None)
        return extra and f"{text}: install it with pip install 'kd-lightning[{extra}]'"
    if isinstance(error, RuntimeError) and text.startswith('Could not detect "srun"'):
        return "there is no Slurm on this machine: hydra/launcher=submitit_local rehearses a sweep"
    return explain(error)


def _no_option(words: Sequence[str]) -> str:
    """Explain a config group that was set to null or a number instead of an option."""
    wrong = [w for w in words if re.fullmatch(r"[\w@/]*=(null|[\d.]+|true|false|)", w)]
    groups = [w for w in wrong if (CONF / w.partition("=")[0].partition("@")[0]).is_dir()]
    named = (groups or wrong or ["an override"])[0]
    group = named.partition("=")[0]
    advice = f"choose an option of {group}="
    advice += ", or leave it out with ~logger" if group == "logger" else ""
    return f"{named} names no option: {advice}" if group else f"{named} has no key"


def _similar(key: str, words: Sequence[str]) -> str:
    """Return advice for an unknown key: the nearest one, or how to add it."""
    groups = [w for w in words if re.fullmatch(r"[\w@./]+=[\w./]+", w) and w.split("=")[0] != key]
    for chosen in (groups, []):  # without the user's options if one of them is wrong, too
        GlobalHydra.instance().clear()
        try:
            with initialize_config_dir(str(CONF), version_base="1.3"):
                cfg = compose("train", [w for w in chosen if "." not in w.split("=")[0]])
        except Exception:  # the hint is not worth another error
            continue
        known = [k for k in _keys(cfg) if k != key and not key.startswith(f"{k}.")]
        # A short name, such as temperature, may be the end of a key.
        ends = [k for k in known if k.rpartition(".")[2] == key]
        found = ends[:1] or get_close_matches(key, known, n=1, cutoff=0.75)
        if found:
            return f"; did you mean {found[0]}?"
    return f"; to add it, write +{key}="


def _keys(config: Any, prefix: str = "") -> Iterator[str]:
    for name in map(str, config) if isinstance(config, DictConfig) else ():
        yield f"{prefix}{name}"
        if not OmegaConf.is_missing(config, name) and not OmegaConf.is_interpolation(config, name):
            yield from _keys(config[name], f"{prefix}{name}.")


def _missing_option(error: MissingConfigException) -> str:
    """Explain an unknown option of a config group; Hydra lists all of them, a line each."""
    group, _, option = str(error.missing_cfg_file).rpartition("/")
    options = list(error.options or ())
    if not group or not options:
        return _joined(str(error))
    hint = nearest(option, options) or f"; there are {', '.join(options)}"
    return f"{group}={option}: there is no option {option} of {group}{hint}"


def _is_raised_by_lightning(error: BaseException) -> bool:
    """Return whether a check of Lightning failed, such as an unknown figure of a callback."""
    frames = traceback.extract_tb(error.__traceback__)
    if not frames or not isinstance(error, ValueError | RuntimeError | TypeError):
        return False
    last = frames[-1]
    is_theirs = re.search(r"[/\\]lightning[/\\](pytorch|fabric)[/\\]", last.filename)
    return bool(is_theirs) and (last.line or "").lstrip().startswith("raise")


def _joined(text: str) -> str:
    return " ".join(text.split())
