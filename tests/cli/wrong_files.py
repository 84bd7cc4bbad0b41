"""Files that the wrong settings name: damaged archives, checkpoints and run directories."""

import io
import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from conftest import RunsCode

RUNNING = ("optimizer", "data", "net", "method")  # copies of the run, for each test that resumes it


def make_files(folder: Path, run: Path) -> None:
    """Write all files.

    Args:
        folder: where to.
        run: a finished run on the digits.
    """
    _make_archives(folder)
    _make_teachers(folder, Path(json.loads((run / "run.json").read_text())["teacher"]))
    _make_runs(folder, run)


def _make_archives(folder: Path) -> None:
    images, labels = np.zeros((60, 28, 28), np.uint8), np.arange(60) % 3

    def save(name: str, **changed: Any) -> None:
        usual = {"x_train": images, "y_train": labels, "x_test": images, "y_test": labels}
        np.savez(folder / name, **{**usual, **changed})

    save("three.npz")
    for name, label in (("million", 10**6), ("huge", 2**40)):
        save(f"{name}.npz", y_train=np.array([label, *labels[1:]]))
    save("objects.npz", x_train=np.array([{}], object))
    save("nan.npz", x_train=np.full(images.shape, np.nan, np.float32))
    save("empty.npz", x_train=images[:0], y_train=labels[:0])
    np.savez(folder / "keys.npz", x=images)
    content = (folder / "three.npz").read_bytes()
    (folder / "cut.npz").write_bytes(content[: len(content) // 2])
    (folder / "text.npz").write_text("hello")
    header = io.BytesIO()
    shape = {"descr": "|u1", "fortran_order": False, "shape": (10**7, 5000, 5000)}  # 250 TB
    np.lib.format.write_array_header_1_0(header, shape)
    with zipfile.ZipFile(folder / "header.npz", "w") as archive:
        archive.writestr("x_train.npy", header.getvalue())
        for name in ("y_train", "x_test", "y_test"):
            archive.writestr(f"{name}.npy", b"")


def _make_teachers(folder: Path, teacher: Path) -> None:
    file = teacher / "checkpoints" / "best.ckpt"
    good = torch.load(file, weights_only=True)
    (folder / "cut.ckpt").write_bytes(file.read_bytes()[:100_000])
    torch.save({"state_dict": {}, "more": RunsCode(folder / "trace")}, folder / "code.ckpt")
    torch.save({**good, "spec": {"shape": "x"}}, folder / "spec.ckpt")
    torch.save({}, folder / "empty.ckpt")
    changes: dict[str, Callable[[Any], Any]] = {
        "nan": lambda w: w * float("nan"),
        "int": lambda w: (w * 100).int(),
        "sparse": lambda w: w.to_sparse(),
    }
    for name, change in changes.items():
        state = {key: change(weights) for key, weights in good["state_dict"].items()}
        torch.save({**good, "state_dict": state}, folder / f"{name}.ckpt")


def _make_runs(folder: Path, run: Path) -> None:
    def copy(name: str) -> Path:
        shutil.copytree(run, folder / name)
        (folder / name / "metrics.json").unlink()  # not finished
        return folder / name

    for name in RUNNING:
        copy(f"running_{name}")
    for name, file in (
        ("broken", "config.yaml"),
        ("overrides", "overrides.yaml"),
        ("hydra", "hydra.yaml"),
    ):
        (copy(name) / ".hydra" / file).write_text("a: [1,")
    (copy("foreign") / ".hydra" / "config.yaml").write_text("data: {}\n")
    last = copy("cut") / "checkpoints" / "last.ckpt"
    last.write_bytes(last.read_bytes()[:3000])
    for name, change in (
        ("no_optimizer", lambda c: c.pop("optimizer_states")),
        ("epoch", lambda c: c.update(epoch="x")),
    ):
        last = copy(name) / "checkpoints" / "last.ckpt"
        content = torch.load(last, weights_only=True)
        change(content)
        torch.save(content, last)
