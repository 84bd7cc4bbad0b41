"""What an ExecuTorch file computes in int8, read from the file itself."""

# ExecuTorch is not in the development environment.
# pyright: reportMissingImports=false

import json
import re
import tempfile
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

# Operators with weights: of XNNPACK, and of ExecuTorch for what was not delegated to it.
WEIGHTED = {"XNNConv2d", "XNNDepthwiseConv2d", "XNNConvTranspose2d", "XNNFullyConnected"}
LEFT_OUT = re.compile(r"^(aten::convolution|aten::addmm|aten::mm|aten::linear|quantized.*linear)$")
INT8 = {"xnn_datatype_qint8", "xnn_datatype_quint8", "xnn_datatype_qcint8"}


def int8_share(content: bytes) -> float:
    """Return the share of the convolutions and linear layers that XNNPACK computes in int8.

    Args:
        content: of a ``.pte`` file.

    Returns:
        From 0 to 1; 1 for a network without weights.
    """
    from executorch.exir._serialize._program import deserialize_pte_binary

    program: Any = deserialize_pte_binary(content).program
    plan = next(plan for plan in program.execution_plan if plan.name == "forward")
    found = [False for name in _kernels(plan) if LEFT_OUT.match(name)]
    for delegate in plan.delegates:
        if delegate.id == "XnnpackBackend":
            found += _weighted(program.backend_delegate_data[delegate.processed.index].data)
    return sum(found) / len(found) if found else 1.0


def _kernels(plan: Any) -> Iterator[str]:
    """Yield the names of the operators that ExecuTorch itself computes, one for each call."""
    for instruction in (one for chain in plan.chains for one in chain.instructions):
        if (index := getattr(instruction.instr_args, "op_index", None)) is not None:
            yield plan.operators[index].name


def _weighted(blob: bytes) -> Iterator[bool]:
    """Yield for each weighted operator of a delegate whether its input and weights are int8."""
    graph = _graph(blob)
    types: dict[int, str] = {}
    for value in (each["xvalue_union"] for each in graph["xvalues"]):
        tensor = value.get("tensor_value", value)  # nested where it is quantised
        types[tensor["id_out"]] = tensor["datatype"]
    for node in graph["xnodes"]:
        ends = node["xnode_union"]
        if node["xnode_union_type"] in WEIGHTED and not _is_normalisation(node):
            yield {types[ends["input1_id"]], types[ends["filter_id"]]} <= INT8


def _is_normalisation(node: dict[str, Any]) -> bool:
    """Whether a node scales channels: what batch normalisation not after a convolution becomes."""
    size = [node["xnode_union"].get(f"kernel_{side}") for side in ("height", "width")]
    return node["xnode_union_type"] == "XNNDepthwiseConv2d" and size == [1, 1]


def _graph(blob: bytes) -> dict[str, Any]:
    """Return XNNPACK's graph as JSON."""
    import executorch.backends.xnnpack.serialization as schemas
    from executorch.backends.xnnpack.serialization.xnnpack_graph_serialize import XNNHeader
    from executorch.exir._serialize._flatbuffer import _flatc_decompile

    header = XNNHeader.from_bytes(blob[: XNNHeader.EXPECTED_LENGTH])
    end = header.flatbuffer_offset + header.flatbuffer_size
    with tempfile.TemporaryDirectory() as folder:
        schema, binary = Path(folder, "schema.fbs"), Path(folder, "graph.bin")
        schema.write_bytes(files(schemas).joinpath("schema.fbs").read_bytes())
        binary.write_bytes(blob[header.flatbuffer_offset : end])
        _flatc_decompile(folder, str(schema), str(binary))
        text = Path(folder, "graph.json").read_text()
    return json.loads(re.sub(r": (-?)inf\b", r": \1Infinity", text))  # as Python's JSON spells it
