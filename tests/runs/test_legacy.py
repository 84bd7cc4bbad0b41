"""Tests of the facts of run directories that version 0.1 wrote."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from kd_lightning.runs.legacy import facts_of_old_run
from kd_lightning.utils.errors import UserError
from kd_lightning.utils.run_directory import read_run

KD = {
    "_target_": "kd_lightning.objective.Objective",
    "alpha": 0.5,
    "temperature": 5.0,
    "response": {"_target_": "kd_lightning.losses.response.soft_targets", "_partial_": True},
    "transfer": {},
    "label_smoothing": 0.0,
}
CE = {**KD, "alpha": 0.0}
SMOOTHED = {**CE, "label_smoothing": 0.1}
PERMUTED = {**KD, "response": {"_target_": "kd_lightning.losses.controls.permuted_soft_targets"}}
FITNET = {**CE, "transfer": {"fitnet": {"_target_": "kd_lightning.transfer.fitnet.FitNet"}}}
OFF = {**CE, "transfer": {"fitnet": {"weight": 0}}}
SCHEDULED = {**KD, "alpha": {"_target_": "kd_lightning.schedules.linear", "start": 0, "end": 1}}
DISTILLATION = "kd_lightning.modules.DistillationModule"


def old_run(
    folder: Path,
    method: dict[str, Any] | None = None,
    model: str = DISTILLATION,
    options: dict[str, str] | None = None,
    overrides: tuple[str, ...] = ("data=digits", "seed=3"),
    **config: Any,
) -> Path:
    """A run directory as version 0.1 left it."""
    content = {
        "seed": 3,
        "student": {"_target_": "kd_lightning.nets.cnn.StudentCNN", "width": 16},
        "teacher": {"_target_": "kd_lightning.nets.cnn.TeacherCNN", "width": 32},
        "method": method or KD,
        "model": {"_target_": model, "scheduler": {"_target_": "torch.Constant"}},
        "scheduler": {"_target_": "torch.optim.lr_scheduler.ConstantLR", "factor": 1.0},
        "optimizer": {"_target_": "torch.optim.Adam", "lr": 0.001},
        "trainer": {"max_epochs": 2, "devices": 1, "accelerator": "auto"},
        "data": {"_target_": "kd_lightning.data.digits.DigitsDataModule", "batch_size": 16},
        "cache": {"root": "somewhere", "dtype": "float32"},
        **config,
    }
    chosen = {"method": "kd", "data": "digits", "scheduler": "constant", "net@student": "cnn"}
    hydra = {"hydra": {"runtime": {"choices": {**chosen, **(options or {})}}}}
    files = {"config": content, "overrides": list(overrides), "hydra": hydra}
    (folder / ".hydra").mkdir(parents=True)
    for name, values in files.items():
        (folder / ".hydra" / f"{name}.yaml").write_text(yaml.safe_dump(values))
    metrics = {"test/accuracy": 0.9, "seed": 3, "commit": "abc-dirty", "teacher": "teachers/x.ckpt"}
    (folder / "metrics.json").write_text(json.dumps(metrics))
    return folder


@pytest.mark.parametrize(
    ("settings", "role"),
    [
        ({}, "student"),
        ({"model": "kd_lightning.modules.TeacherModule"}, "teacher"),
        ({"method": CE}, "baseline"),
        ({"method": OFF}, "baseline"),
        ({"method": SMOOTHED}, "control: label_smoothing"),
        ({"method": PERMUTED}, "control: permuted"),
        ({"method": {**PERMUTED, "alpha": 0.0}}, "baseline"),
        ({"model": "kd_lightning.modules.untrained.with_untrained_teacher"}, "control: untrained"),
        (
            {"model": "kd_lightning.modules.untrained.with_untrained_teacher", "method": CE},
            "baseline",
        ),
        ({"method": FITNET}, "student"),
        ({"method": SCHEDULED}, "student"),
        ({"model": "kd_lightning.modules.MutualModule"}, "student"),
        ({"chain": {"generations": 2}, "method": CE}, "student"),
    ],
)
def test_role_is_read_off_the_configuration(
    tmp_path: Path, settings: dict[str, Any], role: str
) -> None:
    assert facts_of_old_run(old_run(tmp_path / "run", **settings))["role"] == role


def test_facts_are_those_of_a_new_run(tmp_path: Path) -> None:
    found = facts_of_old_run(old_run(tmp_path / "run", overrides=("scheduler.factor=0.5",)))
    about = {name: found[name] for name in ("task", "method", "seed", "code", "teacher", "links")}
    assert about == {
        "task": "classification",
        "method": "kd",
        "seed": 3,
        "code": "abc-dirty",
        "teacher": "teachers/x.ckpt",
        "links": [],
    }
    assert found["overrides"] == {"lr_scheduler.factor": "0.5"}
    settings = found["settings"]
    assert settings["lr_scheduler"] == "constant"
    assert settings["lr_scheduler.factor"] == 1.0
    assert (settings["method"], settings["method.temperature"]) == ("kd", 5.0)
    assert (settings["student"], settings["student.width"]) == ("cnn", 16)
    assert settings["cache.dtype"] == "float32"
    incidental = {"cache.root", "trainer.devices", "trainer.accelerator", "seed"}
    assert incidental.isdisjoint(settings)
    assert not [name for name in settings if name.startswith("scheduler")]


@pytest.mark.parametrize(
    ("chain", "links"),
    [
        ({"generations": 3}, ["generation 0", "generation 1", "generation 2"]),
        ({"assistants": {"first": {}, "second": {}}}, ["first", "second", "student"]),
    ],
)
def test_links_of_a_chain_are_named(tmp_path: Path, chain: Any, links: list[str]) -> None:
    assert facts_of_old_run(old_run(tmp_path / "run", chain=chain))["links"] == links


@pytest.mark.parametrize("chain", [{"more": 1}, {"generations": "two"}, 5])
def test_unknown_chain_is_refused(tmp_path: Path, chain: Any) -> None:
    with pytest.raises(UserError, match="run: its chain has neither generations nor assistants"):
        facts_of_old_run(old_run(tmp_path / "run", chain=chain))


def test_read_run_converts_an_old_directory(tmp_path: Path) -> None:
    run = read_run(old_run(tmp_path / "run", method=CE), convert=facts_of_old_run)
    assert (run.role, run.seed, run.is_finished) == ("baseline", "3", True)
    assert run.number("test/accuracy") == 0.9
    with pytest.raises(UserError, match=r"is not a run directory: it has no run\.json"):
        read_run(tmp_path / "run")


@pytest.mark.parametrize("name", ["config", "overrides", "hydra"])
def test_damaged_file_is_named(tmp_path: Path, name: str) -> None:
    run = old_run(tmp_path / "run")
    (run / ".hydra" / f"{name}.yaml").write_text("a: [1,\nb: {")
    with pytest.raises(UserError, match=rf"{name}\.yaml cannot be read") as caught:
        facts_of_old_run(run)
    assert "\n" not in str(caught.value)


def test_unfinished_run_takes_its_seed_from_the_configuration(tmp_path: Path) -> None:
    run = old_run(tmp_path / "run")
    (run / "metrics.json").unlink()
    found = facts_of_old_run(run)
    assert (found["seed"], found["code"], found["teacher"]) == (3, "", "")
