"""``run.json``: facts about a run, recorded when it starts.

Reports read these facts instead of interpreting configurations or class names:

format        version of the file's format
task          name of the task, such as ``classification``
role          ``teacher``, ``student``, ``baseline``, ``control: permuted`` …
method        option of ``method=``; empty for a teacher
seed          seed of the run
processes     number of processes that trained together
trained_together  number of students of a sweep that were trained in one step; absent for one
overrides     the user's overrides: value by key
settings      settings that determine the result, except the seed: value by dotted key
teacher       directory of the teacher in the store, or paths of given checkpoints, or empty
teacher_figures   the teacher's own ``metrics.json`` without figures of single classes
class_names   names of the classes, if the data have any
links         names of the links of a chain, from first to last
code          commit of the code
versions      versions of this package, torch and lightning
"""

import json
import re
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from kd_lightning import __version__
from kd_lightning.metrics.figures import parse
from kd_lightning.runs.networks import QUANTIZED
from kd_lightning.utils.files import write_text
from kd_lightning.utils.reading import read_json
from kd_lightning.utils.run_directory import FACTS, FORMAT, METRICS

# Settings that determine where and how a training runs, but not its result, by their full names:
# a datamodule of the user may call its data set `root`. With them a student on a GPU would
# retrain its teacher, and runs of two machines would be separate groups in a report. The number
# of processes is recorded separately.
INCIDENTAL = frozenset(
    {
        *(f"trainer.{name}" for name in ("accelerator", "devices", "num_nodes", "strategy")),
        *(f"trainer.{name}" for name in ("default_root_dir", "log_every_n_steps", "profiler")),
        *(f"trainer.{name}" for name in ("enable_progress_bar", "enable_model_summary")),
        *(f"trainer.{name}" for name in ("num_sanity_val_steps", "use_distributed_sampler")),
        *("data.device_resident", "data.eval_batch_size", "optimizer.fused", "profile"),
        *("cache.root", "cache.max_bytes", "teacher_from.root"),
    }
)
OWN_DATA = "kd_lightning.data."  # datamodules whose `root` only says where the files are


# Sections of a configuration that determine the result of a run, by its role.
TRAINING = ("optimizer", "lr_scheduler", "trainer", "callbacks", "data", "augment", "task")
TEACHER_SECTIONS = ("teacher", *TRAINING)
BASELINE_SECTIONS = ("student", "method", "model", "quantize", *TRAINING)

STUDENT_SECTIONS = (
    *BASELINE_SECTIONS,
    *("teacher", "teacher_from", "teacher_ckpt", "pretrain", "cache", "chain"),
)

# Settings without effect where there is no teacher. α is kept: α = 0 is a point of its curve.
UNUSED_WITHOUT_TEACHER = ("method.temperature", "method.response", "method.ensemble")
# Sections that interpolations repeat inside of others.
REPEATED = (
    *("model.net", "model.student", "model.teacher", "model.objective", "model.optimizer"),
    *("model.lr_scheduler", "data.augment", "pretrain.model", "chain.first"),
)

ROLES_WITHOUT_TEACHER = ("baseline", "control: label_smoothing")


def settings_of(
    config: Mapping[str, Any],
    choices: Mapping[str, str | None],
    role: str,
    unresolved: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the settings that determine the result of a run, by dotted key.

    The value of a section itself is its chosen option (``method`` -> ``kd``), or the name of
    its class if no option was chosen.

    Args:
        config: the resolved configuration.
        choices: option of each config group, as recorded by Hydra: ``net@teacher`` -> ``mlp``.
        role: role of the run.
        unresolved: the configuration with its interpolations, which show what follows the seed;
            without it everything called ``seed`` is taken to.
    """
    flat = _determining(_flat(config, role), str(config.get("run_dir") or ""), unresolved)
    # Callbacks count one by one instead of by option, since those that only observe a run are
    # left out: see shapes_result() in runs/teacher_key.py.
    named = {name.rpartition("@")[2]: option for name, option in choices.items() if option}
    if named.get("quantize") == "none":  # as in runs from before there was a choice
        del named["quantize"]
    sections = {*sections_of(role)} - {"callbacks"}
    options = {k: v for k, v in named.items() if k.partition(".")[0] in sections}
    if "teacher_from.path" in flat:  # teacher_ckpt= is short for it
        flat["teacher_ckpt"] = flat.pop("teacher_from.path")
    if "teacher_ckpt" in flat:
        options["teacher_from"] = "checkpoint"
    found = {**flat, **{k: v for k, v in options.items() if not k.startswith(REPEATED)}}
    if role in ROLES_WITHOUT_TEACHER:
        found = {k: v for k, v in found.items() if not k.startswith(UNUSED_WITHOUT_TEACHER)}
    return dict(sorted(found.items()))


def _flat(config: Mapping[str, Any], role: str) -> dict[str, Any]:
    """Return the leaves of the sections that count for a role, by dotted key."""
    flat: dict[str, Any] = {}
    for section in sections_of(role):
        value = config.get(section)
        # The first link of a chain has the role of a teacher but trains the student's network.
        if role == "teacher" and section == "teacher":
            value = (config.get("model") or {}).get("net", value)
        if isinstance(value, Mapping) and value.get("_target_") == QUANTIZED:
            value = value["net"]  # the section quantize says the rest
        flat |= dict(_leaves(value, section))
    return flat


def _determining(
    flat: Mapping[str, Any], run_dir: str, unresolved: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Drop what differs between runs of the same training: places and the run's seed."""
    # Paths inside the run directory, such as a callback's folder, differ in every run.
    within = re.compile(re.escape(run_dir) + r"(?![^/'\"\],])")  # not runs/10 where this is runs/1
    placed = {k for k, v in flat.items() if k.startswith("callbacks.") and within.search(str(v))}
    # Runs that differ only in their seed are one group, and so in whatever follows it. A seed of
    # its own is a setting: data.seed=3 is another order of samples.
    follows = {k for k in flat if k.rpartition(".")[2] == "seed" and _follows_seed(unresolved, k)}
    dropped = follows | (placed if run_dir else set())
    return {k: v for k, v in flat.items() if k not in dropped}


def sections_of(role: str) -> tuple[str, ...]:
    """Return the sections of a configuration that determine the result of a run of a role."""
    if role == "teacher":
        return TEACHER_SECTIONS
    return BASELINE_SECTIONS if role in ROLES_WITHOUT_TEACHER else STUDENT_SECTIONS


def _leaves(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    if name.removeprefix("pretrain.") in INCIDENTAL or name in REPEATED or value is None:
        return
    if isinstance(value, Mapping):
        if "_target_" in value:
            target = str(value["_target_"])
            yield name, target.rpartition(".")[2]
            # In full as well: an option keeps its name where its class is overridden.
            if not name.startswith(("cache", "teacher_from", "model", "task", "callbacks")):
                yield f"{name}._target_", target
        is_ours = str(value.get("_target_", "")).startswith(OWN_DATA)
        for key, inner in value.items():
            is_setting = key == "_args_" or not str(key).startswith("_")
            if is_setting and not (is_ours and key == "root"):
                yield from _leaves(inner, f"{name}.{key}")
    else:
        yield name, value


def _follows_seed(unresolved: Mapping[str, Any] | None, name: str) -> bool:
    """Whether a setting called ``seed`` is an interpolation of the run's seed."""
    found: Any = unresolved
    for key in name.split("."):
        found = found.get(key) if isinstance(found, Mapping) else None
    return unresolved is None or not isinstance(found, int)


def facts(
    config: Mapping[str, Any],
    choices: Mapping[str, str | None],
    overrides: Mapping[str, str],
    *,
    role: str,
    task: str,
    teacher: str = "",
    links: Sequence[str] = (),
    processes: int = 1,
    unresolved: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the content of ``run.json`` at the start of a run; see the module's docstring."""
    packages = ("torch", "lightning")
    return {
        "format": FORMAT,
        "task": task,
        "role": role,
        "method": "" if role == "teacher" else choices.get("method") or "",
        "seed": config.get("seed"),
        "processes": processes,
        "overrides": dict(overrides),
        "settings": settings_of(config, choices, role, unresolved),
        "teacher": teacher,
        "teacher_figures": {},
        "links": list(links),
        "code": commit(),
        "versions": {"kd_lightning": __version__, **{name: version(name) for name in packages}},
    }


def teacher_figures(run_dir: Path) -> dict[str, float]:
    """Return a teacher's own figures, except those of single classes; empty if it has none."""
    if not (run_dir / METRICS).is_file():
        return {}
    found = {name: (value, parse(name)) for name, value in read_json(run_dir / METRICS).items()}
    return {name: value for name, (value, parsed) in found.items() if parsed and not parsed.suffix}


def write_facts(run_dir: Path, record: Mapping[str, Any]) -> None:
    """Write ``run.json``."""
    write_text(run_dir / FACTS, json.dumps(record, indent=2, ensure_ascii=False) + "\n")


def parse_overrides(overrides: Sequence[str]) -> dict[str, str]:
    """Return the value of each override by the configuration key that it changes.

    A config group is named by its package: ``net@student=mlp`` changes ``student``.

    >>> parse_overrides(["method=kd", "+transfer@method.transfer.sp=sp", "~logger", "seed=1"])
    {'method': 'kd', 'method.transfer.sp': 'sp', 'logger': '', 'seed': '1'}
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser

    parsed = OverridesParser.create().parse_overrides(list(overrides))
    return {
        o.package or o.key_or_group: "" if o.is_delete() else o.get_value_element_as_str()
        for o in parsed
    }


@cache
def commit() -> str:
    """Return the commit of this code, or an empty string outside of a clone."""
    # Once a process, which goes on with the code that it has loaded.
    here = str(Path(__file__).parent)
    git = ["git", "-C", here, "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""
