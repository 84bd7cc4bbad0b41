"""Tests of the command ``kd-report``."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from made_up import write_run, write_sweep

from kd_lightning.cli.report import main
from kd_lightning.report.sweep import sweep_table
from kd_lightning.runs.legacy import facts_of_old_run

CE, KD = {"method": "ce"}, {"method": "kd", "gain": 0.01}
Report = Callable[..., str]


@pytest.fixture
def report(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Report:
    """``report(*arguments)`` returns what was printed."""
    monkeypatch.delenv("COLUMNS", raising=False)

    def run(*arguments: str | Path) -> str:
        monkeypatch.setattr(sys, "argv", ["kd-report", *map(str, arguments)])
        main()
        return capsys.readouterr().out

    return run


def refused(report: Report, *arguments: str | Path) -> str:
    """The line that an error ends in."""
    with pytest.raises(SystemExit) as error:
        report(*arguments)
    line = str(error.value.code)  # Python prints it and exits with 1
    assert line.startswith("error: ")
    assert "\n" not in line
    return line


def test_a_sweep_over_seeds_is_compared(report: Report, tmp_path: Path) -> None:
    printed = report(write_sweep(tmp_path, [CE, KD]))
    assert printed.startswith("Yes, distillation helped: method=kd reaches ")
    lines = [line.split() for line in printed.splitlines()]
    assert ["teacher", "98.50", "98.00", "1,199,882"] in lines
    (row,) = [line for line in lines if line[:2] == ["kd", "★"]]
    assert row[2] == "5"
    assert "helps" in row
    assert max(map(len, printed.splitlines())) <= 120
    assert [p.name for p in tmp_path.iterdir() if not p.name.isdigit()] == []  # nothing written


def test_controls_are_compared_below_the_headline(report: Report, tmp_path: Path) -> None:
    printed = report(write_sweep(tmp_path, [CE, {"method": "permuted"}, KD]))
    assert (
        printed.index("helped") < printed.index("the permuted control") < printed.index("verdict")
    )


def cells(printed: str) -> list[list[str]]:
    """The lines of a table as cells, which two or more blanks separate."""
    return [re.split(r" {2,}", line.strip()) for line in printed.splitlines()]


@pytest.mark.parametrize(
    ("columns", "dropped"), [("60", 3), ("80", 2), ("92", 1), ("100", 0), ("200", 0)]
)
def test_a_narrow_table_drops_whole_columns_and_cuts_no_figure(
    report: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, columns: str, dropped: int
) -> None:
    sweep = write_sweep(tmp_path, [CE, KD])
    monkeypatch.setenv("COLUMNS", columns)
    printed = report(sweep)
    (header,) = [line for line in cells(printed) if line[0] == "method"]
    (ours,) = [line for line in cells(printed) if line[0] == "kd ★"]
    assert header[:2] == ["method", "n"]
    assert len(ours) == 10 - dropped
    assert ours[6:] == ["helps", "97.20", "27,200", "12.5"][: 4 - dropped]
    assert ("1,199,882" in printed) == (dropped < 2)
    if columns != "60":
        assert max(map(len, printed.splitlines())) <= int(columns)


def test_120_columns_hold_three_swept_settings_and_whole_figures(
    report: Report, tmp_path: Path
) -> None:
    both = {"optimizer": "adam_of_another_kind", "student.width": 160}
    settings = [{**CE, **both}, {**KD, **both}, {**CE, "optimizer": "sgd", "student.width": 8}]
    for number, setting in enumerate(settings):
        for seed in range(3):
            figures = {"parameters": 1234567, "seconds": 1702.5}
            run = tmp_path / f"{number}{seed}"
            write_run(run, {k: v for k, v in setting.items() if k != "gain"}, seed, **figures)
    printed = report(tmp_path)
    (ours,) = [line for line in cells(printed) if line[0] == "kd"]
    assert ours[0] == "kd"
    assert ours[2:4] == ["160", "3"]
    # validation, test, difference, p, agreement, parameters and time; names wrap
    assert [cell for cell in ours[4:] if re.search(r"\d", cell)] == [
        *("97.00 ± 0.00", "96.00 ± 0.00", "+0.00", "1.000", "97.20", "1,234,567", "1702.5")
    ]
    assert max(map(len, printed.splitlines())) <= 120


def test_a_sweep_of_one_seed_prints_its_jobs(report: Report, tmp_path: Path) -> None:
    printed = report(write_sweep(tmp_path, [CE, {"method": "[red]"}], seeds=1))
    first_words = [line.split()[:2] for line in printed.splitlines() if line.strip()]
    assert first_words[-2:] == [["0", "ce"], ["1", "[red]"]]


def test_a_sweep_has_a_row_for_each_trained_teacher(tmp_path: Path) -> None:
    for number, teacher in enumerate(("a", "a", "b", "")):
        write_run(tmp_path / str(number), {"method": "kd"}, number, facts={"teacher": teacher})
    teachers = sweep_table(tmp_path).teachers
    assert [row[0] for row in teachers] == ["teacher", "teacher"]
    assert all("1,199,882" in row for row in teachers)


def test_one_run_prints_its_table(report: Report, tmp_path: Path) -> None:
    printed = report(write_run(tmp_path / "run", {"method": "kd"}, compression=44.1))
    assert "44.1×" in printed
    assert printed.rstrip().endswith("run")


def test_several_directories_are_compared(report: Report, tmp_path: Path) -> None:
    runs = [write_run(tmp_path / m, {"method": m}) for m in ("ce", "kd")]
    assert report(*runs).startswith("Too few seeds for a verdict: method=kd")


def test_out_is_written_and_named(report: Report, tmp_path: Path) -> None:
    sweep, out = write_sweep(tmp_path / "sweep", [CE, KD], seeds=3), tmp_path / "made" / "here"
    assert report(sweep, "--out", out).splitlines()[-1] == f"report: {out / 'report.html'}"
    assert {p.name for p in out.iterdir()} == {*("report.html", "report.md", "report.csv", "plots")}


def test_a_baseline_can_be_named(report: Report, tmp_path: Path) -> None:
    printed = report(write_sweep(tmp_path, [CE, KD]), "--baseline", "method=kd")
    assert printed.startswith("method=ce is worse than method=kd: ")


@pytest.mark.parametrize("out", [False, True])
def test_an_unfinished_run_is_named(report: Report, tmp_path: Path, out: bool) -> None:
    run = write_run(tmp_path / "run", {"method": "kd"}, finished=False)
    assert f"unfinished: {run}" in report(run, *(("--out", tmp_path / "out") if out else ()))
    if out:
        assert "No run has finished yet." in (tmp_path / "out" / "report.html").read_text()


def test_a_sweep_is_reported_while_it_runs(report: Report, tmp_path: Path) -> None:
    sweep = write_sweep(tmp_path, [CE, KD], seeds=3)
    run = write_run(sweep / "6", {"method": "kd"}, seed=3, finished=False)
    printed = report(sweep)
    assert printed.startswith("Yes, distillation helped")
    assert f"Left out because unfinished or failed: {run}." in printed.replace("\n", " ")


def test_a_directory_that_is_neither_run_nor_sweep_is_refused(
    report: Report, tmp_path: Path
) -> None:
    run = write_run(tmp_path / "run", {"method": "kd"})
    (tmp_path / "empty").mkdir()
    for wrong in (tmp_path / "empty", tmp_path / "absent"):
        line = refused(report, run, wrong)
        assert line == f"error: {wrong} is neither a run directory nor a sweep directory"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("metrics.json", '{"val/acc'),
        ("metrics.json", "[]"),
        ("metrics.json", "[" * 100_000),
        ("run.json", "{"),
        ("run.json", "7"),
        ("run.json", '{"format": 99}'),
        ("metrics.csv", "epoch,val/accuracy\nzero,0.5\n"),
        ("metrics.csv", "epoch,val/accuracy\n0,\0\n"),
    ],
)
def test_a_damaged_file_is_named_in_one_line(
    report: Report, tmp_path: Path, name: str, text: str
) -> None:
    sweep = write_sweep(tmp_path / "sweep", [CE, KD], seeds=2)
    (sweep / "1" / name).write_text(text)
    line = refused(report, sweep, "--out", tmp_path / "out").replace(":", " ")
    assert f"{sweep / '1' / name} " in line


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("role", 7), ("role", None), ("settings", []), ("overrides", "method=kd")),
        *(
            ("links", "two"),
            ("teacher", {}),
            ("seed", None),
            ("processes", None),
            ("processes", "two"),
        ),
    ],
)
def test_facts_that_are_missing_or_of_another_type_are_named_in_one_line(
    report: Report, tmp_path: Path, name: str, value: Any
) -> None:
    sweep = write_sweep(tmp_path / "sweep", [CE, KD], seeds=1)
    file = sweep / "1" / "run.json"
    facts = json.loads(file.read_text())
    facts.pop(name)
    file.write_text(json.dumps(facts if value is None else {**facts, name: value}))
    for folder in (sweep, sweep / "1"):
        line = refused(report, folder)
        assert f"error: {file}" in line
        assert f"'{name}'" in line


def test_a_chain_without_its_links_is_refused(report: Report, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", {"method": "kd"}, facts={"links": ["a", "b"]})
    assert str(run / "links" / "0") in refused(report, run)


@pytest.mark.parametrize("metrics", ['{"acc": 0.5}', '{"val/accuracy": 0.9, "parameters": "many"}'])
def test_missing_figures_are_named_in_one_line(
    report: Report, tmp_path: Path, metrics: str
) -> None:
    sweep = write_sweep(tmp_path / "sweep", [CE, KD], seeds=1)
    (sweep / "1" / "metrics.json").write_text(metrics)
    for folder in (sweep, sweep / "1"):
        assert f"error: {sweep / '1' / 'metrics.json'}" in refused(report, folder)


def test_in_a_comparison_a_run_without_accuracy_does_not_count(
    report: Report, tmp_path: Path
) -> None:
    sweep = write_sweep(tmp_path / "sweep", [CE, KD], seeds=3)
    (sweep / "5" / "metrics.json").write_text('{"acc": 0.5}')
    printed = report(sweep, "--out", tmp_path / "out")
    assert printed.startswith("Too few seeds for a verdict: method=kd")
    assert "n = 2" in printed


@pytest.mark.parametrize("has_ended", [False, True])
def test_a_job_without_figures_has_failed_once_the_sweep_has_ended(
    report: Report, tmp_path: Path, has_ended: bool
) -> None:
    sweep = write_sweep(tmp_path, [CE], seeds=1)
    write_run(sweep / "1", KD, finished=False)
    if has_ended:
        sweep_table(sweep).write(sweep)
    printed = report(sweep)
    assert ("failed" in printed, "unfinished" in printed) == (has_ended, not has_ended)


def test_a_job_that_failed_before_its_facts_were_recorded_has_a_row(
    report: Report, tmp_path: Path
) -> None:
    sweep = write_sweep(tmp_path, [CE, KD], seeds=1)
    for job, config in (("2", "seed: 0"), ("3", "chain: {rounds: 3}")):
        hydra = sweep / job / ".hydra"
        hydra.mkdir(parents=True)
        (hydra / "config.yaml").write_text(config)
        lines = "- method=wrong\n- +net@student=mlp\n- seed=0\n- data=digits\n"
        (hydra / "overrides.yaml").write_text(lines)
    for convert, known in ((facts_of_old_run, "wrong"), (None, "")):
        table = sweep_table(sweep, convert=convert)
        assert table.failed == ["2", "3"]
        method = table.header.index("method")
        assert [row[method] for row in table.rows] == ["ce", "kd", known, ""]
        assert [row.count("failed") for row in table.rows] == [0, 0, 1, 1]
    assert str(sweep / "3") in report(sweep, tmp_path / "0")  # among those left out


def test_out_that_cannot_be_written(report: Report, tmp_path: Path) -> None:
    sweep = write_sweep(tmp_path / "sweep", [CE, KD], seeds=2)
    (tmp_path / "file").write_text("")
    assert "cannot be written" in refused(report, sweep, "--out", tmp_path / "file")


def test_nothing_slow_is_imported_at_the_start() -> None:
    modules = ("torch", "lightning", "hydra", "omegaconf", "matplotlib", "scipy", "jinja2")
    code = f"""
import sys
import kd_lightning.cli.report
print([name for name in {modules} if name in sys.modules])
"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
