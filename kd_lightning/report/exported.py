"""Exported files of the runs in a report, as kd-benchmark measured them on one machine."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any

from kd_lightning.report.groups import Group
from kd_lightning.report.statistics import Summary, summarize
from kd_lightning.utils.errors import UserError
from kd_lightning.utils.reading import is_there, read_json
from kd_lightning.utils.run_directory import BENCHMARK, RunDirectory, finite

MOST_ENTRIES = 100  # of a benchmark
MOST_NAME = 80  # characters of a format or a CPU
MOST_SIZE = 1e15  # bytes, or milliseconds: what is larger is damaged
OK = "ok"  # status of an entry that was measured


@dataclass(frozen=True)
class File:
    """Exported file of one run.

    Attributes:
        form: format, such as ``onnx``.
        int8: whether it computes in int8.
        bytes: its size.
        accuracy: on the test images, of the file in its own runtime.
        ms: median time of one image.
    """

    form: str
    int8: bool
    bytes: float
    accuracy: float
    ms: float

    @property
    def kind(self) -> tuple[str, bool]:
        return self.form, self.int8


@dataclass(frozen=True)
class Benchmark:
    """Content of ``exported/benchmark.json``, of what was measured without failure.

    Attributes:
        cpu: model of the CPU.
        machine: CPU, its flags, threads and versions in one text, to compare.
        files: of the run.
        teacher: directory of the teacher; empty if it was not measured.
        teacher_files: of the teacher.
    """

    cpu: str
    machine: str
    files: list[File]
    teacher: str
    teacher_files: list[File]


@dataclass(frozen=True, eq=False)
class Point:
    """Files of one format and precision, of a group or of a teacher.

    Attributes:
        group: the group; None for a teacher.
        form: format.
        int8: whether they compute in int8.
        bytes: mean size.
        ms: mean over the files of the median time of one image.
        accuracy: on the test images.
    """

    group: Group | None
    form: str
    int8: bool
    bytes: float
    ms: float
    accuracy: Summary

    @property
    def name(self) -> str:
        return f"{self.form} {'int8' if self.int8 else 'fp32'}"


@dataclass(frozen=True, eq=False)
class Exported:
    """All exported files of a report.

    Attributes:
        students: points of the groups that are no teachers.
        teachers: points of teachers.
        cpus: models of the CPUs on which they were measured.
        have_one_machine: whether all were measured on one CPU with the same versions, so that
            their times can be compared.
    """

    students: list[Point]
    teachers: list[Point]
    cpus: list[str]
    have_one_machine: bool


def read_exported(groups: Sequence[Group]) -> Exported:
    """Read the benchmarks of all runs that have one.

    Raises:
        UserError: if a file is damaged.
    """
    students: list[Point] = []
    teachers: list[Point] = []
    benchmarks: list[Benchmark] = []
    of_teacher: dict[str, list[File]] = {}
    for group in groups:
        found = [b for run in group.runs.values() if (b := read_benchmark(run))]
        part = teachers if group.role == "teacher" else students
        part += _points(group, [file for benchmark in found for file in benchmark.files])
        for benchmark in found:
            of_teacher.setdefault(benchmark.teacher, []).extend(benchmark.teacher_files)
        benchmarks += found
    # A teacher is in the record of each of its students, and may be a run of the report, too.
    runs = {str(r.path.resolve()) for g in groups if g.role == "teacher" for r in g.runs.values()}
    for path, files in of_teacher.items():
        teachers += _points(None, files) if path not in runs else []
    cpus = list(dict.fromkeys(benchmark.cpu for benchmark in benchmarks))
    return Exported(students, teachers, cpus, len({b.machine for b in benchmarks}) <= 1)


def _points(group: Group | None, files: Sequence[File]) -> list[Point]:
    found = []
    for form, int8 in dict.fromkeys(file.kind for file in files):
        same = [file for file in files if file.kind == (form, int8)]
        size, ms = fmean(file.bytes for file in same), fmean(file.ms for file in same)
        scores = [file.accuracy for file in same]
        # The files of a teacher are the same one, measured several times.
        accuracy = summarize(scores) if group else Summary(1, median(scores))
        found.append(Point(group, form, int8, size, ms, accuracy))
    return found


def read_benchmark(run: RunDirectory) -> Benchmark | None:
    """Read the benchmark of a run; None if it has none.

    Raises:
        UserError: if the file is damaged.
    """
    file = run.path / BENCHMARK
    if not is_there(file):
        return None
    content = read_json(file)
    try:
        machine, teacher = content["machine"], content["teacher"] or {}
        return Benchmark(
            _name(machine["cpu"]["model"]),
            json.dumps(machine, sort_keys=True),
            _files(content["entries"]),
            str(teacher.get("path", "")),
            _files(teacher.get("entries", [])),
        )
    except KeyError as error:
        raise _damaged(file, f"it has no {error.args[0]!r:.80}") from error
    except (AttributeError, TypeError, ValueError) as error:
        raise _damaged(file, str(error)) from error


def _damaged(file: Path, reason: str) -> UserError:
    return UserError(f"{file} is damaged ({reason}): delete it, or measure again with kd-benchmark")


def _files(entries: Any) -> list[File]:
    """Return what was measured at batch 1, without the networks that are no files."""
    if not isinstance(entries, list) or len(entries) > MOST_ENTRIES:
        raise ValueError("its entries are no list of a benchmark")
    measured = [e for e in entries if e["status"] == OK and e["file"] and "1" in e["latency"]]
    return [
        File(
            _name(entry["format"]),
            entry["int8"] is True,
            _number(entry, "bytes", lambda size: 0 < size < MOST_SIZE),
            _number(entry, "accuracy", lambda share: 0 <= share <= 1),
            _number(entry["latency"]["1"], "p50", lambda ms: 0 < ms < MOST_SIZE),
        )
        for entry in measured
    ]


def _name(value: Any) -> str:
    if not isinstance(value, str) or len(value) > MOST_NAME or not value.isprintable():
        raise ValueError(f"{value!r:.80} is no name")
    return value


def _number(entry: dict[str, Any], name: str, is_possible: Callable[[float], bool]) -> float:
    value = finite(entry[name])
    if value is None or not is_possible(value):
        raise ValueError(f"{name} is {entry[name]!r:.80}")
    return value
