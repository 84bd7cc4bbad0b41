"""Tests of runs whose processes torchrun starts: on one node and on two, whole and broken."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import page
import pytest
import torch
from conftest import ROOT, Command, read_facts, read_metrics, same_weights
from filelock import FileLock

from kd_lightning.runs.ranks import found_in

SMALL = ("data=digits", "trainer.max_epochs=2", "student.width=4", "trainer.accelerator=cpu")
PAIR = (*SMALL, "trainer.devices=2")
TORCHRUN = page.command("torchrun --standalone")[:-1]  # without trainer.devices=2
CHAIN = ("experiment=self_distillation", "chain.generations=2")

Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start(environment: dict[str, str], tmp_path: Path) -> Iterator[Start]:
    """Starts a command in ``tmp_path``."""
    with contextlib.ExitStack() as stack:

        def run(*words: str) -> subprocess.Popen[str]:
            process = subprocess.Popen(
                words,
                cwd=tmp_path,
                env={**environment, "PYTHONPATH": str(ROOT / "tests")},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
            stack.callback(_end, process)
            return process

        yield run


def _end(process: subprocess.Popen[str]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def finished(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a process once it has ended."""
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def directories(folder: Path) -> list[Path]:
    """The run directories that commands have left below the folder in which they started."""
    return sorted(folder.glob("outputs/*/*"))


def weights(run_dir: Path, name: str = "best") -> dict[str, torch.Tensor]:
    file = run_dir / "checkpoints" / f"{name}.ckpt"
    return torch.load(file, weights_only=True)["state_dict"]


@pytest.fixture(scope="module")
def pair(command: Command, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run with ``trainer.devices=2``, whose second process Lightning starts."""
    run_dir = tmp_path_factory.mktemp("pair") / "run"
    done = command(*PAIR, f"hydra.run.dir={run_dir}")
    assert done.returncode == 0, done.stderr
    return run_dir


@pytest.mark.slow
def test_a_run_equals_the_one_whose_processes_lightning_starts(
    start: Start, pair: Path, tmp_path: Path
) -> None:
    # with an empty store: the first process trains the teacher while the other one waits
    code, out, err = finished(
        start(*page.command("torchrun --standalone", *PAIR, "teacher_store=teachers"))
    )
    assert code == 0, err
    (run_dir,) = directories(tmp_path)
    assert same_weights(weights(run_dir), weights(pair))
    assert read_facts(run_dir)["processes"] == 2
    assert len(list((tmp_path / "teachers").glob("*/metrics.json"))) == 1
    assert {p.name for p in run_dir.iterdir()} == {p.name for p in pair.iterdir()}
    lines = [*out.splitlines(), *(run_dir / "train.log").read_text().splitlines()]
    said = [line for line in lines if "epoch 2 of 2" in line]
    assert len(said) == 2  # on the terminal and in the log, by one process


@pytest.mark.slow
def test_two_nodes_share_one_directory(start: Start, pair: Path, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    line = " ".join(page.command("torchrun --nnodes=2", *SMALL))
    here = {"--master-addr=node0": "--master-addr=127.0.0.1", "29500": str(port)}
    for named, value in here.items():
        assert named in line
        line = line.replace(named, value)
    lines = [line.replace("--node-rank=0", f"--node-rank={rank}") for rank in (0, 1)]
    processes = [start(*line.split()) for line in lines]
    ended: list[tuple[int, str, str]] = []
    threads = [
        threading.Thread(target=lambda process=process: ended.append(finished(process)))
        for process in processes
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [code for code, _, _ in ended] == [0, 0], ended
    (run_dir,) = directories(tmp_path)
    assert same_weights(weights(run_dir), weights(pair))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((*SMALL, "trainer.devices=1"), "torchrun has started 2 processes, but trainer.devices=1"),
        (("-m", *PAIR, "seed=0,1"), "a sweep starts those of its jobs itself"),
        ((*PAIR, "method=unheard"), "method=unheard"),
        ((*PAIR, "optimizer.lr=1e30"), "the loss is not finite"),
        ((*PAIR, "pretrain.trainer.devices=2", "teacher_store=none"), "trains it under torchrun"),
    ],
    ids=["more_processes", "sweep", "composition", "divergence", "teacher"],
)
def test_an_error_is_said_once_and_ends_with_a_code(
    start: Start, tmp_path: Path, words: tuple[str, ...], message: str
) -> None:
    code, _, err = finished(start(*TORCHRUN, *words))
    assert code != 0
    # torchrun adds a report of its own
    lines = [line for line in err.splitlines() if line.startswith("error:")]
    assert len(lines) == 1, err
    assert message in lines[0]
    assert not list(tmp_path.glob("**/metrics.json"))


@pytest.mark.slow
def test_a_process_that_starts_late_ends_with_the_first(
    environment: dict[str, str], tmp_path: Path
) -> None:
    # as under srun, where no agent keeps the store when the first process ends
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    together = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    words = [sys.executable, str(ROOT / "train.py"), *PAIR, f"hydra.run.dir={tmp_path}"]
    (tmp_path / ".hydra").mkdir()
    with FileLock(tmp_path / ".hydra" / ".lock"):  # of another run
        processes = []
        for rank in "01":
            own = {**environment, **together, "RANK": rank, "LOCAL_RANK": rank}
            processes.append(subprocess.Popen(words, env=own, stderr=subprocess.PIPE, text=True))
            time.sleep(2)
        said = [process.communicate(timeout=120)[1] for process in processes]
    assert [process.returncode for process in processes] == [1, 1]
    assert "another process is using the run directory" in said[0]
    assert "Traceback" not in said[1]
    assert "frame #" not in said[1]


@pytest.mark.slow
def test_a_run_goes_on_in_its_directory_after_its_processes_were_killed(
    start: Start, pair: Path, tmp_path: Path
) -> None:
    kill = ("+callbacks.kill._target_=spy.KillOnce", "+callbacks.kill.folder=${run_dir}")
    program, *words = TORCHRUN
    code, out, err = finished(start(program, "--max-restarts=1", *words, *PAIR, *kill))
    assert code == 0, err
    (run_dir,) = directories(tmp_path)
    assert (run_dir / "killed").is_file()  # it was killed in its second epoch
    assert out.count("epoch 1 of 2") == 1
    assert same_weights(weights(run_dir, "last"), weights(pair, "last"))


@pytest.mark.slow
def test_resumed_run_goes_on_in_its_directory(start: Start, pair: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    code, _, err = finished(
        start(*TORCHRUN, *PAIR, "trainer.max_epochs=1", f"hydra.run.dir={run_dir}")
    )
    assert code == 0, err
    code, _, err = finished(start(*TORCHRUN, f"resume={run_dir}", "trainer.max_epochs=2"))
    assert code == 0, err
    assert read_metrics(run_dir)["epochs"] == 2
    assert directories(tmp_path) == []
    assert same_weights(weights(run_dir), weights(pair))


@pytest.mark.slow
def test_each_link_of_a_chain_trains_on_both_processes(
    start: Start, command: Command, tmp_path: Path
) -> None:
    words = (*PAIR, *CHAIN, "trainer.max_epochs=1")
    code, _, err = finished(start(*TORCHRUN, *words))
    assert code == 0, err
    (run_dir,) = directories(tmp_path)
    assert command(*words, f"hydra.run.dir={tmp_path / 'own'}").returncode == 0
    for link in ("links/0", "links/1"):
        assert same_weights(weights(run_dir / link), weights(tmp_path / "own" / link))
    ours, own = read_metrics(run_dir), read_metrics(tmp_path / "own")
    assert {k: v for k, v in ours.items() if "accuracy" in k} == {
        k: v for k, v in own.items() if "accuracy" in k
    }


BY_SRUN = {
    **{"SLURM_JOB_ID": "12", "SLURM_STEP_ID": "3", "SLURM_STEP_NUM_TASKS": "4"},
    **{"SLURM_STEP_NUM_NODES": "2", "SLURM_STEP_NODELIST": "node[7-8]", "SLURM_PROCID": "2"},
    **{"SLURM_LOCALID": "0", "SLURM_NODEID": "1"},
}


def test_tasks_of_srun_find_the_first_node() -> None:
    found = found_in(BY_SRUN)
    assert found.place is not None
    assert (found.place.address, found.place.starter) == ("node7", "Slurm")
    assert (found.rank, found.place.size, found.place.node) == (2, 4, 1)
    assert not found.is_main
    other = found_in({**BY_SRUN, "SLURM_STEP_ID": "4"}).place
    assert other is not None
    assert other.port != found.place.port


@pytest.mark.parametrize(
    "variables",
    [
        {},
        # a script of sbatch, which has not used srun, and a step of one task
        {"SLURM_JOB_ID": "12", "SLURM_NTASKS": "2", "SLURM_PROCID": "0"},
        {**BY_SRUN, "SLURM_STEP_NUM_TASKS": "1"},
        # what Lightning sets in the first process while it trains
        {"LOCAL_RANK": "0", "NODE_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"},
    ],
)
def test_a_process_on_its_own_starts_the_others(variables: dict[str, str]) -> None:
    found = found_in(variables)
    assert found.is_main
    assert not found.is_child
    assert not found.are_external
