"""Formats in which a network is shipped: how each is written, and run by its own runtime."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from kd_lightning.compress.executorch_file import ExecutorchFile, write_executorch
from kd_lightning.compress.onnx_file import OnnxFile, write_onnx
from kd_lightning.compress.pt2_file import Pt2File, write_pt2
from kd_lightning.compress.verify import Runtime
from kd_lightning.data.types import ImageSpec

# Writes a network for a specification to a path, with properties to store in the file. Given
# calibration images, uint8 N×C×H×W, the file computes in int8.
Writer = Callable[[nn.Module, ImageSpec, Path, Mapping[str, Any], Tensor | None], None]


@dataclass(frozen=True)
class Format:
    """Format of exported files.

    Attributes:
        suffix: of the file's name.
        packages: whose versions are recorded, beside torch.
        write: writes a file.
        load: loads a file into its runtime, on one thread of the CPU.
        batches: sizes of batches that a file takes; empty for any.
        takes_int8: whether the format has an int8 variant.
        is_plain: whether a file can be loaded that may come from a stranger, because it runs no
            code of its own.
    """

    suffix: str
    packages: tuple[str, ...]
    write: Writer
    load: Callable[[Path], Runtime]
    batches: tuple[int, ...] = ()
    takes_int8: bool = True
    is_plain: bool = True


FORMATS = {
    "onnx": Format(".onnx", ("onnx", "onnxscript", "onnxruntime"), write_onnx, OnnxFile),
    "pt2": Format(".pt2", (), write_pt2, Pt2File, takes_int8=False, is_plain=False),
    "executorch": Format(
        ".pte", ("executorch", "torchao"), write_executorch, ExecutorchFile, batches=(1,)
    ),
}
