"""A sweep of small students one by one and together (``hydra/launcher=vectorized``).

    python benchmarks/vectorized.py [REPEATS] [OVERRIDE ...]

measures whole processes in turn, from their start to the table: 32 students (4 seeds, 4
temperatures, 2 α) on the digits by default. Overrides apply to both; on a GPU add
``trainer.accelerator=gpu trainer.devices=1``. The teacher is trained before anything is timed.
"""

import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SMALL = ("data=digits", "student.width=4", "data.batch_size=16", "trainer.max_epochs=10")
SWEPT = ("seed=range(4)", "method.temperature=1,2,5,10", "method.alpha=0.5,0.9")
LAUNCHERS = {
    "one by one": (),
    "together": ("hydra/launcher=vectorized", "hydra.launcher.mode=always"),
}

Seconds = dict[str, list[tuple[float, float]]]


def run(*words: str, env: dict[str, str]) -> tuple[float, float]:
    """Run the command; return the seconds on the clock, and those of its CPU time."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    command = (sys.executable, str(ROOT / "train.py"), *words)
    subprocess.run(command, env=env, stdout=subprocess.DEVNULL, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return time.perf_counter() - start, cpu


def measure(repeats: int, *overrides: str) -> dict[str, Any]:
    """Measure both ways in turn.

    Args:
        repeats: number of times.
        *overrides: settings of the sweep, after those of the small students.

    Returns:
        Seconds of each repeat by the way, and the median ratio of each clock.
    """
    seconds: Seconds = {name: [] for name in LAUNCHERS}
    with tempfile.TemporaryDirectory() as folder:
        env = {"KD_TEACHERS": f"{folder}/teachers", "KD_CACHE": f"{folder}/cache", **os.environ}
        words = (*SMALL, *overrides)
        run(*words, "trainer.max_epochs=1", f"hydra.run.dir={folder}/first", env=env)
        for i in range(repeats):
            for name, launcher in LAUNCHERS.items():
                target = f"hydra.sweep.dir={folder}/{i}-{name.replace(' ', '-')}"
                seconds[name].append(run("-m", *SWEPT, *words, *launcher, target, env=env))
    pairs = [*zip(seconds["one by one"], seconds["together"], strict=True)]
    return {
        **{name: [list(map(_round, pair)) for pair in found] for name, found in seconds.items()},
        "ratio": _round(median(one[0] / both[0] for one, both in pairs)),
        "ratio_cpu": _round(median(one[1] / both[1] for one, both in pairs)),
    }


def _round(value: float) -> float:
    return round(value, 2)


if __name__ == "__main__":
    found = measure(*(int(sys.argv[1]), *sys.argv[2:]) if len(sys.argv) > 1 else (3,))
    for name in LAUNCHERS:
        shown = ", ".join(f"{wall:.1f} s ({cpu:.1f} s of CPU)" for wall, cpu in found[name])
        print(f"{name}: {shown}")
    print(f"together is {found['ratio']} times as fast, and {found['ratio_cpu']} times by CPU time")
