"""Tests of the profiler: every moment belongs to exactly one phase."""

import re
import time
from pathlib import Path

import pytest
from torch import nn

from kd_lightning.callbacks.profiler import OUTSIDE, PHASES, PhaseProfiler


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A fake clock that the test advances."""
    now = [1000.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    return now


def test_time_belongs_to_the_innermost_action(clock: list[float]) -> None:
    profiler = PhaseProfiler()
    imports = sum(profiler.seconds.values())

    def spend(seconds: float, *actions: str) -> None:
        for action in actions:
            profiler.start(action)
        clock[0] += seconds
        for action in reversed(actions):
            profiler.stop(action)

    spend(1, "run_training_epoch", "[_TrainingEpochLoop].train_dataloader_next")
    step = "[LightningModule]DistillationModule.optimizer_step"
    spend(2, "run_training_epoch", step, "[Strategy]SingleDeviceStrategy.training_step")
    spend(4, "run_training_epoch", step, "[Strategy]DDPStrategy.backward")
    spend(8, "run_training_epoch", step)
    spend(16, "run_training_epoch", "[LightningModule]DistillationModule.on_train_batch_end")
    spend(32, "run_training_epoch")
    spend(64, "[Strategy]SingleDeviceStrategy.test_step")
    clock[0] += 128
    text = profiler.summary()
    expected = {
        "data": 1,
        "student forward": 2,
        "backward": 4,
        "optimizer": 8,
        "logging and checkpoints": 16,
        "Lightning's loop": 32,
        "evaluation": 64,
        "set-up and files": 128,
        "imports, once a process": imports,
    }
    assert profiler.seconds == expected
    assert "128.00 s" in text.splitlines()[0]
    assert "set-up and files" in text.splitlines()[0]


def test_teacher_is_separate_from_the_step(clock: list[float]) -> None:
    class Slow(nn.Module):
        def forward(self, x: int) -> int:
            clock[0] += 5
            return x

    teacher, profiler = Slow(), PhaseProfiler()
    profiler.watch(teacher)
    with profiler.profile("[Strategy]SingleDeviceStrategy.training_step"):
        clock[0] += 3
        teacher(1)
    assert profiler.seconds["teacher"] == 5
    assert profiler.seconds["student forward"] == 3


@pytest.mark.slow
def test_real_run_has_time_in_every_phase(digits_run: Path) -> None:
    printed = digits_run.with_suffix(".txt").read_text()
    found = re.findall(r"^ +([\d.]+) s +[\d.]+ % +(.+)$", printed, re.MULTILINE)
    assert {phase for _, phase in found} >= {*PHASES, OUTSIDE}
    assert min(float(seconds) for seconds, phase in found if phase in PHASES) > 0
