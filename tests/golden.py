"""Golden runs: five trainings on the digits, reduced to hashes of their weights and figures.

A refactoring must leave every line of the output unchanged. Run it before and after::

    python tests/golden.py > before.json
    python tests/golden.py > after.json
    diff before.json after.json

Only the files of a run directory are read, so the script also runs in an older checkout.
The hashes depend on the processor and on the version of torch: compare on one machine.
"""

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent
COMMON = ("data=digits", "trainer.max_epochs=2", "pretrain.trainer.max_epochs=2")
RUNS = {
    "kd": ("method=kd",),
    "crd": ("method=crd",),
    "fitnet with two terms": ("method=fitnet", "+transfer@method.transfer.sp=sp"),
    "mutual": ("method=mutual",),
    "chain of two links": ("experiment=self_distillation", "chain.generations=2"),
}
# Times differ from run to run, and paths and versions say nothing about what was computed.
NOT_COMPARED = ("seconds", "latency_ms", "teacher_latency_ms", "commit", "teacher")


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        found = {name: golden(name, Path(folder)) for name in RUNS}
    print(json.dumps(found, indent=2))


def golden(name: str, folder: Path) -> dict[str, Any]:
    """Train one run in a process of its own and summarise its directory."""
    run_dir = folder / name.replace(" ", "-")
    variables = {"KD_TEACHERS": folder / "teachers", "KD_CACHE": folder / "cache"}
    subprocess.run(
        [sys.executable, str(ROOT / "train.py"), *COMMON, *RUNS[name], f"hydra.run.dir={run_dir}"],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", **{k: str(v) for k, v in variables.items()}},
        stdout=subprocess.DEVNULL,
        check=True,
    )
    checkpoints = sorted(run_dir.rglob("*.ckpt"))
    return {
        "weights": {str(p.relative_to(run_dir)): hash_of_weights(p) for p in checkpoints},
        "figures": figures(run_dir),
    }


def hash_of_weights(checkpoint: Path) -> str:
    """A hash of every tensor in a checkpoint's state dict, with its name."""
    state = torch.load(checkpoint, weights_only=True)["state_dict"]
    digest = hashlib.blake2b(digest_size=8)
    for name, tensor in sorted(state.items()):
        digest.update(name.encode() + tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def figures(run_dir: Path) -> dict[str, str]:
    """Every figure of a run, with all its digits."""
    metrics = json.loads((run_dir / "metrics.json").read_text())
    return {k: repr(v) for k, v in sorted(metrics.items()) if k not in NOT_COMPARED}


if __name__ == "__main__":
    main()
