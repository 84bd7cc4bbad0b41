"""Tests of a run on two processes: figures over the samples of both, and one run directory."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import Sweep, accuracy, read_facts, read_metrics, recompute

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run_dir(device_sweep: Sweep) -> Path:
    """The first run with ``trainer.devices=2``."""
    return device_sweep.folder / "2"


def test_each_test_sample_is_read_by_one_process(device_sweep: Sweep, run_dir: Path) -> None:
    first, second = (notes["test"] for notes in device_sweep.spied(run_dir))
    assert sorted(first + second) == list(range(360))
    assert first
    assert second


@pytest.mark.parametrize("split", ["val", "test"])
def test_accuracy_is_over_the_samples_of_both_processes(run_dir: Path, split: str) -> None:
    expected = accuracy(*recompute(run_dir, split))
    assert read_metrics(run_dir)[f"{split}/accuracy"] == pytest.approx(expected, abs=1e-7)


def test_fidelity_is_over_the_samples_of_both_processes(run_dir: Path) -> None:
    metrics = read_metrics(run_dir)
    z_s, target = recompute(run_dir, "test")
    z_t, _ = recompute(Path(read_facts(run_dir)["teacher"]), "test")
    same, taught = z_s.argmax(1) == z_t.argmax(1), z_t.argmax(1) == target
    log_s, log_t = z_s.log_softmax(1), z_t.log_softmax(1)
    expected = {
        "agreement": same.double().mean(),
        "teacher_accuracy": taught.double().mean(),
        "inherited_errors": same[~taught].double().mean(),
        "kl_teacher": (log_t.exp() * (log_t - log_s)).sum(1).mean(),
        "loss": F.cross_entropy(z_s, target),
    }
    found = {name: metrics[f"test/{name}"] for name in expected}
    assert found == pytest.approx({k: v.item() for k, v in expected.items()}, rel=1e-4)


def test_diagnostics_count_each_validation_sample_once(run_dir: Path) -> None:
    logits, target = recompute(run_dir, "val")
    p = logits.softmax(1)
    with np.load(run_dir / "diagnostics.npz") as tables:
        assert tables["bins"][:, 0].sum() == tables["teacher_bins"][:, 0].sum() == 144
        confusion, probabilities = (tables[k] for k in ("confusion", "class_probabilities"))
    counted = torch.bincount(target * 10 + p.argmax(1), minlength=100)
    assert confusion.tolist() == counted.view(10, 10).tolist()
    own = torch.stack([p[target == c].mean(0) for c in range(10)]).float()
    torch.testing.assert_close(torch.from_numpy(probabilities), own, rtol=1e-4, atol=1e-6)
    brier = (p - F.one_hot(target, 10)).square().sum(1).mean()
    assert read_metrics(run_dir)["val/brier"] == pytest.approx(brier.item(), rel=1e-4)


def test_facts_name_the_number_of_processes(device_sweep: Sweep) -> None:
    facts = [read_facts(job) for job in device_sweep]
    assert [f["processes"] for f in facts] == [1, 1, 2, 2, 1, 1]
    assert [f["overrides"]["trainer.devices"] for f in facts] == [*"112211"]
    settings = [f["settings"] for f in facts]  # where it ran is no part of what was computed
    assert settings[0] == settings[2] == settings[4] != settings[1]


def test_one_run_directory_with_one_set_of_files(device_sweep: Sweep, run_dir: Path) -> None:
    jobs = {p.name for p in device_sweep.folder.iterdir() if p.is_dir()}
    assert jobs == {"0", "1", "2", "3", "4", "5"}
    single = {p.name for p in (device_sweep.folder / "0").iterdir()}
    assert {p.name for p in run_dir.iterdir()} - single == {"spy-1.json"}
    checkpoints = {p.name for p in (run_dir / "checkpoints").iterdir()}
    assert checkpoints == {"best.ckpt", "last.ckpt"}
    configuration = (run_dir / ".hydra" / "overrides.yaml").read_text()
    assert "trainer.devices=2" in configuration
