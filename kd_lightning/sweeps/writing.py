"""The run directory of a student that was trained together with others.

Everything in it is what the student's own job would have written, in the same order.
"""

import logging
from pathlib import Path
from typing import Any

from torch import Tensor

from kd_lightning.callbacks.dashboard import ScalarLayout
from kd_lightning.callbacks.pictures import Pictures
from kd_lightning.callbacks.watching import EpochLog, log_epoch
from kd_lightning.data.types import Batch
from kd_lightning.runs.announce import announce, warn_near_chance
from kd_lightning.runs.build import make
from kd_lightning.runs.directory import (
    start_anew,
    write_config,
    write_diagnostics,
)
from kd_lightning.runs.export import export_all
from kd_lightning.runs.job import Finished, facts_of, finish, record_twin
from kd_lightning.runs.naming import twin_of
from kd_lightning.runs.processes import own_overrides
from kd_lightning.runs.record import write_facts
from kd_lightning.sweeps.checkpoints import CheckpointWriter
from kd_lightning.sweeps.evaluation import Samples, outputs_of, thorough
from kd_lightning.sweeps.group import Group, Seat
from kd_lightning.sweeps.history import History
from kd_lightning.sweeps.recipe import Recipe
from kd_lightning.utils.errors import UserError

log = logging.getLogger(__name__)


class Writer:
    """Writes the run directory of one student of a group, at its turn in the sweep.

    Args:
        group: the group, which is trained.
        seat: the job of the student.
    """

    def __init__(self, group: Group, seat: Seat) -> None:
        self.group, self.cfg = group, seat.cfg
        self.student, self.run_dir = group.seats.index(seat), Path(seat.run_dir)
        assert group.history is not None
        self.history: History = group.history
        self.trainer, self.module = group.trainer, group.module
        self.recipe: Recipe = group.recipes[self.student]

    def __call__(self, finished: Finished) -> dict[str, Any]:
        """Write everything and return the figures.

        Raises:
            UserError: if the loss of the student was not finite.
        """
        group, cfg, module = self.group, self.cfg, self.module
        module.objective = self.recipe.objective
        record = facts_of(cfg, module, group.source, group.teacher, 1)
        if (twin := twin_of(record, self.run_dir)) is not None:
            return record_twin(cfg, twin)
        if self.student:  # the first has done so before the training
            announce(cfg, group.data, module, group.source, group.order)
        record["trained_together"] = len(group.seats)
        start_anew(self.run_dir)
        write_config(self.run_dir, cfg, own_overrides(cfg))
        write_facts(self.run_dir, record)
        self._begin()
        self._replay()
        steps, val = self.history.steps, len(group.val.batches)
        CheckpointWriter(self.trainer, module, steps, val).write(
            self.run_dir / "checkpoints",
            *(self.student, group.students, self.history.best, self.history.last, self.recipe),
        )
        if problem := self.history.problems.get(self.student):
            raise UserError(problem)
        metrics = self._measure()
        finish(cfg, self.trainer, record, metrics)
        assert module.task.spec is not None
        warn_near_chance(module.role, metrics.get("test/accuracy"), module.task.spec.num_classes)
        finished(self.run_dir, "")
        if cfg.get("export"):
            export_all(cfg)
        return metrics

    def _begin(self) -> None:
        """Create the loggers, and write what a run writes before its first step."""
        trainer: Any = self.trainer
        trainer.loggers = list(make(self.cfg.get("logger") or {}, "logger").values())
        self._set_step(0)
        for logger in trainer.loggers:
            logger.log_graph(self.module)
        for callback in self._callbacks(ScalarLayout):
            callback.on_fit_start(trainer, self.module)
        if self.history.initial is not None:
            self._show(self.history.initial[self.student], 0.0, is_trained=False)

    def _replay(self) -> None:
        """Give the loggers every value, and the log a line for each epoch."""
        for entry in self.history.entries_of(self.student):
            for logger in self.trainer.loggers:
                logger.log_metrics(entry.of(self.student), entry.step)
        if self._callbacks(EpochLog) and self.trainer.progress_bar_callback is None:
            done = self.history.last.epochs[self.student] + 1
            for number, epoch in enumerate(self.history.epochs[:done]):
                line = epoch.line(self.student)
                log_epoch(number, self.cfg.trainer.max_epochs, line, epoch.seconds)
        for logger in self.trainer.loggers:
            logger.save()

    def _measure(self) -> dict[str, Any]:
        """Evaluate the best weights on validation and test data."""
        group, steps = self.group, self.history.steps
        epochs = len(self.history.epochs)
        self._set_step(epochs * steps)
        best = self.history.best.epochs[self.student] + 1.0
        temperature = self.recipe.objective.settings(best)["temperature"]
        figures: dict[str, Any] = {}
        with self.trainer.precision_plugin.val_step_context():
            for samples in (group.val, group.test):
                z = group.results[samples.split]
                assert z is not None
                found, tables = thorough(self.module, z[self.student], samples, temperature)
                figures |= found
                if samples is group.val:
                    write_diagnostics(self.run_dir, tables)
                    self._show(z[self.student], best, is_trained=True)
        seconds = round(self.history.seconds, 2)
        return {**figures, **group.costs, "seconds": seconds, "epochs": epochs}

    def _show(self, z: Tensor, progress: float, is_trained: bool) -> None:
        """Draw predictions on validation data, if a callback does."""
        samples: Samples = self.group.val
        temperature = self.recipe.objective.settings(progress)["temperature"]
        for callback in self._callbacks(Pictures):
            outputs = outputs_of(z, samples, temperature)
            batch = Batch(samples.inputs, samples.target)
            callback.show(self.trainer, self.module, batch, outputs, is_trained)

    def _callbacks(self, kind: type) -> list[Any]:
        callbacks: list[Any] = self.trainer.callbacks  # pyright: ignore[reportAttributeAccessIssue]
        return [callback for callback in callbacks if isinstance(callback, kind)]

    def _set_step(self, step: int) -> None:
        """Let the trainer report a step, which callbacks and loggers ask it for."""
        progress = self.trainer.fit_loop.epoch_loop.automatic_optimization.optim_progress
        progress.optimizer.step.total.completed = step
