"""Speed on a GPU: epochs by precision, a sweep together and one by one, and a published recipe.

    python benchmarks/gpu.py [--repeats N]

needs a CUDA device, MNIST and CIFAR-100 (``KD_DATA_DIR``). Epochs are measured in turn, after one
that is not counted; the device is synchronised before each reading of the clock. The results are
written to ``results_gpu.json`` beside this file.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import torch
import vectorized
from bench import HERE, Ours, in_turn, machine, train

from kd_lightning.cli.quiet import quieten
from kd_lightning.utils.process import tune_process
from kd_lightning.utils.run_directory import find_checkpoint, read_run

GPU = ("trainer.accelerator=gpu", "trainer.devices=1")
BATCH = 1024
VARIANTS = {  # settings of the epoch, and whether matrices may be multiplied in TF32
    "fp32": ((), False),
    "tf32": ((), True),
    "bf16": (("trainer.precision=bf16-mixed",), True),
    "fp32, images on the device": (("data.device_resident=true",), False),
    "tf32, images on the device": (("data.device_resident=true",), True),
    "bf16, images on the device": (
        ("trainer.precision=bf16-mixed", "data.device_resident=true"),
        True,
    ),
}


def epochs(folder: Path, teacher: Path, repeats: int, *settings: str) -> dict[str, list[float]]:
    """Return the seconds of distilled epochs, by variant."""

    def measured(ours: Ours, tf32: bool) -> float:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
        return ours.epoch()

    made = {
        name: Ours(folder, teacher, *GPU, *settings, *own) for name, (own, _) in VARIANTS.items()
    }
    runs = {
        name: (lambda ours=ours, tf32=VARIANTS[name][1]: measured(ours, tf32))
        for name, ours in made.items()
    }
    return in_turn(repeats, **runs)


def recipe(repeats: int) -> list[float]:
    """Return the seconds of an epoch of ``experiment=cifar100``, the teacher's pass excluded."""
    seconds = []
    short = ("trainer.max_epochs=2", "pretrain.trainer.max_epochs=1")
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(repeats):
            train(Path(folder), "experiment=cifar100", *short, *GPU)
            seconds.append(read_run(folder).metrics["seconds"] / 2)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    repeats = parser.parse_args().repeats
    if not torch.cuda.is_available():
        sys.exit("error: no CUDA device here")
    quieten()
    tune_process()
    found: dict[str, Any] = {"machine": {**machine(), "gpu": torch.cuda.get_device_name()}}
    with tempfile.TemporaryDirectory() as folder:
        train(Path(folder), "trainer.max_epochs=1", *GPU)
        teacher = find_checkpoint(read_run(folder).facts["teacher"]).resolve()
        size = f"data.batch_size={BATCH}"
        found["s an epoch, MNIST, batch 1,024"] = epochs(Path(folder), teacher, repeats, size)
    found["s an epoch, CIFAR-100"] = {"ResNet-20 from ResNet-56": recipe(repeats)}
    found["32 students: one by one / together"] = vectorized.measure(repeats, *GPU)
    show(found)
    text = json.dumps(found, indent=2, ensure_ascii=False)
    (HERE / "results_gpu.json").write_text(text + "\n")


def show(found: dict[str, Any]) -> None:
    """Print the medians."""
    for name, values in found.items():
        for key, value in values.items():
            numbers = isinstance(value, list) and all(isinstance(v, float) for v in value)
            print(f"{name} · {key}: {median(value):.3f}" if numbers else f"{name} · {key}: {value}")


if __name__ == "__main__":
    main()
