"""Tests of user code outside the package: a method, a network, a datamodule, found by Hydra."""

import json
import linecache
import os
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT, Command, accuracy, read_facts, read_metrics, recompute
from hydra import compose, initialize_config_dir

from kd_lightning import load_run
from kd_lightning.cli.paths import CONF
from kd_lightning.data.digits import DigitsDataModule
from kd_lightning.runs.teacher import teacher_job
from kd_lightning.runs.teacher_key import key_of
from kd_lightning.utils.errors import UserError

pytestmark = pytest.mark.slow

CODE = '''
"""A response loss and a term on layers."""

import os
from pathlib import Path

from kd_lightning.transfer.term import Term


def absolute(z_s, z_t, scale):
    Path(__file__).with_name(f"called-{os.environ.get('LOCAL_RANK', 0)}").touch()
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


def callers(folder: Path) -> set[str]:
    """The ranks of the processes that called the loss in a folder."""
    return {p.name.removeprefix("called-") for p in folder.glob("called-*")}


def test_method_runs_by_its_name_and_resumes(
    command: Command, folder: Path, tmp_path: Path
) -> None:
    done = command(
        *("--config-dir", str(folder), "method=mine", "data=digits", "trainer.max_epochs=1"),
        f"hydra.run.dir={tmp_path / 'run'}",
    )
    assert done.returncode == 0, done.stderr
    assert callers(folder) == {"0"}
    header, *_ = (tmp_path / "run" / "metrics.csv").read_text().splitlines()
    assert {"train/response", "train/brightness", "train/weight_brightness"} < {*header.split(",")}
    facts, metrics = read_facts(tmp_path / "run"), read_metrics(tmp_path / "run")
    assert (facts["method"], facts["role"]) == ("mine", "student")
    assert facts["settings"]["method.transfer.brightness"] == "Brightness"
    expected = accuracy(*recompute(tmp_path / "run", "test"))
    assert metrics["test/accuracy"] == pytest.approx(expected, abs=1e-7)
    # the folder is recorded, but its code runs only if the user trusts it or types it again
    refused = command(f"resume={tmp_path / 'run'}", "trainer.max_epochs=2")
    assert refused.stderr == (
        f"error: resume={tmp_path / 'run'} would run code in {folder}: name the folder with "
        "--config-dir, or add trust=true, if you trust it\n"
    )
    assert (refused.returncode, read_metrics(tmp_path / "run")["epochs"]) == (1, 1)
    for epochs, typed in ((2, ("trust=true",)), (3, ("--config-dir", str(folder)))):
        done = command(f"resume={tmp_path / 'run'}", *typed, f"trainer.max_epochs={epochs}")
        assert done.returncode == 0, done.stderr
        assert read_metrics(tmp_path / "run")["epochs"] == epochs
    records = [p for p in (tmp_path / "run").rglob("*") if p.suffix in (".yaml", ".json")]
    assert records
    assert not any("trust" in p.read_text() for p in records)


def test_method_runs_in_a_sweep_on_two_processes(
    command: Command, folder: Path, tmp_path: Path
) -> None:
    done = command(
        *("-m", "--config-dir", os.path.relpath(folder, ROOT), "method=mine", "data=digits"),
        *("trainer.max_epochs=1", "trainer.devices=2", f"hydra.sweep.dir={tmp_path / 'sweep'}"),
    )
    assert done.returncode == 0, done.stderr
    assert callers(folder) == {"0", "1"}
    run_dir = tmp_path / "sweep" / "0"
    assert read_facts(run_dir)["processes"] == 2
    expected = accuracy(*recompute(run_dir, "test"))
    assert read_metrics(run_dir)["test/accuracy"] == pytest.approx(expected, abs=1e-7)


NETWORK = """
from torch import nn

def mine(input_shape, num_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 32), nn.ReLU(), nn.Linear(32, num_classes))
"""


def test_chain_of_networks_made_by_a_user_function(command: Command, tmp_path: Path) -> None:
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
        *("quantize=qat", "export=onnx"),
    )
    assert done.returncode == 0, done.stderr
    (record,) = json.loads((tmp_path / "run" / "exported" / "export.json").read_text()).values()
    assert (record["file"], record["int8_share"], record["passed"]) == ("model_int8.onnx", 1, True)
    assert "all links together" in done.stdout
    sizes = [read_metrics(tmp_path / "run" / "links" / n)["parameters"] for n in "01"]
    assert sizes == [784 * 32 + 32 + 32 * 10 + 10] * 2


def test_changed_code_of_a_network_changes_the_key(
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


DATA = """
import lightning as L
import torch
from torch.utils.data import DataLoader, TensorDataset


class Mine(L.LightningDataModule):
    def __init__(self, batch_size):
        super().__init__()
        self.batch_size = batch_size

    def setup(self, stage):
        generator = torch.Generator().manual_seed(0)
        y = torch.arange(300) % 3
        x = torch.randn(300, 1, 8, 8, generator=generator)
        x[:, 0, 0, :3] += 4 * torch.eye(3)[y]
        self.parts = [TensorDataset(x[i : i + 100], y[i : i + 100]) for i in (0, 100, 200)]

    def train_dataloader(self):
        return DataLoader(self.parts[0], batch_size=self.batch_size, shuffle=True)

    def val_dataloader(self):
        return DataLoader(self.parts[1], batch_size=50)

    def test_dataloader(self):
        return DataLoader(self.parts[2], batch_size=50)
"""


def test_foreign_datamodule_of_plain_pairs(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, run_dir = tmp_path / "mine", tmp_path / "run"
    (folder / "data").mkdir(parents=True)
    (folder / "my_data.py").write_text(DATA)
    (folder / "data" / "mine.yaml").write_text("_target_: my_data.Mine\nbatch_size: 20\n")
    done = command(
        *("--config-dir", str(folder), "data=mine", "net@student=mlp", "net@teacher=mlp"),
        *("student.hidden=[8]", "trainer.max_epochs=3", "pretrain.trainer.max_epochs=3"),
        f"hydra.run.dir={run_dir}",
        KD_TEACHERS=str(tmp_path / "store"),
    )
    assert done.returncode == 0, done.stderr
    log = (run_dir / "train.log").read_text()
    assert log.count("Mine has no `prepared`: the teacher runs in every step") == 1
    assert "Computing teacher outputs" not in log
    run, facts, metrics = load_run(run_dir), read_facts(run_dir), read_metrics(run_dir)
    assert (run.spec.input_shape, run.spec.num_classes) == ((1, 8, 8), 3)
    assert (facts["settings"]["data"], facts["role"]) == ("mine", "student")
    monkeypatch.syspath_prepend(folder)
    from my_data import Mine  # pyright: ignore[reportMissingImports]

    data = Mine(20)
    data.setup("test")
    x, y = data.parts[2].tensors
    nets = run.network.double(), load_run(facts["teacher"]).network.double()
    z_s, z_t = (net(x.double()) for net in nets)
    expected = {
        "accuracy": accuracy(z_s, y),
        "teacher_accuracy": accuracy(z_t, y),
        "agreement": accuracy(z_s, z_t.argmax(1)),
    }
    found = {name: metrics[f"test/{name}"] for name in expected}
    assert found == pytest.approx(expected, abs=1e-7)
    assert metrics["test/teacher_accuracy"] > 0.6  # a third by chance
    with pytest.raises(UserError, match="did not say how they are normalised"):
        run.predict(torch.zeros(1, 1, 8, 8, dtype=torch.uint8))
