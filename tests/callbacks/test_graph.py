"""Tests of the graph for TensorBoard."""

import torch
from torch import Tensor, nn
from torch.jit import _recursive, _trace

from kd_lightning.callbacks.graph import traced_graph


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Dropout(), nn.Linear(4, 3), nn.ReLU())
        self.unused = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def test_operations_and_parameters_are_shown_in_their_layers() -> None:
    net = Net()
    graph, _ = traced_graph(net, torch.zeros(2, 4))
    nodes = {node.name: node for node in graph.node}
    assert all(source in nodes for node in graph.node for source in node.input)
    layer = "Net/Sequential[layers]/Linear[1]"
    (linear,) = (node for node in graph.node if node.op == "aten::linear")
    assert linear.name.startswith(f"{layer}/")
    assert [*linear.input][1:] == [f"{layer}/weight", f"{layer}/bias"]
    assert not [name for name in nodes if "unused" in name]
    assert net.training


def test_nothing_is_compiled_that_torch_would_keep() -> None:
    kept = len(_recursive.concrete_type_store.methods_compiled)
    traced_graph(Net(), torch.zeros(2, 4))
    assert len(_recursive.concrete_type_store.methods_compiled) == kept
    assert _trace._trace_module_map is None  # as torch expects outside of a trace
