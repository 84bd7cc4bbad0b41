"""Tests of chains: the table of one, the plot over seeds."""

import sys
from pathlib import Path

import pytest
from made_up import write_run

from kd_lightning.cli.report import main
from kd_lightning.report.compare import build_report
from kd_lightning.report.plots import draw
from kd_lightning.report.plots.curves import link_scores
from kd_lightning.report.read import read_runs

NAMES = ["generation 0", "generation 1"]
ACCURACIES = ((0.95, 0.96, 0.97), (0.93, 0.95, 0.965))  # of both links and together, by seed


def write_chain(folder: Path, seed: int, names: list[str] = NAMES) -> Path:
    first, second, together = ACCURACIES[seed]
    figures = {
        f"{split}/{name}": score
        for split in ("val", "test")
        for name, score in (
            *(("accuracy_0", first), ("accuracy_1", second)),
            ("ensemble_accuracy", together),
        )
    }
    facts = {"links": names}
    run = write_run(folder, {"chain.generations": 2}, seed, second, second, facts=facts, **figures)
    for i, score in enumerate((first, second)):
        write_run(run / "links" / str(i), {}, seed + 1000 * i, score, score)
    return run


@pytest.mark.parametrize("names", [NAMES, ["first", "student"]])
def test_one_chain_is_a_table(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    names: list[str],
) -> None:
    run = write_chain(tmp_path / "run", 0, names)
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setattr(sys, "argv", ["kd-report", str(run)])
    main()
    lines = [line.split("  ") for line in capsys.readouterr().out.splitlines() if "%" in line]
    assert [line[0].strip() for line in lines] == ["teacher", *names, "all links together"]
    assert "54,420" in " ".join(lines[-1])
    assert "97.00 %" in " ".join(lines[-1])


def test_chains_of_several_seeds_are_a_plot(tmp_path: Path) -> None:
    report = build_report(read_runs([write_chain(tmp_path / str(s), s) for s in (0, 1)]))
    (row,) = report.rows
    assert link_scores(row) == [[0.95, 0.93], [0.96, 0.95], [0.97, 0.965]]
    (plot,) = [plot for plot in draw(report) if plot.name == "chain"]
    svg = plot.svg()
    assert "generation" in svg
    assert "all links together" in svg


@pytest.mark.parametrize("links", [[], NAMES])
def test_without_figures_of_links_there_is_no_such_plot(tmp_path: Path, links: list[str]) -> None:
    run = write_run(tmp_path / "0", {"method": "kd"}, facts={"links": links})
    assert "chain" not in [plot.name for plot in draw(build_report(read_runs([run])))]
