"""A callback that records which samples a process has trained on."""

import json
import os
import time
from pathlib import Path
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback


class Seen(Callback):
    """Append epoch, step and sample indices of each batch to a file per process.

    Args:
        folder: of the files ``RANK-PID.jsonl``.
        pause: seconds to wait in each step, so that a run can be killed within an epoch.
    """

    shapes_result = False

    def __init__(self, folder: str, pause: float = 0.0) -> None:
        self.folder, self.pause = Path(folder), pause

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        line = [trainer.current_epoch, trainer.global_step, batch.index.tolist()]
        self.folder.mkdir(exist_ok=True)
        with (self.folder / f"{trainer.global_rank}-{os.getpid()}.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
        time.sleep(self.pause)


def read_seen(folder: Path) -> list[tuple[int, int, list[int]]]:
    """Return (epoch, step, indices) of all batches of all processes."""
    lines = [line for file in folder.glob("*.jsonl") for line in file.read_text().splitlines()]
    return [tuple(json.loads(line)) for line in lines]
