"""Tests of ``kd-report`` as it is typed."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from made_up import write_run, write_sweep

from kd_lightning.report.main import main

CE, KD = {"method": "ce"}, {"method": "kd", "gain": 0.01}
Report = Callable[..., str]


@pytest.fixture
def report(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Report:
    """``report(*arguments)`` gives back what was printed."""

    def run(*arguments: str | Path) -> str:
        monkeypatch.setattr(sys, "argv", ["kd-report", *map(str, arguments)])
        monkeypatch.delenv("COLUMNS", raising=False)
        main()
        return capsys.readouterr().out

    return run


def refused(report: Report, *arguments: str | Path) -> str:
    """The one line that an error ends in."""
    with pytest.raises(SystemExit) as error:
        report(*arguments)
    line = str(error.value.code)  # Python prints it and exits with 1
    assert line.startswith("error: ")
    assert "\n" not in line
    return line


def test_a_sweep_over_seeds_is_compared(report: Report, tmp_path: Path) -> None:
    printed = report(write_sweep(tmp_path, [CE, KD], evidence=False))
    assert printed.startswith("Yes, distillation helped: method=kd reaches ")
    lines = [line.split() for line in printed.splitlines()]
    assert ["teacher", "98.50", "98.00", "1,199,882"] in lines
    (row,) = [line for line in lines if line[:2] == ["kd", "★"]]
    assert row[2] == "5"
    assert "helps" in row
    assert max(map(len, printed.splitlines())) <= 120
    assert [p.name for p in tmp_path.iterdir() if not p.name.isdigit()] == []  # nothing written


def test_a_sweep_of_one_seed_prints_its_jobs(report: Report, tmp_path: Path) -> None:
    printed = report(write_sweep(tmp_path, [CE, {"method": "[red]"}], seeds=1, evidence=False))
    first_words = [line.split()[:2] for line in printed.splitlines() if line.strip()]
    assert first_words[-2:] == [["0", "ce"], ["1", "[red]"]]


def test_one_run_prints_its_table(report: Report, tmp_path: Path) -> None:
    printed = report(write_run(tmp_path / "run", {"method": "kd"}, compression=44.1))
    assert "44.1×" in printed
    assert printed.rstrip().endswith("run")


def test_several_directories_are_compared(report: Report, tmp_path: Path) -> None:
    runs = [write_run(tmp_path / m, {"method": m}) for m in ("ce", "kd")]
    assert report(*runs).startswith("Too few seeds to tell: method=kd")


def test_out_is_written_and_named(report: Report, tmp_path: Path) -> None:
    sweep, out = write_sweep(tmp_path / "sweep", [CE, KD], seeds=3), tmp_path / "made" / "here"
    assert report(sweep, "--out", out).splitlines()[-1] == f"report: {out / 'report.html'}"
    assert {p.name for p in out.iterdir()} == {
        *("report.html", "report.md", "report.csv", "pictures")
    }


def test_a_control_can_be_named(report: Report, tmp_path: Path) -> None:
    printed = report(write_sweep(tmp_path, [CE, KD]), "--control", "method=kd")
    assert printed.startswith("No, distillation hurt: method=ce")


@pytest.mark.parametrize("out", [False, True])
def test_an_unfinished_run_is_no_error(report: Report, tmp_path: Path, out: bool) -> None:
    run = write_run(tmp_path / "run", {"method": "kd"}, finished=False)
    assert f"unfinished: {run}" in report(run, *(("--out", tmp_path / "out") if out else ()))
    if out:
        assert "No run has finished yet." in (tmp_path / "out" / "report.html").read_text()


def test_a_sweep_is_reported_while_it_runs(report: Report, tmp_path: Path) -> None:
    sweep = write_sweep(tmp_path, [CE, KD], seeds=3, evidence=False)
    run = write_run(sweep / "6", {"method": "kd"}, seed=3, finished=False)
    printed = report(sweep)
    assert printed.startswith("Yes, distillation helped")
    assert f"left out: {run}." in printed.replace("\n", "")


def test_a_directory_that_is_neither(report: Report, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", {"method": "kd"})
    (tmp_path / "empty").mkdir()
    for wrong in (tmp_path / "empty", tmp_path / "absent"):
        line = refused(report, run, wrong)
        assert line == f"error: {wrong} is neither a run's directory nor a sweep's"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("metrics.json", '{"val/acc'),
        ("metrics.json", "[]"),
        (".hydra/config.yaml", "a: [1"),
        (".hydra/overrides.yaml", "!!python/object/apply:os.getcwd []"),
        ("metrics.csv", "epoch,val/accuracy\nzero,0.5\n"),
    ],
)
def test_damage_is_one_line_that_names_the_file(
    report: Report, tmp_path: Path, name: str, text: str
) -> None:
    sweep = write_sweep(tmp_path / "sweep", [CE, KD], seeds=2)
    (sweep / "1" / name).write_text(text)
    assert f"{sweep / '1' / name} " in refused(report, sweep, "--out", tmp_path / "out")


def test_out_that_cannot_be_written(report: Report, tmp_path: Path) -> None:
    sweep = write_sweep(tmp_path / "sweep", [CE, KD], seeds=2, evidence=False)
    (tmp_path / "file").write_text("")
    assert "cannot be written" in refused(report, sweep, "--out", tmp_path / "file")
