"""Speed benchmarks: ratios of times that are measured in turn within one run (``make bench``).

Times are medians over the repeats. Whole runs are measured as processes, from their start to
the final table. ``--full`` (``make bench-full``) runs everything at its real size, in about 40
minutes. Without it, repetitive work is extrapolated, and the table says so:

- the reference loop trains for a tenth of an epoch, as all of its steps cost the same;
- our epochs use a third of the images;
- our sweep has two jobs of one epoch; further epochs and jobs count as long as the last one.

The results are written to ``results.json``, or ``results_full.json``, beside this file.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from statistics import median
from typing import Any

import lightning as L
import torch
import vectorized
from floor import Floor
from hydra import compose, initialize_config_dir
from rich.console import Console
from rich.table import Table

from kd_lightning.callbacks.profiler import Unprofiled
from kd_lightning.cli.quiet import quieten
from kd_lightning.cli.train import CONF
from kd_lightning.runs.build import build_data, build_trainer
from kd_lightning.runs.checkpoints import network_state, read_checkpoint
from kd_lightning.runs.job import find_weights, prepare
from kd_lightning.utils.process import tune_process
from kd_lightning.utils.run_directory import find_checkpoint, read_run

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
DATA = Path(os.environ.get("KD_DATA_DIR", ROOT.parent / "shared" / "data")).resolve()

Seconds = dict[str, list[float]]


class Clock(L.Callback):
    """A callback that measures the seconds of a training epoch, on a GPU until it is done."""

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.start = self._now()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.seconds = self._now() - self.start

    def _now(self) -> float:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter()


class Ours:
    """Our training, one epoch at a time, without validation, as the bare loop has none.

    Args:
        folder: folder for everything that is written.
        teacher: the teacher's checkpoint.
        *overrides: settings of the run.
    """

    def __init__(self, folder: Path, teacher: Path, *overrides: str) -> None:
        fixed = (
            f"run_dir={folder}",
            f"teacher_ckpt={teacher}",
            f"data.root={DATA}",
            f"cache.root={folder / 'cache'}",
            "trainer.max_epochs=1",
            "+trainer.limit_val_batches=0",
            "~callbacks.best",
        )
        with initialize_config_dir(str(CONF), version_base="1.3"):
            self.cfg = compose("train", [*fixed, *overrides])
        # the functions of the command, so that the benchmark measures what a user runs
        self.data: Any = build_data(self.cfg)
        module, source, order = prepare(self.cfg, self.data, train=refuse)
        find_weights(module, source, order)
        self.module: Any = module

    def _trainer(self) -> L.Trainer:
        return build_trainer(self.cfg, Unprofiled())

    def epoch(self) -> float:
        """Train for an epoch and return its seconds."""
        trainer, clock = self._trainer(), Clock()
        # appended last, so that the epoch includes what other callbacks do at its end
        trainer.callbacks.append(clock)  # pyright: ignore[reportAttributeAccessIssue]
        trainer.fit(self.module, self.data)
        return clock.seconds

    def floor(self) -> Floor:
        """Return the bare loop on the same images and teacher outputs."""
        batches = self.data.prepared("train").batches(torch.device("cpu"))
        inputs = torch.cat([x for _, _, x in batches])
        logits = self.module.outputs.cached["train"].tables["logits"][0].clone()
        target = self.data.splits["train"].target
        return Floor(self.module.student, inputs, target, logits)


def refuse(cfg: Any) -> None:
    """Stand in for the training of a teacher, which every benchmark is given."""
    raise AssertionError("the teacher is given by its checkpoint")


def epochs(folder: Path, teacher: Path, repeats: int, full: bool) -> dict[str, Any]:
    """Measure distilled epochs against label-only epochs and against the bare loop."""
    ratios = {}
    # 64 is the default; at 256 the arithmetic outweighs the fixed cost per step
    for batch in (256, 64):
        settings = (f"data.batch_size={batch}", *([] if full else ["data.train_fraction=0.33"]))
        distilled = Ours(folder, teacher, *settings)
        labels = Ours(folder, teacher, *settings, "method=ce")
        distilled.epoch()  # fills the cache of teacher outputs, which the bare loop reads
        floor = distilled.floor()
        seconds = in_turn(
            repeats,
            distilled=distilled.epoch,
            labels=labels.epoch,
            floor=lambda batch=batch, floor=floor: floor.epoch(batch),
        )
        ratios[f"distilled epoch / label-only epoch, batch {batch}"] = ratio(
            seconds, "distilled", "labels", at_most=1.10
        )
        ratios[f"distilled epoch / bare loop, batch {batch}"] = ratio(
            seconds, "distilled", "floor", at_most=1.08 if batch == 256 else 1.12
        )
    return ratios


def growth(folder: Path, teacher: Path, repeats: int, full: bool) -> dict[str, Any]:
    """Measure whether the time per sample grows with the size of the data set."""
    # five small epochs, as a single one is too short for a stable median
    large, small = Ours(folder, teacher), Ours(folder, teacher, "data.train_fraction=0.1")
    seconds = in_turn(
        repeats,
        large=large.epoch,
        small=lambda: 10 * median(small.epoch() for _ in range(5)),
    )
    name = "time a sample, 55,000 samples / 5,500"
    return {name: ratio(seconds, "large", "small", at_most=1.05)}


# Linux reports at least the parent's peak memory for a forked child, and this program is large. A
# small process in between starts the run and prints the run's peak in kilobytes.
PEAK = """
import resource, subprocess, sys
subprocess.run([sys.executable, *sys.argv[1:]], check=True)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


class Process:
    """A finished process, with its ``seconds`` and its ``output``.

    Args:
        *command: arguments of the Python interpreter.
    """

    def __init__(self, *command: str) -> None:
        start = time.perf_counter()
        process = subprocess.run(
            [sys.executable, *command], stdout=subprocess.PIPE, text=True, check=False
        )
        self.seconds, self.output = time.perf_counter() - start, process.stdout
        if process.returncode:
            sys.exit(f"error: {' '.join(command)} failed")


def whole_runs(folder: Path, teacher: Path, repeats: int, full: bool) -> dict[str, Any]:
    """Measure distillation with an empty cache against the reference loop.

    The teacher is already trained in both.
    """
    weights = folder / "teacher.pt"
    torch.save(network_state(read_checkpoint(teacher)), weights)
    seconds: Seconds = defaultdict(list)
    for _ in range(1 if full else repeats):
        measured = whole(weights, teacher) if full else extrapolated(weights, teacher)
        for name, value in measured.items():
            seconds[name].append(value)
    found = {
        f"5 epochs, all included: reference / ours, batch {batch}": ratio(
            seconds, f"reference, batch {batch}", f"ours, batch {batch}", at_least=at_least
        )
        for batch, at_least in ((64, 5), (256, 6.5))
    } | {
        "sweep of 12 jobs of 2 epochs: 12 reference loops / ours, batch 64": ratio(
            seconds, "12 references of 2 epochs", "our sweep", at_least=8
        ),
    }
    if full:
        return found
    job = ratio(seconds, "fixed cost of a further job", "further job of 2 epochs")
    return {name: {**one, "extrapolated": True} for name, one in found.items()} | {
        "a further job of a sweep: fixed cost / whole": job
    }


def whole(weights: Path, teacher: Path) -> dict[str, float]:
    """Return the seconds of whole runs and sweeps, by name."""
    seconds = {}
    for batch in (64, 256):
        seconds[f"reference, batch {batch}"] = reference_loop(weights, batch, 5).seconds
        seconds[f"ours, batch {batch}"] = cold(
            teacher, "trainer.max_epochs=5", f"data.batch_size={batch}"
        )
    loops = [reference_loop(weights, 64, 2).seconds for _ in range(12)]
    seconds["12 references of 2 epochs"] = sum(loops)
    temperatures = ",".join(map(str, range(1, 13)))
    jobs = ("hydra.mode=MULTIRUN", f"method.temperature={temperatures}", "trainer.max_epochs=2")
    seconds["our sweep"] = cold(teacher, *jobs, "data.batch_size=64")
    return seconds


def cold(teacher: Path, *settings: str) -> float:
    """Return the seconds of a run whose cache of teacher outputs is empty."""
    with tempfile.TemporaryDirectory() as folder:
        return train(Path(folder), f"teacher_ckpt={teacher}", *settings).seconds


def extrapolated(weights: Path, teacher: Path) -> dict[str, float]:
    """Return what whole runs and sweeps would take, in seconds, from parts of them."""
    seconds = {}
    for batch in (64, 256):
        fixed, epoch = reference(weights, batch)
        seconds[f"reference, batch {batch}"] = fixed + 5 * epoch
        if batch == 64:
            seconds["12 references of 2 epochs"] = 12 * (fixed + 2 * epoch)
    first, job, epoch = two_jobs(teacher, "data.batch_size=64")
    seconds["fixed cost of a further job"] = job - epoch
    seconds["further job of 2 epochs"] = job + epoch
    seconds["ours, batch 64"] = first + 4 * epoch
    seconds["our sweep"] = first + epoch + 11 * (job + epoch)
    # a new folder in every repeat, so that computing the teacher's outputs is included
    with tempfile.TemporaryDirectory() as folder:
        settings = ("trainer.max_epochs=1", "data.batch_size=256")
        run = train(Path(folder), f"teacher_ckpt={teacher}", *settings)
        epoch = read_run(folder).metrics["seconds"]
    seconds["ours, batch 256"] = run.seconds + 4 * epoch
    return seconds


def reference(weights: Path, batch: int) -> tuple[float, float]:
    """Run the reference loop for a tenth of an epoch.

    Returns:
        Seconds outside of training, and seconds of one epoch.
    """
    process = reference_loop(weights, batch, 1, "5500")
    (tenth,) = json.loads(process.output)["epoch_seconds"]
    return process.seconds - tenth, 10 * tenth


def reference_loop(weights: Path, batch: int, epochs: int, *samples: str) -> Process:
    """Run the reference loop as a process."""
    arguments = (str(DATA), str(weights), str(batch), str(epochs), *samples)
    return Process(str(HERE / "reference.py"), *arguments)


def two_jobs(teacher: Path, *settings: str) -> tuple[float, float, float]:
    """Run a sweep of two one-epoch jobs.

    Returns:
        Seconds until the first job ends, of the second job, and of its epoch.
    """
    with tempfile.TemporaryDirectory() as cold:
        jobs = ("hydra.mode=MULTIRUN", "method.temperature=1,5", "trainer.max_epochs=1", *settings)
        start = time.time()
        train(Path(cold), f"teacher_ckpt={teacher}", *jobs)
        runs = [Path(cold) / "sweep" / number for number in "01"]
        # metrics.json is the last file that a job writes
        first, second = ((run / "metrics.json").stat().st_mtime for run in runs)
        return first - start, second - first, read_run(runs[1]).metrics["seconds"]


def memory(folder: Path, teacher: Path, repeats: int, full: bool) -> dict[str, Any]:
    """Measure the peak memory of whole runs."""
    peaks: Seconds = defaultdict(list)
    for _ in range(repeats):
        for method in ("kd", "ce"):
            settings = ("trainer.max_epochs=1", "trainer.limit_train_batches=100")
            job = command(folder, f"teacher_ckpt={teacher}", f"method={method}", *settings)
            peaks[method].append(float(Process("-c", PEAK, *job).output.splitlines()[-1]) / 1024)
    found = ratio(peaks, "kd", "ce", at_most=1.15)
    return {"peak memory, distilled run / label-only run (MB)": found}


def together(folder: Path, teacher: Path, repeats: int, full: bool) -> dict[str, Any]:
    """Measure a sweep of small students one by one and trained together."""
    found = vectorized.measure(repeats)
    seconds = {name: [wall for wall, _ in found[name]] for name in vectorized.LAUNCHERS}
    name = "32 students of width 4, batch 16: one by one / together"
    return {name: ratio(seconds, "one by one", "together", at_least=4)}


def train(folder: Path, *overrides: str) -> Process:
    """Run ``python train.py`` as a process that writes into a folder only."""
    return Process(*command(folder, *overrides))


def command(folder: Path, *overrides: str) -> list[str]:
    """Return the interpreter's arguments for a run that writes into a folder only."""
    places = (f"data.root={DATA}", f"hydra.run.dir={folder}", f"cache.root={folder / 'cache'}")
    return [str(ROOT / "train.py"), *overrides, *places, f"hydra.sweep.dir={folder / 'sweep'}"]


def in_turn(repeats: int, **competitors: Any) -> Seconds:
    """Measure competitors alternately, after one warm-up round.

    Args:
        repeats: number of rounds that count.
        **competitors: functions that return a measured value.
    """
    # alternately instead of one after the other, so that a machine that slows down (heat, other
    # processes) slows down all of them and ratios stay comparable
    seconds: Seconds = {name: [] for name in competitors}
    for repeat in range(repeats + 1):
        for name, run in competitors.items():
            value = run()
            if repeat:
                seconds[name].append(value)
    return seconds


def ratio(
    values: Seconds,
    over: str,
    under: str,
    at_most: float | None = None,
    at_least: float | None = None,
) -> dict[str, Any]:
    """Compute the ratio of two medians and compare it with its target.

    Args:
        values: measured values by name.
        over: name of the numerator.
        under: name of the denominator.
        at_most: target for a ratio that should be small.
        at_least: target for a ratio that should be large.
    """
    value = median(values[over]) / median(values[under])
    met = (at_most is None or value <= at_most) and (at_least is None or value >= at_least)
    target = f"≤ {at_most}" if at_most else f"≥ {at_least}" if at_least else "–"
    measured = {name: [round(v, 3) for v in values[name]] for name in (over, under)}
    return {"ratio": round(value, 3), "target": target, "met": met, "measured": measured}


def machine() -> dict[str, Any]:
    """Describe the machine and the versions of the libraries."""
    processor = next(
        line.split(":")[1].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    )
    return {
        "processor": processor,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "lightning": L.__version__,
    }


def show(ratios: dict[str, Any]) -> None:
    """Print the ratios as a table."""
    table = Table("measured", "ratio", "target", "", "medians")
    for name, row in ratios.items():
        medians = ", ".join(f"{k} {median(v):.2f}" for k, v in row["measured"].items())
        about = " (extrapolated)" if row.get("extrapolated") else ""
        table.add_row(
            name + about, f"{row['ratio']:.2f}", row["target"], "✓" if row["met"] else "✗", medians
        )
    Console(width=150).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--full", action="store_true", help="extrapolate nothing")
    arguments = parser.parse_args()
    repeats, full = arguments.repeats, arguments.full
    quieten()
    tune_process()  # for the bare loop too: it must not lose to page faults
    with tempfile.TemporaryDirectory() as folder:
        train(Path(folder), "trainer.max_epochs=1")  # finds the teacher, or trains it first
        teacher = find_checkpoint(read_run(folder).facts["teacher"]).resolve()
        start = time.perf_counter()
        ratios: dict[str, Any] = {}
        for part in (epochs, growth, whole_runs, together, memory):
            ratios |= part(Path(folder), teacher, repeats, full)
        minutes = (time.perf_counter() - start) / 60
    show(ratios)
    results = {"machine": machine(), "repeats": repeats, "ratios": ratios}
    file = HERE / ("results_full.json" if full else "results.json")
    file.write_text(json.dumps(results, indent=2, ensure_ascii=False) + "\n")
    print(f"written to benchmarks/{file.name} after {minutes:.0f} minutes")


if __name__ == "__main__":
    main()
