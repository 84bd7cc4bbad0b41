"""Tests of the sentences: when distillation is named, and the comparison with controls."""

import re
from pathlib import Path
from typing import Any

import pytest
from made_up import write_run, write_sweep

from kd_lightning.report.compare import Report, build_report
from kd_lightning.report.page import write_report
from kd_lightning.report.read import read_runs
from kd_lightning.report.verdicts import controls, headline, mood

CE, KD = {"method": "ce"}, {"method": "kd", "gain": 0.01}
DKD = {"method": "dkd", "gain": 0.02}
SMOOTH = {"method": "label_smoothing", "gain": 0.02}
PERMUTED, UNTRAINED = {"method": "permuted"}, {"method": "untrained"}


def sweep(folder: Path, *settings: dict[str, Any], seeds: int = 5, baseline: str = "") -> Report:
    write_sweep(folder, list(settings), seeds)
    return build_report(read_runs([folder]), [baseline] if baseline else [])


@pytest.mark.parametrize(
    ("settings", "baseline", "beginning"),
    [
        ([CE, KD], "method=kd", "method=ce is worse than method=kd: method=ce reaches 96."),
        ([KD, DKD], "method=kd", "method=dkd is better than method=kd: "),
        ([CE, SMOOTH], "", "method=label_smoothing is better than the baseline: "),
        ([CE, {**PERMUTED, "gain": 0.02}], "", "method=permuted is better than the baseline: "),
        ([CE, KD], "method=ce", "Yes, distillation helped: method=kd"),
    ],
)
def test_distillation_is_named_only_in_comparisons_with_labels_alone(
    tmp_path: Path, settings: list[dict[str, Any]], baseline: str, beginning: str
) -> None:
    assert headline(sweep(tmp_path, *settings, baseline=baseline)).startswith(beginning)


def test_one_seed_is_singular(tmp_path: Path) -> None:
    assert "(n = 1 seed, paired)" in headline(sweep(tmp_path, CE, KD, seeds=1))


def test_over_several_baselines_the_headline_counts_and_names_the_clearest(tmp_path: Path) -> None:
    # the largest student is the most accurate, but another comparison is the clearest
    settings = [{**m, "student.width": w} for m in (CE, DKD) for w in (8, 16, 32)]
    settings[3]["gain"], settings[5]["gain"] = 0.03, 0.0
    report = sweep(tmp_path, *settings)
    assert headline(report).startswith(
        "Distillation helped in 2 of 3 comparisons, hurt in none; the clearest: method=dkd, width=8"
    )
    assert report.lead is report.rows[3]
    assert mood(report) == "helps"


def test_over_several_baselines_both_directions_are_counted(tmp_path: Path) -> None:
    settings = [{**m, "student.width": w} for m in (CE, KD) for w in (8, 16)]
    settings[3]["gain"] = -0.01
    report = sweep(tmp_path, *settings)
    assert "helped in 1 of 2 comparisons, hurt in 1;" in headline(report)
    assert mood(report) == "open"


def test_the_difference_is_that_of_the_means_beside_it(tmp_path: Path) -> None:
    for seed in range(5):
        write_run(tmp_path / f"1{seed}", {"method": "ce"}, seed, test=0.90 + seed / 100)
    for seed in range(3):  # the baseline's easier seeds are not shared
        write_run(tmp_path / f"2{seed}", {"method": "kd"}, seed, test=0.92 + seed / 99)
    sentence = headline(build_report(read_runs([tmp_path])))
    numbers = re.search(r"reaches ([\d.]+) % .* with ([\d.]+) % .* of \+([\d.]+) points", sentence)
    assert numbers
    ours, theirs, gain = map(float, numbers.groups())
    assert theirs == 91.0
    assert ours - theirs == pytest.approx(gain, abs=0.015)


@pytest.mark.parametrize(
    ("gain", "kd", "beginning", "end"),
    [
        (
            *(0.0, 0.01, "Better than the permuted control: +1.0"),
            "The gain depends on the teacher's ranking of the wrong classes.",
        ),
        (
            *(0.01, 0.01, "No difference from the permuted control shown: "),
            "The gain may not depend on the teacher's ranking of the wrong classes.",
        ),
        (
            *(0.02, 0.01, "Worse than the permuted control: −0.9"),
            "A gain does not need the teacher's ranking of the wrong classes.",
        ),
        (0.0, 0.0, "No difference from the permuted control shown: ", "paired; p = "),
    ],
)
def test_comparison_with_a_control(
    tmp_path: Path, gain: float, kd: float, beginning: str, end: str
) -> None:
    report = sweep(tmp_path, CE, {**KD, "gain": kd}, {**PERMUTED, "gain": gain})
    (sentence,) = controls(report)
    assert sentence.startswith(beginning)
    assert end in sentence
    assert "95 % interval" in sentence
    assert "n = 5 seeds, paired; p" in sentence


def test_without_a_gain_the_control_explains_nothing(tmp_path: Path) -> None:
    (sentence,) = controls(sweep(tmp_path, CE, {**KD, "gain": 0.0}, PERMUTED))
    assert "The gain" not in sentence


def test_every_control_has_a_sentence_and_p_is_adjusted_for_all(tmp_path: Path) -> None:
    smooth = {**SMOOTH, "gain": 0.0}
    report = sweep(tmp_path / "sweep", CE, smooth, PERMUTED, UNTRAINED, KD)
    sentences = controls(report)
    assert [line.split(":")[0] for line in sentences] == [
        f"Better than the {name} control" for name in ("permuted", "untrained", "label-smoothing")
    ]
    assert all("Holm-corrected for 3 comparisons" in line for line in sentences)
    write_report(report, tmp_path / "out")
    for name in ("report.html", "report.md"):
        text = (tmp_path / "out" / name).read_text(encoding="utf-8").replace("\\", "")
        first = text.index("Yes, distillation helped")
        last = text.index("Verdicts are about test accuracy")
        assert first < text.index("Better than the label-smoothing control") < last


def test_a_control_of_another_student_is_not_compared(tmp_path: Path) -> None:
    wide = {**PERMUTED, "student.width": 32}
    plain = [{**m, "student.width": 16} for m in (CE, KD)]
    report = sweep(tmp_path, *plain, {**CE, "student.width": 32}, wide)
    assert headline(report).startswith("Yes, distillation helped")
    assert controls(report) == []


def test_without_distillation_controls_are_not_compared(tmp_path: Path) -> None:
    assert controls(sweep(tmp_path, CE, PERMUTED, SMOOTH)) == []
