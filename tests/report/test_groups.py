"""Tests of which runs form a group, what the groups are called, and which is whose baseline."""

from pathlib import Path
from typing import Any

import pytest
from made_up import edit, write_run, write_sweep

from kd_lightning.report.compare import build_report
from kd_lightning.report.groups import Groups, group_runs
from kd_lightning.report.read import read_runs
from kd_lightning.utils.errors import UserError
from kd_lightning.utils.run_directory import FACTS

CE, KD = {"method": "ce"}, {"method": "kd", "gain": 0.01}


def groups(folder: Path) -> Groups:
    return group_runs(read_runs([folder]))


def labels(folder: Path) -> dict[str, int]:
    found = groups(folder)
    assert found.repeats == []
    return {group.label: len(group.runs) for group in found.groups}


def untyped(folder: Path, role: str, settings: dict[str, Any], seed: int = 0) -> Path:
    """A run of a teacher store or a link of a chain: nothing was typed for it."""
    facts = {"role": role, "settings": settings, "overrides": {}}
    return write_run(folder, {}, seed, facts=facts)


def test_seeds_form_a_group(tmp_path: Path) -> None:
    write_sweep(tmp_path, [CE, KD])
    # alpha differs as well, but was not typed
    assert groups(tmp_path).columns == {"method": "method"}
    assert labels(tmp_path) == {"method=ce": 5, "method=kd": 5}


def test_a_default_and_the_same_value_typed_are_one_group(tmp_path: Path) -> None:
    write_run(tmp_path / "0", {"method": "kd"}, seed=0)
    write_run(tmp_path / "1", {"method": "kd", "method.temperature": 5}, seed=1)
    write_run(tmp_path / "2", {"method": "kd", "method.temperature": 2}, seed=1)
    write_run(tmp_path / "3", {}, seed=2)
    found = groups(tmp_path)
    assert [list(g.runs) for g in found.groups] == [["0", "1", "2"], ["1"]]
    assert [g.label for g in found.groups] == ["temperature=5", "temperature=2"]


def test_the_later_of_two_runs_with_the_same_settings_and_seed_counts(tmp_path: Path) -> None:
    first, second = (write_run(tmp_path / str(i), {"method": "kd"}) for i in range(2))
    found = groups(tmp_path)
    assert [run.path for run in found.repeats] == [first]
    assert [run.path for run in found.groups[0].runs.values()] == [second]


def test_a_temperature_plays_no_part_in_a_baseline(tmp_path: Path) -> None:
    settings = [
        {"method": "kd", "method.alpha": a, "method.temperature": t}
        for a in (0, 0.5)
        for t in (1, 5)
    ]
    report = build_report(read_runs([write_sweep(tmp_path, settings, seeds=3)]))
    assert [row.group.label for row in report.rows] == [
        "alpha=0, temperature=–",
        "alpha=0.5, temperature=1",
        "alpha=0.5, temperature=5",
    ]
    assert [row.is_baseline for row in report.rows] == [True, False, False]
    assert len(report.repeats) == 3  # T = 1 and T = 5 of each seed are not independent runs


def test_a_setting_of_all_but_the_baseline_is_no_column(tmp_path: Path) -> None:
    settings = [{**m, "method.temperature": 2} for m in (CE, KD)]
    assert labels(write_sweep(tmp_path, settings, seeds=1)) == {"method=ce": 1, "method=kd": 1}


def test_networks_of_a_teacher_store_are_told_apart_though_nothing_was_typed(
    tmp_path: Path,
) -> None:
    nets = (("CNN", 16), ("CNN", 16), ("CNN", 32), ("MLP", 16))
    for number, (net, width) in enumerate(nets):
        settings = {"teacher": net, "teacher.width": width, "data": "digits"}
        untyped(tmp_path / str(number), "teacher", settings, seed=number if number < 2 else 0)
    assert labels(tmp_path) == {
        "teacher=CNN, width=16": 2,
        "teacher=CNN, width=32": 1,
        "teacher=MLP, width=16": 1,
    }


def test_links_of_a_chain_are_told_apart(tmp_path: Path) -> None:
    for seed in (0, 1):
        for link, width in enumerate((32, 16, 8)):
            settings = {"student": "CNN", "student.width": width, "method.alpha": 0.5}
            untyped(tmp_path / f"{seed}{link}", "student", settings, seed + 1000 * link)
    assert labels(tmp_path) == {"width=32": 2, "width=16": 2, "width=8": 2}


def test_only_as_many_settings_as_needed_become_columns(tmp_path: Path) -> None:
    for number, (alpha, share) in enumerate(((0.1, 1.0), (0.5, 1.0), (0.9, 0.1))):
        settings = {"student": "CNN", "method.alpha": alpha, "data.train_fraction": share}
        untyped(tmp_path / str(number), "student", settings)
    assert groups(tmp_path).columns == {"method.alpha": "alpha"}


def test_an_option_that_chooses_several_settings_names_the_groups(tmp_path: Path) -> None:
    for number, (experiment, width) in enumerate((("small", 8), ("large", 64))):
        for seed in (0, 1):
            run = write_run(tmp_path / f"{number}{seed}", {"student.width": width}, seed)
            edit(run / FACTS, overrides={"experiment": experiment, "seed": str(seed)})
    assert labels(tmp_path) == {"experiment=small": 2, "experiment=large": 2}


@pytest.mark.parametrize(
    "key",
    [
        *("data.root", "trainer.enable_progress_bar", "cache.root", "trainer.default_root_dir"),
        *("logger", "logger.csv.save_dir", "profile", "run_dir"),
    ],
)
def test_where_a_run_is_stored_and_how_it_is_shown_is_not_a_setting(
    tmp_path: Path, key: str
) -> None:
    for seed in range(3):
        write_run(tmp_path / str(seed), {"method": "kd", key: seed}, seed)
    assert labels(tmp_path) == {"all runs": 3}


def test_the_number_of_processes_tells_runs_apart(tmp_path: Path) -> None:
    for devices in (1, 2):
        for seed in range(3):
            typed = {"method": "kd", "trainer.devices": devices}
            write_run(tmp_path / f"{devices}{seed}", typed, seed)
            typed = {"method": "ce", "trainer.devices": devices}
            write_run(tmp_path / f"{devices}{seed}0", typed, seed)
    report = build_report(read_runs([tmp_path]))
    assert {row.group.label for row in report.rows} == {
        f"method={method}, processes={n}" for n in (1, 2) for method in ("kd", "ce")
    }
    for row in report.rows:  # of several processes the batches are larger
        assert row.baseline
        assert row.baseline.values["processes"] == row.group.values["processes"]


def test_a_baseline_has_the_same_student_and_any_teacher(tmp_path: Path) -> None:
    settings = [
        {**method, "student.width": width, "teacher.width": teacher}
        for method in (CE, KD)
        for width in (8, 16)
        for teacher in (32, 64)
        if method is KD or teacher == 32
    ]
    report = build_report(read_runs([write_sweep(tmp_path, settings, seeds=3)]))
    assert len(report.rows) == 6
    for row in report.rows:
        assert row.baseline
        assert row.baseline.values["method"] == "ce"
        assert row.baseline.values["student.width"] == row.group.values["student.width"]


@pytest.mark.parametrize(
    ("key", "compared"),
    [
        *(("data.exclude_classes", False), ("trainer.max_epochs", False), ("optimizer.lr", False)),
        *(("augment.flip", False), ("callbacks.max_norm.limit", False), ("student.width", False)),
        *(("teacher.width", True), ("cache.dtype", True), ("pretrain.trainer.max_epochs", True)),
    ],
)
def test_only_what_is_about_the_student_must_agree_with_the_baseline(
    tmp_path: Path, key: str, compared: bool
) -> None:
    for seed in range(3):
        write_run(tmp_path / f"1{seed}", {"method": "ce"}, seed)
        run = write_run(tmp_path / f"2{seed}", {"method": "kd"}, seed)
        settings = read_runs([run])[0].settings
        edit(run / FACTS, settings={**settings, key: 7})
    ours = build_report(read_runs([tmp_path])).rows[1]
    assert (ours.baseline is not None) == compared
    assert (ours.verdict == "no baseline") != compared


def test_of_several_baselines_the_plain_one_counts(tmp_path: Path) -> None:
    term = {"sp": {"weight": 1.0}}
    fitnet = {"method": "fitnet", "method.alpha": 0, "method.transfer": term}
    idle = {"method": "idle", "method.alpha": 0}
    report = build_report(read_runs([write_sweep(tmp_path, [idle, CE, fitnet], seeds=3)]))
    assert [row.group.role for row in report.rows] == ["baseline", "baseline", "student"]
    assert all(row.baseline is report.rows[1].group for row in report.rows)


def test_a_teacher_has_no_baseline(tmp_path: Path) -> None:
    for seed in range(3):
        write_run(tmp_path / f"1{seed}", {"method": "ce"}, seed, test=0.9 + seed / 1e3)
        write_run(tmp_path / f"2{seed}", {"model": "teacher"}, seed, test=0.99)
    report = build_report(read_runs([tmp_path]))
    assert [row.verdict for row in report.rows] == ["baseline", "no baseline"]


def test_another_baseline_can_be_named(tmp_path: Path) -> None:
    sweep = write_sweep(tmp_path, [KD, {"method": "dkd"}], seeds=4)
    report = build_report(read_runs([sweep]), ["method=kd"])
    assert [row.verdict for row in report.rows] == ["baseline", "hurts"]


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ("method=none", "--baseline method=none: no such group; there are: method=ce; method=kd"),
        ("depth=3", "--baseline depth=3: the runs do not differ in depth, but in method"),
    ],
)
def test_a_named_baseline_that_does_not_exist_is_refused(
    tmp_path: Path, named: str, message: str
) -> None:
    runs = read_runs([write_sweep(tmp_path, [CE, KD], seeds=1)])
    with pytest.raises(UserError) as error:
        build_report(runs, [named])
    assert str(error.value) == message


def test_runs_and_sweeps_mix_and_each_counts_once(tmp_path: Path) -> None:
    folder = write_sweep(tmp_path / "sweep", [CE, KD], seeds=2)
    single = write_run(tmp_path / "single", {"method": "kd"}, seed=2)
    report = build_report(read_runs([folder, single, folder / "0", single]))
    assert [len(row.group.runs) for row in report.rows] == [2, 3]
    assert report.repeats == []
