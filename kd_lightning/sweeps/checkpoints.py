"""Checkpoints of students that were trained together, in the format of ordinary runs."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from kd_lightning.callbacks.watching import LastCheckpoint
from kd_lightning.modules import DistillationModule
from kd_lightning.runs.checkpoints import AtomicCheckpointIO
from kd_lightning.sweeps.history import Kept
from kd_lightning.sweeps.optimizer import state_of
from kd_lightning.sweeps.recipe import Recipe
from kd_lightning.sweeps.students import Students


class CheckpointWriter:
    """Writes ``best.ckpt`` and ``last.ckpt`` of one student.

    Args:
        trainer: a trainer with the callbacks of the run, which has trained nothing.
        module: the module of the student; its weights are replaced.
        steps: optimizer steps of an epoch.
        val_batches: batches of the validation data.
    """

    def __init__(
        self, trainer: L.Trainer, module: DistillationModule, steps: int, val_batches: int
    ) -> None:
        self.trainer, self.module = trainer, module
        self.steps, self.val_batches = steps, val_batches
        callbacks: list[Any] = trainer.callbacks  # pyright: ignore[reportAttributeAccessIssue]
        self.last = next(c for c in callbacks if isinstance(c, LastCheckpoint))
        self.best = next(
            c for c in callbacks if isinstance(c, ModelCheckpoint) and c is not self.last
        )

    def write(
        self, folder: Path, student: int, students: Students, best: Kept, last: Kept, recipe: Recipe
    ) -> None:
        """Write both checkpoints of a student, if it completed an epoch.

        Args:
            folder: of the checkpoints.
            student: its position.
            students: all of them.
            best: weights of the best epochs.
            last: weights of the last epochs.
            recipe: how the student was trained.
        """
        for kept, name in ((best, "best"), (last, "last")):
            if kept.epochs[student] < 0:
                continue
            score = best.details[student]["score"]
            # At its best epoch, the last checkpoint was that of the epoch before.
            has_last = name == "last" or kept.epochs[student] > 0
            self._set_callbacks(folder, score, has_last)
            content = self._content(student, students, kept, recipe)
            AtomicCheckpointIO().save_checkpoint(content, folder / f"{name}.ckpt")

    def _set_callbacks(self, folder: Path, score: float, has_last: bool) -> None:
        """Let the callbacks report the state that they would have at the end of the epoch."""
        value, path = torch.tensor(score), str(folder / "best.ckpt")
        self.best.dirpath = self.last.dirpath = str(folder)
        self.best.best_model_score = self.best.current_score = self.best.kth_value = value
        self.best.best_model_path = self.best.kth_best_model_path = path
        self.best.best_k_models = {path: value}
        self.last.best_model_path = str(folder / "last.ckpt") if has_last else ""

    def _content(
        self, student: int, students: Students, kept: Kept, recipe: Recipe
    ) -> dict[str, Any]:
        """Return what Lightning saves; see its ``dump_checkpoint``."""
        epoch, details = kept.epochs[student], kept.details[student]
        self.module.student.load_state_dict(students.of(kept.state, student))
        optimizer = state_of(kept.optimizer_of(student), student, recipe.optimizer)
        optimizer["param_groups"] = details["groups"]
        callbacks: list[Any] = self.trainer.callbacks  # pyright: ignore[reportAttributeAccessIssue]
        found = {
            "epoch": epoch,
            "global_step": (epoch + 1) * self.steps,
            "pytorch-lightning_version": L.__version__,
            "state_dict": {k: v.detach().cpu() for k, v in self.module.state_dict().items()},
            "loops": self._loops(epoch, recipe.scheduler is not None),
            "callbacks": {c.state_key: state for c in callbacks if (state := c.state_dict())},
            "optimizer_states": [optimizer],
            "lr_schedulers": [details["scheduler"]] if recipe.scheduler is not None else [],
        }
        self.module._earlier_seconds = details["seconds"]
        self.trainer.strategy.optimizers = [recipe.optimizer]
        self.module.trainer = self.trainer
        self.module.on_save_checkpoint(found)
        self.module.trainer = None  # it has no data, for which other hooks would ask it
        return found

    def _loops(self, epoch: int, has_scheduler: bool) -> dict[str, Any]:
        """Return the state of Lightning's loops at the end of an epoch."""
        # From this version of Lightning, which therefore knows all of the entries.
        loops: Any = self.trainer._checkpoint_connector._get_loops_state_dict()
        fit, steps, done = loops["fit_loop"], self.steps, self.steps * (epoch + 1)
        progress = fit["epoch_loop.automatic_optimization.optim_progress"]["optimizer"]
        for kind in (progress["step"], progress["zero_grad"], fit["epoch_loop.batch_progress"]):
            _fill(kind, steps, done)
        _fill(fit["epoch_loop.val_loop.batch_progress"], self.val_batches, self.val_batches)
        for name in ("batch_progress", "val_loop.batch_progress"):
            fit[f"epoch_loop.{name}"]["is_last_batch"] = True
        if has_scheduler:
            _fill(fit["epoch_loop.scheduler_progress"], 1, epoch + 1)
        # The epoch itself has not ended as checkpoints are saved.
        for kind in fit["epoch_progress"].values():
            kind.update({name: epoch + (name != "completed") for name in kind})
        fit["epoch_loop.state_dict"] = {"_batches_that_stepped": done}
        fit["state_dict"] = {"combined_loader": [{"taken": 0}]}
        return loops


def _fill(progress: Mapping[str, Any], current: int, total: int) -> None:
    for kind, number in (("current", current), ("total", total)):
        progress[kind].update(dict.fromkeys(progress[kind], number))
