"""Which code a recorded configuration may name without the user's consent.

Instantiating a configuration calls every ``_target_`` in it, and a run directory may come from
anyone. Known are the classes and functions of this package that configurations are made of, and
networks, optimizers, callbacks and the like of the libraries below it. All else needs
``trust=true`` on the command line, or ``load_run(path, trust=True)``.
"""

import inspect
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, get_type_hints

from kd_lightning.utils.text import printable

TRUST = "KD_TRUST"  # environment variable of one command, for its DDP processes and workers

NETS = "kd_lightning.nets."
# Of this package: the functions and classes that options of conf/ name. Not, for example, utils,
# whose functions write files.
FACTORIES = (NETS, "kd_lightning.compress.fake_quantize.")  # of networks
PURE = (*FACTORIES, *(f"kd_lightning.{part}." for part in ("losses", "transfer", "schedules")))
PARTS = ("objective", "tasks", "modules", "data", "callbacks", "teachers", "metrics")
OURS = (*PURE, *(f"kd_lightning.{part}." for part in PARTS), "kd_lightning.cli.launch.Launch")
LIBRARIES = ("torch", "torchvision", "torchmetrics", "lightning", "kd_lightning", "timm")
# Modules whose constructors run code that their arguments describe or load.
EXECUTING = ("torch.jit.", "torch.fx.", "torch.package.", "torch.export.", "torch.distributed.")


@cache
def kinds() -> tuple[type, ...]:
    """Return the classes of the libraries that train and watch, with their subclasses."""
    # Not any class or function, among which are torch.hub.load and starters of processes. Imported
    # here, because a command line is read in a fraction of the time that these take.
    import lightning as L
    from hydra.experimental.callback import Callback as HydraCallback
    from lightning.pytorch.loggers import Logger
    from lightning.pytorch.profilers import Profiler
    from torch import nn
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LRScheduler

    learning = (nn.Module, Optimizer, LRScheduler, L.LightningDataModule, L.Trainer)
    return (*learning, L.Callback, Logger, Profiler, HydraCallback)


def is_given() -> bool:
    """Return whether this command said ``trust=true``."""
    return os.environ.get(TRUST) == "1"


def targets(config: Any) -> Iterator[str]:
    """Yield every ``_target_`` in plain nested values, as text."""
    if isinstance(config, Mapping):
        if "_target_" in config:
            yield str(config["_target_"])
        for value in config.values():
            yield from targets(value)
    elif isinstance(config, list):
        for value in config:
            yield from targets(value)


def strangers(config: Any, folders: Sequence[Path] = ()) -> list[str]:
    """Return the targets in a configuration that are not known, printable and each once.

    Args:
        config: plain nested values.
        folders: folders of code that the user has named.
    """
    found = dict.fromkeys(targets(config))
    return [printable(t) for t in found if not (is_known(t) or _lies_in(t, folders))]


def is_known(target: str) -> bool:
    """Return whether a target is a class or function that may be called without consent."""
    found = _known_object(target)
    if found is None:
        return False
    defined = f"{found.__module__}.{found.__qualname__}"
    if defined.startswith(OURS if isinstance(found, type) else PURE):
        return not any(part.startswith("_") for part in defined.split("."))
    return (
        isinstance(found, type) and issubclass(found, kinds()) and not defined.startswith(EXECUTING)
    )


def is_network(target: str) -> bool:
    """Return whether a target is a known network, or a network that the caller has imported."""
    from torch import nn

    found = _known_object(target)
    if found is None:
        # Only modules that are imported already, since importing one runs its code.
        module, _, name = target.rpartition(".")
        found = getattr(sys.modules.get(module), name, None)
        return isinstance(found, type) and issubclass(found, nn.Module)
    if isinstance(found, type):
        return issubclass(found, nn.Module) and is_known(target)
    try:
        made = get_type_hints(found).get("return")
    except NameError:  # of a type that is imported for type checkers only
        return False
    is_factory = isinstance(made, type) and issubclass(made, nn.Module)
    return is_factory and is_known(target) and f"{found.__module__}.".startswith(FACTORIES)


def _known_object(target: str) -> Any:
    """Return the class or function of a library that a target names; None for anything else."""
    # Importing a __main__ would start its program.
    if target.partition(".")[0] not in LIBRARIES or "__" in target:
        return None
    module, _, name = target.rpartition(".")
    try:
        found = getattr(import_module(module), name, None)
    except Exception:  # no such module, or one that needs a package which is not installed
        return None
    is_code = inspect.isclass(found) or inspect.isfunction(found)
    # Defined in a library, too: os.system is also reachable as an attribute of its modules.
    return found if is_code and found.__module__.partition(".")[0] in LIBRARIES else None


def _lies_in(target: str, folders: Sequence[Path]) -> bool:
    top = target.partition(".")[0]
    return any((f / f"{top}.py").is_file() or (f / top).is_dir() for f in folders)
