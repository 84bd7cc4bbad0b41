"""A network as a program of torch.export, which further formats are written from."""

import io
import logging
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
        with _quiet():
            return torch.export.export(
                Deployed(network, spec).eval(), (example,), dynamic_shapes=batch
            )
    except Exception as error:  # of any type: it comes from the network's own code, or the exporter
        raise refusal(network, form, error) from error


def refusal(network: nn.Module, form: str, error: Exception) -> UserError:
    """Return the error that a network cannot be exported, with the layer that it arose in."""
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    names = {id(module): name for name, module in network.named_modules()}
    frames = [frame for frame, _ in traceback.walk_tb(cause.__traceback__)]
    inside = [names.get(id(frame.f_locals.get("self")), "") for frame in frames]
    layer = next(filter(None, reversed(inside)), "")
    where = f"{type(network).__name__}{f' (in {layer})' if layer else ''}"
    # The first paragraph of each; torch goes on with hints for its own authors.
    reasons = [
        one_line(str(each).strip().split("\n\n")[0]) for each in dict.fromkeys((error, cause))
    ]
    return UserError(f"{where} cannot be exported to {form}: {': '.join(reasons)}")


@contextmanager
def _quiet() -> Iterator[None]:
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
