"""kd_lightning: a knowledge-distillation laboratory on PyTorch Lightning and Hydra."""

import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kd_lightning.runs.directory import load_run as load_run

__version__ = "0.1.0"

STARTED = time.perf_counter()  # before torch and Lightning are imported


def __getattr__(name: str) -> Any:
    # late, so that importing one corner of the package does not import all of it
    if name == "load_run":
        from kd_lightning.runs.directory import load_run

        return load_run
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
