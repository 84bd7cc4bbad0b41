"""ONNX files: written from a network, and run by ONNX Runtime."""

import json
import logging
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from kd_lightning.compress.fake_quantize import plain_copy
from kd_lightning.compress.int8_onnx import int8_share, quantize_model
from kd_lightning.compress.program import exported_program, quiet_export, refusal
from kd_lightning.data.types import ImageSpec
from kd_lightning.utils.errors import UserError
from kd_lightning.utils.files import write_atomically
from kd_lightning.utils.text import one_line

OPSET = 20
INPUT, OUTPUTS = "images", ["probabilities", "logits"]


def write_onnx(
    network: nn.Module,
    spec: ImageSpec,
    path: Path,
    properties: Mapping[str, Any],
    calibration: Tensor | None = None,
) -> None:
    """Write a network with its preprocessing and softmax to an ONNX file.

    The file takes ``images``, N×C×H×W uint8 with any N, and returns ``probabilities`` and
    ``logits``, N×K float32.

    Args:
        network: the trained network, in evaluation mode, on the CPU; of a fake-quantised one, an
            int8 file has the integers and ranges, and another file the rounded weights.
        spec: shape and normalisation of the data.
        path: the file.
        properties: facts to store in the file, as JSON by name.
        calibration: uint8 images, N×C×H×W; given them, the file computes in int8.

    Raises:
        UserError: if the network has an operator that cannot be exported, or a package is missing.
    """
    onnx, _ = _libraries()
    plain, steps = plain_copy(network)
    program = exported_program(plain, spec, "ONNX", any_batch=True)
    try:
        with _quiet():
            exported = torch.onnx.export(
                program,
                dynamo=True,
                input_names=[INPUT],
                output_names=OUTPUTS,
                opset_version=OPSET,
                verbose=False,
            )
    except Exception as error:  # of any type: the exporter has many
        raise refusal(plain, "ONNX", error, program) from error
    assert exported is not None
    model = exported.model_proto
    if calibration is not None:
        model = quantize_model(model, calibration, steps, OUTPUTS[1])
    _strip(model)
    _name_batch(model)
    for name, value in properties.items():
        entry = model.metadata_props.add()
        entry.key, entry.value = name, json.dumps(value, ensure_ascii=False)
    onnx.checker.check_model(model)
    content = model.SerializeToString()
    write_atomically(path, lambda file: file.write(content))


class OnnxFile:
    """An ONNX file in ONNX Runtime, on one thread of the CPU.

    Args:
        path: the file.

    Raises:
        UserError: if it cannot be read, or a package is missing.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.session = self._session()

    def __call__(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return probabilities and logits, N×K each, of uint8 images, N×C×H×W."""
        probabilities, logits = self.session.run(OUTPUTS, {INPUT: images})
        return probabilities, logits

    @property
    def int8_share(self) -> float:
        """Share of the weighted operators that compute in int8, in the optimised graph."""
        onnx, _ = _libraries()
        with tempfile.TemporaryDirectory() as folder:
            optimized = Path(folder, "optimized.onnx")
            self._session(optimized)
            return int8_share(onnx.load(optimized))

    def _session(self, optimized: Path | None = None) -> Any:
        """Create a session; with a path, also write the graph as it is optimised."""
        _, runtime = _libraries()
        options = runtime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        if optimized is not None:
            options.optimized_model_filepath = str(optimized)
            options.log_severity_level = 3  # not that other processors optimise otherwise
        try:
            return runtime.InferenceSession(
                self.path.read_bytes(), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # ONNX Runtime has an exception type for each status
            raise UserError(f"{self.path} cannot be loaded: {one_line(error)}") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Drop what the exporter logs about its passes, and prints as it fails."""
    loggers = [logging.getLogger(name) for name in ("onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        with quiet_export():
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _name_batch(model: Any) -> None:
    """Call the size of the batch so, which the exporter numbers."""
    found = model.graph.input[0].type.tensor_type.shape.dim[0].dim_param
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param == found:
                dim.dim_param = "batch"


def _strip(model: Any) -> None:
    """Remove what the exporter notes about each node: a third of a small file, with local paths."""
    model.ClearField("metadata_props")
    for part in (model.graph, *model.functions):
        part.ClearField("metadata_props")
        for node in part.node:
            node.ClearField("metadata_props")
            node.ClearField("doc_string")
    for value in (*model.graph.value_info, *model.graph.input, *model.graph.output):
        value.ClearField("metadata_props")
    for tensor in model.graph.initializer:
        tensor.ClearField("metadata_props")


def _libraries() -> tuple[ModuleType, ModuleType]:
    """Import onnx and ONNX Runtime.

    Raises:
        UserError: if they or onnxscript, which torch needs, are not installed.
    """
    try:
        import onnx
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError("ONNX needs three packages: pip install 'kd-lightning[onnx]'") from error
    return onnx, onnxruntime
