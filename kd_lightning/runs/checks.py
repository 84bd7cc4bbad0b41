"""Checks of a whole configuration, before anything is read, created or trained."""

import math
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

from omegaconf import DictConfig, OmegaConf

from kd_lightning.callbacks.quantization import check_start
from kd_lightning.compress.formats import FORMATS
from kd_lightning.data.images import FEWEST
from kd_lightning.metrics.figures import DECLARED, parse
from kd_lightning.runs.arguments import check_arguments, nearest
from kd_lightning.runs.directory import plain
from kd_lightning.runs.export import INT8, check_width, formats_of
from kd_lightning.utils.errors import UserError

# In this order, so that a setting is named where the user set it: `model` repeats `method`, the
# networks and the optimizer, and `data` repeats `augment`.
CREATED = ("task", "augment", "data", "student", "teacher", "method", "optimizer", "lr_scheduler")
CREATED += ("cache", "teacher_from", "trainer", "model")

KNOWN = ("kd_lightning", "lightning", "torch", "torchvision")  # packages

MOST = 2**32 - 1  # the largest seed of NumPy

POSITIVE = (  # arguments of the Trainer that may also be null
    *("max_epochs", "max_steps", "num_nodes", "log_every_n_steps", "accumulate_grad_batches"),
    *("limit_train_batches", "limit_val_batches", "limit_test_batches"),
    *("check_val_every_n_epoch", "gradient_clip_val"),
)


def check(cfg: DictConfig) -> None:
    """Check a job's configuration: its sections, their arguments, and settings of its own.

    Raises:
        UserError: for the first thing that is wrong.
    """
    if missing := [section for section in CREATED if section not in cfg]:
        raise UserError(f"the section {missing[0]} is missing: choose an option of {missing[0]}=")
    # First, because other settings repeat these.
    _check_seed(cfg.seed)
    if not isinstance(cfg.teacher_store, str):
        raise UserError(f"teacher_store must be a folder, got {_text(cfg.teacher_store)}")
    if cfg.get("quantize"):  # first, because the student repeats its bits
        check_section(cfg, "quantize")
    for section in CREATED:
        check_section(cfg, section)
    if "callbacks" not in cfg:  # without loggers a run is complete
        raise UserError(
            "the section callbacks is missing: leave out single ones, as ~callbacks.progress"
        )
    config = plain(cfg)
    for section in ("callbacks", "logger"):
        for name, value in (config.get(section) or {}).items():
            _check_created(value, f"{section}.{name}")
    if config["chain"] is not None and not isinstance(config["chain"], Mapping):
        raise UserError(f"chain={config['chain']} is no chain: see experiment=self_distillation")
    check_arguments(config["chain"], "chain")
    _check_root(config)
    _check_quantize(config.get("quantize") or {}, config["trainer"])
    _check_export(config.get("export"), config.get("quantize") or {})
    _check_trainer(config["trainer"])


def check_values(cfg: DictConfig) -> None:
    """Check what may differ between jobs of which one has been checked as a whole.

    Raises:
        UserError: for the first thing that is wrong.
    """
    _check_seed(cfg.seed)
    for section in ("data", "method", "optimizer"):
        check_section(cfg, section)


def check_section(cfg: DictConfig, section: str) -> None:
    """Check a section that names a class and its arguments.

    Raises:
        UserError: if it is missing or does not fit the class.
    """
    found = cfg[section]
    _check_created(plain(found) if OmegaConf.is_dict(found) else found, section)


def _check_created(value: Any, where: str) -> None:
    if not isinstance(value, Mapping) or "_target_" not in value:
        raise UserError(f"{where}={value} creates nothing: it needs a _target_")
    check_arguments(value, where)


def _check_root(config: Mapping[str, Any]) -> None:
    if not isinstance(config["profile"], bool):
        raise UserError(f"profile must be true or false, got {config['profile']!r}")
    if config["monitor_mode"] not in ("min", "max"):
        raise UserError(f"monitor_mode must be min or max, got {config['monitor_mode']!r}")
    # Not a callback's own monitor of the training loss or the learning rate, which may be meant.
    is_known = all(_is_known(value) for value in config.values())
    _check_monitor("monitor", config["monitor"], is_known)
    for name, callback in (config["callbacks"] or {}).items():
        given = callback.get("monitor")
        if isinstance(given, str) and given.startswith("val/"):
            _check_monitor(f"callbacks.{name}.monitor", given, is_known)


def _check_quantize(quantize: Mapping[str, Any], trainer: Mapping[str, Any]) -> None:
    """Check what the callback would refuse only once a teacher is trained."""
    epochs = trainer.get("max_epochs")
    if "start_epoch" in quantize and isinstance(epochs, int) and not trainer.get("fast_dev_run"):
        check_start(quantize["start_epoch"], epochs)
    if quantize and str(trainer.get("precision")) in ("bf16-true", "16-true"):
        raise UserError(
            "quantize= rounds in float32: choose trainer.precision=32-true, 16-mixed or "
            f"bf16-mixed instead of {trainer['precision']}"
        )
    if quantize.get("images", FEWEST) < FEWEST:
        raise UserError(f"quantize.images must be at least {FEWEST}, got {quantize['images']}")


def _check_export(export: Any, quantize: Mapping[str, Any]) -> None:
    """Check before a training that its network can be exported at the end."""
    for form in formats_of(export):
        if form not in FORMATS:
            raise UserError(f"export={form} is none of {', '.join(FORMATS)}")
        if missing := [name for name in FORMATS[form].packages if find_spec(name) is None]:
            raise UserError(f"export={form} needs {missing[0]}: pip install 'kd-lightning[{form}]'")
        if quantize:
            check_width(form, quantize.get("bits", INT8))


def _check_seed(seed: Any) -> None:
    """Check that all random number generators take a seed."""
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed <= MOST:
        raise UserError(f"seed must be a whole number in 0…{MOST}, got {_text(seed)}")


def _text(value: Any) -> str:
    return "null" if value is None else str(value)


def _check_monitor(where: str, monitor: Any, is_known: bool) -> None:
    """Check the name of a figure that chooses the best epoch, or ends a training."""
    text = str(monitor)
    similar = nearest(text, [f"val/{figure.name}" for figure in DECLARED])
    # Code of the user's may log figures of its own, with names unknown here.
    fits = bool(parse(text)) or not (is_known or similar)
    if not isinstance(monitor, str) or not fits or text.startswith(("train/", "test/")):
        advice = similar or "; the default is monitor=val/accuracy"
        raise UserError(f"{where}={_text(monitor)} is no figure of validation data{advice}")


def _is_known(config: Any) -> bool:
    """Return whether all classes of a configuration are known here to log what they declare."""
    if isinstance(config, Mapping):
        target = str(config.get("_target_", ""))
        return (not target or target.partition(".")[0] in KNOWN) and all(
            _is_known(value) for value in config.values()
        )
    return True


def _check_trainer(trainer: Mapping[str, Any]) -> None:
    """Refuse limits with which Lightning trains or measures nothing, or forever."""
    epochs, steps, duration = (trainer.get(k) for k in ("max_epochs", "max_steps", "max_time"))
    if epochs is None and duration is None and steps in (None, -1):
        raise UserError("training has no end: set trainer.max_epochs, max_steps or max_time")
    if trainer.get("overfit_batches"):
        raise UserError(
            "trainer.overfit_batches replaces the order of the samples, which this data needs: use "
            "data.train_fraction= or trainer.limit_train_batches="
        )
    every = trainer.get("check_val_every_n_epoch")
    if isinstance(every, int) and epochs is not None and 0 < epochs < every:
        raise UserError(f"trainer.check_val_every_n_epoch={every} leaves no epoch with validation")
    for name in POSITIVE:
        value = trainer.get(name)
        is_endless = value == -1 and name in ("max_epochs", "max_steps")
        if isinstance(value, int | float) and not is_endless and not 0 < value < math.inf:
            raise UserError(f"trainer.{name} must be positive, got {value}")
