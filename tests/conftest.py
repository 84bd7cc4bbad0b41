"""What tests share: the real data, the real command, and runs that are trained once."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from spy import Spy

ROOT = Path(__file__).resolve().parent.parent
DATA = Path(os.environ.get("KD_DATA_DIR", ROOT.parent / "shared" / "data"))

Command = Callable[..., subprocess.CompletedProcess[str]]


def pytest_configure(config: pytest.Config) -> None:
    """One thread for each of the processes that run tests side by side."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder with the real MNIST in it."""
    if not (DATA / "MNIST" / "raw" / "train-images-idx3-ubyte").is_file():
        pytest.skip(f"MNIST is not in {DATA}: set KD_DATA_DIR to a folder that holds MNIST/raw")
    return DATA


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of all the processes that run tests side by side."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


def once(folder: Path, make: Callable[[], str]) -> str:
    """Have one process make a folder while the others wait; what it said."""
    said = folder.with_suffix(".txt")
    with FileLock(folder.with_suffix(".lock")):
        if not said.is_file():
            said.write_text(make())
    return said.read_text()


@pytest.fixture(scope="session")
def store(shared: Path) -> Path:
    """One store of teachers for the whole session: each is trained once."""
    store = shared / "teachers"
    store.mkdir(exist_ok=True)
    return store


@pytest.fixture(scope="session")
def environment(store: Path) -> dict[str, str]:
    """The environment of a command as a user's shell would have it."""
    kept = {k: v for k, v in os.environ.items() if k not in ("HYDRA_FULL_ERROR", "PL_GLOBAL_SEED")}
    return {
        **kept,
        "KD_TEACHERS": str(store),
        "KD_DATA_DIR": str(DATA),
        "KD_CACHE": str(store / "cache"),
        "COLUMNS": "160",
        "OMP_NUM_THREADS": "1",  # commands of a test may run beside others
    }


@pytest.fixture(scope="session")
def command(environment: dict[str, str]) -> Command:
    """``command("data=digits", …)`` runs ``python train.py`` with these arguments.

    Variables of the environment may be set, or unset with None, by keyword.
    """

    def run(*arguments: str, **settings: str | None) -> subprocess.CompletedProcess[str]:
        variables = {**environment, **settings}
        return subprocess.run(
            [sys.executable, str(ROOT / "train.py"), *arguments],
            cwd=ROOT,
            env={k: v for k, v in variables.items() if v is not None},
            capture_output=True,
            text=True,
            timeout=600,
        )

    return run


@pytest.fixture(scope="session")
def digits_run(command: Command, shared: Path) -> Path:
    """The run directory of a student distilled on the digits for two epochs.

    Beside it, with the suffix ``.txt``, lies what was printed.
    """
    run_dir = shared / "student"

    def train() -> str:
        words = ("data=digits", "trainer.max_epochs=2", "profile=true")
        done = command(*words, f"hydra.run.dir={run_dir}")
        assert done.returncode == 0, done.stderr
        return done.stdout

    once(run_dir, train)
    return run_dir


@dataclass(frozen=True)
class Sweep:
    """A finished sweep with the spy in its jobs: an iterable of their directories."""

    folder: Path
    stdout: str

    def __iter__(self) -> Iterator[Path]:
        return iter(sorted((p for p in self.folder.iterdir() if p.is_dir()), key=_number))

    def spied(self, job: Path) -> list[dict[str, Any]]:
        """What each process of a job noted, by rank."""
        return [json.loads(p.read_text()) for p in sorted(job.glob("spy-*.json"))]


def _number(job: Path) -> int:
    return int(job.name)


@pytest.fixture(scope="session")
def device_sweep(command: Command, shared: Path) -> Sweep:
    """Six jobs for one epoch: one process, two, and one again, each with two temperatures."""
    folder = shared / "devices"

    def sweep() -> str:
        done = command(
            *("-m", "data=digits", "trainer.max_epochs=1", f"hydra.sweep.dir={folder}"),
            *("trainer.devices=1,2,1", "method.temperature=2,7", *Spy.USE),
            PYTHONPATH=str(ROOT / "tests"),
            OMP_NUM_THREADS=None,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return Sweep(folder, once(folder, sweep))
