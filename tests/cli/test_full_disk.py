"""Tests of disks that are full or read-only: one line, nothing lost, and the run can go on."""

import errno
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, read_metrics
from omegaconf import OmegaConf

from kd_lightning.cli.explain import explain
from kd_lightning.cli.launch import Launch

TINY = ("model=teacher", "data=digits", "data.train_fraction=0.2", "trainer.max_epochs=2")


def limited(size: int) -> None:
    """Let every file of this process be full at a size in bytes, as if its disk were."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def train(
    environment: dict[str, str], *arguments: str, most: int | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "train.py"), *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        preexec_fn=None if most is None else lambda: limited(most),
    )


# Smaller than TensorBoard's file, which a thread writes, and than a checkpoint.
@pytest.mark.slow
@pytest.mark.parametrize("most", [10_000, 100_000])
def test_full_disk_is_one_line_and_the_run_goes_on_later(
    environment: dict[str, str], tmp_path: Path, most: int
) -> None:
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    (run_dir / "train.log").symlink_to("/dev/full")
    failed = train(environment, *TINY, f"hydra.run.dir={run_dir}", most=most)
    assert failed.returncode == 1
    (line,) = failed.stderr.splitlines()
    assert line.startswith("error: no larger file may be written here")
    assert line.endswith(f"once that is mended, resume with: python train.py resume={run_dir}")
    assert not list(run_dir.rglob("*.partial"))
    (run_dir / "train.log").unlink()
    done = train(environment, f"resume={run_dir}")
    assert done.returncode == 0, done.stderr
    assert read_metrics(run_dir)["epochs"] == 2


@pytest.mark.slow
def test_record_that_could_not_be_written_is_one_line(
    environment: dict[str, str], tmp_path: Path
) -> None:
    for words in ((f"hydra.run.dir={tmp_path}/run",), ("-m", f"hydra.sweep.dir={tmp_path}/sweep")):
        failed = train(environment, *TINY, *words, most=100)
        assert failed.returncode == 1
        (line,) = failed.stderr.splitlines()
        assert line.startswith("error: no larger file may be written here")
        assert line.endswith("once that is mended, start again")


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (errno.ENOSPC, "the disk is full: /a/b cannot be written"),
        (errno.EDQUOT, "the disk quota is used up: /a/b cannot be written"),
        (errno.EROFS, "the file system is read-only: /a/b cannot be written"),
        (errno.EACCES, "there is no permission: /a/b cannot be opened"),
        (errno.ENOENT, None),  # a bug: files of users are looked for before they are opened
    ],
)
def test_errors_of_the_disk_are_explained(number: int, message: str | None) -> None:
    assert explain(OSError(number, "reason", "/a/b")) == message


def test_cause_is_explained_and_permissions_of_no_file_are_not() -> None:
    wrapped = ValueError("Unable to configure handler 'file'")
    wrapped.__cause__ = OSError(errno.ENOSPC, "No space left on device")
    assert explain(wrapped) == "the disk is full"
    assert explain(PermissionError(errno.EACCES, "of a socket")) is None


def test_run_directory_that_cannot_be_made_is_a_full_disk(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def full(*args: object, **kwargs: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "mkdir", full)
    config = OmegaConf.create({"hydra": {"run": {"dir": str(tmp_path / "run")}}})
    with pytest.raises(SystemExit, match="error: the disk is full; once that is mended, start"):
        Launch().on_run_start(config)
