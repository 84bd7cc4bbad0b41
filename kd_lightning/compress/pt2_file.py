"""PT2 archives: programs of torch.export, written from a network and run by torch alone."""

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import GraphModule

from kd_lightning.compress.program import exported_program
from kd_lightning.data.types import ImageSpec
from kd_lightning.utils.errors import UserError
from kd_lightning.utils.files import write_atomically
from kd_lightning.utils.text import one_line


def write_pt2(
    network: nn.Module,
    spec: ImageSpec,
    path: Path,
    properties: Mapping[str, Any],
    calibration: Tensor | None = None,
) -> None:
    """Write a network with its preprocessing and softmax to a PT2 archive.

    The program takes images, N×C×H×W uint8 with any N, and returns probabilities and logits,
    N×K float32.

    Args:
        network: the trained network, in evaluation mode, on the CPU.
        spec: shape and normalisation of the data.
        path: the file.
        properties: facts to store in the file, as JSON by name.
        calibration: none, because the format has no int8 variant.

    Raises:
        UserError: if the network has an operator that cannot be exported, or int8 is asked for.
    """
    if calibration is not None:
        raise UserError("pt2 computes in float32 only: use format=onnx or format=executorch")
    program = exported_program(network, spec, "PT2", any_batch=True)
    _strip(program)
    facts = {name: json.dumps(value, ensure_ascii=False) for name, value in properties.items()}
    content = io.BytesIO()
    torch.export.save(program, content, extra_files=facts)
    write_atomically(path, lambda file: file.write(content.getbuffer()))


class Pt2File:
    """A PT2 archive in torch, on one thread of the CPU.

    Args:
        path: the file.

    Raises:
        UserError: if it cannot be read.
    """

    def __init__(self, path: Path) -> None:
        try:
            self.module = torch.export.load(io.BytesIO(path.read_bytes())).module()
        except Exception as error:  # torch raises whatever the damage leads to
            raise UserError(f"{path} cannot be loaded: {one_line(error)}") from error

    def __call__(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return probabilities and logits, N×K each, of uint8 images, N×C×H×W."""
        threads = torch.get_num_threads()  # of the whole process
        torch.set_num_threads(1)
        try:
            with torch.inference_mode():
                probabilities, logits = self.module(torch.from_numpy(images))
        finally:
            torch.set_num_threads(threads)
        return probabilities.numpy(), logits.numpy()


def _strip(program: ExportedProgram) -> None:
    """Remove the line of code of each node: an eighth of a small file, with local paths."""
    for module in program.graph_module.modules():
        if isinstance(module, GraphModule):
            for node in module.graph.nodes:
                node.meta.pop("stack_trace", None)
