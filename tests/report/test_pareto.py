"""Tests of exported files in a report: both plots, the sentence about them, damaged records."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from made_up import TEACHER_PATH, write_run, write_sweep

from kd_lightning.report.compare import Report, build_report
from kd_lightning.report.plots import pareto
from kd_lightning.report.plots.base import Plot, style
from kd_lightning.report.read import read_runs
from kd_lightning.report.verdicts import notes, shipping
from kd_lightning.utils.errors import UserError

MACHINE = {
    "cpu": {"model": "Some CPU", "flags": ["avx2"]},
    "threads": 1,
    "versions": {"torch": "2"},
}
TEACHER = {"path": TEACHER_PATH, "entries": []}
KD = {"method": "kd"}


def entry(size: float, ms: float, accuracy: float, **changes: Any) -> dict[str, Any]:
    """An entry as kd-benchmark writes it."""
    latency = {"1": {"p50": ms, "p90": 2 * ms, "calls": 9}}
    facts = {"format": "onnx", "int8": False, "file": "a", "status": "ok", "latency": latency}
    return {**facts, "bytes": size, "accuracy": accuracy, **changes}


def record(run: Path, *entries: dict[str, Any], **changes: Any) -> Path:
    """Write the benchmark of a run, with a teacher of 98 %, and return its file."""
    teacher = {**TEACHER, "entries": [entry(4e6, 0.3, 0.98), entry(1e6, 0.1, 0.979, int8=True)]}
    content = {"machine": MACHINE, "entries": entries, "teacher": teacher, **changes}
    file = run / "exported" / "benchmark.json"
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(content))
    return file


def report_of(*folders: Path) -> Report:
    return build_report(read_runs(folders))


def drawn(report: Report) -> dict[str, Plot]:
    with style():
        return {plot.name: plot for plot in pareto.plots(report)}


def markers(plot: Plot) -> dict[tuple[float, float], tuple[str, bool]]:
    """Shape of the marker at each point, and whether it is filled."""
    (axes,) = plot.figure.axes
    return {
        (round(line.get_xdata()[0], 6), round(line.get_ydata()[0], 6)): (
            str(line.get_marker()),
            line.get_markerfacecolor() != "none",
        )
        for line in axes.lines
        if len(line.get_xdata()) == 1 and line.get_marker() in ("o", "s", "o")
    }


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """Two widths of three seeds: the wide student is accurate, and slower in int8."""
    settings = [{**KD, "student.width": 8}, {**KD, "student.width": 32}]
    folder = write_sweep(tmp_path / "sweep", settings, seeds=3)
    for number in range(6):
        small, seed = number < 3, number % 3 - 1
        accuracy = (0.94 if small else 0.976) + 0.001 * seed
        size, ms = (10_000, 0.01) if small else (40_000, 0.02)
        files = [entry(size, ms, accuracy), entry(size / 4, 2 * ms, accuracy, int8=True)]
        eager = entry(9, 9e3, 0.5, format="torch", file="")
        failed = entry(1, 9e3, 0.5, format="pt2", status="failed: x", latency={})
        record(folder / str(number), eager, *files, failed)
    return folder


def test_files_are_drawn_by_time_and_by_size(sweep: Path) -> None:
    plots = drawn(report_of(sweep))
    assert [*plots] == ["pareto_time", "pareto_bytes"]
    assert markers(plots["pareto_time"]) == {
        **{(0.01, 0.94): ("o", True), (0.02, 0.94): ("o", False)},
        **{(0.02, 0.976): ("o", True), (0.04, 0.976): ("o", False)},
        **{(0.3, 0.98): ("o", True), (0.1, 0.979): ("o", False)},
    }
    sizes = {x for x, _ in markers(plots["pareto_bytes"])}
    assert sizes == {2500, 10_000, 40_000, 1e6, 4e6}
    for plot in plots.values():
        (axes,) = plot.figure.axes
        assert axes.get_xscale() == "log"
        named = [text.get_text() for text in axes.get_legend().get_texts()]
        assert named == ["student", "teacher", "onnx fp32", "onnx int8", "Pareto front"]
    assert "Some CPU" in plots["pareto_time"].caption


def test_the_front_has_improvements_only(sweep: Path) -> None:
    (axes,) = drawn(report_of(sweep))["pareto_bytes"].figure.axes
    (front,) = (line for line in axes.lines if line.get_label() == "Pareto front")
    # The wide student's int8 file is as accurate as its larger one.
    assert [*front.get_xdata()] == [2500, 10_000, 40_000]
    assert [*front.get_ydata()] == pytest.approx([0.94, 0.976, 0.976])


def test_bars_are_intervals_over_seeds(sweep: Path) -> None:
    """Of three seeds half an interval is 4.303 · sd / √3; of two it would be useless."""
    (axes,) = drawn(report_of(sweep))["pareto_time"].figure.axes
    bars = [segments for part in axes.collections for segments in part.get_segments()]
    assert len(bars) == 4  # the teacher has one run
    halves = [(high - low) / 2 for (_, low), (_, high) in bars]
    assert halves == pytest.approx([4.303 * 0.001 / 3**0.5] * 4, rel=1e-3)
    two = report_of(*(sweep / str(i) for i in (0, 1)))
    (axes,) = drawn(two)["pareto_time"].figure.axes
    assert not axes.collections


def test_the_smallest_student_near_its_teacher_is_named(sweep: Path) -> None:
    report = report_of(sweep)
    (sentence,) = shipping(report)
    assert sentence == (
        "The smallest student within 0.5 points of the teacher on test data (98.00 %): "
        "width=32 as onnx int8, 10 kB, 0.04 ms, 97.60 % (mean of 3 seeds)."
    )
    assert notes(report)[-1] == sentence
    # The small one alone is four points below.
    (sentence,) = shipping(report_of(*(sweep / str(i) for i in range(3))))
    assert sentence == (
        "No exported student is within 0.5 points of the teacher on test data (98.00 %): "
        "the best reaches 94.00 %."
    )


@pytest.mark.parametrize(
    ("machine", "named"),
    [
        ({**MACHINE, "cpu": {"model": "Another", "flags": []}}, "CPUs (Another; Some CPU)"),
        ({**MACHINE, "versions": {"torch": "3"}}, "versions"),
    ],
)
def test_times_of_different_machines_are_not_compared(
    sweep: Path, machine: dict[str, Any], named: str
) -> None:
    record(sweep / "0", entry(10_000, 1, 0.94), machine=machine)
    report = report_of(sweep)
    assert [*drawn(report)] == ["pareto_bytes"]
    smallest, different = shipping(report)
    assert "10 kB, 97.60 %" in smallest
    assert f"measured with different {named}, so their times are not compared" in different


def test_without_benchmarks_nothing_is_said_or_drawn(tmp_path: Path) -> None:
    report = report_of(write_run(tmp_path / "run", KD))
    assert (shipping(report), drawn(report)) == ([], {})


def test_a_teacher_among_the_runs_is_not_drawn_twice(sweep: Path, tmp_path: Path) -> None:
    teacher = write_run(tmp_path / "teacher", {"model": "teacher"})
    record(teacher, entry(4e6, 0.3, 0.98), teacher=None)
    for number in range(6):
        file = sweep / str(number) / "exported" / "benchmark.json"
        content = json.loads(file.read_text())
        content["teacher"]["path"] = str(teacher)
        file.write_text(json.dumps(content))
    points = report_of(sweep, teacher).exported.teachers
    assert [(point.name, point.ms) for point in points] == [("onnx fp32", 0.3)]


def test_a_narrow_axis_has_ticks(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", KD)
    record(run, entry(1100, 0.011, 0.9), entry(1150, 0.0115, 0.9, int8=True), teacher=None)
    for plot in drawn(report_of(run)).values():
        (axes,) = plot.figure.axes
        low, high = axes.get_xlim()
        assert sum(low <= tick <= high for tick in axes.get_xticks()) >= 2


GOOD = entry(1000, 0.1, 0.9)
DAMAGED: dict[str, Callable[[dict[str, Any]], object]] = {
    "no machine": lambda content: content.pop("machine"),
    "no entries": lambda content: content.pop("entries"),
    "CPU without name": lambda content: content.update(machine={"cpu": {}}),
    "CPU of control characters": lambda content: content["machine"]["cpu"].update(model="\x1b[31m"),
    "machine as text": lambda content: content.update(machine="CPU"),
    "entries as text": lambda content: content.update(entries="a"),
    "entry as text": lambda content: content.update(entries=["a"]),
    "very many": lambda content: content.update(entries=[GOOD] * 1000),
    "no status": lambda content: content["entries"][0].pop("status"),
    "hostile format": lambda content: content["entries"][0].update(format="x" * 5000),
    "negative size": lambda content: content["entries"][0].update(bytes=-1),
    "huge size": lambda content: content["entries"][0].update(bytes=10**200),
    "size as text": lambda content: content["entries"][0].update(bytes="\x1b[31m"),
    "no size": lambda content: content["entries"][0].pop("bytes"),
    "impossible accuracy": lambda content: content["entries"][0].update(accuracy=1.5),
    "infinite time": lambda content: content["entries"][0]["latency"]["1"].update(p50=float("inf")),
    "no time": lambda content: content["entries"][0]["latency"]["1"].update(p50=0),
    "latency as list": lambda content: content["entries"][0].update(latency=["1"]),
    "teacher as text": lambda content: content.update(teacher="a"),
    "teacher as list": lambda content: content["teacher"].update(entries=3),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_damaged_records_cost_one_line(tmp_path: Path, kind: str) -> None:
    file = record(write_run(tmp_path / "run", KD), GOOD)
    content = json.loads(file.read_text())
    DAMAGED[kind](content)
    file.write_text(json.dumps(content))
    with pytest.raises(UserError, match=f"^{re.escape(str(file))} is damaged ") as caught:
        report_of(tmp_path / "run")
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("text", ["[]", "{", "[" * 100_000])
def test_records_that_are_no_json_object_cost_one_line(tmp_path: Path, text: str) -> None:
    file = record(write_run(tmp_path / "run", KD), GOOD)
    file.write_text(text)
    with pytest.raises(UserError, match=re.escape(str(file))):
        report_of(tmp_path / "run")
