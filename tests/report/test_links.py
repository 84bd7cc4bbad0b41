"""Chains in a report: the table of one, the picture over seeds."""

import json
import sys
from pathlib import Path

import pytest
import yaml
from made_up import write_run

from kd_lightning.cli.report import main
from kd_lightning.report.chain import link_scores, names_of
from kd_lightning.report.compare import build_report
from kd_lightning.report.links import links
from kd_lightning.report.pictures import style
from kd_lightning.report.read import read_runs

GENERATIONS = {"generations": 2}
ASSISTANTS = {"assistants": {"first": {"width": 16}}}
ACCURACIES = ((0.95, 0.96, 0.97), (0.93, 0.95, 0.965))  # of both links and together, by seed


def write_chain(folder: Path, chain: dict[str, object], seed: int) -> Path:
    first, second, together = ACCURACIES[seed]
    figures = {
        f"{split}/{name}": score
        for split in ("val", "test")
        for name, score in (
            *(("accuracy_0", first), ("accuracy_1", second)),
            ("ensemble_accuracy", together),
        )
    }
    run = write_run(folder, {"experiment": "chain"}, seed, second, second, **figures)
    config = yaml.safe_load((run / ".hydra" / "config.yaml").read_text())
    (run / ".hydra" / "config.yaml").write_text(yaml.safe_dump({**config, "chain": chain}))
    for i, score in enumerate((first, second)):
        link = run / "links" / str(i)
        link.mkdir(parents=True)
        figures = {
            "parameters": 27210,
            "seconds": 3.0,
            "val/accuracy": score,
            "test/accuracy": score,
        }
        (link / "metrics.json").write_text(json.dumps(figures))
    return run


@pytest.mark.parametrize(
    ("chain", "names"),
    [(GENERATIONS, ["generation 0", "generation 1"]), (ASSISTANTS, ["first", "student"])],
)
def test_one_chain_is_a_table(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    chain: dict[str, object],
    names: list[str],
) -> None:
    run = write_chain(tmp_path / "run", chain, seed=0)
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setattr(sys, "argv", ["kd-report", str(run)])
    main()
    lines = [line.split("  ") for line in capsys.readouterr().out.splitlines() if "%" in line]
    assert [line[0].strip() for line in lines] == [*names, "all links together"]
    assert "97.00 %" in " ".join(lines[-1])


def test_chains_of_several_seeds_are_a_picture(tmp_path: Path) -> None:
    runs = read_runs([write_chain(tmp_path / str(s), GENERATIONS, s) for s in (0, 1)])
    report = build_report(runs)
    (row,) = report.rows
    assert names_of(row.group.first) == ["generation 0", "generation 1"]
    expected = {"0": [0.95, 0.93], "1": [0.96, 0.95], "together": [0.97, 0.965]}
    assert link_scores(row.group.runs) == expected
    with style():
        (picture,) = links(report)
    svg = picture.svg()
    assert "generation" in svg
    assert "all links together" in svg


def test_without_chains_there_is_no_such_picture(tmp_path: Path) -> None:
    report = build_report(read_runs([write_run(tmp_path / "0", {"method": "kd"})]))
    assert links(report) == []


def test_a_chain_without_figures_of_its_links_is_no_picture(tmp_path: Path) -> None:
    run = write_run(tmp_path / "0", {"method": "kd"})
    config = yaml.safe_load((run / ".hydra" / "config.yaml").read_text())
    (run / ".hydra" / "config.yaml").write_text(yaml.safe_dump({**config, "chain": GENERATIONS}))
    assert links(build_report(read_runs([run]))) == []
