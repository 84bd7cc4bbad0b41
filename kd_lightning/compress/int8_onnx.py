"""ONNX models in int8: quantised weights and activations, and what ONNX Runtime makes of them.

Activations are uint8 and weights int8, symmetric per output channel, by ONNX Runtime's own
quantisation in the QDQ form. (Signed activations are up to four times slower on x86.)
"""

import logging
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

WEIGHTED = ("Conv", "Gemm", "MatMul", "ConvTranspose")
ALSO_WEIGHTED = ("LSTM", "GRU", "RNN", "Einsum")  # which ONNX Runtime computes in fp32
PASS_WEIGHTS = ("DequantizeLinear", "Transpose", "Reshape", "Squeeze", "Unsqueeze", "Cast")
CLIPS = ("Relu", "Clip")
IN_INT8 = ("QLinearConv", "QGemm", "QLinearMatMul", "MatMulIntegerToFloat", "DynamicQuantizeMatMul")
KEEP_RANGE = ("MaxPool", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Identity")
QUANTIZED = (
    *WEIGHTED,
    *("Add", "Mul", "Relu", "Clip", "Concat", "Pad", "AveragePool", "GlobalAveragePool"),
    *KEEP_RANGE,
)
AT_ONCE = 32  # images per calibration step
NETWORK = "network."  # prefix of the names of the network's parameters in an exported model

Steps = Mapping[str, tuple[float, int]]  # scale and zero of the input of each layer, by path


def quantize_model(model: Any, calibration: Tensor, steps: Steps, logits: str) -> Any:
    """Return an int8 version of an exported model.

    Args:
        model: the model in floating point.
        calibration: uint8 images, N×C×H×W, for the ranges that are not given.
        steps: scale of a layer's input, and the integer that stands for 0, by the layer's path.
        logits: name of the output that stays in floating point.
    """
    import onnx
    from onnxruntime import quantization as ort

    batches = iter([{model.graph.input[0].name: x.numpy()} for x in calibration.split(AT_ONCE)])

    class Reader(ort.CalibrationDataReader):  # here, because its base class is imported late
        def get_next(self) -> Any:
            return next(batches, None)

    # Neither the normalisation before the network nor softmax after it is worth 8 bits of error.
    outside = [n.name for n in model.graph.node if not _is_inside(n)]
    with tempfile.TemporaryDirectory() as folder, _silenced():
        before, after = Path(folder, "fp32.onnx"), Path(folder, "int8.onnx")
        onnx.save(model, before)
        ort.quantize_static(
            before,
            after,
            Reader(),
            quant_format=ort.QuantFormat.QDQ,
            op_types_to_quantize=[*QUANTIZED],
            nodes_to_exclude=outside,
            per_channel=True,
            activation_type=ort.QuantType.QUInt8,
            weight_type=ort.QuantType.QInt8,
            extra_options={"TensorQuantOverrides": _overrides(model, steps)},
        )
        quantized = onnx.load(after)
    makers = {name: node for node in model.graph.node for name in node.output}
    # Not if they are clipped, which the rounding does, too.
    if makers[logits].op_type in WEIGHTED:
        _leave_in_float(quantized.graph, logits)
    return quantized


def int8_share(model: Any) -> float:
    """Return the share of weighted operators that compute in int8.

    Args:
        model: a model as ONNX Runtime optimised it for this processor.
    """
    large = {tensor.name for tensor in model.graph.initializer if len(tensor.dims) > 1}
    weighted = []
    for node in model.graph.node:  # in the order of computation
        if not large & {*node.input}:
            continue
        if node.op_type in PASS_WEIGHTS:
            large |= {*node.output}
        elif any(kind in node.op_type for kind in (*WEIGHTED, *ALSO_WEIGHTED)):
            weighted.append(node.op_type)
    return sum(name in IN_INT8 for name in weighted) / max(len(weighted), 1)


def _is_inside(node: Any) -> bool:
    """Return whether a node comes from the network itself, by what the exporter notes."""
    noted = {p.key: p.value for p in node.metadata_props}
    return f"'{NETWORK[:-1]}'" in noted.get("pkg.torch.onnx.name_scopes", "")


def _overrides(model: Any, steps: Steps) -> dict[str, Any]:
    """Return how tensors of a model are rounded: those that quantised layers take."""
    makers = {name: node for node in model.graph.node for name in node.output}
    found = {}
    for node in model.graph.node:
        if node.op_type not in WEIGHTED:
            continue
        path = node.input[1].removeprefix(NETWORK).removesuffix(".weight")
        if path not in steps:
            continue
        tensor = node.input[0]
        # An operator that selects or moves values has the steps of its input.
        while tensor in makers and makers[tensor].op_type in KEEP_RANGE:
            tensor = makers[tensor].input[0]
        scale, zero = steps[path]
        # ONNX Runtime lets the rounding of a ReLU's output clip for it, which needs zero at 0; it
        # is not where a layer is used in several places.
        if zero and tensor in makers and makers[tensor].op_type in CLIPS:
            continue
        found[tensor] = [
            {"scale": np.array(scale, np.float32), "zero_point": np.array(zero, np.uint8)}
        ]
    return found


def _leave_in_float(graph: Any, name: str) -> None:
    """Remove the rounding of an output."""
    makers = {output: node for node in graph.node for output in node.output}
    dequantize = makers[name]
    if dequantize.op_type != "DequantizeLinear":
        return
    quantize = makers[dequantize.input[0]]
    source = quantize.input[0]
    for node in (quantize, dequantize):
        graph.node.remove(node)
    for node in graph.node:
        for names in (node.input, node.output):
            for i, found in enumerate(names):
                names[i] = name if found == source else found
    used = {found for node in graph.node for found in node.input}
    for tensor in [t for t in graph.initializer if t.name not in used]:
        graph.initializer.remove(tensor)


@contextmanager
def _silenced() -> Iterator[None]:
    """Drop ONNX Runtime's advice to fold batch normalisation first, which the exporter has done."""

    def is_wanted(record: logging.LogRecord) -> bool:
        return "pre-processing" not in record.getMessage()

    root = logging.getLogger()
    root.addFilter(is_wanted)
    try:
        yield
    finally:
        root.removeFilter(is_wanted)
