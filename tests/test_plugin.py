"""A method of one's own: one Python file and one YAML, in a folder outside the package."""

import os
from pathlib import Path

import pytest
from conftest import ROOT, Command

from kd_lightning import load_run
from kd_lightning.runs import read_metrics

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
