"""Tests of the facts in run.json: what defines a result, and what does not."""

import json
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, open_dict

from kd_lightning import __version__
from kd_lightning.cli.paths import CONF
from kd_lightning.data.types import ImageSpec
from kd_lightning.runs.build import build_source, make
from kd_lightning.runs.directory import plain
from kd_lightning.runs.job import facts_of
from kd_lightning.runs.processes import chosen_options
from kd_lightning.runs.record import commit, parse_overrides, settings_of, teacher_figures
from kd_lightning.tasks import Classification
from kd_lightning.utils.errors import UserError

SPEC = ImageSpec((1, 28, 28), 10, (0.5,), (0.5,))


@cache
def composed(*typed: str) -> DictConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("train", ["data=digits", *typed], return_hydra_config=True)


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Returns the facts of a command, without training anything."""

    def record(*typed: str, run_dir: str = "runs/1") -> dict[str, Any]:
        whole = composed(*typed).copy()
        with open_dict(whole):
            whole.hydra.runtime.output_dir = run_dir
        monkeypatch.setattr(HydraConfig.instance(), "cfg", whole)
        cfg = whole.copy()
        with open_dict(cfg):
            del cfg["hydra"]
            cfg.run_dir = run_dir
        source = build_source(cfg)
        settings: dict[str, Any] = {"task": Classification(SPEC)}
        if cfg.model._target_.endswith("DistillationModule"):
            settings["teacher"] = make(cfg.teacher)
        module = make(cfg.model)(**settings)
        facts = facts_of(cfg, module, source, "", processes=1)
        assert facts == json.loads(json.dumps(facts))
        return facts

    return record


@pytest.mark.parametrize(
    ("typed", "role"),
    [
        (("method=kd",), "student"),
        (("method=ce",), "baseline"),
        (("method=label_smoothing",), "control: label_smoothing"),
        (("method=permuted",), "control: permuted"),
        (("method=untrained",), "control: untrained"),
        (("method=kd", "teacher_from=untrained"), "control: untrained"),
        (("method=ce", "teacher_from=untrained"), "baseline"),
        (("method=fitnet",), "student"),
        (("method=fitnet", "method.transfer.fitnet.weight=0", "method.alpha=0"), "baseline"),
        (("method=kd", "method.alpha=0"), "baseline"),
        (("method=mutual",), "student"),
        (("model=teacher",), "teacher"),
    ],
)
def test_role_of_each_kind_of_run(recorded: Any, typed: tuple[str, ...], role: str) -> None:
    assert recorded(*typed)["role"] == role


def test_facts_of_a_student(recorded: Any) -> None:
    found = recorded("method=dkd", "seed=7", "student.width=4")
    assert found["format"] == 1
    assert (found["task"], found["method"], found["seed"]) == ("classification", "dkd", 7)
    assert (found["links"], found["teacher"], found["teacher_figures"]) == ([], "", {})
    assert found["processes"] == 1
    assert found["settings"]["student"] == "student_cnn"
    assert found["settings"]["student.width"] == 4
    assert found["settings"]["method.response"] == "decoupled"
    packages = {name: version(name) for name in ("torch", "lightning")}
    assert found["versions"] == {"kd_lightning": __version__, **packages}


@pytest.mark.parametrize(
    "typed",
    [
        ("seed=3",),
        ("trainer.devices=2", "trainer.accelerator=cpu", "trainer.log_every_n_steps=1"),
        ("data.device_resident=true", "data.eval_batch_size=7"),
        ("cache.root=elsewhere", "cache.max_bytes=5", "profile=true", "teacher_store=there"),
        ("~callbacks.last", "~callbacks.pictures", "callbacks.gradients.every_n_steps=7"),
        ("callbacks=[default,temperature_curves]",),
    ],
)
def test_incidental_settings_are_left_out(recorded: Any, typed: tuple[str, ...]) -> None:
    assert recorded(*typed)["settings"] == recorded()["settings"]


def test_what_follows_the_seed_is_left_out(recorded: Any) -> None:
    first, second = (recorded("pretrain.seed=${seed}", f"seed={s}")["settings"] for s in (3, 4))
    assert first == second  # as experiment=compare has it


def test_paths_in_the_run_directory_are_left_out(recorded: Any) -> None:
    mine = ("+callbacks.mine._target_=spy.Spy", "+callbacks.mine.folder=${run_dir}/notes")
    found = [recorded(*mine, run_dir=run_dir)["settings"] for run_dir in ("runs/1", "runs/2")]
    assert found[0] == found[1]
    assert found[0]["callbacks.mine"] == "Spy"


@pytest.mark.parametrize("given", ["runs/10", "[runs/10,runs/1x]"])
def test_given_teachers_are_kept(recorded: Any, given: str) -> None:
    typed = f"+callbacks.mine={{_target_: spy.Spy, given: {given}}}"
    assert "callbacks.mine.given" in recorded(typed, run_dir="runs/1")["settings"]


@pytest.mark.parametrize(
    "typed",
    [
        ("method.temperature=3",),
        ("method=dkd",),
        ("net@student=mlp",),
        ("student.width=8",),
        ("teacher.width=8",),
        ("optimizer.lr=0.1",),
        ("lr_scheduler=cosine",),
        ("trainer.max_epochs=3",),
        ("data.label_noise=0.1",),
        ("augment=jitter",),
        ("callbacks=[default,max_norm]",),
        ("pretrain.trainer.max_epochs=3",),
        ("cache.dtype=float16",),
        ("teacher_from=untrained",),
        ("monitor=val/loss",),
        ("+transfer@method.transfer.sp=sp",),
    ],
)
def test_settings_that_define_the_result_are_kept(recorded: Any, typed: tuple[str, ...]) -> None:
    assert recorded(*typed)["settings"] != recorded()["settings"]


def test_settings_of_a_baseline_do_not_mention_the_teacher(recorded: Any) -> None:
    baseline = recorded("method=ce")["settings"]
    other = recorded(
        *("method=ce", "teacher.width=8", "method.temperature=2", "method.ensemble=logits"),
        *("pretrain.seed=4", "cache.dtype=float16"),
    )
    assert other["settings"] == baseline
    assert baseline["method.alpha"] == 0
    sections = {name.partition(".")[0] for name in baseline}
    assert sections.isdisjoint({"teacher", "pretrain", "cache", "teacher_from"})


def test_settings_of_a_teacher_do_not_mention_students(recorded: Any) -> None:
    teacher = recorded("model=teacher")["settings"]
    other = recorded("model=teacher", "method=dkd", "student.width=4", "pretrain.seed=4")
    assert other["settings"] == teacher
    assert teacher["teacher"] == "teacher_cnn"
    assert recorded("model=teacher")["method"] == ""


def test_settings_stand_under_the_chosen_option(recorded: Any) -> None:
    settings = recorded("lr_scheduler=cosine", "optimizer=sgd")["settings"]
    chosen = {k: settings[k] for k in ("lr_scheduler", "optimizer", "method", "data", "student")}
    assert chosen == {
        "lr_scheduler": "cosine",
        "optimizer": "sgd",
        "method": "kd",
        "data": "digits",
        "student": "student_cnn",
    }


def test_section_without_an_option_stands_for_its_class() -> None:
    config = {"student": {"_target_": "my.nets.Tiny", "width": 3, "_partial_": True}}
    assert settings_of(config, {}, "baseline") == {
        "student": "Tiny",
        "student._target_": "my.nets.Tiny",
        "student.width": 3,
    }


@pytest.mark.parametrize(
    "typed",
    [
        "optimizer._target_=torch.optim.AdamW",
        "data.seed=7",
        "pretrain.seed=7",
        "teacher_ckpt=somewhere",
        "data.batch_size=4",
        "+callbacks.stop._target_=lightning.pytorch.callbacks.EarlyStopping",
    ],
)
def test_what_changes_a_result_is_a_setting(typed: str, recorded: Any) -> None:
    assert recorded(typed)["settings"] != recorded()["settings"]


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("a.b=1", {"a.b": "1"}),
        ("+a.b='x y'", {"a.b": "'x y'"}),
        ("net@student=mlp", {"student": "mlp"}),
        ("teacher_ckpt=[a,b]", {"teacher_ckpt": "[a,b]"}),
        ("~callbacks.last", {"callbacks.last": ""}),
        ("chain=null", {"chain": "null"}),
    ],
)
def test_overrides_are_keyed_by_what_they_change(typed: str, expected: dict[str, str]) -> None:
    assert parse_overrides([typed]) == expected


def test_teacher_figures_leave_out_single_classes(tmp_path: Path) -> None:
    figures = {"test/accuracy": 0.9, "test/class_accuracy_3": 0.5, "parameters": 12, "mine": 1}
    assert teacher_figures(tmp_path) == {}
    (tmp_path / "metrics.json").write_text(json.dumps(figures))
    assert teacher_figures(tmp_path) == {"test/accuracy": 0.9, "parameters": 12}


def test_commit_is_empty_without_git(monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(commit().removesuffix("-dirty")) == 12
    monkeypatch.setenv("PATH", "")
    commit.cache_clear()
    assert commit() == ""
    commit.cache_clear()


@pytest.mark.parametrize("model", ["teacher", "mutual"])
def test_given_teacher_is_refused_where_nothing_learns_from_one(recorded: Any, model: str) -> None:
    message = "teacher_ckpt is given, but nothing here learns from a teacher: see model="
    with pytest.raises(UserError, match=message):
        recorded(f"model={model}", "teacher_ckpt=x.ckpt")


def test_chosen_options_are_those_of_the_command(recorded: Any) -> None:
    recorded("net@student=mlp", "method=dkd")
    options = chosen_options()
    assert (options["net@student"], options["method"], options["task"]) == (
        *("mlp", "dkd", "classification"),
    )
    assert not [name for name in options if name.startswith("hydra/")]


def test_plain_returns_ordinary_values() -> None:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", ["data=digits", "run_dir=here"])
    values = plain(cfg)
    assert type(values["trainer"]) is dict
    assert values["teacher_from"]["root"] == values["teacher_store"]
