"""A run of two processes: figures over all samples of both, and one run directory."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import Sweep

from kd_lightning import load_run
from kd_lightning.data.digits import DigitsDataModule

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run_dir(device_sweep: Sweep) -> Path:
    """The first run with ``trainer.devices=2``."""
    return device_sweep.folder / "2"


def test_each_test_sample_is_read_once_by_one_process(device_sweep: Sweep, run_dir: Path) -> None:
    first, second = (notes["test"] for notes in device_sweep.spied(run_dir))
    assert sorted(first + second) == list(range(360))
    assert first
    assert second


@pytest.mark.parametrize("split", ["val", "test"])
def test_accuracy_is_over_the_samples_of_both_processes(run_dir: Path, split: str) -> None:
    run, data = load_run(run_dir), DigitsDataModule()
    data.setup()
    inputs, target = data.splits[split]
    correct = run.predict(inputs).argmax(1) == target
    assert run.metrics[f"{split}/accuracy"] == correct.float().mean().item()


def test_what_is_measured_against_the_teacher_is_too(run_dir: Path) -> None:
    run = load_run(run_dir)
    teacher = load_run(Path(run.metrics["teacher"]).parent.parent)
    _, (inputs, target) = DigitsDataModule().load()
    p_s, p_t = run.predict(inputs).double(), teacher.predict(inputs).double()
    same, taught = p_s.argmax(1) == p_t.argmax(1), p_t.argmax(1)
    assert run.metrics["test/agreement"] == same.float().mean().item()
    assert run.metrics["test/teacher_accuracy"] == (taught == target).float().mean().item()
    inherited = same[taught != target].double().mean()
    assert run.metrics["test/inherited_errors"] == pytest.approx(inherited.item())
    kl = (p_t * (p_t.log() - p_s.log())).sum(1).mean()
    assert run.metrics["test/kl_teacher"] == pytest.approx(kl.item(), rel=1e-4)


def test_evidence_counts_each_validation_sample_once(run_dir: Path) -> None:
    run, data = load_run(run_dir), DigitsDataModule()
    data.setup()
    inputs, target = data.splits["val"]
    p = run.predict(inputs)
    with np.load(run_dir / "evidence.npz") as tables:
        assert tables["bins"][:, 0].sum() == tables["teacher_bins"][:, 0].sum() == 144
        confusion, probabilities = (tables[k] for k in ("confusion", "class_probabilities"))
    counted = torch.bincount(target * 10 + p.argmax(1), minlength=100)
    assert confusion.tolist() == counted.view(10, 10).tolist()
    own = torch.stack([p[target == c].mean(0) for c in range(10)])
    torch.testing.assert_close(torch.from_numpy(probabilities), own)
    brier = (p - F.one_hot(target, 10)).square().sum(1).mean()
    assert run.metrics["val/brier"] == pytest.approx(brier.item(), rel=1e-4)


def test_one_run_directory_with_one_set_of_files(device_sweep: Sweep, run_dir: Path) -> None:
    jobs = {p.name for p in device_sweep.folder.iterdir() if p.is_dir()}
    assert jobs == {"0", "1", "2", "3", "4", "5"}
    single = {p.name for p in (device_sweep.folder / "0").iterdir()}
    assert {p.name for p in run_dir.iterdir()} - single == {"spy-1.json"}
    checkpoints = {p.name for p in (run_dir / "checkpoints").iterdir()}
    assert checkpoints == {"best.ckpt", "last.ckpt"}
    configuration = (run_dir / ".hydra" / "overrides.yaml").read_text()
    assert "trainer.devices=2" in configuration
