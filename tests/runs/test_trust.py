"""Tests of which code a recorded run may name without the user's consent."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import ROOT

from kd_lightning import load_run
from kd_lightning.cli.command_line import arranged
from kd_lightning.cli.consent import check_trust
from kd_lightning.data.types import ImageSpec
from kd_lightning.nets.mlp import MLP
from kd_lightning.runs.teacher import TeacherOrder
from kd_lightning.runs.trust import TRUST, is_known, is_network
from kd_lightning.utils.errors import UserError

TARGETS = {
    str(target)
    for file in (ROOT / "conf").rglob("*.yaml")
    if file.parent.name != "launcher"  # which Hydra takes from its plugins alone
    for line in file.read_text().splitlines()
    if (target := line.partition("_target_: ")[2].partition(" ")[0]) and "#" not in line[:1]
}
NETS = [
    *("kd_lightning.nets.mlp.MLP", "kd_lightning.nets.torchvision.torchvision_net"),
    *("torch.nn.Linear", "torchvision.models.resnet.ResNet"),
]
# Reachable from the packages that are known, but no part of a training.
DANGEROUS = [
    *("os.system", "builtins.eval", "subprocess.Popen", "spy.Hold", "", "torch", "torch..nn.x"),
    *("torch.load", "torch.hub.load", "torch.jit.ScriptModule", "torch.fx.GraphModule"),
    *("torch.utils.cpp_extension.load", "torch.nn.Module.load_state_dict"),
    "torch.distributed.elastic.multiprocessing.subprocess_handler.SubprocessHandler",
    *("kd_lightning.cli.launch.os.system", "kd_lightning.nets.mlp.nn.Linear"),
    *("kd_lightning.utils.files.write_text", "kd_lightning.nets.torchvision._weights"),
    "kd_lightning.cli.train.main",
]
SPEC = ImageSpec((1, 4, 4), 3, (0.25,), (0.5,))


def test_everything_in_conf_is_known() -> None:
    assert len(TARGETS) > 50
    assert [target for target in TARGETS if not is_known(target)] == []


@pytest.mark.parametrize("target", DANGEROUS)
def test_what_runs_other_code_is_unknown(target: str) -> None:
    assert not is_known(target)
    assert not is_network(target)


def test_networks_are_known_and_nothing_else_is_a_network() -> None:
    assert all(is_known(target) and is_network(target) for target in NETS)
    for other in ("torch.optim.Adam", "kd_lightning.losses.response.soft_targets"):
        assert is_known(other)
        assert not is_network(other)


SLURM, RAY = "hydra/launcher=submitit_slurm", "hydra/launcher=ray"


@pytest.mark.parametrize(
    ("recorded", "named"),
    [
        ((SLURM, "hydra.launcher.setup=[touch x]"), "touch x"),
        ((SLURM, "+hydra.launcher.additional_parameters.prolog=x.sh"), "x.sh"),
        ((RAY, "hydra.launcher.ray.init.address=10.0.0.1:1"), "10.0.0.1:1"),
        ((RAY, "+hydra.launcher.ray.init.runtime_env.py_executable=x.sh"), "x.sh"),
    ],
)
def test_what_a_launcher_would_run_needs_consent(
    tmp_path: Path, recorded: tuple[str, ...], named: str
) -> None:
    with pytest.raises(UserError, match=f"would run .*{named}: add trust=true"):
        check_trust(tmp_path, recorded, [], [], [])


@pytest.mark.parametrize(
    "recorded",
    [
        (SLURM, "hydra.launcher.partition=gpu", "hydra.launcher.setup=[]"),
        (RAY, "hydra.launcher.ray.init.address=auto", "hydra.launcher.ray.remote.num_gpus=1"),
    ],
)
def test_resources_of_a_launcher_need_no_consent(tmp_path: Path, recorded: tuple[str, ...]) -> None:
    check_trust(tmp_path, recorded, [], [], [])


@pytest.fixture(autouse=True)
def no_trust(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trust that a test gives ends with it."""
    monkeypatch.setenv(TRUST, "0")


@pytest.fixture
def stranger(tmp_path: Path) -> Path:
    """A run directory with a recorded list of overrides, and a folder of code beside it."""
    (tmp_path / "run" / ".hydra").mkdir(parents=True)
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "of_a_stranger.py").write_text(
        "from pathlib import Path\n"
        "from kd_lightning.nets.mlp import MLP\n"
        "Path(__file__).with_name('imported').touch()\n"
        "class Net(MLP):\n    pass\n"
    )
    return tmp_path / "run"


def record(run_dir: Path, *overrides: str, folder: Path | None = None) -> None:
    hydra = run_dir / ".hydra"
    (hydra / "overrides.yaml").write_text(yaml.safe_dump(["data=digits", *overrides]))
    source = {"provider": "command-line", "path": str(folder), "schema": "file"}
    sources = {"hydra": {"runtime": {"config_sources": [source] if folder else []}}}
    (hydra / "hydra.yaml").write_text(yaml.safe_dump(sources))


def refused(run_dir: Path, *typed: str) -> str:
    """The error of a resumption."""
    with pytest.raises(UserError) as caught:
        arranged(["train.py", f"resume={run_dir}", *typed])
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("method.response._target_=os.system", "os.system"),
        ("+callbacks.mine._target_=of_a_stranger.Net", "of_a_stranger.Net"),
        ("+hydra.callbacks.mine._target_=os.system", "os.system"),
        ("hydra.job_logging.handlers.file.class=mine.Handler", "mine.Handler"),
        ("+hydra.job.env_set.LD_PRELOAD=mine.so", "LD_PRELOAD=mine.so"),
        ("hydra.searchpath=[file:///]", "file:///"),
        ("+callbacks.mine='${oc.create:{_target_:os.system}}'", "os.system"),
    ],
)
def test_a_recorded_override_that_names_other_code_needs_trust(
    stranger: Path, override: str, named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(TRUST, "1")  # of another command: it counts for nothing
    record(stranger, override)
    assert refused(stranger) == (
        f"resume={stranger} would run {named}: add trust=true if you trust this code"
    )
    assert override in arranged(["train.py", f"resume={stranger}", "trust=true"])
    assert os.environ[TRUST] == "1"
    assert "would run" in refused(stranger, "trust=false")
    assert "it is true or false" in refused(stranger, "trust=yes")


def test_trust_is_not_taken_from_the_record(stranger: Path) -> None:
    record(stranger, "trust=true", "method.response._target_=os.system")
    assert "would run os.system" in refused(stranger)


def test_a_recorded_flag_is_refused_even_with_trust(stranger: Path) -> None:
    record(stranger, "--config-dir=/elsewhere")
    assert "'--config-dir=/elsewhere', which is no override" in refused(stranger, "trust=true")


def test_code_that_the_user_types_needs_no_trust(stranger: Path) -> None:
    code = stranger.parent / "code"
    record(stranger, "student._target_=of_a_stranger.Net", folder=code)
    assert f"would run code in {code}" in refused(stranger)
    typed = ("--config-dir", str(code))
    assert arranged(["train.py", f"resume={stranger}", *typed])[1:3] == [*typed]
    assert arranged(["train.py", f"resume={stranger}", "trust=true"])[1:3] == [*typed]
    # the folder that was typed, and no other code
    record(stranger, "student._target_=of_another.Net", folder=code)
    assert "would run of_another.Net" in refused(stranger, *typed)
    record(stranger)
    word = "student._target_=of_a_stranger.Net"
    assert word in arranged(["train.py", f"resume={stranger}", word])
    assert not (code / "imported").exists()


@pytest.fixture
def foreign(stranger: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A finished run whose network is of the stranger's code."""
    record(stranger, folder=stranger.parent / "code")
    target = {"_target_": "of_a_stranger.Net", "_partial_": True, "hidden": [5]}
    config = {"model": {"student": target}}
    (stranger / ".hydra" / "config.yaml").write_text(yaml.safe_dump(config))
    (stranger / "run.json").write_text(json.dumps({"format": 1}))
    (stranger / "checkpoints").mkdir()
    state = {f"student.{k}": v for k, v in MLP((1, 4, 4), 3, hidden=(5,)).state_dict().items()}
    content = {"state_dict": state, "network": "student", "spec": SPEC.plain()}
    torch.save(content, stranger / "checkpoints" / "best.ckpt")
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "of_a_stranger", raising=False)
    return stranger


def test_a_run_is_loaded_with_code_of_its_own_if_it_is_trusted(foreign: Path) -> None:
    with pytest.raises(UserError, match=r"of_a_stranger\.Net, which is no network.*trust=True"):
        load_run(foreign)
    assert not (foreign.parent / "code" / "imported").exists()
    assert type(load_run(foreign, trust=True).network).__name__ == "Net"
    assert (foreign.parent / "code" / "imported").exists()


def test_several_teachers_are_built_with_code_of_their_own_if_it_is_trusted(
    foreign: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: Any = TeacherOrder
    order = order(None, None, SPEC, None)
    with pytest.raises(UserError, match=r"of_a_stranger\.Net, which is no network"):
        order.given([str(foreign)] * 2)
    monkeypatch.setenv(TRUST, "1")
    assert len(order.given([str(foreign)] * 2).members) == 2
