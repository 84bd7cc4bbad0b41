"""Base LightningModule: batches, optimizer, logging by step, evaluation by epoch."""

import math
import time
from collections.abc import Callable, Iterable
from typing import Any

import lightning as L
import torch
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.seed import isolate_rng
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from kd_lightning.data.types import Batch, as_batch
from kd_lightning.metrics.cost import costs
from kd_lightning.metrics.diagnostics import Diagnostics
from kd_lightning.metrics.evaluation import Evaluation
from kd_lightning.modules.step_terms import StepTerms
from kd_lightning.tasks import Classification, Task
from kd_lightning.utils.errors import UserError
from kd_lightning.utils.networks import Inputs, call, fitting

NetFactory = Callable[..., nn.Module]
OptimizerFactory = Callable[[Iterable[dict[str, Any]]], Optimizer]
LRSchedulerFactory = Callable[[Optimizer], LRScheduler]


class BaseModule(L.LightningModule):
    """Base class of modules that train the network at :attr:`network_name`.

    Batches are ``(x, y)``, dictionaries with ``labels``, or
    :class:`~kd_lightning.data.types.Batch`.

    Args:
        task: what is predicted; one class per sample by default.
        optimizer: creates the optimizer from parameter groups; Adam with a learning rate of
            1e-3 by default. Overriding ``configure_optimizers`` works as usual.
        lr_scheduler: creates a learning-rate scheduler, stepped once per epoch, from the
            optimizer.
    """

    network_name: str
    takes_teacher = False  # whether the constructor has an argument ``teacher``
    uses_unlabelled = False  # whether samples without a label are of use; datamodules ask

    def __init__(
        self,
        task: Task | None = None,
        optimizer: OptimizerFactory | None = None,
        lr_scheduler: LRSchedulerFactory | None = None,
    ) -> None:
        super().__init__()
        self.task = task or Classification()
        self.make_optimizer = optimizer or torch.optim.Adam
        self.make_lr_scheduler = lr_scheduler
        self.evaluation: Evaluation | None = None  # created at the first batch
        self.diagnostics: Diagnostics | None = None  # created for each thorough evaluation
        self.tables: dict[str, Tensor] = {}  # for plots, from the last thorough validation
        self.step_terms = StepTerms()
        self._earlier_seconds = 0.0  # of the legs before a resumption
        self._started: float | None = None
        self._resumed_with: list[str] | None = None  # classes of optimizers in a checkpoint
        self.progress = 0.0  # epochs trained so far; 2.5 is the middle of the third
        example = self.task.example()
        if example is not None:
            self.example_input_array = example.inputs

    def __setattr__(self, name: str, value: Any) -> None:
        # Lightning assigns the name of the running hook 40 times per step, and nn.Module would
        # check each time whether the value is a parameter.
        if name == "_current_fx_name":
            self.__dict__[name] = value
        else:
            super().__setattr__(name, value)

    @property
    def network(self) -> nn.Module:
        """The network in training."""
        return self.get_submodule(self.network_name)

    @property
    def role(self) -> str:
        """Role of the network: ``teacher``, ``student``, ``baseline`` or ``control: …``."""
        return "student"

    @property
    def with_teacher(self) -> bool:
        """Whether evaluation compares the network with a teacher."""
        return False

    def forward(self, inputs: Inputs | None = None, **named: Tensor) -> Tensor:
        """Return logits, B×C or B×L×C, for inputs given as one tensor or by keyword."""
        return call(self.network, named if inputs is None else inputs)

    def terms(self, batch: Batch) -> dict[str, Tensor]:
        """Compute the training loss as ``loss``, and its terms by name; all scalars."""
        raise NotImplementedError

    def settings(self) -> dict[str, float]:
        """Return current values of schedules, to be logged with the terms."""
        return {}

    def describe(self) -> dict[str, float]:
        """Return sizes and costs, to be recorded in ``metrics.json``."""
        return self.costs_of(self.network)

    def costs_of(self, net: nn.Module) -> dict[str, float]:
        """Return :func:`~kd_lightning.metrics.cost.costs`; empty without a specification."""
        example = self.task.example()
        return costs(net, fitting(example.inputs, net)) if example is not None else {}

    @property
    def is_thorough(self) -> bool:
        """Whether evaluation includes diagnostics; skipped between epochs to save time."""
        return self.trainer.state.fn != TrainerFn.FITTING

    def setup(self, stage: str) -> None:
        """Take the data specification from the datamodule, if it has one."""
        if self.task.spec is None:
            self.task.spec = getattr(getattr(self.trainer, "datamodule", None), "spec", None)

    def example_batch(self) -> Batch:
        """Return a batch for dry runs: the task's, or the first training batch, on the CPU."""
        example = self.task.example()
        if example is not None:
            return example
        # What trainer.estimated_stepping_batches does first; the property itself does not where
        # training is limited by steps.
        self.trainer.fit_loop.setup_data()
        loader = self.trainer.train_dataloader
        assert loader is not None
        with isolate_rng():  # creating an iterator draws a seed, which would shift later draws
            batch = next(iter(loader))
        return as_batch(self.trainer.strategy.batch_to_device(batch, torch.device("cpu")))

    def evaluate(self, batch: Batch) -> dict[str, Any]:
        """Return predictions for a batch of validation or test data.

        Returns:
            ``logits``, N×C, and ``target``, N, of the rows with a target. Callbacks receive
            the dictionary as ``outputs``, so none of them has to run a network again.
        """
        logits = self.task.rows(self(batch.inputs), batch.target)
        return {"logits": logits, "target": self.task.rows(batch.target, batch.target)}

    @property
    def seconds(self) -> float:
        """Training time, over all legs of a resumed run; a leg counts up to its last checkpoint."""
        now = 0.0 if self._started is None else time.perf_counter() - self._started
        return self._earlier_seconds + now

    def on_train_start(self) -> None:
        found = [type(optimizer).__name__ for optimizer in self.trainer.optimizers]
        # torch loads the state of one optimizer into another and fails at the first step.
        if self._resumed_with not in (None, found):
            raise UserError(
                f"the checkpoint was trained with {', '.join(self._resumed_with or ())}, not with "
                f"{', '.join(found)}: resume with the same optimizer="
            )
        self._resumed_with = None
        self._started = time.perf_counter()
        self.step_terms.rows.clear()  # of a training that was interrupted

    def on_train_end(self) -> None:
        self._earlier_seconds, self._started = self.seconds, None

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        batch = as_batch(batch)
        steps = self.trainer.num_training_batches
        self.progress = self.current_epoch + (batch_idx / steps if math.isfinite(steps) else 0.0)
        terms = self.terms(batch)
        self.step_terms.add(terms)
        return terms["loss"] if batch.share == 1.0 else terms["loss"] * batch.share

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        every = self.trainer.log_every_n_steps  # pyright: ignore[reportAttributeAccessIssue]
        if (batch_idx + 1) % max(every, 1) == 0 or self.trainer.is_last_batch:
            self._log_steps()

    def _log_steps(self) -> None:
        terms, problem = {}, ""
        try:
            terms = self.step_terms.flush(self.trainer.fit_loop.total_batch_idx + 1)
        except FloatingPointError as error:
            problem = str(error)
        # All ranks stop together: a rank that continued would wait for the others forever.
        if self.trainer.strategy.reduce_boolean_decision(bool(problem), all=False):
            raise UserError(self._diverged(problem or "a step of another process"))
        values = {f"train/{k}": v for k, v in {**terms, **self.settings()}.items()}
        # Written to the loggers directly: self.log writes every n-th optimizer step of the run
        # only, and would drop the entry at the end of an epoch.
        for logger in self.loggers:
            logger.log_metrics(
                {**values, "epoch": self.current_epoch}, max(self.global_step - 1, 0)
            )
        if (loss := values.pop("train/loss", None)) is not None:  # a subclass may have its own step
            self.log("train/loss", loss, prog_bar=True, logger=False, batch_size=1)
        if self.trainer.is_last_batch:  # for callbacks that monitor a value once per epoch
            self.log_dict(values, logger=False, batch_size=1)

    def _diverged(self, what: str) -> str:
        return diverged(what, getattr(self.trainer.checkpoint_callback, "best_model_path", ""))

    def validation_step(
        self, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> dict[str, Any]:
        return self._evaluation_step(batch, "val", dataloader_idx)

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Any]:
        return self._evaluation_step(batch, "test", dataloader_idx)

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return probabilities, B×C or B×L×C, for batches with or without labels."""
        if isinstance(batch, tuple | list) and len(batch) == 1:  # a TensorDataset of inputs alone
            batch = batch[0]
        is_labelled = isinstance(batch, tuple | list) or (
            isinstance(batch, dict) and "labels" in batch
        )
        inputs = as_batch(batch).inputs if is_labelled else batch
        if isinstance(inputs, dict):
            inputs = {name: x for name, x in inputs.items() if name not in ("index", "share")}
        return self(inputs).float().softmax(-1)

    def _evaluation_step(self, batch: Any, split: str, dataloader_idx: int) -> dict[str, Any]:
        if dataloader_idx:  # their figures would be mixed, under one name
            raise UserError(
                f"several {split} dataloaders at once: evaluate one at a time, as in "
                "trainer.validate(module, dataloader)"
            )
        batch = as_batch(batch)
        outputs = self.evaluate(batch)
        self.measure(outputs, split)
        return outputs

    def measure(self, outputs: dict[str, Any], split: str) -> None:
        """Update the metrics of a split with the output of :meth:`evaluate`."""
        evaluation = self._make_metrics(outputs["logits"], split)
        teacher = outputs.get("teacher")
        evaluation.update(outputs["logits"], outputs["target"], teacher(1.0) if teacher else None)
        if self.diagnostics is not None:
            self.diagnostics.update(
                outputs["logits"], outputs["target"], teacher, outputs.get("temperature", 1.0)
            )

    def _make_metrics(self, logits: Tensor, split: str) -> Evaluation:
        """Create the metrics that do not exist yet."""
        # At the first batch, not in __init__: without a specification of the data, the number
        # of classes is known from the logits alone.
        classes = logits.shape[-1]
        if self.evaluation is None:
            self.evaluation = self.task.evaluation(classes, self.with_teacher).to(self.device)
        if self.is_thorough and self.diagnostics is None:
            # Plots show validation data only, so tables of test data are never computed.
            made = self.task.diagnostics(classes, self.with_teacher, split == "val")
            self.diagnostics = made.to(self.device)
        return self.evaluation

    def on_validation_start(self) -> None:
        self._forget_metrics()

    def on_test_start(self) -> None:
        self._forget_metrics()

    def _forget_metrics(self) -> None:
        """Drop the metrics, which an interrupted evaluation may have left half filled.

        New ones for each evaluation also avoid tensors of inference mode, in which
        trainer.validate() runs, in the validation of a later fit(), which runs without it.
        """
        self.evaluation = self.diagnostics = None

    def on_validation_epoch_end(self) -> None:
        values = self.log_evaluation("val")
        if "loss" in values and not torch.isfinite(values["loss"]):
            raise UserError(self._diverged(f"step {self.global_step}: val/loss={values['loss']}"))

    def on_test_epoch_end(self) -> None:
        self.log_evaluation("test")

    def log_evaluation(self, split: str) -> dict[str, Tensor]:
        """Log and return the figures of a split at the end of its evaluation."""
        if self.evaluation is None:
            return {}  # the split has no batches
        values = self.evaluation.result()
        if self.diagnostics is not None:
            further, tables = self.diagnostics.result()
            self.diagnostics = None  # the next evaluation may be of another split, or not thorough
            values |= {k: v for k, v in further.items() if k not in values}
            self.tables = tables if split == "val" else self.tables
        for name, value in values.items():
            # The value is the same on all ranks; sync_dist only silences Lightning's warning.
            self.log(f"{split}/{name}", value, prog_bar=name == "accuracy", sync_dist=True)
        return values

    def configure_optimizers(self) -> OptimizerLRScheduler:
        groups = self.parameter_groups()
        if not any(group["params"] for group in groups):
            raise UserError(
                f"no parameter of the {self.network_name} is trainable: it may be frozen, or the "
                "teacher of another module; see requires_grad_(True)"
            )
        if not callable(self.make_optimizer):
            raise UserError(
                "optimizer= takes a function that makes the optimizer from parameter groups, as in "
                "functools.partial(torch.optim.SGD, lr=0.1), not an optimizer"
            )
        optimizer = self.make_optimizer(groups)
        if self.make_lr_scheduler is None:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": self.make_lr_scheduler(optimizer)}

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return the optimizer's parameter groups; the network's parameters come first."""
        return [{"params": [p for p in self.parameters() if p.requires_grad]}]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Record the network's name and data specification, as plain values."""
        checkpoint["network"] = self.network_name
        checkpoint["seconds"] = self.seconds
        checkpoint["optimizers"] = [type(o).__name__ for o in self.trainer.optimizers]
        checkpoint.update(self.task.plain())

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Set the progress of schedules to the end of the checkpoint's epoch."""
        self.progress = checkpoint["epoch"] + 1.0
        # Only where training resumes: a validation of the best weights has its own trainer state,
        # and load_from_checkpoint has no trainer.
        if self._trainer is not None and self._trainer.state.fn == TrainerFn.FITTING:
            self._earlier_seconds = checkpoint.get("seconds", 0.0)
            self._resumed_with = checkpoint.get("optimizers")


def diverged(what: str, best: str) -> str:
    """Return the message of a training whose loss is not finite.

    Args:
        what: the step, and the terms of its loss.
        best: path of the best checkpoint; empty if there is none.
    """
    kept = f"the last good checkpoint is {best}" if best else "no checkpoint has been saved yet"
    return f"the loss is not finite at {what}; try a lower optimizer.lr; {kept}"
