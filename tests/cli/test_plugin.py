"""A method of one's own: one Python file and one YAML, in a folder outside the package."""

import linecache
import os
import sys
from pathlib import Path

import pytest
from conftest import ROOT, Command
from hydra import compose, initialize_config_dir

from kd_lightning import load_run
from kd_lightning.cli.train import CONF
from kd_lightning.data.digits import DigitsDataModule
from kd_lightning.runs.directory import read_metrics
from kd_lightning.runs.pretrain import key_of, teacher_job

pytestmark = pytest.mark.slow

CODE = '''
"""A response loss and a term on layers."""

import os
from pathlib import Path

from kd_lightning.transfer.term import Term


def absolute(z_s, z_t, scale):
    Path(__file__).with_name(f"asked-{os.environ.get('LOCAL_RANK', 0)}").touch()
    return scale * (z_s - z_t).abs().mean()


class Brightness(Term):
    role = "map"

    def compare(self, f_s, f_t, index):
        return (f_s[0].mean((1, 2, 3)) - f_t[0].mean((1, 2, 3))).square().mean()
'''

METHOD = """
defaults:
  - kd
  - _self_
response:
  _target_: mine.absolute
  scale: 0.5
transfer:
  brightness:
    _target_: mine.Brightness
    weight: 0.1
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "mine"
    (folder / "method").mkdir(parents=True)
    (folder / "mine.py").write_text(CODE)
    (folder / "method" / "mine.yaml").write_text(METHOD)
    return folder


def asked(folder: Path) -> set[str]:
    """The ranks whose processes took the loss from that folder."""
    return {p.name.removeprefix("asked-") for p in folder.glob("asked-*")}


def test_it_runs_by_its_name(command: Command, folder: Path, tmp_path: Path) -> None:
    done = command(
        *("--config-dir", str(folder), "method=mine", "data=digits", "trainer.max_epochs=1"),
        f"hydra.run.dir={tmp_path / 'run'}",
    )
    assert done.returncode == 0, done.stderr
    assert asked(folder) == {"0"}
    header, *_ = (tmp_path / "run" / "metrics.csv").read_text().splitlines()
    assert {"train/response", "train/brightness", "train/weight_brightness"} < {*header.split(",")}
    assert load_run(tmp_path / "run").metrics["test/accuracy"] > 0.7
    # the folder is remembered; typed again, it may stand anywhere
    for epochs, typed in ((2, ()), (3, ("--config-dir", str(folder)))):
        done = command(f"resume={tmp_path / 'run'}", *typed, f"trainer.max_epochs={epochs}")
        assert done.returncode == 0, done.stderr
        assert read_metrics(tmp_path / "run")["epochs"] == epochs


def test_it_runs_in_a_sweep_on_two_processes(
    command: Command, folder: Path, tmp_path: Path
) -> None:
    done = command(
        *("-m", "--config-dir", os.path.relpath(folder, ROOT), "method=mine", "data=digits"),
        *("trainer.max_epochs=1", "trainer.devices=2", f"hydra.sweep.dir={tmp_path / 'sweep'}"),
    )
    assert done.returncode == 0, done.stderr
    assert asked(folder) == {"0", "1"}
    assert read_metrics(tmp_path / "sweep" / "0")["test/accuracy"] > 0.6


NETWORK = """
from torch import nn

def mine(input_shape, num_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 32), nn.ReLU(), nn.Linear(32, num_classes))
"""


def test_a_chain_of_networks_made_by_a_function_of_ones_own(
    command: Command, tmp_path: Path
) -> None:
    (tmp_path / "net").mkdir()
    (tmp_path / "nets_of_mine.py").write_text(NETWORK)
    (tmp_path / "net" / "mine.yaml").write_text("_target_: nets_of_mine.mine\n_partial_: true\n")
    done = command(
        *(
            "data=digits",
            "net@student=mine",
            "experiment=self_distillation",
            "trainer.max_epochs=1",
        ),
        *(
            "chain.generations=2",
            f"hydra.run.dir={tmp_path / 'run'}",
            "--config-dir",
            str(tmp_path),
        ),
    )
    assert done.returncode == 0, done.stderr
    assert "all links together" in done.stdout


def test_a_teacher_whose_code_has_changed_is_another_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    data = DigitsDataModule()
    data.setup()
    found = []
    for code in (NETWORK, NETWORK.replace("ReLU", "Tanh")):
        (tmp_path / "changing.py").write_text(code)
        linecache.clearcache()
        monkeypatch.delitem(sys.modules, "changing", raising=False)
        with initialize_config_dir(str(CONF), version_base="1.3"):
            cfg = compose(
                "train", ["data=digits", "teacher._target_=changing.mine", "~teacher.width"]
            )
        cfg.run_dir = str(tmp_path)
        found.append(key_of(teacher_job(cfg), data, world_size=1))
    assert found[0] != found[1]
