"""The command lines that continue a run or a sweep, rebuilt from what Hydra recorded."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from kd_lightning.cli.consent import check_trust
from kd_lightning.cli.paths import quoted
from kd_lightning.runs.continued import FIXED, SWEEP
from kd_lightning.runs.processes import RESUME, as_written, typed_dirs
from kd_lightning.runs.recorded import read_config, read_yaml, recorded_dirs
from kd_lightning.utils.errors import UserError
from kd_lightning.utils.reading import is_there

CONFIG_DIR = ("--config-dir", "-cd")


def resumed(given: str, flags: Sequence[str], words: Sequence[str]) -> list[str]:
    """Return the arguments that continue a run or a sweep.

    Recorded overrides come before those just typed, which therefore take precedence.

    Args:
        given: the value of ``resume=``: a run directory, a checkpoint in one, or a sweep's
            directory.
        flags: flags just typed.
        words: overrides just typed.

    Raises:
        UserError: if there is no such run or sweep, or the overrides do not fit it.
    """
    given = _bare(given)
    words = [word for word in words if not word.startswith(RESUME)]
    if (Path(given) / SWEEP).is_file():
        return _resumed_sweep(given, flags, words)
    return _resumed_run(given, flags, words)


def _resumed_run(given: str, flags: Sequence[str], words: Sequence[str]) -> list[str]:
    # A directory, or a checkpoint in one.
    run_dir = Path(given).parent.parent if given.endswith(".ckpt") else Path(given)
    file = run_dir / ".hydra" / "overrides.yaml"
    if not is_there(file):
        raise UserError(f"resume={given}: no run was started in {run_dir}")
    recorded = read_yaml(file)  # not as a configuration, which would resolve interpolations
    # Hydra writes this file in place: a kill right then leaves it empty, and what would be
    # resumed is the default run. A run without overrides has an empty list.
    if not isinstance(recorded, list):
        raise UserError(
            f"resume={given}: {file} does not record the overrides of the run, which was "
            "stopped as it began: start it again instead"
        )
    before = [o for o in map(str, recorded) if not o.startswith((RESUME, "trust="))]
    # The whole command may be repeated with resume= added, but nothing can be deleted twice.
    words = [word for word in words if not (word.startswith("~") and word in before)]
    dirs = recorded_dirs(run_dir)
    check_trust(run_dir, before, dirs, words, flags)
    # Without output_subdir Hydra writes no record of its own, so a refused resumption leaves the
    # run unchanged; runs/directory.py writes the record later.
    settings = [f"hydra.run.dir={quoted(run_dir)}", "hydra.output_subdir=null"]
    # Not the mode of an experiment that is a sweep: one of its jobs is resumed.
    settings += ["hydra.mode=RUN", f"{RESUME}{quoted(given)}"]
    return [*_with_dirs(flags, dirs), *before, *words, *settings]


def _resumed_sweep(given: str, flags: Sequence[str], words: Sequence[str]) -> list[str]:
    record = _sweep_record(Path(given))
    recorded = _parsed(given, as_written(OmegaConf.select(record, "hydra.overrides.task")))
    typed = _parsed(given, words)
    _check_search(given, record, typed)
    params = OmegaConf.select(record, "hydra.sweeper.params") or {}
    swept = {*map(str, params), *(_key(o) for o in recorded if o.is_sweep_override())}
    for override in typed:
        is_of_hydra = override.key_or_group.startswith("hydra")
        if not is_of_hydra and (override.is_sweep_override() or _key(override) in swept):
            raise UserError(
                f"resume={given}: {override.input_line} would change what the sweep varies: "
                "leave it out, or start another sweep"
            )
    replaced = {o.get_key_element() for o in typed}  # a second + of a key would be an error
    before = [o for o in recorded if o.get_key_element() not in replaced and _key(o) != "resume"]
    fixed = {_key(o) for o in (*before, *typed) if _key(o) not in swept}
    own = ("hydra.sweep.dir=", "hydra.output_subdir=", "hydra.mode=", f"++{FIXED}=")
    of_hydra = as_written(OmegaConf.select(record, "hydra.overrides.hydra") or OmegaConf.create([]))
    lines = [str(o.input_line) for o in before]
    hydra_lines = [line for line in of_hydra if not line.startswith(own)]
    dirs = typed_dirs(OmegaConf.select(record, "hydra.runtime.config_sources") or [])
    check_trust(Path(given), [*lines, *hydra_lines], dirs, words, flags)
    settings = [
        # the sweep's own, so that each job finds its earlier self
        f"hydra.sweep.dir={quoted(given)}",
        # A finished job keeps its record; runs/continued.py writes that of a new one.
        *("hydra.output_subdir=null", "hydra.mode=MULTIRUN"),
        f"++{FIXED}={quoted(' '.join(sorted(fixed)))}",
    ]
    return [
        *_with_dirs(flags, dirs),
        *lines,
        *hydra_lines,
        *words,
        *settings,
    ]


def _check_search(given: str, record: Any, typed: Sequence[Override]) -> None:
    """Refuse to resume a search that would not propose the same trials again."""
    storage = OmegaConf.select(record, "hydra.sweeper.storage")
    if storage is not None:
        raise UserError(
            f"resume={given}: the study of this search is kept in {storage}: repeat the command of "
            "the search, which goes on with the study"
        )
    sampler = OmegaConf.select(record, "hydra.sweeper.sampler")  # of Optuna's sweeper alone
    is_given = any(o.key_or_group == "hydra.sweeper.sampler.seed" for o in typed)
    if sampler is not None and sampler.get("seed") is None and not is_given:
        raise UserError(
            f"resume={given}: this search has no seed, so it would propose other trials than "
            "before: start another one, with hydra.sweeper.sampler.seed=0"
        )


def _sweep_record(folder: Path) -> Any:
    """Return Hydra's record of a sweep.

    Raises:
        UserError: if it is damaged, or that of another program.
    """
    file, record = folder / SWEEP, None
    try:
        record = read_config(file)
        is_known = OmegaConf.is_list(OmegaConf.select(record, "hydra.overrides.task"))
        is_ours = OmegaConf.select(record, "hydra.callbacks.launch") is not None
    except (UserError, AttributeError, OmegaConfBaseException):
        is_known = is_ours = False
    if not is_known:
        raise UserError(
            f"resume={folder}: {file} does not record how the sweep was started, as it is damaged "
            "or was being written: repeat the command of the sweep, or resume its jobs one by one"
        )
    if not is_ours:
        raise UserError(f"resume={folder}: {file} belongs to another program, not to kd_lightning")
    return record


def _parsed(given: str, words: Any) -> list[Override]:
    try:
        return OverridesParser.create().parse_overrides(list(words))
    except HydraException as error:
        raise UserError(f"resume={given}: {str(error).splitlines()[0]}") from error


def _key(override: Override) -> str:
    return override.package or override.key_or_group


def _with_dirs(flags: Sequence[str], folders: Sequence[str]) -> list[str]:
    """Add the folders that were named by ``--config-dir``, unless others are named now."""
    if any(flag.partition("=")[0] in CONFIG_DIR for flag in flags):
        return list(flags)
    return [*flags, *(part for folder in folders for part in ("--config-dir", folder))]


def _bare(path: str) -> str:
    """A path without the quotes in which Hydra would have wanted it."""
    is_quoted = len(path) > 1 and path[0] == path[-1] and path[0] in "'\""
    return path[1:-1] if is_quoted and not Path(path).exists() else path
