"""Tests of the teacher store: one training, also for concurrent processes and after a kill."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from kd_lightning.teachers.store import TeacherStore, teacher_key
from kd_lightning.utils.errors import UserError

# Looks up the teacher "net" in a store once there is a file "go". Its training records that it
# started, then waits for a file: "finish" completes it, "die" kills the process.
LOOK_UP = """
import logging, os, sys, time
from pathlib import Path
from kd_lightning.teachers.store import TeacherStore

logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
store, limit = Path(sys.argv[1]), time.monotonic() + 60

def is_there(name):
    assert time.monotonic() < limit
    time.sleep(0.001)
    return (store / name).exists()

def train(home):
    print("left over:", sorted(p.name for p in home.glob("*") if p.is_file()))
    (home / "checkpoints").mkdir(parents=True, exist_ok=True)
    with (home / "trained").open("a") as file:
        file.write("once\\n")
    while not is_there("finish"):
        if is_there("die"):
            (store / "die").unlink()
            os._exit(9)
    (home / "checkpoints" / "best.ckpt").touch()
    (home / "metrics.json").write_text("{}")

print("ready")
while not is_there("go"):
    pass
print("found", TeacherStore(store).find_or_train("net", train))
"""


@contextmanager
def process_on(store: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that looks up a teacher in the store and appends its output to a log."""
    with (store / "log").open("a") as log:
        command = [sys.executable, "-u", "-c", LOOK_UP, str(store)]
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def wait_for(words: str, store: Path, times: int = 1) -> None:
    """Wait until the log contains some words so many times."""
    limit = time.monotonic() + 30
    while (log := (store / "log").read_text()).count(words) < times:
        assert time.monotonic() < limit, log
        time.sleep(0.001)


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """A finished run, outside the store."""
    run = tmp_path / "run"
    (run / ".hydra").mkdir(parents=True)
    (run / ".hydra" / "config.yaml").write_text("seed: 0\n")
    (run / "checkpoints").mkdir()
    (run / "checkpoints" / "best.ckpt").write_bytes(b"weights")
    (run / "run.json").write_text('{"role": "teacher"}')
    (run / "metrics.json").write_text('{"test/accuracy": 0.9}')
    return run


def finish(home: Path) -> None:
    (home / "checkpoints").mkdir(parents=True, exist_ok=True)
    (home / "checkpoints" / "best.ckpt").touch()
    (home / "metrics.json").write_text("{}")


def refuse(home: Path) -> None:
    raise AssertionError("a teacher was trained")


def test_teacher_is_trained_once(tmp_path: Path) -> None:
    store = TeacherStore(tmp_path / "deep" / "store")
    home = store.find_or_train("net", finish)
    assert home == tmp_path / "deep" / "store" / "net"
    assert store.find_or_train("net", refuse) == home
    assert TeacherStore(store.root).find_or_train("net", refuse) == home
    assert store.find_or_train("other", finish) != home


def test_failed_training_is_repeated(tmp_path: Path) -> None:
    def fail(home: Path) -> None:
        home.mkdir()
        raise ValueError("no")

    def resume(home: Path) -> None:
        assert home.is_dir()
        finish(home)

    store = TeacherStore(tmp_path)
    with pytest.raises(ValueError, match="no"):
        store.find_or_train("net", fail)
    store.find_or_train("net", resume)
    store.find_or_train("net", refuse)


def test_teacher_without_checkpoint_is_refused(tmp_path: Path) -> None:
    store = TeacherStore(tmp_path)
    home = store.find_or_train("net", finish)
    (home / "checkpoints" / "best.ckpt").unlink()
    with pytest.raises(UserError, match=f"the teacher in {home} has .* checkpoint: delete"):
        store.find_or_train("net", refuse)


def test_unusable_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=f"teacher_store={tmp_path}/file/store cannot be used"):
        TeacherStore(tmp_path / "file" / "store").find_or_train("net", refuse)


@pytest.mark.slow
def test_one_of_concurrent_processes_trains(tmp_path: Path) -> None:
    with process_on(tmp_path) as first, process_on(tmp_path) as second:
        wait_for("ready", tmp_path, times=2)
        (tmp_path / "go").touch()
        wait_for("Waiting for another process that trains the teacher in", tmp_path)
        (tmp_path / "finish").touch()
        assert (first.wait(timeout=60), second.wait(timeout=60)) == (0, 0)
    assert (tmp_path / "log").read_text().count(f"found {tmp_path / 'net'}") == 2
    assert (tmp_path / "net" / "trained").read_text() == "once\n"


@pytest.mark.slow
def test_next_process_takes_over_from_a_killed_one(tmp_path: Path) -> None:
    (tmp_path / "go").touch()
    with process_on(tmp_path) as first:
        wait_for("left over: []", tmp_path)
        with process_on(tmp_path) as second:
            wait_for("Waiting for another process that trains the teacher in", tmp_path)
            (tmp_path / "die").touch()
            assert first.wait(timeout=60) == 9
            (tmp_path / "finish").touch()
            assert second.wait(timeout=60) == 0
    wait_for("left over: ['trained']", tmp_path)
    assert (tmp_path / "net" / "trained").read_text() == "once\nonce\n"


def test_published_run_is_found(tmp_path: Path, run_dir: Path) -> None:
    store = TeacherStore(tmp_path / "store")
    store.publish("net", run_dir)
    home = store.find_or_train("net", refuse)
    assert home != run_dir
    for name in (".hydra/config.yaml", "checkpoints/best.ckpt", "run.json", "metrics.json"):
        assert (home / name).read_bytes() == (run_dir / name).read_bytes()


def test_nothing_of_a_published_run_is_resumed(tmp_path: Path, run_dir: Path) -> None:
    # A job that finds it unfinished, as the publishing process was killed, must train anew.
    (run_dir / "checkpoints" / "last.ckpt").write_bytes(b"no epochs left")
    store = TeacherStore(tmp_path / "store")
    store.publish("net", run_dir)
    assert [p.name for p in (store.root / "net" / "checkpoints").iterdir()] == ["best.ckpt"]


def test_published_run_replaces_no_teacher(tmp_path: Path, run_dir: Path) -> None:
    store = TeacherStore(tmp_path / "store")
    store.publish("net", run_dir)
    (run_dir / "checkpoints" / "best.ckpt").write_bytes(b"other weights")
    store.publish("net", run_dir)
    assert (store.root / "net" / "checkpoints" / "best.ckpt").read_bytes() == b"weights"


def test_published_run_completes_an_interrupted_training(tmp_path: Path, run_dir: Path) -> None:
    home = tmp_path / "store" / "net"
    (home / "checkpoints").mkdir(parents=True)
    (home / "checkpoints" / "best.ckpt").write_bytes(b"half")
    TeacherStore(tmp_path / "store").publish("net", run_dir)
    assert (home / "checkpoints" / "best.ckpt").read_bytes() == b"weights"
    assert (home / "metrics.json").is_file()


def test_teacher_may_publish_itself_during_its_training(tmp_path: Path) -> None:
    def train(home: Path) -> None:
        finish(home)
        store.publish("net", home)  # must not wait for its own lock

    store = TeacherStore(tmp_path)
    assert store.find_or_train("net", train) == tmp_path / "net"


def test_run_without_checkpoints_is_not_published(tmp_path: Path, run_dir: Path) -> None:
    (run_dir / "checkpoints" / "best.ckpt").unlink()
    (run_dir / "checkpoints").rmdir()
    store = TeacherStore(tmp_path / "store")
    store.publish("net", run_dir)
    assert not (store.root / "net" / "metrics.json").exists()


RECIPE = {"seed": 0, "trainer": {"max_epochs": 5}, "data": ["abc", 128]}


@pytest.mark.parametrize(
    "change",
    [{"seed": 1}, {"trainer": {"max_epochs": 6}}, {"data": ["abd", 128]}, {"version": "2"}],
)
def test_key_depends_on_every_value(change: dict[str, Any]) -> None:
    assert teacher_key("Net", {**RECIPE, **change}) != teacher_key("Net", RECIPE)


def test_key_is_readable_and_independent_of_order() -> None:
    key = teacher_key("Net", RECIPE)
    turned = json.loads(json.dumps(dict(reversed(RECIPE.items()))))
    assert key.startswith("Net-")
    assert key == teacher_key("Net", turned)
    assert key != teacher_key("Other", RECIPE)
