"""Groups of runs that differ only in their seed, and the baseline of each group."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kd_lightning.utils.errors import UserError
from kd_lightning.utils.run_directory import RunDirectory, finite
from kd_lightning.utils.text import printable

BASELINE, STUDENT, CONTROL = "baseline", "student", "control: "  # roles in run.json
NO_PART = "–"  # value of a setting that does not apply to a run
# Sections in which a run may differ from its baseline. All others, such as the student, its
# data and its budget, must agree, or their effect would be attributed to the method.
OF_THE_METHOD = (
    *("method", "model", "teacher", "teacher_from", "teacher_ckpt", "pretrain", "cache", "chain"),
)
# Sections whose settings come first among those that name groups without being overridden.
FIRST = ("student", "method", "teacher_from", "teacher", "model", "chain")
PLAIN = "ce"  # the option of method= that is always a baseline

Agrees = Callable[["Group", "Group"], bool]


# eq=False here and below: compared and hashed by identity, as groups are keys of dictionaries.
@dataclass(frozen=True, eq=False)
class Group:
    """Finished runs that differ only in their seed.

    Attributes:
        values: value of each column, as text.
        label: the values in one line, such as ``method=kd, temperature=5``.
        runs: the runs by seed.
    """

    values: dict[str, str]
    label: str
    runs: dict[str, RunDirectory]

    @property
    def first(self) -> RunDirectory:
        return next(iter(self.runs.values()))

    @property
    def role(self) -> str:
        return self.first.role

    @property
    def is_baseline(self) -> bool:
        return self.role == BASELINE

    @property
    def distils(self) -> bool:
        """Whether the runs learn from the unmodified outputs of a trained teacher."""
        return self.role == STUDENT

    @property
    def control(self) -> str:
        """Name of the control, such as ``permuted``; empty if the group is none."""
        return self.role.removeprefix(CONTROL) if self.role.startswith(CONTROL) else ""

    def scores(self, name: str) -> dict[str, float]:
        """Return a figure by seed, for the runs that have it."""
        found = {seed: run.number(name) for seed, run in self.runs.items()}
        return {seed: score for seed, score in found.items() if score is not None}

    def setting(self, key: str) -> float | None:
        """Return a setting if it is a number, else None."""
        return finite(self.first.settings.get(key))

    def agreement(self, other: "Group", columns: Sequence[str]) -> int:
        """Return the number of columns in which two groups have the same value."""
        return sum(self.values[key] == other.values[key] for key in columns)


@dataclass(frozen=True, eq=False)
class Groups:
    """All groups of a report.

    Attributes:
        columns: keys whose values name the groups, and a short name of each.
        groups: the groups, in the order of their first runs.
        repeats: runs replaced by a later run of the same group and seed.
    """

    columns: dict[str, str]
    groups: list[Group]
    repeats: list[RunDirectory]

    @property
    def have_repeated_seeds(self) -> bool:
        return any(len(group.runs) > 1 for group in self.groups)


def group_runs(runs: Sequence[RunDirectory]) -> Groups:
    """Group the finished runs by role, settings and number of processes."""
    finished = [run for run in runs if run.is_finished]
    parts = list(_by_identity(finished).values())
    value = _value_in({_section(key) for run in finished for key in run.settings})
    keys = _columns(parts, value)
    columns = dict(zip(keys, short_names(keys), strict=True))
    groups, repeats = [], []
    for part in parts:
        values = {key: value(part[0], key) for key in keys}
        label = ", ".join(f"{columns[key]}={text}" for key, text in values.items())
        # A seed counts once: repeating it gives no independent evidence.
        by_seed = {run.seed: run for run in part}
        repeats += [run for run in part if run is not by_seed[run.seed]]
        groups.append(Group(values, label or "all runs", by_seed))
    return Groups(columns, groups, repeats)


def _by_identity(runs: Sequence[RunDirectory]) -> dict[Any, list[RunDirectory]]:
    found: dict[Any, list[RunDirectory]] = {}
    for run in runs:
        # As text, because an override of 5 and a default of 5.0 are the same setting.
        settings = frozenset((key, as_text(value)) for key, value in run.settings.items())
        identity = (run.role, as_text(run.facts["processes"]), settings)
        found.setdefault(identity, []).append(run)
    return found


def _value_in(covered: set[str]) -> Callable[[RunDirectory, str], str]:
    """Return a function that gives the value of a key in a run, as text.

    Args:
        covered: sections that the settings of some run contain.
    """

    def value(run: RunDirectory, key: str) -> str:
        if key in run.settings:
            return as_text(run.settings[key])
        if key in ("role", "processes"):
            return as_text(run.facts[key])
        # A key of a covered section is missing because the section does not apply to the run.
        return NO_PART if _section(key) in covered else as_text(run.overrides.get(key, ""))

    return value


def _columns(
    parts: Sequence[list[RunDirectory]], value: Callable[[RunDirectory, str], str]
) -> list[str]:
    """Return the keys that name the groups.

    Overridden settings that differ come first. Other keys are added if they distinguish more
    groups: first other overrides, such as ``experiment=…``, then settings without override.
    """
    settings = {key for part in parts for key in part[0].settings}
    covered = {_section(key) for key in settings}
    typed = dict.fromkeys(key for part in parts for run in part for key in run.overrides)
    # First what the user chose to vary, in the order of the command line.
    is_setting = [key for key in typed if _section(key) in covered]
    # A key that differs only because it does not apply to some runs is redundant with the method.
    keys = [k for k in is_setting if len({value(p[0], k) for p in parts} - {NO_PART}) > 1]
    others = [key for key in typed if key not in keys and key != "seed"]
    # An override that differs within a group cannot name the group.
    others = [key for key in others if all(len({value(r, key) for r in p}) == 1 for p in parts)]
    names = [tuple(value(part[0], key) for key in keys) for part in parts]
    # Then, greedily, every key that makes more names differ.
    for key in [*others, *sorted(settings - set(keys), key=_order), "role", "processes"]:
        longer = [(*name, value(p[0], key)) for name, p in zip(names, parts, strict=True)]
        if len(set(longer)) > len(set(names)):
            keys, names = [*keys, key], longer
    return keys


def _order(key: str) -> tuple[int, str]:
    section = _section(key)
    return (FIRST.index(section) if section in FIRST else len(FIRST), key)


def find_baselines(groups: Groups, named: Sequence[str] = ()) -> dict[Group, Group]:
    """Return the baseline of each group that has one; a baseline is its own.

    Args:
        groups: groups of the report.
        named: ``key=value`` of groups to compare with; each is compared with the groups that
            agree with it in all other columns. By default students trained on labels alone
            are compared with the students of the same data and budget.

    Raises:
        UserError: if there is no such group.
    """
    if named:
        candidates, agrees = _named(groups, named)
    else:
        candidates, agrees = [g for g in groups.groups if g.is_baseline], _same_work
    found = {}
    for group in groups.groups:
        fitting = [c for c in candidates if agrees(group, c)]
        # A teacher may agree with a baseline in data and budget, but is another network.
        if fitting and (named or group.role != "teacher"):
            found[group] = _nearest(group, fitting, list(groups.columns))
    return found


def _named(groups: Groups, named: Sequence[str]) -> tuple[list[Group], Agrees]:
    chosen = dict(_column(groups, text) for text in named)
    others = [key for key in groups.columns if key not in chosen]
    candidates = [g for g in groups.groups if chosen.items() <= g.values.items()]
    if not candidates:
        labels = "; ".join(group.label for group in groups.groups)
        raise UserError(f"--baseline {' '.join(named)}: no such group; there are: {labels}")
    return candidates, lambda a, b: a.agreement(b, others) == len(others)


def _same_work(a: Group, b: Group) -> bool:
    return _work(a.first) == _work(b.first)


def _nearest(group: Group, fitting: Sequence[Group], columns: Sequence[str]) -> Group:
    """Choose among several baselines: ``method=ce`` first, then the most similar one."""
    return max(
        fitting,
        key=lambda b: (b.first.facts.get("method") == PLAIN, b.agreement(group, columns)),
    )


def _work(run: RunDirectory) -> dict[str, str]:
    settings = {k: as_text(v) for k, v in run.settings.items() if _section(k) not in OF_THE_METHOD}
    # More processes mean larger batches and fewer steps, which is another budget.
    return {**settings, "processes": as_text(run.facts["processes"])}


def _column(groups: Groups, text: str) -> tuple[str, str]:
    name, _, wanted = text.partition("=")
    for key, short in groups.columns.items():
        if name in (key, short):
            return key, wanted
    columns = ", ".join(groups.columns.values()) or "nothing"
    raise UserError(f"--baseline {text}: the runs do not differ in {name}, but in {columns}")


def short_names(keys: Sequence[str]) -> list[str]:
    """Shorten ``method.temperature`` to ``temperature``, unless another key has the same end."""
    keys = [as_text(key) for key in keys]
    ends = [key.rpartition(".")[2] for key in keys]
    return [end if ends.count(end) == 1 else key for key, end in zip(keys, ends, strict=True)]


def as_text(value: Any) -> str:
    """Format a setting as text, identical for ``5`` and ``5.0``."""
    if value is None or isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:.12g}"
    if isinstance(value, list):
        return f"[{', '.join(map(as_text, value))}]"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{as_text(k)}: {as_text(v)}' for k, v in value.items())}}}"
    return printable(str(value)).replace("\n", "\\n")


def _section(key: str) -> str:
    return key.partition(".")[0]
