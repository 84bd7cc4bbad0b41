"""Tests of run directories of version 0.1, which had no ``run.json``."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from made_up import made_up_diagnostics

from kd_lightning.cli.report import main

KD = {
    "_target_": "kd_lightning.objective.Objective",
    **{"alpha": 0.5, "temperature": 5.0, "transfer": {}, "label_smoothing": 0.0},
    "response": {"_target_": "kd_lightning.losses.soft_targets", "_partial_": True},
}
PERMUTED = {"_target_": "kd_lightning.controls.permuted_soft_targets", "_partial_": True}
METHODS: dict[str, dict[str, Any]] = {
    "ce": {**KD, "alpha": 0.0},
    "kd": KD,
    "permuted": {**KD, "response": PERMUTED},
    "label_smoothing": {**KD, "alpha": 0.0, "label_smoothing": 0.1},
}
ACCURACIES = {"ce": 0.90, "kd": 0.93, "permuted": 0.91, "label_smoothing": 0.905}


def write_old_run(folder: Path, method: str, seed: int, **changes: Any) -> Path:
    model = {"_target_": "kd_lightning.distillation.DistillationModule"}
    student = {"_target_": "kd_lightning.nets.cnn.StudentCNN", "width": 16}
    config = {
        **{"seed": seed, "model": model, "student": student, "method": METHODS[method]},
        "scheduler": {"_target_": "torch.optim.lr_scheduler.ConstantLR", "factor": 1.0},
        "trainer": {"max_epochs": 2, "default_root_dir": str(folder)},
        "data": {
            "_target_": "kd_lightning.data.digits.DigitsDataModule",
            **{"root": str(folder), "batch_size": 16},
        },
        **{"chain": None, **changes},
    }
    choices = {"method": method, "net@student": "student_cnn", "scheduler": "constant"}
    accuracy = ACCURACIES[method] + (seed + ACCURACIES[method] * seed**2) / 1000
    metrics = {
        **{f"{s}/accuracy": accuracy for s in ("val", "test")},
        **{f"{s}/teacher_accuracy": 0.99 for s in ("val", "test")},
        **{"test/agreement": 0.9, "parameters": 27210, "teacher_parameters": 1199882},
        **{"compression": 44.1, "role": "student", "seconds": 0.7, "seed": seed, "epochs": 2},
        **{"commit": "3651d00", "teacher": "teachers/TeacherCNN-1/checkpoints/best.ckpt"},
    }
    (folder / ".hydra").mkdir(parents=True)
    record = {"hydra": {"runtime": {"choices": choices}}}
    overrides = [f"method={method}", f"seed={seed}", "data=digits"]
    for name, content in (("config", config), ("hydra", record), ("overrides", overrides)):
        (folder / ".hydra" / f"{name}.yaml").write_text(yaml.safe_dump(content))
    (folder / "metrics.json").write_text(json.dumps(metrics))
    return folder


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setattr(sys, "argv", ["kd-report", *map(str, arguments)])
    main()


def test_an_old_sweep_is_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, method in enumerate(METHODS):
        for seed in range(3):
            folder = write_old_run(tmp_path / "sweep" / f"{number}{seed}", method, seed)
            np.savez(folder / "evidence.npz", allow_pickle=False, **made_up_diagnostics(seed))
    run(monkeypatch, tmp_path / "sweep", "--out", tmp_path / "out")
    printed = " ".join(capsys.readouterr().out.split())
    assert printed.startswith("Yes, distillation helped: method=kd reaches 93.")
    assert "the permuted control" in printed
    assert "the label-smoothing control" in printed
    assert " baseline 90.00 27,210 0.7 " in printed
    plots = {file.stem for file in (tmp_path / "out" / "plots").iterdir()}
    assert plots == {"reliability", "class_probabilities", "temperature", "class_similarity"}
    header, *_ = (tmp_path / "out" / "report.csv").read_text().splitlines()
    assert "seed mean" not in header


def test_an_old_run_prints_its_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(monkeypatch, write_old_run(tmp_path / "run", "kd", 0))
    printed = capsys.readouterr().out
    assert "44.1×" in printed
    assert "1,199,882" in printed


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (".hydra/config.yaml", "a: [1"),
        (".hydra/overrides.yaml", "!!python/object/apply:os.getcwd []"),
        (".hydra/overrides.yaml", "7"),
    ],
)
def test_damage_is_one_line_that_names_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, text: str
) -> None:
    folder = write_old_run(tmp_path / "run", "kd", 0)
    (folder / name).write_text(text)
    with pytest.raises(SystemExit) as error:
        run(monkeypatch, folder)
    line = str(error.value.code)
    assert line.startswith(f"error: {folder / name} ")
    assert "\n" not in line


@pytest.mark.parametrize(
    "chain", [{"rounds": 3}, {"generations": "two"}, {"assistants": None}, "yes"]
)
def test_a_chain_of_another_kind_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chain: Any
) -> None:
    folder = write_old_run(tmp_path / "run", "kd", 0, chain=chain)
    with pytest.raises(SystemExit) as error:
        run(monkeypatch, folder)
    assert str(error.value.code).startswith(f"error: {folder}: its chain has neither")
