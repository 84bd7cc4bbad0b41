"""Threads, open files, memory and time of the jobs of a sweep that runs in one process.

    python benchmarks/many_jobs.py [JOBS] [OVERRIDE ...]

trains JOBS students (by default 200) on the digits, each for two epochs on a tenth of the data,
and prints a row for every tenth part of them. Without a leak, the first three columns stay flat
after the first rows, and the time of a job does not grow.
"""

import os
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import lightning as L
import psutil

from kd_lightning.cli.train import main

QUICK = ("data=digits", "data.train_fraction=0.1", "trainer.max_epochs=2", "teacher.width=2")
USE = ("+callbacks.note._target_=many_jobs.Note",)
ROWS = 10

Row = tuple[int, int, float, float]
notes: list[Row] = []


class Note(L.Callback):
    """Notes threads, open files, resident memory in MB and the time as each job starts."""

    shapes_result = False

    def setup(self, trainer: L.Trainer, pl_module: Any, stage: str) -> None:
        if stage == "fit" and "teachers" not in trainer.default_root_dir:
            memory = psutil.Process().memory_info().rss / 1e6
            notes.append((threading.active_count(), open_files(), memory, time.perf_counter()))


def open_files() -> int:
    """Return the number of files that this process has open."""
    return len(list(Path("/proc/self/fd").iterdir()))


def table(rows: list[Row]) -> str:
    """Return a table of the first job and of every tenth part of the others."""
    lines = [f"{'job':>5} {'threads':>8} {'files':>6} {'memory, MB':>11} {'s a job':>8}"]
    step = max(1, (len(rows) - 1) // ROWS)
    for i in range(0, len(rows), step):
        threads, files, memory, now = rows[i]
        seconds = f"{(now - rows[i - step][3]) / step:8.2f}" if i else f"{'':>8}"
        lines.append(f"{i:>5} {threads:>8} {files:>6} {memory:>11.1f} {seconds}")
    return "\n".join(lines)


def run(jobs: int, overrides: list[str], folder: Path) -> None:
    """Run the sweep in this process."""
    os.environ.setdefault("KD_TEACHERS", str(folder / "teachers"))
    os.environ.setdefault("KD_CACHE", str(folder / "cache"))
    words = [*QUICK, *USE, f"seed=range({jobs})", *overrides, f"hydra.sweep.dir={folder}/sweep"]
    sys.argv = [sys.argv[0], "-m", *words]
    main()


if __name__ == "__main__":
    # Hydra imports the callback by its name, which must be this module and not a second one.
    sys.modules["many_jobs"] = sys.modules["__main__"]
    count, *others = [*sys.argv[1:], "200"] if len(sys.argv) < 2 else sys.argv[1:]
    with tempfile.TemporaryDirectory() as folder:
        run(int(count), others, Path(folder))
    print(table(notes))
