"""Time and memory of ``kd-report`` over simulated run directories.

    python benchmarks/many_runs.py RUN [COUNT ...]

copies the records of a finished run into COUNT directories (by default 1,000 and 10,000): 20 seeds
of ever more temperatures, with accuracies that vary at random. Checkpoints are not copied, because
the report reads none.
"""

import json
import random
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

SEEDS = 20
# Starts the report, then prints its seconds of CPU time and its largest memory.
MEASURE = """
import resource, subprocess, sys
subprocess.run([sys.executable, "-c", "from kd_lightning.cli.report import main; main()",
                *sys.argv[1:]], check=True, stdout=subprocess.DEVNULL)
found = resource.getrusage(resource.RUSAGE_CHILDREN)
print(found.ru_utime + found.ru_stime, found.ru_maxrss / 1024)
"""


def simulate(run: Path, folder: Path, count: int) -> None:
    """Write run directories that differ in seed, temperature and accuracies."""
    facts = json.loads((run / "run.json").read_text())
    metrics = json.loads((run / "metrics.json").read_text())
    noise = random.Random(0)
    for i in range(count):
        there = folder / str(i)
        shutil.copytree(run / ".hydra", there / ".hydra")
        seed, temperature = i % SEEDS, 1 + i // SEEDS
        overrides = {"method.temperature": str(temperature), "seed": str(seed)}
        settings = {**facts["settings"], "method.temperature": temperature}
        record = {**facts, "seed": seed, "overrides": overrides, "settings": settings}
        (there / "run.json").write_text(json.dumps(record))
        varied = {
            k: v + noise.gauss(0, 0.003) if "accuracy" in k else v for k, v in metrics.items()
        }
        (there / "metrics.json").write_text(json.dumps(varied))


def main(run: str, *counts: str) -> None:
    """Print a line for each number of runs."""
    for count in map(int, counts or ("1000", "10000")):
        with tempfile.TemporaryDirectory() as folder:
            simulate(Path(run), Path(folder), count)
            command = [sys.executable, "-c", MEASURE, folder]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            seconds, megabytes = map(float, done.stdout.split())
        print(f"{count:,} runs: {seconds:.1f} s of CPU time, {megabytes:.0f} MB")


if __name__ == "__main__":
    main(*sys.argv[1:])
