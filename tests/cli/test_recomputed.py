"""Tests of every figure of a run against its recomputation in float64."""

from pathlib import Path

import figures
import pytest
from conftest import Command, Sweep, read_facts

pytestmark = pytest.mark.slow


def test_figures_of_a_student_and_of_its_teacher(digits_run: Path) -> None:
    figures.check(digits_run)
    figures.check(Path(read_facts(digits_run)["teacher"]))


@pytest.mark.parametrize("job", [2, 3])
def test_figures_of_two_processes(device_sweep: Sweep, job: int) -> None:
    figures.check(device_sweep.folder / str(job))


def test_figures_of_a_batch_normalised_chain_without_a_class(
    command: Command, tmp_path: Path
) -> None:
    done = command(
        *("data=digits", "net@student=resnet8", "trainer.max_epochs=1"),
        *("data.label_noise=0.2", "data.train_fraction=0.3", "data.exclude_classes=[3]"),
        *("data.batch_size=50", "data.eval_batch_size=50", "callbacks=[default,class_bias]"),
        *("experiment=self_distillation", "chain.generations=2", f"hydra.run.dir={tmp_path}"),
    )
    assert done.returncode == 0, done.stderr
    for run_dir in (tmp_path, tmp_path / "links" / "0", tmp_path / "links" / "1"):
        figures.check(run_dir)


def test_an_unknown_figure_is_noticed(digits_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = figures.read(digits_run)
    for changed in ({**found, "val/new": 0.5}, {**found, "val/ece": found["val/ece"] + 1e-5}):
        monkeypatch.setattr(figures, "read", lambda _, changed=changed: changed)
        with pytest.raises(AssertionError):
            figures.check(digits_run)
