"""Which jobs of a sweep can be trained together, told from their configurations.

Only what has been shown to give the same weights as separate jobs is trained together; any
other job runs by itself, in the ordinary way. What is known is listed here as data.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from kd_lightning.runs.record import REPEATED

# Settings in which jobs that are trained together may differ.
VARYING = (
    *("seed", "data.seed", "callbacks.reseed.seed"),
    *("method.temperature", "method.alpha", "method.hard_weight"),
    *("optimizer.lr", "optimizer.weight_decay"),
)
SCHEDULES = "kd_lightning.schedules."  # of temperature and weights, evaluated for each student
KNOWN_OPTIMIZERS = ("torch.optim.Adam", "torch.optim.AdamW", "torch.optim.SGD")
# Stepped once an epoch, whatever the figures are.
KNOWN_SCHEDULERS = tuple(
    f"torch.optim.lr_scheduler.{name}"
    for name in (
        *("ConstantLR", "CosineAnnealingLR", "MultiStepLR", "StepLR", "ExponentialLR"),
        *("LinearLR", "PolynomialLR"),
    )
)
STUDENT_MODULE = "kd_lightning.modules.DistillationModule"
OBJECTIVE = "kd_lightning.objective.Objective"
TASK = "kd_lightning.tasks.Classification"
# Datamodules that have all images in memory, and the augmentation that hashes instead of drawing.
KNOWN_DATA = tuple(
    f"kd_lightning.data.{name}"
    for name in (
        *("digits.DigitsDataModule", "mnist.MNISTDataModule", "cifar100.CIFAR100DataModule"),
        *("mnist.FashionMNISTDataModule", "arrays.ArraysDataModule"),
    )
)
KNOWN_AUGMENT = "kd_lightning.data.augment.Augment"
# Teachers that are the same network for every seed.
KNOWN_SOURCES = tuple(f"kd_lightning.teachers.sources.{n}" for n in ("FromStore", "FromCheckpoint"))
# Callbacks with the arguments for which their effect on a run is known.
_CHECKPOINT = ("dirpath", "filename", "save_on_train_epoch_end", "enable_version_counter")
_OURS = "kd_lightning.callbacks."
KNOWN_CALLBACKS: dict[str, tuple[str, ...]] = {
    "lightning.pytorch.callbacks.ModelCheckpoint": (*_CHECKPOINT, "monitor", "mode"),
    f"{_OURS}watching.LastCheckpoint": _CHECKPOINT,
    f"{_OURS}watching.LearningRate": ("logging_interval",),
    f"{_OURS}watching.ProgressBar": ("refresh_rate",),
    f"{_OURS}watching.EpochLog": (),
    f"{_OURS}reseed.ReseedEachEpoch": ("seed",),
    f"{_OURS}dashboard.ScalarLayout": (),
    f"{_OURS}pictures.Pictures": ("samples", "classes", "disagreements"),
    f"{_OURS}gradients.GradientBalance": ("every_n_steps",),
}
NEEDED_CALLBACKS = tuple(KNOWN_CALLBACKS)[:2]  # what they save is always saved
KNOWN_LOGGERS = tuple(
    f"{_OURS}loggers.{name}" for name in ("OneGraphTensorBoardLogger", "ResumableCSVLogger")
)
KNOWN_MONITORS = ("val/accuracy", "val/loss", "val/agreement")
# Arguments of the Trainer that do not change a step, and those with the only values allowed.
KNOWN_TRAINER = (
    *("_target_", "_partial_", "accelerator", "devices", "max_epochs", "default_root_dir"),
    *("log_every_n_steps", "enable_progress_bar", "enable_model_summary"),
    "use_distributed_sampler",
)
ALLOWED_TRAINER: dict[str, tuple[Any, ...]] = {
    "precision": ("32-true", "64-true", "32", "64", 32, 64),
    "max_steps": (-1,),
    "max_time": (None,),
    "limit_train_batches": (None,),
    "fast_dev_run": (False, 0, None),
    "num_nodes": (1,),
    "strategy": ("auto",),
    "num_sanity_val_steps": (0,),
}


def why_alone(config: Mapping[str, Any]) -> str:
    """Return why a job has to run by itself; empty if its configuration gives no reason.

    Args:
        config: its resolved configuration.
    """
    return next(_reasons(config), "")


def _reasons(config: Mapping[str, Any]) -> Iterator[str]:
    for name in ("resume", "chain", "quantize", "profile"):
        if config.get(name):
            yield f"{name}={_short(config[name])}"
    target = _target(config.get("model"))
    if target != STUDENT_MODULE:
        yield f"model={target.rpartition('.')[2]}"
    yield from _of_method(config.get("method") or {})
    yield from _unknown(config, "optimizer", KNOWN_OPTIMIZERS)
    yield from _unknown(config, "lr_scheduler", KNOWN_SCHEDULERS)
    yield from _unknown(config, "task", (TASK,))
    yield from _unknown(config, "data", KNOWN_DATA)
    yield from _unknown(config, "augment", (KNOWN_AUGMENT,))
    yield from _unknown(config, "teacher_from", KNOWN_SOURCES)
    data = config.get("data") or {}
    if data.get("labelled_fraction", 1.0) != 1.0:
        yield f"data.labelled_fraction={data['labelled_fraction']}"
    if config.get("monitor") not in KNOWN_MONITORS:
        yield f"monitor={config.get('monitor')}"
    yield from _of_trainer(config.get("trainer") or {})
    yield from _of_callbacks(config.get("callbacks") or {})
    for name, logger in (config.get("logger") or {}).items():
        if _target(logger) not in KNOWN_LOGGERS:
            yield f"logger.{name}"


def _of_method(method: Mapping[str, Any]) -> Iterator[str]:
    if _target(method) != OBJECTIVE:
        yield f"method._target_={_target(method)}"
    for name in method.get("transfer") or {}:
        yield f"the transfer term {name}"
    for name in ("temperature", "alpha", "hard_weight"):
        value = method.get(name)
        if isinstance(value, Mapping) and not _target(value).startswith(SCHEDULES):
            yield f"method.{name}"
        elif isinstance(value, Mapping) and "Learned" in _target(value):
            yield f"a learned method.{name}"
    response = method.get("response") or {}
    if not _target(response).startswith("kd_lightning.losses."):
        yield f"method.response={_target(response)}"


def _of_trainer(trainer: Mapping[str, Any]) -> Iterator[str]:
    for name, value in trainer.items():
        is_allowed = name in ALLOWED_TRAINER and value in ALLOWED_TRAINER[name]
        if name not in KNOWN_TRAINER and not is_allowed:
            yield f"trainer.{name}={value}"
    epochs = trainer.get("max_epochs")
    if not isinstance(epochs, int) or epochs < 1:
        yield f"trainer.max_epochs={epochs}"


def _of_callbacks(callbacks: Mapping[str, Any]) -> Iterator[str]:
    for name, callback in callbacks.items():
        known = KNOWN_CALLBACKS.get(_target(callback))
        given = [key for key in callback if not str(key).startswith("_")]
        if known is None or not {*given} <= {*known}:
            yield f"callbacks.{name}"
    found = [_target(callback) for callback in callbacks.values()]
    if [found.count(name) for name in NEEDED_CALLBACKS] != [1, 1]:
        yield "callbacks without best or last"


def _unknown(config: Mapping[str, Any], section: str, known: tuple[str, ...]) -> Iterator[str]:
    if (target := _target(config.get(section))) not in known:
        yield f"{section}={target.rpartition('.')[2]}"


def _target(section: Any) -> str:
    return str(section.get("_target_", "")) if isinstance(section, Mapping) else ""


def _short(value: Any) -> str:
    return _target(value).rpartition(".")[2] or str(value)


def signature(config: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """Return all settings that jobs trained together have in common, to tell groups apart.

    Args:
        config: the resolved configuration of a job.
    """
    run_dir = str(config.get("run_dir"))
    found = [(name, repr(value).replace(run_dir, "")) for name, value in _leaves(config, "")]
    # With α = 0 the teacher is not asked: an objective of other terms.
    needs_teacher = (config.get("method") or {}).get("alpha") != 0
    return (*found, ("needs_teacher", str(needs_teacher)))


def _leaves(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    if any(name == known or name.startswith(f"{known}.") for known in (*VARYING, *REPEATED)):
        return
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _leaves(inner, f"{name}.{key}" if name else str(key))
    else:
        yield name, value
