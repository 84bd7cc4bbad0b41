"""Callbacks for the tests that write down what each process of a run does."""

import gc
import json
import os
import signal
import threading
import time
import zlib
from collections import defaultdict
from pathlib import Path
from typing import Any

import lightning as L
import torch


class Spy(L.Callback):
    """Writes ``spy-RANK.json`` into a folder, one for each process of the run.

    It contains the objective's settings, the number of threads, and the indices of the samples
    seen in ``train`` and ``test``, in order.
    """

    # command(…, *Spy.USE, PYTHONPATH=…) adds it to a run
    USE = ("+callbacks.spy._target_=spy.Spy", "+callbacks.spy.folder=${run_dir}")

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)
        self.seen: dict[str, list[int]] = defaultdict(list)

    def on_train_batch_start(self, trainer: L.Trainer, module: Any, batch: Any, i: int) -> None:
        self.seen["train"] += batch.index.tolist()

    def on_test_batch_start(
        self, trainer: L.Trainer, module: Any, batch: Any, i: int, loader: int = 0
    ) -> None:
        self.seen["test"] += batch.index.tolist()

    def on_test_end(self, trainer: L.Trainer, module: Any) -> None:
        notes = {"settings": module.settings(), "threads": torch.get_num_threads(), **self.seen}
        (self.folder / f"spy-{trainer.global_rank}.json").write_text(json.dumps(notes))


class Banks(L.Callback):
    """Writes ``banks-RANK.json``: a hash of CRD's banks, and how many rows of each changed."""

    USE = ("+callbacks.banks._target_=spy.Banks", "+callbacks.banks.folder=${run_dir}")

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)

    def on_train_start(self, trainer: L.Trainer, module: Any) -> None:
        self.before = {k: v.clone() for k, v in self.banks(module).items()}

    def on_train_end(self, trainer: L.Trainer, module: Any) -> None:
        after = self.banks(module)
        notes = {
            "hash": zlib.crc32(b"".join(bank.numpy().tobytes() for bank in after.values())),
            "moved": [int((after[k] != v).any(1).sum()) for k, v in self.before.items()],
        }
        (self.folder / f"banks-{trainer.global_rank}.json").write_text(json.dumps(notes))

    @staticmethod
    def banks(module: Any) -> dict[str, torch.Tensor]:
        return {k: v for k, v in module.named_buffers() if ".bank_" in k}


class Resources(L.Callback):
    """Writes ``resources.json``: the threads and open files of the process as a job starts."""

    USE = ("+callbacks.resources._target_=spy.Resources", "+callbacks.resources.folder=${run_dir}")
    shapes_result = False

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)

    def on_train_start(self, trainer: L.Trainer, module: Any) -> None:
        gc.collect()  # what an earlier job has left in cycles is no leak
        files = len(list(Path("/proc/self/fd").iterdir()))
        notes = {"threads": threading.active_count(), "files": files}
        (self.folder / "resources.json").write_text(json.dumps(notes))


class Hold(L.Callback):
    """Creates a file ``held`` in the middle of an epoch, then waits to be killed."""

    def __init__(self, folder: str, epoch: int) -> None:
        self.folder, self.epoch = Path(folder), epoch

    def on_train_batch_start(self, trainer: L.Trainer, module: Any, batch: Any, i: int) -> None:
        if trainer.current_epoch == self.epoch and i == 40:
            (self.folder / "held").touch()
            time.sleep(600)


class KillOnce(L.Callback):
    """Kills its process in the middle of a student's second epoch, unless it has done so before."""

    shapes_result = False

    def __init__(self, folder: str) -> None:
        self.file = Path(folder) / "killed"

    def on_train_batch_start(self, trainer: L.Trainer, module: Any, batch: Any, i: int) -> None:
        is_there = module.role == "student" and trainer.current_epoch == 1 and i == 1
        if is_there and not self.file.exists():
            trainer.strategy.barrier()
            if trainer.is_global_zero:
                self.file.touch()
                os.kill(os.getpid(), signal.SIGKILL)


class HoldUntilRestart(L.Callback):
    """Waits in a student's second epoch for Slurm to end its job, unless it has done so before."""

    shapes_result = False

    def on_train_batch_start(self, trainer: L.Trainer, module: Any, batch: Any, i: int) -> None:
        is_student = module.role == "student"
        if is_student and trainer.current_epoch == 1 and "SLURM_RESTART_COUNT" not in os.environ:
            time.sleep(600)
