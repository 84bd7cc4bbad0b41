"""Tests of the experiments: each is one command, and its jobs differ only where they should."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import ROOT, Command, read_facts
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from kd_lightning.data.types import ImageSpec
from kd_lightning.runs.build import build_source
from kd_lightning.runs.teacher import TeacherOrder, teacher_job


def composed(*arguments: str) -> DictConfig:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose("train", [*arguments, "run_dir=nowhere"])


def jobs_of(folder: Path) -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    """Configuration and figures of each job of a sweep, by number."""
    return {
        job.parent.name: (
            yaml.safe_load((job.parent / ".hydra" / "config.yaml").read_text()),
            json.loads(job.read_text()),
        )
        for job in folder.glob("*/metrics.json")
    }


def budget(config: dict[str, Any]) -> list[Any]:
    """What determines a student's training, apart from method and seed."""
    trainer = {k: v for k, v in config["trainer"].items() if k != "default_root_dir"}
    parts = [config[name] for name in ("student", "optimizer", "lr_scheduler")]
    return [*parts, trainer, {**config["data"], "seed": None}]


def test_teacher_of_2015_sees_every_class_jittered() -> None:
    job = teacher_job(
        composed("experiment=hinton_2015", "experiment/hinton_2015=without_3", "seed=2")
    )
    OmegaConf.resolve(job)
    assert (job.data.exclude_classes, job.data.augment.shift, job.seed) == ([], 2, 0)
    assert job.model.net.hidden == [1200, 1200]
    assert job.model.net.dropout > 0
    assert job.callbacks.max_norm.limit > 0
    assert job.lr_scheduler.T_max == job.trainer.max_epochs == 60


INT8 = {  # quantisation, bits, epochs in floating point, epochs
    "fp32": (None, None, None, 5),
    "longer": (None, None, None, 7),
    **{
        f"ptq{end}": ("PostTraining", bits, None, 5)
        for end, bits in (("", 8), ("_4", 4), ("_3", 3))
    },
    **{
        f"qat{end}": ("QuantizationAware", bits, 5, 7)
        for end, bits in (("", 8), ("_4", 4), ("_3", 3))
    },
}


def test_students_of_int8_differ_in_their_quantisation_and_its_control() -> None:
    """The sweep runs all of them; a quantised one has its control among them."""
    file = yaml.safe_load((ROOT / "conf" / "experiment" / "int8.yaml").read_text())
    assert file["hydra"]["sweeper"]["params"]["experiment/int8"] == ",".join(INT8)
    for name, (kind, bits, start, epochs) in INT8.items():
        cfg = composed("experiment=int8", f"experiment/int8={name}")
        quantize = cfg.get("quantize") or {}
        assert (quantize.get("_target_", "").rpartition(".")[2] or None) == kind
        assert (quantize.get("bits"), quantize.get("start_epoch")) == (bits, start)
        assert cfg.trainer.max_epochs == epochs
        assert cfg.data._target_.endswith("FashionMNISTDataModule")
        assert cfg.pretrain.trainer.max_epochs == 5


def test_the_phone_experiment_names_both_networks_and_a_file() -> None:
    cfg = composed("experiment=resnet101_mobilenet_v3", "data.path=photos")
    assert (cfg.teacher.name, cfg.student.name) == ("resnet101", "mobilenet_v3_small")
    assert cfg.quantize.start_epoch < cfg.trainer.max_epochs
    assert (cfg.quantize.bits, cfg.export) == (8, "onnx")


@pytest.mark.parametrize(
    ("student", "alpha", "left_out"),
    [
        ("labels", 0.0, []),
        ("distilled", 0.95, []),
        ("without_3", 0.95, [3]),
        ("only_7_and_8", 0.95, [0, 1, 2, 3, 4, 5, 6, 9]),
    ],
)
def test_students_of_2015_differ_in_what_they_learn_from(
    student: str, alpha: float, left_out: list[int]
) -> None:
    job = composed("experiment=hinton_2015", f"experiment/hinton_2015={student}")
    OmegaConf.resolve(job)
    assert job.method.alpha == alpha
    assert job.method.temperature == (20 if alpha else 5)
    assert job.callbacks.class_bias["classes"] == job.data.exclude_classes == left_out
    assert job.augment.shift == job.student.dropout == 0
    assert "max_norm" not in job.callbacks
    assert job.lr_scheduler.T_max == job.trainer.max_epochs


@pytest.mark.slow
def test_table_of_2015_is_one_command(command: Command, data_dir: Path, tmp_path: Path) -> None:
    done = command(
        *("experiment=hinton_2015", "seed=0", "data.train_fraction=0.02"),
        *("trainer.max_epochs=1", "pretrain.trainer.max_epochs=1"),
        *("teacher.hidden=[64]", "student.hidden=[32]", f"hydra.sweep.dir={tmp_path}"),
    )
    assert done.returncode == 0, done.stderr
    jobs = jobs_of(tmp_path)
    assert sorted(jobs) == ["0", "1", "2", "3"]
    assert len({read_facts(tmp_path / job)["teacher"] for job in jobs}) == 1
    for config, metrics in jobs.values():
        assert metrics["test/errors"] == round((1 - metrics["test/accuracy"]) * 10_000)
        assert metrics["val/errors_corrected"] <= metrics["val/errors"]
        left_out = bool(config["data"]["exclude_classes"])
        assert (metrics["val/bias"] != 0) == (metrics["test/errors_unseen"] > 0) == left_out
    assert jobs["2"][1]["test/errors_unseen"] <= 1010  # the number of 3s in MNIST's test set


@pytest.mark.slow
def test_controls_give_all_methods_the_same_budget(command: Command, tmp_path: Path) -> None:
    done = command(
        *("experiment=controls", "data=digits", "trainer.max_epochs=1", "seed=3,4"),
        *("pretrain.trainer.max_epochs=1", "teacher.width=4", f"hydra.sweep.dir={tmp_path}"),
    )
    assert done.returncode == 0, done.stderr
    jobs = jobs_of(tmp_path)
    assert len(jobs) == 10
    first, *others = (budget(config) for config, _ in jobs.values())
    assert all(other == first for other in others)
    facts = {number: read_facts(tmp_path / number) for number in jobs}
    roles = ["baseline", *(f"control: {c}" for c in ("label_smoothing", "permuted", "untrained"))]
    expected = [role for role in (*roles, "student") for _ in range(2)]
    assert [facts[str(n)]["role"] for n in range(10)] == expected
    assert [facts[str(n)]["seed"] for n in range(10)] == [3, 4] * 5
    teachers = {number: f["teacher"] for number, f in facts.items()}
    assert {number for number, teacher in teachers.items() if not teacher} == {"6", "7"}
    assert len({teacher for teacher in teachers.values() if teacher}) == 1
    untrained = [jobs[number][1]["test/teacher_accuracy"] for number in "67"]
    trained = jobs["0"][1]["test/teacher_accuracy"]
    assert all(accuracy < trained - 0.3 for accuracy in untrained)


def test_untrained_teacher_follows_the_seed() -> None:
    spec = ImageSpec((1, 8, 8), 10, (0.0,), (1.0,))
    config = composed("method=untrained", "data=digits")
    source, order = build_source(config), TeacherOrder(config, Any, spec, Any)
    weights = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        net = source.network(order)
        assert net is not None
        assert source.find(order, net) == ""
        weights.append(next(net.parameters()).clone())
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


@pytest.mark.slow
def test_label_noise_changes_the_teacher_too(command: Command, tmp_path: Path) -> None:
    done = command(
        *("experiment=label_noise", "data=digits", "data.train_fraction=1", "seed=0"),
        *("trainer.max_epochs=1", "pretrain.trainer.max_epochs=1", "teacher.width=4"),
        *("data.label_noise=0,0.4", "method.alpha=0.1,0.9", f"hydra.sweep.dir={tmp_path}"),
    )
    assert done.returncode == 0, done.stderr
    jobs = jobs_of(tmp_path)
    noise = {n: config["data"]["label_noise"] for n, (config, _) in jobs.items()}
    assert sorted(noise.values()) == [0, 0, 0.4, 0.4]
    pairs = {(noise[n], read_facts(tmp_path / n)["teacher"]) for n in jobs}
    assert len(pairs) == 2  # one teacher for each amount of noise
    assert len({teacher for _, teacher in pairs}) == 2
