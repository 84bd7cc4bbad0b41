"""Runs that differ in nothing but their seed make a group; one group is another's control."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kd_lightning.errors import UserError
from kd_lightning.report.read import MISSING, Run, finite

# Where a run lies and how it is watched makes no other group of it.
NO_MATTER = ("seed", "run_dir", "resume", "profile", "teacher_store", "hydra")
# What a student on labels alone knows nothing of: it is the control of all of these.
LEARNING = ("method", "model", "chain", "teacher", "teacher_ckpt", "pretrain")
# What must be the same in a control where an option such as ``experiment`` chooses it, less
# what a run may have of its own.
WORK = ("data", "augment", "student", "optimizer", "scheduler", "trainer")
OWN = ("seed", "root", "default_root_dir", "enable_progress_bar")
# What changes nothing while no teacher is listened to.
MOOT = ("method.temperature", "method.response", "method.ensemble")


@dataclass(frozen=True, eq=False)
class Group:
    """Finished runs, one a seed.

    Attributes:
        values: what was swept, and this group's value of it as text.
        label: the same for people, ``method=kd, temperature=5``.
        runs: by seed.
    """

    values: dict[str, str]
    label: str
    runs: dict[str, Run]

    @property
    def first(self) -> Run:
        """Any of them: they differ in the seed alone."""
        return next(iter(self.runs.values()))

    def scores(self, name: str) -> dict[str, float]:
        """A figure by seed, of the runs that have it."""
        found = {seed: run.number(name) for seed, run in self.runs.items()}
        return {seed: score for seed, score in found.items() if score is not None}

    def setting(self, key: str) -> float | None:
        """A setting that is a number."""
        return finite(self.first.setting(key))

    def agrees(self, other: "Group", keys: Sequence[str]) -> int:
        """In how many of these columns two groups have the same value."""
        return sum(self.values[k] == other.values[k] for k in keys)


@dataclass(frozen=True, eq=False)
class Groups:
    """All groups of a report.

    Attributes:
        columns: the names of what was swept, and shorter ones to print.
        groups: in the order of their first runs.
        repeats: runs left out, since a later one has the same group and seed.
    """

    columns: dict[str, str]
    groups: list[Group]
    repeats: list[Run]

    @property
    def have_repeated_seeds(self) -> bool:
        return any(len(group.runs) > 1 for group in self.groups)


def group_runs(runs: Sequence[Run]) -> Groups:
    """Sort the finished runs by all that was typed and differs among the runs."""
    keys = swept(runs)
    columns = dict(zip(keys, short_names(keys), strict=True))
    found: dict[tuple[str, ...], dict[str, Run]] = {}
    repeats = []
    for run in runs:
        if run.metrics:
            group = found.setdefault(tuple(value(run, key) for key in keys), {})
            if run.seed in group:
                repeats.append(group[run.seed])
            group[run.seed] = run
    groups = []
    for texts, members in found.items():
        label = ", ".join(f"{n}={t}" for n, t in zip(columns.values(), texts, strict=True))
        groups.append(Group(dict(zip(keys, texts, strict=True)), label or "all runs", members))
    return Groups(columns, groups, repeats)


def swept(runs: Sequence[Run]) -> list[str]:
    """The typed names whose values differ among the runs."""
    typed = dict.fromkeys(key for run in runs for key in run.typed)
    keys = [key for key in typed if _root(key) not in NO_MATTER]
    return [key for key in keys if len({value(run, key) for run in runs}) > 1]


def value(run: Run, key: str) -> str:
    """What a run used under a name: the option chosen, else the setting, else what was typed."""
    if key.startswith(MOOT) and not is_taught(run):
        return "–"
    found = run.choices.get(key, MISSING)
    found = run.setting(key) if found is MISSING else found
    if found is MISSING or isinstance(found, dict):
        return run.typed.get(key, "")
    return _text(found)


def label_only(run: Run) -> bool:
    """Whether a student learnt from the labels as they are, and from nobody."""
    return not finite(run.setting("method.label_smoothing")) and not is_taught(run)


def is_taught(run: Run) -> bool:
    """Whether anybody was listened to: a teacher's answers, its layers, another student."""
    if _module(run) not in ("", "DistillationModule") or run.config.get("chain"):
        return True
    transfer = run.setting("method.transfer")
    terms = list(transfer.values()) if isinstance(transfer, dict) else []
    idle = (isinstance(term, dict) and term.get("weight") == 0 for term in terms)
    return finite(run.setting("method.alpha")) != 0 or not all(idle)


def short_names(keys: list[str]) -> list[str]:
    """``temperature`` for ``method.temperature``, unless another key ends alike."""
    ends = [k.rpartition(".")[2] for k in keys]
    return [end if ends.count(end) == 1 else key for key, end in zip(keys, ends, strict=True)]


def is_learning(key: str) -> bool:
    """Whether a column is about the method or the teacher, not the student or its data."""
    return _root(key) in LEARNING


def find_controls(groups: Groups, named: Sequence[str] = ()) -> dict[Group, Group]:
    """The control of each group that has one; a control is its own.

    By default that is the group on labels alone whose student, data and budget are the
    same. ``named`` (``key=value`` …) names others: they are the control of the groups
    that are like them in all other columns.
    """
    if named:
        chosen = dict(_named_column(groups, text) for text in named)
        candidates = [g for g in groups.groups if chosen.items() <= g.values.items()]
        matched, bundled = [key for key in groups.columns if key not in chosen], False
    else:
        candidates = [g for g in groups.groups if all(map(label_only, g.runs.values()))]
        matched, bundled = _must_match(groups)
    if named and not candidates:
        labels = "; ".join(group.label for group in groups.groups)
        raise UserError(f"--control {' '.join(named)}: no group is so; there are: {labels}")
    found = {}
    for group in groups.groups:
        fits = [c for c in candidates if c.agrees(group, matched) == len(matched)]
        fits = [c for c in fits if not bundled or _work(c.first) == _work(group.first)]
        is_teacher = _module(group.first) == "TeacherModule"  # no student that does better
        if fits and (named or not is_teacher):
            found[group] = _nearest(group, fits, list(groups.columns))
    return found


def _must_match(groups: Groups) -> tuple[list[str], bool]:
    """The columns in which a control is like its group; whether others choose many settings."""
    others = [key for key in groups.columns if not is_learning(key)]
    runs = [group.first for group in groups.groups]
    package = {key: key.rpartition("@")[2] for key in others}
    plain = [k for k in others if any(r.setting(package[k]) is not MISSING for r in runs)]
    return plain, len(plain) < len(others)


def _work(run: Run) -> dict[str, Any]:
    return {name: _less_own(run.config.get(name)) for name in WORK}


def _less_own(found: Any) -> Any:
    if isinstance(found, dict):
        return {name: _less_own(inner) for name, inner in found.items() if name not in OWN}
    return found


def _nearest(group: Group, fits: list[Group], keys: list[str]) -> Group:
    """Of several that match, the one called ``ce``, then the one with most in common."""
    return max(fits, key=lambda c: (c.values.get("method") == "ce", c.agrees(group, keys)))


def _named_column(groups: Groups, text: str) -> tuple[str, str]:
    name, _, wanted = text.partition("=")
    for key, short in groups.columns.items():
        if name in (key, short):
            return key, wanted
    columns = ", ".join(groups.columns.values()) or "nothing"
    raise UserError(f"--control {text}: {name} was not swept; {columns} was")


def _module(run: Run) -> str:
    """The class that trained it, as far as the configuration tells."""
    found = run.setting("model._target_")
    return "" if found is MISSING else str(found).rpartition(".")[2]


def _root(key: str) -> str:
    """The section that a typed name is about: ``teacher`` for ``net@teacher``."""
    return key.rpartition("@")[2].partition(".")[0].partition("/")[0]


def _text(found: Any) -> str:
    if found is None or isinstance(found, bool):
        return str(found).lower()
    return f"{found:.12g}" if isinstance(found, int | float) else str(found)
