"""A callback for the tests: each process of a run writes down what it did."""

import json
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import lightning as L
import torch


class Spy(L.Callback):
    """Leaves ``spy-RANK.json`` in a folder, one for each process of the run.

    It holds the settings of the objective, the number of threads, and the indices of the
    samples seen in ``train`` and ``test``, in order.
    """

    # `command(…, *Spy.USE, PYTHONPATH=…)` adds it to a run
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


class Hold(L.Callback):
    """Waits to be killed in the middle of an epoch, once it has left a file ``held``."""

    def __init__(self, folder: str, epoch: int) -> None:
        self.folder, self.epoch = Path(folder), epoch

    def on_train_batch_start(self, trainer: L.Trainer, module: Any, batch: Any, i: int) -> None:
        if trainer.current_epoch == self.epoch and i == 40:
            (self.folder / "held").touch()
            time.sleep(600)
