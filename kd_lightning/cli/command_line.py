"""The command line as the user types it, arranged for Hydra."""

from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from kd_lightning.cli.consent import state_trust, typed_folders
from kd_lightning.cli.paths import CONF, with_quoted_path
from kd_lightning.cli.resume import resumed
from kd_lightning.runs.networks import added
from kd_lightning.runs.processes import RESUME
from kd_lightning.runs.ranks import ranks

TAKE_A_VALUE = {  # Hydra's flags that are followed by a value
    *("--config-dir", "-cd", "--config-path", "-cp", "--config-name", "-cn"),
    *("--package", "-p", "--experimental-rerun"),
}


def arranged(argv: list[str]) -> list[str]:
    """Return the command line for Hydra: flags first, and the overrides of what is resumed.

    Raises:
        UserError: if there is no run or sweep in the directory of ``resume=``.
    """
    # Hydra's parser accepts ``key=value`` arguments in one contiguous block only.
    flags, words = _flags_and_words(argv[1:])
    given = [word.removeprefix(RESUME) for word in words if word.startswith(RESUME)]
    if ranks().is_child:
        return [argv[0], *flags, *words]
    words = [with_quoted_path(added(word)) for word in state_trust(words)]
    if not given or given[-1] in ("", "null"):
        return [argv[0], *flags, *_as_sweep(flags, _compared(words))]
    return [argv[0], *resumed(given[-1], flags, words)]


def _compared(words: list[str]) -> list[str]:
    """Let ``method=`` beside an experiment that compares methods replace the last of them.

    Otherwise ``experiment=compare method=dkd`` would run dkd alone and compare nothing.
    """
    experiment = next((w.partition("=")[2] for w in words if w.startswith("experiment=")), "")
    file = CONF / "experiment" / f"{experiment}.yaml"
    typed = [word for word in words if word.startswith("method=")]
    is_single = "hydra.mode=RUN" in words or any("(" in word for word in typed)
    if not typed or not file.is_file() or is_single:
        return words
    methods = OmegaConf.select(OmegaConf.load(file), "hydra.sweeper.params.method")
    if methods is None:
        return words
    *others, _ = methods.split(",")
    own = [name for name in typed[-1].partition("=")[2].split(",") if name not in others]
    kept = [word for word in words if word not in typed]
    return [*kept, f"method={','.join([*others, *own])}"]


def _as_sweep(flags: list[str], words: list[str]) -> list[str]:
    """Make a sweep of an experiment that says what it varies, without ``-m``.

    The experiment cannot choose Hydra's mode itself: Hydra 1.4 refuses that.
    """
    is_typed = any(word.startswith("hydra.mode=") for word in words)
    folders = [CONF, *typed_folders(flags)]
    names = [w.partition("=")[2] for w in words if w.startswith(("experiment=", "+experiment="))]
    # Several experiments are a sweep that is typed, and too long for the name of a file.
    varies = any(_params(folders, name) for name in names if "," not in name)
    return [*words, "hydra.mode=MULTIRUN"] if varies and not is_typed else words


def _params(folders: list[Path], name: str) -> dict[str, Any]:
    """Return what an experiment varies, or one that it begins with."""
    files = [folder / "experiment" / f"{name}.yaml" for folder in folders]
    file = next((file for file in files if file.is_file()), None)
    try:
        config: Any = OmegaConf.load(file) if file else None
        own = OmegaConf.select(config, "hydra.sweeper.params") if config else None
        earlier = [o for o in config.get("defaults", []) if isinstance(o, str)] if config else []
    except (YAMLError, OmegaConfBaseException, AttributeError):  # Hydra says what is wrong
        return {}
    return own or next(filter(None, (_params(folders, o) for o in earlier if o != name)), {})


def _flags_and_words(arguments: list[str]) -> tuple[list[str], list[str]]:
    flags: list[str] = []
    words: list[str] = []
    for before, argument in zip(["", *arguments], arguments, strict=False):
        is_flag = argument.startswith("-") or before in TAKE_A_VALUE
        (flags if is_flag else words).append(argument)
    return flags, words
