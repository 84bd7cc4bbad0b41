"""Tests of the headline, of the best group, of the teachers and of the notes."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_up import edit, write_run, write_sweep

from kd_lightning.report.compare import Report, build_report
from kd_lightning.report.read import read_runs
from kd_lightning.report.verdicts import headline, notes
from kd_lightning.utils.run_directory import FACTS

CE, KD = {"method": "ce"}, {"method": "kd", "gain": 0.01}
FEW = {"data.train_fraction": 0.1}


def sweep(folder: Path, *settings: dict[str, Any], seeds: int = 5) -> Report:
    return build_report(read_runs([write_sweep(folder, list(settings), seeds)]))


@pytest.mark.parametrize(
    ("settings", "seeds", "beginning"),
    [
        ([CE, KD], 5, "Yes, distillation helped: method=kd reaches 97."),
        ([CE, {"method": "kd", "gain": -0.01}], 5, "No, distillation hurt: method=kd"),
        ([CE, {"method": "kd", "gain": 0.0}], 5, "No difference shown: method=kd"),
        ([CE, KD], 2, "Too few seeds for a verdict: method=kd"),
        ([CE, KD], 1, "Too few seeds for a verdict: method=kd"),
        ([KD, {"method": "dkd"}], 3, "No verdict: there is no baseline"),
        ([CE], 3, "Nothing to compare"),
        # the control is the most accurate, but the question is whether distillation helped
        (
            [CE, KD, {"method": "label_smoothing", "gain": 0.02}],
            5,
            "Yes, distillation helped: method=kd",
        ),
        ([CE, KD, {"method": "untrained", "gain": 0.02}], 5, "Yes, distillation helped: method=kd"),
        (
            [CE, {**KD, "gain": 0.0}, {**CE, **FEW}, {**KD, **FEW}],
            5,
            "Distillation helped in 1 of 2 comparisons",
        ),
    ],
)
def test_the_headline(
    tmp_path: Path, settings: list[dict[str, Any]], seeds: int, beginning: str
) -> None:
    sentence = headline(sweep(tmp_path, *settings, seeds=seeds))
    assert sentence.startswith(beginning)
    assert "nan" not in sentence
    assert "None" not in sentence


def test_the_headline_has_the_difference_its_interval_and_n(tmp_path: Path) -> None:
    report = sweep(tmp_path, CE, KD, {"method": "dkd"})
    delta = report.rows[1].difference
    assert delta is not None
    assert delta.low is not None
    assert delta.high is not None
    sentence = headline(report)
    for number in (delta.mean, delta.low, delta.high):
        assert f"{100 * number:+.2f}" in sentence
    assert "n = 5 seeds, paired; p < 0.001, Holm-corrected for 2 comparisons" in sentence


def test_the_best_is_chosen_on_validation_and_judged_on_test(tmp_path: Path) -> None:
    for seed in range(3):
        tiny = float(np.random.default_rng(seed).normal()) / 1e4
        write_run(tmp_path / f"1{seed}", {"method": "ce"}, seed, 0.90, 0.90)
        write_run(tmp_path / f"2{seed}", {"method": "kd"}, seed, 0.95, 0.89 + tiny)
        write_run(tmp_path / f"3{seed}", {"method": "dkd"}, seed, 0.94, 0.93 + tiny)
    report = build_report(read_runs([tmp_path]))
    assert [row.verdict for row in report.rows] == ["baseline", "hurts", "helps"]
    assert headline(report).startswith("No, distillation hurt: method=kd")
    assert report.best is report.rows[1]


def test_a_teacher_is_never_the_best(tmp_path: Path) -> None:
    write_sweep(tmp_path, [CE, KD], seeds=3)
    write_run(tmp_path / "6", {"model": "teacher", "method": "kd"}, 0, 0.999, 0.999)
    report = build_report(read_runs([tmp_path]))
    assert report.best is report.rows[1]
    assert [len(row.group.runs) for row in report.rows] == [3, 3, 1]


def test_notes(tmp_path: Path) -> None:
    for seed in range(4):
        write_run(tmp_path / f"1{seed}", {"method": "ce"}, seed, test=0.9 + seed / 1e3)
        write_run(tmp_path / f"2{seed}", {"method": "kd"}, seed + 2, test=0.91 + seed / 2e3)
        write_run(tmp_path / f"3{seed}", {"method": "dkd"}, seed + 1, facts={"code": "def"})
    write_run(tmp_path / "40", {"method": "kd"}, seed=2, test=0.91)
    write_run(tmp_path / "41", {"method": "kd"}, seed=9, finished=False)
    shared, welch, left_out, versions, unfinished = notes(build_report(read_runs([tmp_path])))
    assert shared == "Compared over the seeds shared with the baseline: method=dkd."
    assert welch.startswith("Compared without pairs (Welch's t-test), since fewer than 3 seeds")
    assert welch.endswith(": method=kd.")
    assert left_out.endswith(f"same settings and seed: {tmp_path / '20'}.")
    assert versions.endswith("abc, def.")
    assert unfinished.endswith(f"unfinished or failed: {tmp_path / '41'}.")


def test_a_figure_that_is_not_finite_does_not_count(tmp_path: Path) -> None:
    write_run(tmp_path / "0", {"method": "ce"}, 0, test=float("nan"))
    write_run(tmp_path / "1", {"method": "ce"}, 1, test=0.9)
    (row,) = build_report(read_runs([tmp_path])).rows
    assert row.test is not None
    assert (row.test.n, row.test.mean) == (1, 0.9)


def test_teachers_of_the_seeds_of_a_group_share_a_row_and_others_have_their_own(
    tmp_path: Path,
) -> None:
    for seed in range(3):
        own = {"teacher": f"teachers/{seed}"}
        write_run(tmp_path / f"1{seed}", {"method": "ce"}, seed, facts=own)
        write_run(tmp_path / f"2{seed}", {"method": "kd"}, seed, facts=own)
        write_run(tmp_path / f"3{seed}", {"method": "untrained"}, seed, facts={"teacher": "none"})
    report = build_report(read_runs([tmp_path]))
    assert [len(teacher.runs) for teacher in report.teachers] == [3, 1]
    said = "Teachers: teacher 1 of method=ce; method=kd / teacher 2 of method=untrained."
    assert said in notes(report)


def test_a_figure_of_the_teacher_may_come_from_its_own_run(tmp_path: Path) -> None:
    run = write_run(tmp_path / "0", {"method": "kd"})
    edit(run / FACTS, teacher_figures={"test/ece": 0.25, "test/accuracy": 0.5})
    (teacher,) = build_report(read_runs([run])).teachers
    assert teacher.scores("test/ece") == [0.25]
    assert teacher.scores("test/accuracy") == [0.98]  # the student's run measured it, too


def test_smoothed_labels_are_a_control_and_not_a_baseline(tmp_path: Path) -> None:
    report = sweep(tmp_path, CE, {"method": "label_smoothing"}, KD, seeds=3)
    assert [row.is_baseline for row in report.rows] == [True, False, False]
    assert [row.group.control for row in report.rows] == ["", "label_smoothing", ""]
