"""Keys of teachers in the store: everything that determines their weights."""

import copy
from pathlib import Path
from typing import Any

import lightning as L
from hydra.utils import get_object
from omegaconf import DictConfig

from kd_lightning import __version__
from kd_lightning.runs.directory import plain
from kd_lightning.runs.networks import QUANTIZED
from kd_lightning.runs.record import INCIDENTAL
from kd_lightning.teachers.store import teacher_key
from kd_lightning.utils.files import crc32
from kd_lightning.utils.hashing import sources


def key_of(job: DictConfig, data: L.LightningDataModule, world_size: int) -> str:
    """Return the key of the teacher that a job trains.

    Args:
        job: configuration of the teacher's job.
        data: its datamodule, for the hash of the data.
        world_size: number of processes, which multiplies the batch size.
    """
    job = copy.deepcopy(job)
    job.run_dir = ""  # callbacks contain its path, which must not change the key
    model, trainer = plain(job.model), plain(job.trainer)
    net = model["net"]
    if net["_target_"] == QUANTIZED:  # the first generation of a chain of quantised students
        net = net["net"]
    recipe = {
        "model": model,
        "trainer": {k: v for k, v in trainer.items() if f"trainer.{k}" not in INCIDENTAL},
        "seed": job.seed,
        "task": plain(job.task),
        "data": [_content(job, data), getattr(data, "batch_size", None), world_size],
        "version": __version__,
        "code": sources([get_object(net["_target_"]).__module__]),
        "weights": [crc32(Path(file)) for file in sorted(_weight_files(model))],
        "callbacks": {k: v for k, v in plain(job.callbacks).items() if shapes_result(v)},
    }
    return teacher_key(net["_target_"].rpartition(".")[2], recipe)


def _weight_files(described: Any) -> set[str]:
    """Return the files of pretrained weights that a configuration names."""
    # By content in a key, because a file can be overwritten.
    if not isinstance(described, dict):
        return set()
    weights = described.get("weights")
    own = {weights} if isinstance(weights, str) and Path(weights).is_file() else set()
    return own.union(*map(_weight_files, described.values()))


def _content(job: DictConfig, data: L.LightningDataModule) -> Any:
    """Return the data's fingerprint, or configuration and code of a datamodule without one."""
    fingerprint = getattr(data, "fingerprint", None)
    return fingerprint or [plain(job.data), sources([type(data).__module__])]


def shapes_result(callback: Any) -> bool:
    """Return whether a configured callback may change the weights or figures of a run.

    A class that does not change them sets its attribute ``shapes_result`` to False.
    """
    # True by default: retraining a teacher is a lesser harm than reusing a wrong one.
    if not isinstance(callback, dict) or "_target_" not in callback:
        return True
    return getattr(get_object(callback["_target_"]), "shapes_result", True)
