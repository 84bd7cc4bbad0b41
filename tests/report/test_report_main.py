"""Tests of ``kd-report`` as it is typed."""

import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from made_up import write_run, write_sweep

from kd_lightning.cli.report import main
from kd_lightning.report.sweep import sweep_table

CE, KD = {"method": "ce"}, {"method": "kd", "gain": 0.01}
Report = Callable[..., str]


@pytest.fixture
def report(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Report:
    """``report(*arguments)`` gives back what was printed."""
    monkeypatch.delenv("COLUMNS", raising=False)

    def run(*arguments: str | Path) -> str:
        monkeypatch.setattr(sys, "argv", ["kd-report", *map(str, arguments)])
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


def test_what_a_gain_is_due_to_is_said_below_the_headline(report: Report, tmp_path: Path) -> None:
    printed = report(write_sweep(tmp_path, [CE, {"method": "permuted"}, KD], evidence=False))
    assert printed.index("helped") < printed.index("Beyond permuted: ") < printed.index("verdict")


def cells(printed: str) -> list[list[str]]:
    """The lines of a table, as cells: two spaces or more lie between."""
    return [re.split(r" {2,}", line.strip()) for line in printed.splitlines()]


@pytest.mark.parametrize(
    ("columns", "dropped"), [("60", 3), ("80", 2), ("90", 1), ("100", 0), ("200", 0)]
)
def test_a_narrow_table_loses_whole_columns_and_no_figure(
    report: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, columns: str, dropped: int
) -> None:
    sweep = write_sweep(tmp_path, [CE, KD], evidence=False)
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


def test_at_120_columns_three_swept_ones_leave_room_for_whole_figures(
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
    # validation, test, difference, p, agreement, parameters and time; names go on below
    assert [cell for cell in ours[4:] if re.search(r"\d", cell)] == [
        *("97.00 ± 0.00", "96.00 ± 0.00", "+0.00", "1.000", "97.20", "1,234,567", "1702.5")
    ]
    assert max(map(len, printed.splitlines())) <= 120


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
    assert printed.startswith("method=ce is worse than method=kd: ")


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
        (".hydra/overrides.yaml", "7"),
        ("metrics.csv", "epoch,val/accuracy\nzero,0.5\n"),
    ],
)
def test_damage_is_one_line_that_names_the_file(
    report: Report, tmp_path: Path, name: str, text: str
) -> None:
    sweep = write_sweep(tmp_path / "sweep", [CE, KD], seeds=2)
    (sweep / "1" / name).write_text(text)
    line = refused(report, sweep, "--out", tmp_path / "out").replace(":", " ")
    assert f"{sweep / '1' / name} " in line


@pytest.mark.parametrize("chain", ["{rounds: 3}", "{generations: two}", "{assistants: null}"])
def test_a_chain_of_another_kind_is_one_line(report: Report, tmp_path: Path, chain: str) -> None:
    run = write_run(tmp_path / "run", {"method": "kd"})
    file = run / ".hydra" / "config.yaml"
    file.write_text(f"chain: {chain}")
    other = write_run(tmp_path / "other", {"method": "ce"})
    for arguments in ([run], [run, other, "--out", tmp_path / "out"]):
        assert f"error: {file}: chain has neither" in refused(report, *arguments)


def test_figures_of_another_kind_are_one_line(report: Report, tmp_path: Path) -> None:
    sweep = write_sweep(tmp_path / "sweep", [CE, KD], seeds=1, evidence=False)
    (sweep / "1" / "metrics.json").write_text('{"acc": 0.5}')
    for folder in (sweep, sweep / "1"):
        assert f"error: {sweep / '1' / 'metrics.json'} holds no " in refused(report, folder)


def test_beside_others_figures_of_another_kind_count_for_nothing(
    report: Report, tmp_path: Path
) -> None:
    sweep = write_sweep(tmp_path / "sweep", [CE, KD], seeds=3, evidence=False)
    (sweep / "5" / "metrics.json").write_text('{"acc": 0.5, "seed": 2}')
    printed = report(sweep, "--out", tmp_path / "out")
    assert printed.startswith("Too few seeds to tell: method=kd")
    assert "n = 2" in printed


@pytest.mark.parametrize("has_ended", [False, True])
def test_a_job_without_figures_has_failed_once_the_sweep_has_ended(
    report: Report, tmp_path: Path, has_ended: bool
) -> None:
    sweep = write_sweep(tmp_path, [CE], seeds=1, evidence=False)
    write_run(sweep / "1", KD, finished=False)
    if has_ended:
        sweep_table(sweep).write(sweep)
    printed = report(sweep)
    assert ("failed" in printed, "unfinished" in printed) == (has_ended, not has_ended)


def test_out_that_cannot_be_written(report: Report, tmp_path: Path) -> None:
    sweep = write_sweep(tmp_path / "sweep", [CE, KD], seeds=2, evidence=False)
    (tmp_path / "file").write_text("")
    assert "cannot be written" in refused(report, sweep, "--out", tmp_path / "file")
