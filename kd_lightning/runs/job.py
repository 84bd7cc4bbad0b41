"""Jobs: building, finding the teacher, training and evaluating for one configuration.

All objects are built before anything expensive happens, so networks, layers and settings are
checked against one another before a teacher is trained.
"""

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.profilers import Profiler
from lightning.pytorch.trainer.states import TrainerStatus
from lightning.pytorch.utilities.exceptions import SIGTERMException
from lightning.pytorch.utilities.seed import isolate_rng
from omegaconf import DictConfig

from kd_lightning.callbacks.loggers import log_outcome
from kd_lightning.callbacks.profiler import PhaseProfiler, Unprofiled
from kd_lightning.compress.fake_quantize import activate
from kd_lightning.data.types import UNLABELLED
from kd_lightning.modules import DistillationModule, TeacherModule
from kd_lightning.modules.base import BaseModule
from kd_lightning.runs.announce import announce, warn_near_chance
from kd_lightning.runs.build import (
    build_data,
    build_module,
    build_source,
    build_task,
    build_trainer,
)
from kd_lightning.runs.directory import (
    plain,
    start_anew,
    write_config,
    write_diagnostics,
    write_metrics,
)
from kd_lightning.runs.export import export_all
from kd_lightning.runs.naming import twin_of
from kd_lightning.runs.processes import chosen_options, one_job, own_overrides
from kd_lightning.runs.ranks import ranks
from kd_lightning.runs.record import facts, parse_overrides, teacher_figures, write_facts
from kd_lightning.runs.rehearsal import rehearse
from kd_lightning.runs.resumption import FINISHED, checkpoint_to_resume, is_already_finished
from kd_lightning.runs.teacher import TeacherOrder, measure_teacher, publish
from kd_lightning.runs.teacher_key import shapes_result
from kd_lightning.teachers.sources import TeacherSource
from kd_lightning.utils.errors import Interrupted
from kd_lightning.utils.reading import read_json
from kd_lightning.utils.run_directory import FACTS, METRICS

log = logging.getLogger(__name__)

Finished = Callable[[Path, str], None]  # called with the run directory and the profile, or ""


class Job:
    """Training, validation and test of a module, as configured.

    Args:
        finished: called on rank 0 with each finished run directory, such as a teacher's and
            then its student's; may print the figures.
    """

    def __init__(self, finished: Finished) -> None:
        self.finished = finished

    def __call__(self, cfg: DictConfig) -> dict[str, Any]:
        """Run a job in its run directory and return its figures.

        Raises:
            UserError: if the configuration is invalid; raised before a teacher is trained.
        """
        if is_already_finished(cfg):
            log.info(FINISHED, cfg.run_dir)
            return read_json(Path(cfg.run_dir) / METRICS)
        profiler = PhaseProfiler() if cfg.profile else Unprofiled()
        with profiler.profile("data_next"):
            data = build_data(cfg)
        module, source, order = prepare(cfg, data, self)
        trainer = build_trainer(cfg, profiler)
        record = facts_of(cfg, module, source, "", trainer.world_size)
        if (twin := twin_of(record, Path(cfg.run_dir))) is not None:
            return record_twin(cfg, twin)
        if ranks().is_main:
            announce(cfg, data, module, source, order)
        checkpoint = checkpoint_to_resume(cfg, module, rehearse(module))
        with profiler.profile("find_teacher"), ranks().main_first():
            teacher = find_weights(module, source, order)
            if isinstance(module, DistillationModule) and module.teacher is not None:
                if module.with_teacher and not source.control and ranks().is_main:
                    measure_teacher(module, data, trainer.strategy.root_device)
                _watch(profiler, module.teacher)
        with one_job():
            record = facts_of(cfg, module, source, teacher, trainer.world_size)
            recorder = Recorder(cfg, record)
            if cfg.resume:
                # Not before the checkpoint is restored: a resumption that fails there, as with
                # another optimizer, must leave a directory that can still be resumed.
                trainer.callbacks.insert(0, recorder)  # pyright: ignore[reportAttributeAccessIssue]
            elif trainer.is_global_zero:
                # Before training, so reports can name a run that failed or is still running.
                start_anew(Path(cfg.run_dir))
                recorder.write()
            metrics = run(cfg, trainer, module, data, checkpoint)
            if trainer.is_global_zero:
                finish(cfg, trainer, record, metrics)
                if module.task.spec is not None:
                    classes = module.task.spec.num_classes
                    warn_near_chance(module.role, metrics.get("test/accuracy"), classes)
                if isinstance(module, TeacherModule):
                    publish(cfg, data, trainer.world_size)
                self.finished(Path(cfg.run_dir), _summary(profiler))
                export_all(cfg)
        return metrics


class Recorder(L.Callback):
    """Writes what a run is, at the latest when training starts."""

    def __init__(self, cfg: DictConfig, record: dict[str, Any]) -> None:
        self.cfg, self.record, self.is_written = cfg, record, False

    # After on_train_start, in which the module compares the checkpoint with its optimizer; and not
    # at the start of an epoch, which an epoch that is resumed in the middle does not have.
    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if trainer.is_global_zero and not self.is_written:
            self.write()

    def write(self) -> None:
        """Write the resolved configuration, the overrides and the facts."""
        write_config(Path(self.cfg.run_dir), self.cfg, own_overrides(self.cfg))
        write_facts(Path(self.cfg.run_dir), self.record)
        self.is_written = True


def prepare(
    cfg: DictConfig, data: L.LightningDataModule, train: Callable[[DictConfig], Any]
) -> tuple[BaseModule, TeacherSource, TeacherOrder]:
    """Build the module and its teacher, which may not have its weights yet.

    Raises:
        UserError: if networks, layers or settings do not fit one another.
    """
    task, source = build_task(cfg, data), build_source(cfg)
    assert task.spec is not None
    order = TeacherOrder(cfg, data, task.spec, train)
    # After the data are read: random numbers drawn there do not change the initial weights.
    L.seed_everything(cfg.seed, verbose=False)
    teacher = source.network(order)
    return build_module(cfg, task, data, teacher), source, order


def find_weights(module: BaseModule, source: TeacherSource, order: TeacherOrder) -> str:
    """Load or train the weights of a module's teacher and return the teacher's name."""
    if not isinstance(module, DistillationModule) or module.teacher is None:
        return ""
    seed = os.environ.get("PL_GLOBAL_SEED")
    # The student's random numbers must not depend on whether the teacher was found or trained.
    with isolate_rng():
        found = source.find(order, module.teacher)
    if seed is not None:  # the teacher's training has replaced it, and DDP reseeds from it
        os.environ["PL_GLOBAL_SEED"] = seed
    return found


def facts_of(
    cfg: DictConfig, module: BaseModule, source: TeacherSource, teacher: str, processes: int
) -> dict[str, Any]:
    """Return the facts of a run at its start."""
    # A baseline stays a baseline beside an untrained teacher: it does not learn from it.
    learns = isinstance(module, DistillationModule) and module.objective.needs_teacher
    role = f"control: {source.control}" if learns and source.control else module.role
    record = facts(
        recorded(cfg),
        chosen_options(),
        parse_overrides(own_overrides(cfg) or []),
        role=role,
        task=module.task.name,
        teacher=teacher,
        processes=processes,
        unresolved=plain(cfg, resolve=False),
    )
    if names := getattr(module.task.spec, "class_names", ()):
        record["class_names"] = list(names)
    return {**record, "teacher_figures": teacher_figures(Path(teacher))} if teacher else record


def recorded(cfg: DictConfig) -> dict[str, Any]:
    """Return the configuration without callbacks that only observe a run."""
    config = plain(cfg)
    callbacks = config.get("callbacks") or {}
    return {**config, "callbacks": {k: v for k, v in callbacks.items() if shapes_result(v)}}


def record_twin(cfg: DictConfig, twin: Path) -> dict[str, Any]:
    """Record that an earlier job of this sweep trained the same student; return its figures."""
    record = read_json(twin / FACTS)
    overrides = parse_overrides(own_overrides(cfg) or [])
    start_anew(Path(cfg.run_dir))
    record |= {"overrides": overrides, "same_as": twin.name}
    write_facts(Path(cfg.run_dir), record)
    log.info("job %s has trained the same student: not run again", twin.name)
    return read_json(twin / METRICS)


def run(
    cfg: DictConfig,
    trainer: L.Trainer,
    module: BaseModule,
    data: L.LightningDataModule,
    checkpoint: Path | None,
) -> dict[str, Any]:
    """Fit, validate the best checkpoint, and test once."""
    # weights_only on each load: a checkpoint from elsewhere must not run code.
    try:
        trainer.fit(module, data, ckpt_path=checkpoint, weights_only=True)
    except SystemExit as error:  # what Lightning makes of Ctrl-C
        if trainer.state.status != TrainerStatus.INTERRUPTED:
            raise
        code = 143 if isinstance(error, SIGTERMException) else 130  # as shells have it
        raise Interrupted(f"interrupted in epoch {trainer.current_epoch + 1}", code) from error
    seconds = module.seconds
    # Empty if no checkpoint was saved, as under fast_dev_run: the final weights are evaluated.
    best = getattr(trainer.checkpoint_callback, "best_model_path", None) or None
    with unlogged(trainer):
        trainer.validate(module, data, ckpt_path=best, verbose=False, weights_only=True)
        figures = dict(trainer.callback_metrics)
        if trainer.is_global_zero:
            write_diagnostics(Path(cfg.run_dir), module.tables)
        trainer.test(module, data, verbose=False)  # validate() has loaded the best weights
    figures |= trainer.callback_metrics
    return {
        **{name: float(value) for name, value in figures.items()},
        # Lightning moves the module to the CPU at the end, but latency is measured on the
        # device of the training.
        **described(module.to(trainer.strategy.root_device)),
        **_labels(data),
        "seconds": round(seconds, 2),
        "epochs": trainer.current_epoch,
    }


def described(module: BaseModule) -> dict[str, float]:
    """Return sizes and costs; of a quantised network without its rounding, which is simulated."""
    activate(module.network, False)
    try:
        return module.describe()
    finally:
        activate(module.network)


def _labels(data: L.LightningDataModule) -> dict[str, int]:
    """Return the number of labels in the training data, if some of its samples have none."""
    labels = getattr(data, "labels", None)
    if labels is None or (count := int((labels != UNLABELLED).sum())) == len(labels):
        return {}
    return {"labels": count}


@contextmanager
def unlogged(trainer: L.Trainer) -> Iterator[None]:
    """Detach the loggers, so the best epoch's figures do not appear as another point of a curve."""
    loggers, trainer.loggers = trainer.loggers, []
    try:
        yield
    finally:
        trainer.loggers = loggers


def finish(
    cfg: DictConfig, trainer: L.Trainer, record: dict[str, Any], metrics: dict[str, Any]
) -> None:
    """Log the final figures and complete the run directory."""
    choices = {**record["settings"], **record["overrides"], "seed": cfg.seed}
    steps = trainer.global_step
    log_outcome(trainer.loggers, choices, metrics, steps, first=record["overrides"])
    # Last, because the presence of metrics.json marks the run as finished.
    write_metrics(Path(cfg.run_dir), metrics)


def _watch(profiler: Profiler, teacher: Any) -> None:
    if isinstance(profiler, PhaseProfiler):
        profiler.watch(teacher)


def _summary(profiler: Profiler) -> str:
    return profiler.summary() if isinstance(profiler, PhaseProfiler) else ""
