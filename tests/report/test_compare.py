"""Tests of who is in a group, what it is compared with, and the sentence on top."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from made_up import write_run, write_sweep

from kd_lightning.report.answer import headline
from kd_lightning.report.compare import Report, build_report
from kd_lightning.report.groups import group_runs
from kd_lightning.report.read import read_runs
from kd_lightning.report.words import notes
from kd_lightning.utils.errors import UserError

CE, KD = {"method": "ce"}, {"method": "kd", "gain": 0.01}


def sweep(folder: Path, *settings: dict[str, Any], seeds: int = 5, control: str = "") -> Report:
    write_sweep(folder, list(settings), seeds, evidence=False)
    return build_report(read_runs([folder]), [control] if control else [])


def test_groups_are_what_was_swept_over_seeds(tmp_path: Path) -> None:
    report = sweep(tmp_path, CE, KD)
    assert report.columns == {"method": "method"}  # alpha differs as well, but was not typed
    assert {r.group.label: len(r.group.runs) for r in report.rows} == {
        "method=ce": 5,
        "method=kd": 5,
    }
    assert [r.verdict for r in report.rows] == ["control", "helps"]
    assert report.best is report.rows[1]


def test_a_default_and_the_same_value_typed_are_one_group(tmp_path: Path) -> None:
    write_run(tmp_path / "0", {"method": "kd"}, seed=0)
    write_run(tmp_path / "1", {"method": "kd", "method.temperature": 5}, seed=1)
    write_run(tmp_path / "2", {"method": "kd", "method.temperature": 2}, seed=1)
    found = group_runs(read_runs([tmp_path]))
    assert [list(g.runs) for g in found.groups] == [["0", "1"], ["1"]]
    assert [g.label for g in found.groups] == ["temperature=5", "temperature=2"]


def test_options_chosen_but_not_typed_are_known_from_hydra(tmp_path: Path) -> None:
    for job, typed in enumerate(({}, {"method": "kd"}, {"method": "ce"})):
        run = write_run(tmp_path / str(job), typed, seed=job)
        chosen = {"method": typed.get("method", "kd")}
        record = {"hydra": {"runtime": {"choices": chosen}}}
        (run / ".hydra" / "hydra.yaml").write_text(yaml.safe_dump(record))
    found = group_runs(read_runs([tmp_path]))
    assert [(g.label, list(g.runs)) for g in found.groups] == [
        ("method=kd", ["0", "1"]),
        ("method=ce", ["2"]),
    ]


def test_a_control_has_the_same_student_and_any_teacher(tmp_path: Path) -> None:
    settings = [
        {**method, "student.width": width, "teacher.width": teacher}
        for method in (CE, KD)
        for width in (8, 16)
        for teacher in (32, 64)
        if method is KD or teacher == 32
    ]
    report = sweep(tmp_path, *settings, seeds=3)
    for row in report.rows:
        assert row.control is not None
        assert row.control.values["method"] == "ce"
        assert row.control.values["student.width"] == row.group.values["student.width"]


def test_on_labels_alone_a_temperature_is_moot(tmp_path: Path) -> None:
    settings = [
        {"method": "kd", "method.alpha": a, "method.temperature": t}
        for a in (0, 0.5)
        for t in (1, 5)
    ]
    report = sweep(tmp_path, *settings, seeds=3)
    labels = [row.group.label for row in report.rows]
    assert labels == [
        "alpha=0, temperature=–",
        "alpha=0.5, temperature=1",
        "alpha=0.5, temperature=5",
    ]
    assert [row.is_control for row in report.rows] == [True, False, False]
    assert len(report.repeats) == 3  # T = 1 and T = 5 of each seed: not six independent runs


def test_a_transfer_makes_no_control_unless_it_weighs_nothing(tmp_path: Path) -> None:
    term = {"sp": {"weight": 1.0}}
    fitnet = {"method": "fitnet", "method.alpha": 0, "method.transfer": term}
    idle = {"method": "idle", "method.alpha": 0, "method.transfer": {"sp": {"weight": 0.0}}}
    report = sweep(tmp_path, CE, fitnet, idle, seeds=3)
    # the one called ce is preferred, so that the idle one is compared with it
    assert [row.verdict == "control" for row in report.rows] == [True, False, False]
    assert all(row.control is report.rows[0].group for row in report.rows)


def test_another_control_can_be_named(tmp_path: Path) -> None:
    report = sweep(tmp_path, KD, {"method": "dkd"}, seeds=4, control="method=kd")
    assert [row.verdict for row in report.rows] == ["control", "hurts"]
    assert "with method=kd" in headline(report)


@pytest.mark.parametrize(
    ("control", "message"),
    [
        ("method=none", "no group is so; there are: method=ce; method=kd"),
        ("depth=3", "depth was not swept; method was"),
    ],
)
def test_a_control_that_is_not_there(tmp_path: Path, control: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        sweep(tmp_path, CE, KD, seeds=1, control=control)


DATA = {"data.path": "permuted.npz"}


@pytest.mark.parametrize(
    ("settings", "seeds", "beginning"),
    [
        ([CE, KD], 5, "Yes, distillation helped: method=kd reaches 97."),
        ([CE, {"method": "kd", "gain": -0.01}], 5, "No, distillation hurt: method=kd"),
        ([CE, {"method": "kd", "gain": 0.0}], 5, "No difference shown: method=kd"),
        ([CE, KD], 2, "Too few seeds to tell: method=kd"),
        ([CE, KD], 1, "Too few seeds to tell: method=kd"),
        ([KD, {"method": "dkd"}], 3, "No verdict: no group learnt from labels alone"),
        ([CE], 3, "Nothing to compare"),
        # the placebo did best, but the question is whether distillation helped
        (
            [CE, KD, {"method": "label_smoothing", "gain": 0.02}],
            5,
            "Yes, distillation helped: method=kd",
        ),
        ([CE, KD, {"method": "untrained", "gain": 0.02}], 5, "Yes, distillation helped: method=kd"),
        # a name is no placebo
        (
            [CE, {**KD, "gain": 0.0}, {**CE, **DATA}, {**KD, **DATA}],
            5,
            "Distillation helped in 1 of 2 comparisons",
        ),
    ],
)
def test_the_sentence(
    tmp_path: Path, settings: list[dict[str, Any]], seeds: int, beginning: str
) -> None:
    sentence = headline(sweep(tmp_path, *settings, seeds=seeds))
    assert sentence.startswith(beginning)
    assert "nan" not in sentence
    assert "None" not in sentence


def test_the_sentence_has_the_difference_its_interval_and_n(tmp_path: Path) -> None:
    report = sweep(tmp_path, CE, KD, {"method": "dkd"})
    delta = report.rows[1].difference
    assert delta is not None
    assert delta.low is not None
    assert delta.high is not None
    sentence = headline(report)
    for figure in (delta.mean, delta.low, delta.high):
        assert f"{100 * figure:+.2f}" in sentence
    assert "n = 5 seeds, paired; p < 0.001, Holm-corrected for 2 comparisons" in sentence


def test_the_best_is_picked_on_validation_and_judged_on_test(tmp_path: Path) -> None:
    for seed in range(3):
        tiny = float(np.random.default_rng(seed).normal()) / 1e4
        write_run(tmp_path / f"1{seed}", {"method": "ce"}, seed, 0.90, 0.90)
        write_run(tmp_path / f"2{seed}", {"method": "kd"}, seed, 0.95, 0.89 + tiny)
        write_run(tmp_path / f"3{seed}", {"method": "dkd"}, seed, 0.94, 0.93 + tiny)
    report = build_report(read_runs([tmp_path]))
    assert [row.verdict for row in report.rows] == ["control", "hurts", "helps"]
    assert headline(report).startswith("No, distillation hurt: method=kd")
    assert report.best is report.rows[1]


def test_what_a_reader_must_know_is_noted(tmp_path: Path) -> None:
    for seed in range(4):
        write_run(tmp_path / f"1{seed}", {"method": "ce"}, seed, test=0.9 + seed / 1e3)
        write_run(tmp_path / f"2{seed}", {"method": "kd"}, seed + 2, test=0.91 + seed / 2e3)
        write_run(tmp_path / f"3{seed}", {"method": "dkd"}, seed + 1, commit="def")
    write_run(tmp_path / "40", {"method": "kd"}, seed=2, test=0.91)
    write_run(tmp_path / "41", {"method": "kd"}, seed=9, finished=False)
    shared, welch, left_out, versions, unfinished = notes(build_report(read_runs([tmp_path])))
    assert shared == "Compared over the seeds shared with the control: method=dkd."
    assert welch.startswith("Compared unpaired (Welch)")
    assert welch.endswith("method=kd.")
    assert left_out.endswith(f"{tmp_path / '20'}.")
    assert versions.endswith("abc, def.")
    assert unfinished.endswith(f"{tmp_path / '41'}.")


def test_runs_and_sweeps_mix_and_each_counts_once(tmp_path: Path) -> None:
    folder = write_sweep(tmp_path / "sweep", [CE, KD], seeds=2, evidence=False)
    lone = write_run(tmp_path / "lone", {"method": "kd"}, seed=2)
    report = build_report(read_runs([folder, lone, folder / "0", lone]))
    assert [len(row.group.runs) for row in report.rows] == [2, 3]
    assert report.repeats == []


def test_figures_that_are_no_numbers_do_not_count(tmp_path: Path) -> None:
    write_run(tmp_path / "0", {"method": "ce"}, 0, test=float("nan"))
    write_run(tmp_path / "1", {"method": "ce"}, 1, test=0.9)
    (row,) = build_report(read_runs([tmp_path])).rows
    assert row.test is not None
    assert (row.test.n, row.test.mean) == (1, 0.9)


def test_a_teacher_is_nobodys_better_student(tmp_path: Path) -> None:
    for seed in range(3):
        write_run(tmp_path / f"1{seed}", {"method": "ce"}, seed, test=0.9 + seed / 1e3)
        run = write_run(tmp_path / f"2{seed}", {"model": "teacher"}, seed, test=0.99)
        config = yaml.safe_load((run / ".hydra" / "config.yaml").read_text())
        config["model"] = {"_target_": "kd_lightning.modules.TeacherModule"}
        (run / ".hydra" / "config.yaml").write_text(yaml.safe_dump(config))
    report = build_report(read_runs([tmp_path]))
    assert [row.verdict for row in report.rows] == ["control", "no control"]


def test_teachers_of_several_seeds_share_a_row_and_others_have_their_own(tmp_path: Path) -> None:
    for seed in range(3):
        own = {"teacher": f"teachers/{seed}/checkpoints/best.ckpt"}
        write_run(tmp_path / f"1{seed}", {"method": "ce"}, seed, **own)
        write_run(tmp_path / f"2{seed}", {"method": "kd"}, seed, **own)
        write_run(tmp_path / f"3{seed}", {"method": "untrained"}, seed, teacher="none")
    report = build_report(read_runs([tmp_path]))
    assert [len(teacher.runs) for teacher in report.teachers] == [3, 1]
    said = "Who taught whom: teacher 1: method=ce; method=kd / teacher 2: method=untrained."
    assert said in notes(report)


def test_smoothed_labels_are_compared_with_plain_ones(tmp_path: Path) -> None:
    settings = [{"method": "ce", "method.label_smoothing": s} for s in (0.0, 0.1)]
    report = sweep(tmp_path, *settings, KD, seeds=3)
    assert [row.is_control for row in report.rows] == [True, False, False]


def test_where_an_option_chooses_much_the_rest_must_be_the_same(tmp_path: Path) -> None:
    works = {"alone": (0.0, []), "taught": (0.5, []), "without_3": (0.5, [3])}
    for number, (experiment, (alpha, excluded)) in enumerate(works.items()):
        for seed in range(3):
            run = write_run(tmp_path / f"{number}{seed}", {"experiment": experiment}, seed)
            file = run / ".hydra" / "config.yaml"
            config = yaml.safe_load(file.read_text())
            config["method"]["alpha"] = alpha
            config["data"] = {"exclude_classes": excluded, "seed": seed}
            config["trainer"] = {"max_epochs": 5, "default_root_dir": str(run)}
            file.write_text(yaml.safe_dump(config))
    report = build_report(read_runs([tmp_path]))
    assert [row.verdict for row in report.rows] == ["control", "no difference shown", "no control"]
