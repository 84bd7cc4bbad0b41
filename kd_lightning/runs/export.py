"""Exports of finished runs: a file in ``exported/``, verified on the test images."""

import hashlib
import json
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor
from torchvision.transforms.v2.functional import center_crop

from kd_lightning.compress.onnx_file import OnnxFile, write_onnx
from kd_lightning.compress.verify import verify
from kd_lightning.data.images import ImageDataModule
from kd_lightning.runs.build import build_data
from kd_lightning.runs.load import Run
from kd_lightning.runs.trust import strangers
from kd_lightning.utils.errors import UserError
from kd_lightning.utils.files import write_text
from kd_lightning.utils.run_directory import EXPORTED

MODEL, RECORD = "model.onnx", "export.json"
AT_ONCE = 256  # images
FACTS = ("task", "role", "method", "seed", "code")  # of the run, stored in the file
PACKAGES = ("torch", "onnx", "onnxscript", "onnxruntime")


def export(run: Run, *, trust: bool = False) -> dict[str, Any]:
    """Write a run's network to ``exported/model.onnx`` and verify the file on all test images.

    The record, ``exported/export.json``, is written whether or not the file passes.

    Args:
        run: a finished run of images.
        trust: read the test images by any class that the run names, which runs its code.

    Returns:
        The record: the figures of :func:`~kd_lightning.compress.verify.verify`, ``bytes``,
        ``sha256``, and ``versions``.

    Raises:
        UserError: if the run is not finished, its test images cannot be read, or the network
            cannot be exported.
    """
    if not run.is_finished:
        raise UserError(f"{run.path} is not finished: resume={run.path} goes on with it")
    data = _test_data(run, trust)  # first, because an export that is not verified is worth nothing
    folder = run.path / EXPORTED
    file = folder / MODEL
    names = list(run.spec.class_names)
    facts = {name: run.facts[name] for name in FACTS}
    try:
        write_onnx(run.network, run.spec, file, {"class_names": names, "run": facts})
        content = file.read_bytes()
        record = {
            "file": MODEL,
            **verify(OnnxFile(file), run.network, run.spec, _samples(data, run.spec.input_shape)),
            "bytes": len(content),
            "sha256": hashlib.sha256(content).hexdigest(),
            "versions": {name: version(name) for name in PACKAGES},
        }
        write_text(folder / RECORD, json.dumps(record, indent=2))
    except OSError as error:
        raise UserError(f"the export cannot be written: {error}") from error
    return record


def _test_data(run: Run, trust: bool) -> ImageDataModule:
    described = OmegaConf.to_container(run.config.data, resolve=True)
    if not trust and (unknown := strangers(described)):
        raise UserError(f"the run's data name {unknown[0]}: say --trust if you trust this code")
    data = build_data(run.config)
    if not isinstance(data, ImageDataModule):
        raise UserError("an export is verified on images, which this run's data= does not offer")
    if data.spec != run.spec:
        raise UserError(f"the data have changed since {run.path} was trained: train it again")
    return data


def _samples(data: ImageDataModule, shape: tuple[int, ...]) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the test images as they are given to a network, but for their scale, and labels."""
    inputs, target = data.splits["test"]
    for index in torch.arange(len(target)).split(AT_ONCE):
        yield center_crop(inputs[index], list(shape[1:])), target[index]
