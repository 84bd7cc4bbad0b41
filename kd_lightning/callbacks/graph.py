"""The graph of a network for TensorBoard, traced without leaving anything in the process.

``SummaryWriter.add_graph`` calls ``torch.jit.trace``, which compiles each layer into a class that
torch keeps until the process ends: about 1 MB for each job of a sweep. Here only the operations
are recorded.
"""

import warnings
from typing import Any

import torch
from tensorboard.compat.proto import config_pb2, graph_pb2
from torch import Tensor, nn
from torch.jit import _trace
from torch.utils.tensorboard._pytorch_graph import parse

from kd_lightning.utils.networks import evaluating

ROOT = "__module"  # the name that TensorBoard's parser expects of the outermost module


def traced_graph(net: nn.Module, example: Tensor) -> tuple[Any, Any]:
    """Trace a network.

    Args:
        net: the network; its training mode is restored.
        example: a batch of inputs.

    Returns:
        A ``GraphDef`` and a ``RunMetadata``, as TensorBoard's file writer takes them.

    Raises:
        Exception: whatever the network or the tracer raises.
    """
    paths = {module: f"{ROOT}.{name}" for name, module in net.named_modules() if name}
    # Modules look up their paths here while they are traced, as in torch.jit.trace.
    _trace._trace_module_map = paths  # pyright: ignore[reportAttributeAccessIssue]
    try:
        with evaluating(net), warnings.catch_warnings():
            # About conditions on shapes, which may differ for other inputs: this is a picture.
            warnings.simplefilter("ignore", torch.jit.TracerWarning)  # pyright: ignore[reportPrivateImportUsage]
            graph, _ = _trace._get_trace_graph(net, example)
    finally:
        _trace._trace_module_map = None
    nodes = parse(graph, _Names(net))
    # The graph takes the parameters as further inputs; they are shown in their layers.
    values = [value.debugName() for value in graph.inputs()][1:]
    homes = {
        f"input/{value}": _home(net, name)
        for value, name in zip(values, _trace._unique_state_dict(net), strict=True)
    }
    for node in nodes:
        node.name = homes.get(node.name, node.name)
        node.input[:] = [homes.get(name, name) for name in node.input]
    found: Any = graph_pb2.GraphDef()  # pyright: ignore[reportAttributeAccessIssue]
    found.node.extend(nodes)
    found.versions.producer = 22  # as SummaryWriter.add_graph has it
    return found, config_pb2.RunMetadata()  # pyright: ignore[reportAttributeAccessIssue]


class _Names:
    """What TensorBoard's parser asks of a trace: the class of each module."""

    def __init__(self, net: nn.Module) -> None:
        self.net, self.original_name = net, type(net).__name__

    def named_modules(self, prefix: str) -> list[tuple[str, "_Names"]]:
        return [(name, _Names(module)) for name, module in self.net.named_modules(prefix=prefix)]


def _home(net: nn.Module, parameter: str) -> str:
    """Return the name of a parameter's node, within that of its layer."""
    *path, last = parameter.split(".")
    parts = [type(net).__name__]
    for name in path:
        net = getattr(net, name)
        parts.append(f"{type(net).__name__}[{name}]")
    return "/".join([*parts, last])
