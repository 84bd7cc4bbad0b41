"""ONNX files: written from a network, and run by ONNX Runtime."""

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from kd_lightning.compress.deployed import Deployed
from kd_lightning.compress.fake_quantize import bits_of, is_quantized, plain_copy
from kd_lightning.compress.int8_onnx import int8_share, quantize_model
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
        network: the trained network, in evaluation mode, on the CPU.
        spec: shape and normalisation of the data.
        path: the file.
        properties: facts to store in the file, as JSON by name.
        calibration: uint8 images, N×C×H×W; given them, the file computes in int8.

    Raises:
        UserError: if the network has an operator that cannot be exported, or is fake-quantised to
            another width than the file's, or a package is missing.
    """
    onnx, _ = _libraries()
    if is_quantized(network):
        _check_bits(network, calibration)
    plain, steps = plain_copy(network)
    # Two images: a batch of one would make the size of the batch a constant.
    example = torch.zeros(2, *spec.input_shape, dtype=torch.uint8)
    batch = {INPUT: {0: torch.export.Dim("batch")}}
    try:
        program = torch.onnx.export(
            Deployed(plain, spec).eval(),
            (example,),
            dynamo=True,
            input_names=[INPUT],
            output_names=OUTPUTS,
            dynamic_shapes=batch,
            opset_version=OPSET,
            verbose=False,
        )
    except Exception as error:  # of any type: it comes from the network's own code, or the exporter
        raise UserError(
            f"{type(network).__name__} cannot be exported to ONNX: {one_line(error)}"
        ) from error
    assert program is not None
    model = program.model_proto
    if calibration is not None:
        model = quantize_model(model, calibration, steps, OUTPUTS[1])
    _strip(model)
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
            options.log_severity_level = (
                3  # a warning says that other processors optimise otherwise
            )
        try:
            return runtime.InferenceSession(
                self.path.read_bytes(), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # ONNX Runtime has an exception type for each status
            raise UserError(f"{self.path} cannot be loaded: {one_line(error)}") from error


def _check_bits(network: nn.Module, calibration: Tensor | None) -> None:
    if calibration is None:
        raise UserError("the network is quantised: export it with quantize=int8")
    if (bits := bits_of(network)) != 8:
        raise UserError(
            f"the network is quantised to {bits} bits, which are simulated: files exist for 8"
        )


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
