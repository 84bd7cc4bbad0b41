"""Tests of what a report says first: the headline, and what a gain is due to."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from made_up import write_run, write_sweep

from kd_lightning.report.answer import headline, mood
from kd_lightning.report.causes import causes
from kd_lightning.report.compare import Report, build_report
from kd_lightning.report.page import write_report
from kd_lightning.report.read import read_runs

CE, KD = {"method": "ce"}, {"method": "kd", "gain": 0.01}
DKD = {"method": "dkd", "gain": 0.02}
SMOOTH = {"method": "label_smoothing", "gain": 0.02}
PERMUTED, UNTRAINED = {"method": "permuted"}, {"method": "untrained"}


def sweep(folder: Path, *settings: dict[str, Any], seeds: int = 5, control: str = "") -> Report:
    write_sweep(folder, list(settings), seeds, evidence=False)
    return build_report(read_runs([folder]), [control] if control else [])


@pytest.mark.parametrize(
    ("settings", "control", "beginning"),
    [
        ([CE, KD], "method=kd", "method=ce is worse than method=kd: method=ce reaches 96."),
        ([KD, DKD], "method=kd", "method=dkd is better than method=kd: "),
        ([CE, SMOOTH], "", "method=label_smoothing is better than labels alone: "),
        ([CE, {**PERMUTED, "gain": 0.02}], "", "method=permuted is better than labels alone: "),
        ([CE, KD], "method=ce", "Yes, distillation helped: method=kd"),
    ],
)
def test_distillation_is_named_only_where_it_is_compared_with_labels_alone(
    tmp_path: Path, settings: list[dict[str, Any]], control: str, beginning: str
) -> None:
    assert headline(sweep(tmp_path, *settings, control=control)).startswith(beginning)


def test_of_one_seed_it_speaks_in_the_singular(tmp_path: Path) -> None:
    assert "(n = 1 seed, paired)" in headline(sweep(tmp_path, CE, KD, seeds=1))


def test_over_several_controls_it_counts_and_names_the_clearest(tmp_path: Path) -> None:
    # the largest student does best on validation, but another task has the clearest gain
    settings = [{**m, "student.width": w} for m in (CE, DKD) for w in (8, 16, 32)]
    settings[3]["gain"], settings[5]["gain"] = 0.03, 0.0
    report = sweep(tmp_path, *settings)
    sentence = headline(report)
    assert sentence.startswith(
        "Distillation helped in 2 of 3 comparisons, hurt in none; the clearest: method=dkd, width=8"
    )
    assert report.lead is report.rows[3]
    assert mood(report) == "helps"


def test_over_several_controls_help_and_harm_are_both_said(tmp_path: Path) -> None:
    settings = [{**m, "student.width": w} for m in (CE, KD) for w in (8, 16)]
    settings[3]["gain"] = -0.01
    report = sweep(tmp_path, *settings)
    assert "helped in 1 of 2 comparisons, hurt in 1;" in headline(report)
    assert mood(report) == "open"


def test_a_teacher_is_never_the_best(tmp_path: Path) -> None:
    write_sweep(tmp_path, [CE, KD], seeds=3, evidence=False)
    run = write_run(tmp_path / "6", {"model": "teacher", "method": "kd"}, 0, 0.999, 0.999)
    file = run / ".hydra" / "config.yaml"
    target = {"model": {"_target_": "kd_lightning.modules.TeacherModule"}}
    file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | target))
    best = build_report(read_runs([tmp_path])).best
    assert best is not None
    assert best.group.values["method"] == "kd"
    assert len(best.group.runs) == 3


def test_the_difference_is_that_of_the_means_beside_it(tmp_path: Path) -> None:
    for seed in range(5):
        write_run(tmp_path / f"1{seed}", {"method": "ce"}, seed, test=0.90 + seed / 100)
    for seed in range(3):  # the control's easier seeds are not theirs
        write_run(tmp_path / f"2{seed}", {"method": "kd"}, seed, test=0.92 + seed / 99)
    sentence = headline(build_report(read_runs([tmp_path])))
    figures = re.search(r"reaches ([\d.]+) % .* against ([\d.]+) % .*, \+([\d.]+) points", sentence)
    assert figures
    ours, theirs, gain = map(float, figures.groups())
    assert theirs == 91.0
    assert ours - theirs == pytest.approx(gain, abs=0.015)


@pytest.mark.parametrize(
    ("gain", "kd", "beginning", "end"),
    [
        (0.0, 0.01, "Beyond permuted: +1.0", ", so which wrong classes the teacher likens counts."),
        (0.01, 0.01, "No more than permuted gains, as far as shown: ", "likens may not count."),
        (0.02, 0.01, "Less than permuted: −0.9", "the teacher likens is not needed for a gain."),
        (0.0, 0.0, "No difference from permuted shown: ", "p = "),
    ],
)
def test_what_a_gain_is_due_to(
    tmp_path: Path, gain: float, kd: float, beginning: str, end: str
) -> None:
    report = sweep(tmp_path, CE, {**KD, "gain": kd}, {**PERMUTED, "gain": gain})
    (sentence,) = causes(report)
    assert sentence.startswith(beginning)
    assert end in sentence
    assert "95 % interval" in sentence
    assert "n = 5 seeds, paired; p" in sentence


def test_each_half_measure_has_its_sentence_and_p_is_adjusted_for_all(tmp_path: Path) -> None:
    smooth = {**SMOOTH, "gain": 0.0}
    report = sweep(tmp_path / "sweep", CE, smooth, PERMUTED, UNTRAINED, KD)
    said = causes(report)
    assert [line.split(":")[0] for line in said] == [
        *("Beyond permuted", "Beyond untrained", "Beyond label_smoothing")
    ]
    assert all("Holm-corrected for 3 comparisons" in line for line in said)
    write_report(report, tmp_path / "out")
    for name in ("report.html", "report.md"):
        text = (tmp_path / "out" / name).read_text(encoding="utf-8").replace("\\", "")
        first = text.index("Yes, distillation helped")
        assert first < text.index("Beyond label_smoothing") < text.index("A verdict is about")


def test_of_another_student_a_half_measure_says_nothing(tmp_path: Path) -> None:
    wide = {**PERMUTED, "student.width": 32}
    plain = [{**m, "student.width": 16} for m in (CE, KD)]
    assert causes(sweep(tmp_path, *plain, {**CE, "student.width": 32}, wide)) == []


def test_where_nothing_distils_no_cause_is_named(tmp_path: Path) -> None:
    assert causes(sweep(tmp_path, CE, PERMUTED, SMOOTH)) == []
