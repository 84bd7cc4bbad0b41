"""Tests of the command line before Hydra reads it."""

from pathlib import Path

import pytest

from kd_lightning.cli.command_line import arranged

SWEEP = "hydra.mode=MULTIRUN"
EXPERIMENTS = {
    "mine": "hydra: {sweeper: {params: {seed: '0,1'}}}",
    "more": "defaults: [compare, _self_]\nseed: 3",
    "single": "defaults: [_self_]\nseed: 3",
    "itself": "defaults: [itself]",
    "broken": "seed: [",
    "list": "- seed",
}


@pytest.mark.parametrize("name", ["compare", "controls", "hinton_2015", "int8", "search", "mine"])
def test_experiment_that_varies_something_is_a_sweep(tmp_path: Path, name: str) -> None:
    assert SWEEP in line(tmp_path, f"experiment={name}")
    assert SWEEP not in line(tmp_path, f"experiment={name}", "hydra.mode=RUN")


@pytest.mark.parametrize(
    ("name", "is_sweep"),
    [("more", True), ("single", False), ("itself", False), ("broken", False), ("list", False)],
)
def test_experiments_of_a_user_may_begin_with_others(
    tmp_path: Path, name: str, is_sweep: bool
) -> None:
    assert (SWEEP in line(tmp_path, f"experiment={name}")) == is_sweep
    assert SWEEP not in line(tmp_path, "seed=1")
    assert SWEEP not in line(tmp_path, f"experiment={','.join(['single'] * 100)}")


def line(folder: Path, *words: str) -> list[str]:
    """The command line for Hydra, with experiments in a folder of the user."""
    (folder / "experiment").mkdir(exist_ok=True)
    for name, text in EXPERIMENTS.items():
        (folder / "experiment" / f"{name}.yaml").write_text(f"# @package _global_\n{text}\n")
    return arranged(["train.py", "--config-dir", str(folder), *words])
