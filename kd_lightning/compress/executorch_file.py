"""ExecuTorch files: written from a network for XNNPACK, and run by ExecuTorch's runtime."""

# ExecuTorch is not in the development environment.
# pyright: reportMissingImports=false

import json
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from kd_lightning.compress.fake_quantize import plain_copy
from kd_lightning.compress.program import exported_program, refusal
from kd_lightning.compress.xnnpack import int8_share
from kd_lightning.data.types import ImageSpec
from kd_lightning.utils.errors import UserError
from kd_lightning.utils.files import write_atomically
from kd_lightning.utils.text import one_line


def write_executorch(
    network: nn.Module,
    spec: ImageSpec,
    path: Path,
    properties: Mapping[str, Any],
    calibration: Tensor | None = None,
) -> None:
    """Write a network with its preprocessing and softmax to an ExecuTorch file.

    The method ``forward`` takes one image, 1×C×H×W uint8, and returns probabilities and logits,
    1×K float32. What XNNPACK offers is delegated to it.

    Args:
        network: the trained network, in evaluation mode, on the CPU; of a fake-quantised one, the
            file has the weights, and ranges of activations of its own.
        spec: shape and normalisation of the data.
        path: the file.
        properties: facts to store in the file: a method for each returns it as JSON.
        calibration: uint8 images, N×C×H×W; given them, the file computes in int8.

    Raises:
        UserError: if the network has an operator that cannot be exported, or the package is
            missing.
    """
    with _quiet():
        _check_installed()
        program = exported_program(plain_copy(network)[0], spec, "ExecuTorch", any_batch=False)
        facts = {name: json.dumps(value, ensure_ascii=False) for name, value in properties.items()}
        try:
            with torch.no_grad():
                if calibration is not None:
                    program = _quantized(program, calibration)
                content = _lowered(program, facts)
        except Exception as error:  # of any type: each pass and operator has its own
            raise refusal(network, "ExecuTorch", error) from error
    write_atomically(path, lambda file: file.write(content))


class ExecutorchFile:
    """An ExecuTorch file in its runtime, on one thread of the CPU.

    Args:
        path: the file.

    Raises:
        UserError: if it cannot be read, or the package is missing.
    """

    def __init__(self, path: Path) -> None:
        with _quiet():
            _check_installed()
            from executorch.extension.pybindings import portable_lib
            from executorch.runtime import Runtime, Verification

            # The pool is the whole process's, and loaded programs keep it: it is set only once.
            if portable_lib._threadpool_get_thread_count() != 1:
                portable_lib._unsafe_reset_threadpool(1)
            self.path, self.content = path, path.read_bytes()
            try:
                self.program = Runtime.get().load_program(
                    self.content, verification=Verification.InternalConsistency
                )
                self.forward: Any = self.program.load_method("forward")
            except Exception as error:
                raise UserError(f"{path} cannot be loaded: {one_line(error)}") from error

    def __call__(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return probabilities and logits, 1×K each, of one uint8 image, 1×C×H×W."""
        probabilities, logits = self.forward.execute((torch.from_numpy(images),))
        return probabilities.numpy(), logits.numpy()

    @cached_property
    def int8_share(self) -> float:
        """Share of the operators with weights that compute in int8, from 0 to 1.

        Raises:
            UserError: if another version of ExecuTorch wrote another kind of file.
        """
        with _quiet():
            try:
                return int8_share(self.content)
            except Exception as error:  # an AttributeError, too, would read as no such property
                raise UserError(
                    f"what {self.path} computes in int8 cannot be read: {one_line(error)}"
                ) from error


def _quantized(program: ExportedProgram, calibration: Tensor) -> ExportedProgram:
    """Return a program that quantises weights per channel and activations per tensor."""
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    configuration = get_symmetric_quantization_config(is_per_channel=True)
    quantizer = XNNPACKQuantizer().set_global(configuration)
    observed: Any = prepare_pt2e(program.module(), quantizer)
    for image in calibration.split(1):  # the size that the program takes
        observed(image)
    return torch.export.export(convert_pt2e(observed), (calibration[:1],))


def _lowered(program: ExportedProgram, facts: Mapping[str, str]) -> bytes:
    """Return the content of the file: a program for XNNPACK, and constant methods."""
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    edge = to_edge_transform_and_lower(
        program, partitioner=[XnnpackPartitioner()], constant_methods=dict(facts)
    )
    return bytes(edge.to_executorch().buffer)


def _check_installed() -> None:
    """Import ExecuTorch.

    Raises:
        UserError: if it is not installed.
    """
    try:
        import executorch.exir
        import executorch.runtime  # noqa: F401
    except ImportError as error:
        raise UserError(
            "ExecuTorch needs a package: pip install 'kd-lightning[executorch]'"
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Drop what ExecuTorch 1.5 and torchao 0.18 note about themselves, and nothing else."""
    log = logging.getLogger("torch.utils._pytree")

    def other(record: logging.LogRecord) -> bool:
        return "KernelPreference" not in record.getMessage()

    log.addFilter(other)
    try:
        with warnings.catch_warnings():
            for message, category in (
                (r"(read|open)_(text|binary) is deprecated", DeprecationWarning),
                ("This API is experimental and subject to change", Warning),
            ):
                warnings.filterwarnings("ignore", message, category)
            yield
    finally:
        log.removeFilter(other)
