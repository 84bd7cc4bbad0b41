"""Runs that differ in nothing but their seed make a group; one group is another's control."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kd_lightning.report.read import MISSING, Run, finite
from kd_lightning.report.settings import is_teacher, label_only, section, short_names, value
from kd_lightning.report.untold import untold
from kd_lightning.utils.errors import UserError

# Where a run lies and how it is watched makes no other group of it.
NO_MATTER = (
    *("seed", "run_dir", "resume", "profile", "teacher_store", "hydra", "cache", "logger"),
    *("pretrain.seed", "data.root", "trainer.default_root_dir", "trainer.enable_progress_bar"),
)
# What a student on labels alone knows nothing of: it is the control of all of these.
LEARNING = ("method", "model", "chain", "teacher", "teacher_ckpt", "pretrain")
# What must be the same in a control where an option such as ``experiment`` chooses it, less
# what a run may have of its own.
WORK = ("data", "augment", "student", "optimizer", "lr_scheduler", "trainer")
OWN = ("seed", "root", "default_root_dir", "enable_progress_bar")


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
    """Sort the finished runs by what was typed and differs, and by what parts them untold."""
    finished, keys = [run for run in runs if run.metrics], swept(runs)
    keys += untold(list(_by_values(finished, keys).values()))
    columns = dict(zip(keys, short_names(keys), strict=True))
    groups, repeats = [], []
    for texts, alike in _by_values(finished, keys).items():
        members = {run.seed: run for run in alike}
        repeats += [run for run in alike if run is not members[run.seed]]
        label = ", ".join(f"{n}={t}" for n, t in zip(columns.values(), texts, strict=True))
        groups.append(Group(dict(zip(keys, texts, strict=True)), label or "all runs", members))
    return Groups(columns, groups, repeats)


def _by_values(runs: Sequence[Run], keys: Sequence[str]) -> dict[tuple[str, ...], list[Run]]:
    found: dict[tuple[str, ...], list[Run]] = {}
    for run in runs:
        found.setdefault(tuple(value(run, key) for key in keys), []).append(run)
    return found


def swept(runs: Sequence[Run]) -> list[str]:
    """The typed names whose values differ among the runs."""
    typed = dict.fromkeys(key for run in runs for key in run.typed)
    keys = [k for k in typed if k not in NO_MATTER and section(k) not in NO_MATTER]
    return [key for key in keys if len({value(run, key) for run in runs}) > 1]


def is_learning(key: str) -> bool:
    """Whether a column is about the method or the teacher, not the student or its data."""
    return section(key) in LEARNING


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
        # a teacher is no student that does better
        if fits and (named or not is_teacher(group.first)):
            found[group] = _nearest(group, fits, list(groups.columns))
    return found


def _must_match(groups: Groups) -> tuple[list[str], bool]:
    """The columns in which a control is like its group; whether they may not be all there is."""
    others = [key for key in groups.columns if not is_learning(key)]
    runs = [group.first for group in groups.groups]
    package = {key: key.rpartition("@")[2] for key in others}
    plain = [k for k in others if any(r.setting(package[k]) is not MISSING for r in runs)]
    typed = {key for group in groups.groups for run in group.runs.values() for key in run.typed}
    return plain, len(plain) < len(others) or not typed >= groups.columns.keys()


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
