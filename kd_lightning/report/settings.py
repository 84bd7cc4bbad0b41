"""What a run was asked to do, as its typed words and its configuration tell."""

from typing import Any

from kd_lightning.report.read import MISSING, Run, finite

# What changes nothing while no teacher is listened to.
MOOT = ("method.temperature", "method.response", "method.ensemble")
TARGET = "._target_"  # ends the name of a class


def value(run: Run, key: str) -> str:
    """What a run used under a name: the option chosen, else the setting, else what was typed."""
    if key.startswith(MOOT) and not is_taught(run):
        return "–"
    found = run.choices.get(key, MISSING)
    found = run.setting(key) if found is MISSING else found
    if found is MISSING or isinstance(found, dict):
        return run.typed.get(key, "")
    return str(found).rpartition(".")[2] if key.endswith(TARGET) else _text(found)


def label_only(run: Run) -> bool:
    """Whether a student learnt from the labels as they are, and from nobody."""
    alone = not is_teacher(run) and not is_taught(run)
    return alone and not finite(run.setting("method.label_smoothing"))


def is_taught(run: Run) -> bool:
    """Whether anybody was listened to: a teacher's answers, its layers, another student."""
    if is_teacher(run):
        return False
    if run.config.get("chain"):
        return True
    transfer = run.setting("method.transfer")
    terms = list(transfer.values()) if isinstance(transfer, dict) else []
    idle = (isinstance(term, dict) and term.get("weight") == 0 for term in terms)
    return finite(run.setting("method.alpha")) != 0 or not all(idle)


def is_teacher(run: Run) -> bool:
    """Whether it trained a teacher, and no student."""
    return _target(run, "model") == "TeacherModule"


def placebo(run: Run) -> str:
    """Which half measure it is, an option of ``method=``; empty if none."""
    if _target(run, "method.response") == "permuted_soft_targets":
        return "permuted"
    if _target(run, "model") == "with_untrained_teacher":
        return "untrained"
    smooth = finite(run.setting("method.label_smoothing"))
    return "label_smoothing" if smooth and not is_taught(run) else ""


def section(key: str) -> str:
    """The section that a typed name is about: ``teacher`` for ``net@teacher``."""
    return key.rpartition("@")[2].partition(".")[0].partition("/")[0]


def short_names(keys: list[str]) -> list[str]:
    """``temperature`` for ``method.temperature``, unless another key ends alike."""
    keys = [key.removesuffix(TARGET) for key in keys]
    ends = [k.rpartition(".")[2] for k in keys]
    return [end if ends.count(end) == 1 else key for key, end in zip(keys, ends, strict=True)]


def _target(run: Run, section: str) -> str:
    """The class or function that a section of the configuration names, if it does."""
    found = run.setting(section + TARGET)
    return "" if found is MISSING else str(found).rpartition(".")[2]


def _text(found: Any) -> str:
    if found is None or isinstance(found, bool):
        return str(found).lower()
    return f"{found:.12g}" if isinstance(found, int | float) else str(found)
