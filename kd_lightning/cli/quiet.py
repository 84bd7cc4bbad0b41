"""Silence for messages that the user cannot act on."""

import logging
import os
import sys
import threading
import warnings
from functools import partial

# Warnings of Lightning and torch that do not apply: a frozen teacher is in evaluation mode on
# purpose, data in memory need no workers, and the last step of an epoch is always logged.
IRRELEVANT_WARNINGS = (
    r".*in eval mode at the start of training.*",
    r".*does not have many workers.*",
    r".*smaller than the logging interval.*",
    r".*exists and is not empty.*",  # expected of the checkpoint folder of a resumed run
    r".*LeafSpec.*is deprecated.*",
    r".*sparse tensor invariants.*",  # of a checkpoint that is refused
    # Where SLURM is installed but has not started this process, as on its login node: once for
    # each trainer and each training. Lightning starts the processes of a job by itself there.
    r".*`srun` command is available.*",
)

OF_HYDRA = (
    # Of 1.3: 1.4 completes no preset of a launcher by its plugin's; ours are complete.
    r"\s*'hydra/launcher/\w+' is validated against ConfigStore schema",
    # Of 1.4, about 1.5.
    r"\s*The version_base parameter is deprecated",
    r"\s*hydra\.utils\.instantiate\(\) resolved _target_",
)


def quieten_torch() -> None:
    """Silence the warnings of torch's own libraries; called before torch is imported."""
    # Such as the stack of a process that has lost the first one, which has said why.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")


def quieten_hydra() -> None:
    """Silence what Hydra announces of its next version."""
    for message in OF_HYDRA:
        warnings.filterwarnings("ignore", message=message)


def quieten() -> None:
    """Silence messages that the user cannot act on."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.FileHandler):
            handler.handleError = partial(_on_log_error, handler)
    threading.excepthook = _on_thread_error
    quieten_hydra()  # here, too, as a sweep's job may run in another process than the command
    for message in IRRELEVANT_WARNINGS:
        warnings.filterwarnings("ignore", message=message)


# A full disk is reported once, by the checkpoint or the figures that could not be written; the log
# and TensorBoard's thread would each print a traceback of their own before.
def _on_log_error(handler: logging.Handler, record: logging.LogRecord) -> None:
    if not isinstance(sys.exc_info()[1], OSError):
        logging.Handler.handleError(handler, record)


def _on_thread_error(args: threading.ExceptHookArgs) -> None:
    # TensorBoard raises it again in the main thread.
    if not isinstance(args.exc_value, OSError):
        threading.__excepthook__(args)
