"""Tests of what parts runs and what does not, beyond what a sweep typed."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from made_up import write_run

from kd_lightning.report.compare import build_report
from kd_lightning.report.groups import group_runs
from kd_lightning.report.read import read_runs

CNN, MLP = {"_target_": "nets.cnn.CNN", "width": 16}, {"_target_": "nets.mlp.MLP", "hidden": [80]}


def untyped(folder: Path, seed: int = 0, test: float = 0.9, **sections: Any) -> Path:
    """A run directory of a teacher store or a chain: a configuration, and nothing typed."""
    (folder / ".hydra").mkdir(parents=True)
    (folder / ".hydra" / "config.yaml").write_text(yaml.safe_dump({"seed": seed, **sections}))
    figures = {"val/accuracy": test, "test/accuracy": test, "seed": seed}
    (folder / "metrics.json").write_text(json.dumps(figures))
    return folder


def labels(folder: Path) -> dict[str, int]:
    found = group_runs(read_runs([folder]))
    assert found.repeats == []
    return {group.label: len(group.runs) for group in found.groups}


def test_networks_of_a_teacher_store_are_apart_though_nothing_was_typed(tmp_path: Path) -> None:
    for number, net in enumerate((CNN, CNN, {**CNN, "width": 32}, MLP)):
        model = {"_target_": "modules.TeacherModule", "net": net}
        # the job that wanted the teacher, where it was trained and how it was watched: no matter
        trainer = {"default_root_dir": str(number), "devices": number, "max_epochs": 5}
        untyped(
            tmp_path / str(number),
            seed=number if number < 2 else 0,
            model=model,
            student={"width": number},
            trainer={**trainer, "enable_progress_bar": number > 1},
            data={"root": str(number), "seed": number},
        )
    assert labels(tmp_path) == {
        "net=CNN, width=16": 2,
        "net=CNN, width=32": 1,
        "net=MLP, width=": 1,
    }


def test_links_of_a_chain_are_apart(tmp_path: Path) -> None:
    for seed in (0, 1):
        for link, width in enumerate((32, 16, 8)):
            student = {**CNN, "width": width}
            model = {"_target_": "modules.DistillationModule", "student": student}
            home = tmp_path / f"{seed}{link}"
            untyped(home, seed + 1000 * link, model=model, student=student)
    assert labels(tmp_path) == {"width=32": 2, "width=16": 2, "width=8": 2}


def test_a_setting_that_only_later_code_has_parts_nothing(tmp_path: Path) -> None:
    untyped(tmp_path / "0", 0, method={"alpha": 0.5})
    untyped(tmp_path / "1", 1, method={"alpha": 0.5, "hard_weight": 1.0})
    assert labels(tmp_path) == {"all runs": 2}
    untyped(tmp_path / "2", 0, method={"alpha": 0.9})
    assert labels(tmp_path) == {"alpha=0.5": 2, "alpha=0.9": 1}


def test_untold_differences_make_no_control(tmp_path: Path) -> None:
    # alpha tells the three apart, so that the data have no column of their own
    for number, (alpha, share) in enumerate(((0.0, 1.0), (0.5, 1.0), (0.9, 0.1))):
        for seed in range(3):
            untyped(
                tmp_path / f"{number}{seed}",
                seed,
                0.9 + number / 100 + seed / 1000,
                student=CNN,
                method={"alpha": alpha},
                data={"train_fraction": share, "seed": seed},
            )
    rows = build_report(read_runs([tmp_path])).rows
    assert [row.group.label for row in rows] == ["alpha=0", "alpha=0.5", "alpha=0.9"]
    assert [row.control is None for row in rows] == [False, False, True]


@pytest.mark.parametrize(
    "key",
    [
        *("pretrain.seed", "cache", "cache.root", "logger", "logger.csv.save_dir", "data.root"),
        *("trainer.enable_progress_bar", "trainer.default_root_dir"),
    ],
)
def test_how_a_run_is_watched_and_where_it_lies_parts_nothing(tmp_path: Path, key: str) -> None:
    for seed in range(3):
        write_run(tmp_path / str(seed), {"method": "kd", key: seed}, seed)
    assert labels(tmp_path) == {"all runs": 3}
