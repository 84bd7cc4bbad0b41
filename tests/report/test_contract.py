"""The contract with training: the role of every option of ``method=``, as the report sees it."""

from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import get_class, instantiate
from made_up import write_run
from omegaconf import OmegaConf

from kd_lightning.report.compare import build_report
from kd_lightning.report.groups import group_runs
from kd_lightning.report.read import read_runs
from kd_lightning.runs import record as training

CONF = Path(__file__).resolve().parents[2] / "conf"
OPTIONS = sorted(file.stem for file in (CONF / "method").glob("*.yaml"))
CONTROLS = ("label_smoothing", "permuted", "untrained")


@cache
def recorded(*overrides: str) -> dict[str, Any]:
    """``run.json`` as a training with these overrides writes it."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        composed = compose("train", list(overrides), return_hydra_config=True)
    choices = OmegaConf.to_container(composed.hydra.runtime.choices)
    OmegaConf.set_struct(composed, False)
    del composed["hydra"]
    composed.run_dir = "run"
    config = OmegaConf.to_container(composed, resolve=True)
    assert isinstance(config, dict)
    assert isinstance(choices, dict)
    role = instantiate(config["method"]).role
    source = (config.get("teacher_from") or {}).get("_target_")
    if control := getattr(get_class(source), "control", "") if source else "":
        role = f"control: {control}"
    typed = training.parse_overrides(overrides)
    return training.facts(config, choices, typed, role=role, task="classification", teacher="a")  # pyright: ignore


def is_pending(option: str) -> bool:
    """Whether the group ``teacher_from`` does not exist yet, which marks the control."""
    return option == "untrained" and not (CONF / "teacher_from").is_dir()


@pytest.mark.parametrize("option", OPTIONS)
def test_the_role_of_every_method(tmp_path: Path, option: str) -> None:
    if is_pending(option):
        pytest.xfail("conf/teacher_from does not exist yet")
    record = recorded(f"method={option}", "data=digits")
    (group,) = group_runs(read_runs([write_run(tmp_path / "run", {}, facts=record)])).groups
    assert group.is_baseline == (option == "ce")
    assert group.control == (option if option in CONTROLS else "")
    assert group.distils == (option != "ce" and option not in CONTROLS)


def test_every_method_is_compared_with_the_same_baseline(tmp_path: Path) -> None:
    for number, option in enumerate(OPTIONS):
        record = recorded(f"method={option}", "data=digits")
        for seed in (0, 1, 2):
            facts = {**record, "seed": seed}
            write_run(tmp_path / str(3 * number + seed), {}, facts=facts)
    report = build_report(read_runs([tmp_path]))
    assert report.columns == {"method": "method"}
    assert [len(row.group.runs) for row in report.rows] == [3] * len(OPTIONS)
    (baseline,) = [row.group for row in report.rows if row.is_baseline]
    assert baseline.values == {"method": "ce"}
    assert {row.baseline for row in report.rows} == {baseline}


@pytest.mark.parametrize(
    ("override", "compared"),
    [
        *(("method.temperature=2", True), ("net@teacher=mlp", True), ("cache=memory", True)),
        *(("net@student=mlp", False), ("trainer.max_epochs=3", False), ("optimizer=sgd", False)),
        *(("data.train_fraction=0.1", False), ("lr_scheduler=cosine", False)),
        *(("trainer.accelerator=cpu", True), ("trainer.log_every_n_steps=1", True)),
    ],
)
def test_which_overrides_need_a_baseline_of_their_own(
    tmp_path: Path, override: str, compared: bool
) -> None:
    for name, typed in (("0", ["method=ce"]), ("1", ["method=kd", override])):
        write_run(tmp_path / name, {}, facts=recorded(*typed, "data=digits"))
    rows = {row.group.role: row for row in build_report(read_runs([tmp_path])).rows}
    assert (rows["student"].baseline is rows["baseline"].group) == compared


def test_without_alpha_kd_is_a_baseline_and_its_temperature_plays_no_part(tmp_path: Path) -> None:
    for t in (1, 5):
        record = recorded("method=kd", "method.alpha=0", f"method.temperature={t}", "data=digits")
        write_run(tmp_path / str(t), {}, facts=record)
    found = group_runs(read_runs([tmp_path]))
    assert [group.role for group in found.groups] == ["baseline"]
    assert len(found.repeats) == 1
