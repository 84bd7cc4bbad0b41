"""kd_lightning: a knowledge-distillation laboratory on PyTorch Lightning and Hydra."""

import time
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kd_lightning import losses as losses
    from kd_lightning import schedules as schedules
    from kd_lightning import transfer as transfer
    from kd_lightning.modules import DistillationModule as DistillationModule
    from kd_lightning.modules import MutualModule as MutualModule
    from kd_lightning.modules import TeacherModule as TeacherModule
    from kd_lightning.objective import Objective as Objective
    from kd_lightning.runs.load import load_run as load_run
    from kd_lightning.teachers.cache import TeacherCache as TeacherCache

__version__ = "0.2.0"

STARTED = time.perf_counter()  # before torch and Lightning are imported: see callbacks/profiler.py

PUBLIC = {  # the submodule that defines each public name
    "DistillationModule": "modules",
    "MutualModule": "modules",
    "TeacherModule": "modules",
    "Objective": "objective",
    "TeacherCache": "teachers.cache",
    "load_run": "runs.load",
}
MODULES = ("losses", "schedules", "transfer")

__all__ = [
    "DistillationModule",
    "MutualModule",
    "Objective",
    "TeacherCache",
    "TeacherModule",
    "load_run",
    "losses",
    "schedules",
    "transfer",
]


def __getattr__(name: str) -> Any:
    # Imported on first use, because torch and Lightning take three seconds to import. Commands
    # that only read run directories, and `import kd_lightning` itself, take milliseconds.
    if name in PUBLIC:
        return getattr(import_module(f"kd_lightning.{PUBLIC[name]}"), name)
    if name in MODULES:
        return import_module(f"kd_lightning.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *PUBLIC, *MODULES])
