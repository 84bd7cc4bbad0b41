"""A network as a program of torch.export, which further formats are written from."""

import io
import logging
import re
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr

import torch
from torch import nn
from torch.export import ExportedProgram

from kd_lightning.compress.deployed import Deployed
from kd_lightning.data.types import ImageSpec
from kd_lightning.utils.errors import UserError
from kd_lightning.utils.text import one_line


def exported_program(
    network: nn.Module, spec: ImageSpec, form: str, *, any_batch: bool
) -> ExportedProgram:
    """Return a network with its preprocessing and softmax as a program.

    Args:
        network: the trained network, in evaluation mode, on the CPU.
        spec: shape and normalisation of the data.
        form: name of the format, for messages.
        any_batch: whether the program takes batches of any size; of one image otherwise.

    Raises:
        UserError: if the network has an operator that cannot be exported.
    """
    # Two images: a batch of one would make the size of the batch a constant.
    example = torch.zeros(2 if any_batch else 1, *spec.input_shape, dtype=torch.uint8)
    batch = ({0: torch.export.Dim("batch")},) if any_batch else None
    try:
        with quiet_export():
            return torch.export.export(
                Deployed(network, spec).eval(), (example,), dynamic_shapes=batch
            )
    except Exception as error:  # of any type: it comes from the network's own code, or the exporter
        raise refusal(network, form, error) from error


def refusal(
    network: nn.Module, form: str, error: Exception, program: ExportedProgram | None = None
) -> UserError:
    """Return the error that a network cannot be exported, with the layer that it arose in.

    Args:
        network: the network.
        form: name of the format.
        error: what was raised.
        program: the network as a program, if it fails later than that.
    """
    chain: list[BaseException] = [error]
    while (cause := chain[-1].__cause__) is not None:
        chain.append(cause)
    layer = _layer_of_frames(network, chain[-1]) or _layer_of_node(chain, program)
    where = f"{type(network).__name__}{f' (in {layer})' if layer else ''}"
    reasons = dict.fromkeys(_reason(each) for each in (chain[0], chain[-1]))
    return UserError(f"{where} cannot be exported to {form}: {': '.join(filter(None, reasons))}")


def _reason(error: BaseException) -> str:
    """Return the first paragraph of a message; torch goes on with hints for its own authors."""
    text = str(error).strip().split("\n\n")[0]
    return "" if "This is step" in text else one_line(text)


def _layer_of_frames(network: nn.Module, error: BaseException) -> str:
    """Return the path of the innermost layer that was running when an error arose."""
    names = {id(module): name for name, module in network.named_modules()}
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    inside = [names.get(id(frame.f_locals.get("self")), "") for frame in frames]
    return next(filter(None, reversed(inside)), "")


def _layer_of_node(chain: list[BaseException], program: ExportedProgram | None) -> str:
    """Return the path of the layer whose node of a program an error names."""
    named = re.search(r"node %(\w+)", " ".join(map(str, chain)))
    if program is None or named is None:
        return ""
    # Exporters decompose operators first, such as the eigenvalues of a matrix.
    for node in (*program.graph.nodes, *program.run_decompositions().graph.nodes):
        if node.name == named[1] and node.meta.get("nn_module_stack"):
            path, _ = list(node.meta["nn_module_stack"].values())[-1]
            return path.removeprefix("network").removeprefix(".")
    return ""


@contextmanager
def quiet_export() -> Iterator[None]:
    """Drop what torch prints as it fails: the graph so far, which the message does not need."""
    log = logging.getLogger("torch.fx.experimental.symbolic_shapes")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with redirect_stderr(io.StringIO()) as printed:
            yield
        sys.stderr.write(printed.getvalue())  # warnings, if it does not fail
    finally:
        log.setLevel(level)
