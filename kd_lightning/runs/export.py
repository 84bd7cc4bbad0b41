"""Exports of finished runs: a file in ``exported/``, verified on the test images."""

import hashlib
import json
import logging
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor
from torchvision.transforms.v2.functional import center_crop

from kd_lightning.compress.fake_quantize import bits_of, is_quantized, plain_copy
from kd_lightning.compress.formats import FORMATS
from kd_lightning.compress.verify import BATCHES, verify
from kd_lightning.data.images import ImageDataModule
from kd_lightning.runs.build import build_data
from kd_lightning.runs.directory import plain
from kd_lightning.runs.load import Run, load_run
from kd_lightning.runs.trust import strangers
from kd_lightning.utils.errors import UserError
from kd_lightning.utils.files import write_text
from kd_lightning.utils.reading import read_json
from kd_lightning.utils.run_directory import EXPORTED

log = logging.getLogger(__name__)

RECORD = "export.json"  # of all files in the folder, by name
AT_ONCE = 256  # images
CALIBRATION = 512  # training images
INT8 = 8  # bits
FACTS = ("task", "role", "method", "seed", "code")  # of the run, stored in the file


def export(
    run: Run,
    form: str = "onnx",
    *,
    int8: bool | None = None,
    path: Path | None = None,
    trust: bool = False,
) -> dict[str, Any]:
    """Write a run's network to a file and verify it on all test images.

    The record in ``export.json`` beside the file is written whether or not the file passes.

    Args:
        run: a finished run of images.
        form: one of :data:`~kd_lightning.compress.formats.FORMATS`.
        int8: compute in int8: with the ranges of activations of a quantised run, or those of
            training images without augmentation. By default, if the run is quantised. In
            floating point, such a run's file has the rounded weights, without other rounding.
        path: the file; in the run's folder ``exported/`` by default.
        trust: read the images by any class that the run names, which runs its code.

    Returns:
        The file's record: its name, the figures of
        :func:`~kd_lightning.compress.verify.verify`, ``bytes``, ``sha256``, and ``versions``.

    Raises:
        UserError: if the run is not finished, its images cannot be read, the format has no int8
            variant, the run is quantised to another width, or the network cannot be exported.
    """
    check_exportable(run, form, int8)
    if not run.is_finished:
        raise UserError(f"{run.path} is not finished: resume={run.path} goes on with it")
    written, int8 = FORMATS[form], is_quantized(run.network) if int8 is None else int8
    network = run.network if int8 else plain_copy(run.network)[0]
    data = _data(run, trust)  # first, because an export that is not verified is worth nothing
    file = path or run.path / EXPORTED / file_name(form, int8)
    names = list(run.spec.class_names)
    facts = {name: run.facts[name] for name in FACTS}
    shape = run.spec.input_shape
    calibration = data.calibration(CALIBRATION) if int8 else None
    # First, because a damaged record must not cost it the new file.
    records = read_json(file.parent / RECORD) if (file.parent / RECORD).is_file() else {}
    try:
        properties = {"class_names": names, "input_shape": list(shape), "run": facts}
        written.write(network, run.spec, file, properties, calibration)
        content = file.read_bytes()
        record = {
            "file": file.name,
            "format": form,
            "int8": int8,
            **verify(
                written.load(file),
                network,
                run.spec,
                _test_images(data, shape),
                int8,
                written.batches or BATCHES,
            ),
            "bytes": len(content),
            "sha256": hashlib.sha256(content).hexdigest(),
            "versions": {name: version(name) for name in ("torch", *written.packages)},
        }
        write_text(file.parent / RECORD, json.dumps({**records, file.name: record}, indent=2))
    except OSError as error:
        raise UserError(f"the export cannot be written: {error}") from error
    return record


def export_as(run: Run, path: Path, quantize: str | None) -> dict[str, Any]:
    """Write a run's network to a file of the format that the suffix names; see :func:`export`."""
    forms = {form.suffix: name for name, form in FORMATS.items()}
    if path.suffix not in forms:
        raise UserError(f"{path} should end in one of {', '.join(forms)}")
    if quantize not in (None, "none", "int8"):
        raise UserError(f"quantize={quantize} is none of none, int8")
    int8 = None if quantize is None else quantize == "int8"
    return export(run, forms[path.suffix], int8=int8, path=path)


def export_all(cfg: DictConfig) -> None:
    """Export a finished run in the formats of the setting ``export``.

    Raises:
        UserError: if a file cannot be written, or does not answer as its checkpoint does.
    """
    for form in formats_of(plain(cfg).get("export")):
        # Its code is that of this very job.
        record = export(load_run(cfg.run_dir, trust=True), form, trust=True)
        file = Path(cfg.run_dir) / EXPORTED / record["file"]
        if not record["passed"]:
            raise UserError(f"{file} does not answer as its checkpoint does: see {RECORD} there")
        log.info("exported: %s (accuracy %.2f %%)", file, 100 * record["accuracy"])
        log.info("measure it: kd-benchmark %s", cfg.run_dir)


def formats_of(export: Any) -> list[str]:
    """Return the formats that the setting ``export`` names."""
    return (
        []
        if export is None
        else [str(form) for form in ([export] if isinstance(export, str) else export)]
    )


def check_exportable(run: Run, form: str, int8: bool | None) -> None:
    """Check that there is such a file of a run.

    Raises:
        UserError: if the format is unknown or has no int8 variant, or the run is quantised to
            another width.
    """
    if form not in FORMATS:
        raise UserError(f"format={form} is none of {', '.join(FORMATS)}")
    if int8 is False or (int8 is None and not is_quantized(run.network)):
        return
    check_width(form, bits_of(run.network) if is_quantized(run.network) else INT8)


def check_width(form: str, bits: int) -> None:
    """Check that a format has files of integers of a width.

    Raises:
        UserError: if it has none.
    """
    if not FORMATS[form].takes_int8:
        able = ", ".join(name for name, each in FORMATS.items() if each.takes_int8)
        raise UserError(
            f"format={form} has no int8 variant: use one of {able}, or kd-export quantize=none for "
            "floating point"
        )
    if bits != INT8:
        raise UserError(
            f"quantised to {bits} bits, which are simulated: files in integers exist for {INT8}; "
            "kd-export quantize=none writes the rounded weights in floating point"
        )


def file_name(form: str, int8: bool) -> str:
    """Return the name of the file that :func:`export` writes."""
    return f"{'model_int8' if int8 else 'model'}{FORMATS[form].suffix}"


def exported_file(run_dir: Path, name: str) -> tuple[Path, dict[str, Any]]:
    """Return the path and the record of an exported file.

    Raises:
        UserError: if it does not exist, or is not the file that was verified.
    """
    folder = run_dir / EXPORTED
    records = read_json(folder / RECORD) if (folder / RECORD).is_file() else {}
    record, file = records.get(name), folder / name
    if not isinstance(record, dict) or not file.is_file():
        raise UserError(f"{run_dir} has no {EXPORTED}/{name}: see kd-export")
    if hashlib.sha256(file.read_bytes()).hexdigest() != record.get("sha256"):
        raise UserError(f"{file} has changed since it was verified: export it again")
    return file, record


def _data(run: Run, trust: bool) -> ImageDataModule:
    described = OmegaConf.to_container(run.config.data, resolve=True)
    if not trust and (unknown := strangers(described)):
        raise UserError(f"the run's data name {unknown[0]}: say --trust if you trust this code")
    data = build_data(run.config)
    if not isinstance(data, ImageDataModule):
        raise UserError("an export is verified on images, which this run's data= does not offer")
    if data.spec != run.spec:
        raise UserError(f"the data have changed since {run.path} was trained: train it again")
    return data


def _test_images(data: ImageDataModule, shape: tuple[int, ...]) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the test images, as they are but for a crop, and their labels."""
    inputs, target = data.splits["test"]
    for index in torch.arange(len(target)).split(AT_ONCE):
        yield center_crop(inputs[index], list(shape[1:])), target[index]
