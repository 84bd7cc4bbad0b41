"""What every training has in common: optimizer, logging by step, evaluation by epoch."""

from collections.abc import Callable, Iterable
from typing import Any

import lightning as L
import torch
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from kd_lightning.data.types import Batch, DataSpec
from kd_lightning.metrics.cost import costs
from kd_lightning.metrics.evaluation import Evaluation, Evidence
from kd_lightning.modules.step_terms import StepTerms
from kd_lightning.utils.errors import UserError

NetFactory = Callable[[tuple[int, ...], int], nn.Module]
OptimizerFactory = Callable[[Iterable[dict[str, Any]]], Optimizer]
LRSchedulerFactory = Callable[[Optimizer], LRScheduler]


class Learner(L.LightningModule):
    """Trains the one network that :attr:`network_name` names.

    Args:
        spec: shape, classes, mean and standard deviation of the data.
        optimizer: makes the optimizer from groups of parameters; Adam at 1e-3 where not given.
        lr_scheduler: makes a learning-rate schedule by epoch from the optimizer.
        with_teacher: whether evaluation compares with a teacher.
    """

    network_name: str
    role = "student"  # what the network is called in tables

    def __init__(
        self,
        spec: DataSpec,
        optimizer: OptimizerFactory | None = None,
        lr_scheduler: LRSchedulerFactory | None = None,
        with_teacher: bool = False,
    ) -> None:
        super().__init__()
        self.spec = spec
        self.make_optimizer = optimizer or torch.optim.Adam
        self.make_lr_scheduler = lr_scheduler
        self.evaluation = Evaluation(spec.num_classes, with_teacher)
        self.evidence = Evidence(spec.num_classes, with_teacher)
        self.tables: dict[str, Tensor] = {}  # for pictures, of the last thorough validation
        self.step_terms = StepTerms()
        self.progress = 0.0  # epochs trained so far; 2.5 is the middle of the third
        self.example_input_array = torch.zeros(2, *spec.input_shape)

    def __setattr__(self, name: str, value: Any) -> None:
        # Lightning notes here which hook it is in, 40 times a step; torch would ask each time
        # whether that is a parameter
        if name == "_current_fx_name":
            self.__dict__[name] = value
        else:
            super().__setattr__(name, value)

    @property
    def network(self) -> nn.Module:
        """The network in training."""
        return self.get_submodule(self.network_name)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.network(inputs)

    def terms(self, batch: Batch) -> dict[str, Tensor]:
        """The terms of the loss by name, ``loss`` among them; scalars."""
        raise NotImplementedError

    def settings(self) -> dict[str, float]:
        """Numbers that steer the training now, logged beside the terms."""
        return {}

    def describe(self) -> dict[str, float]:
        """Sizes and costs, for the record of the run."""
        return self.costs_of(self.network)

    def costs_of(self, net: nn.Module) -> dict[str, float]:
        """See :func:`~kd_lightning.metrics.cost.costs`; on the device this module lies on."""
        sample = torch.zeros(2, *self.spec.input_shape, device=self.device)
        sample = sample.to(next(net.parameters()).dtype)
        return costs(net, sample)

    @property
    def is_thorough(self) -> bool:
        """Whether evaluation looks at everything: not between epochs, where it is to be quick."""
        return self.trainer.state.fn != TrainerFn.FITTING

    def evaluate(self, batch: Batch, split: str) -> None:
        """Add a batch of a split, ``val`` or ``test``, to what is measured."""
        logits = self(batch.inputs)
        self.evaluation.update(logits, batch.target)
        if self.is_thorough:
            self.evidence.update(logits, batch.target)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        self.progress = self.current_epoch + batch_idx / self.trainer.num_training_batches
        terms = self.terms(batch)
        self.step_terms.add(terms)
        return terms["loss"]

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        every = self.trainer.log_every_n_steps  # pyright: ignore[reportAttributeAccessIssue]
        if (batch_idx + 1) % every == 0 or self.trainer.is_last_batch:
            self._log_steps()

    def _log_steps(self) -> None:
        terms, problem = {}, ""
        try:
            terms = self.step_terms.flush(self.trainer.fit_loop.total_batch_idx + 1)
        except FloatingPointError as error:
            problem = str(error)
        # all ranks stop together: one that went on would wait for the others for ever
        if self.trainer.strategy.reduce_boolean_decision(bool(problem), all=False):
            raise UserError(self._diverged(problem or "a step of another process"))
        values = {f"train/{k}": v for k, v in {**terms, **self.settings()}.items()}
        # not through self.log alone: it writes at steps of Lightning's own choice only
        for logger in self.loggers:
            logger.log_metrics({**values, "epoch": self.current_epoch}, self.global_step - 1)
        self.log("train/loss", values.pop("train/loss"), prog_bar=True, logger=False)
        if self.trainer.is_last_batch:  # for whatever monitors an epoch
            self.log_dict(values, logger=False)

    def _diverged(self, what: str) -> str:
        best = getattr(self.trainer.checkpoint_callback, "best_model_path", "")
        kept = f"the last good checkpoint is {best}" if best else "no epoch had ended yet"
        return f"the loss is not finite at {what}; try a lower optimizer.lr; {kept}"

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self.evaluate(batch, "val")

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self.evaluate(batch, "test")

    def on_validation_epoch_end(self) -> None:
        values = self.log_evaluation("val")
        if not torch.isfinite(values["loss"]):
            raise UserError(self._diverged(f"step {self.global_step}: val/loss={values['loss']}"))

    def on_test_epoch_end(self) -> None:
        self.log_evaluation("test")

    def log_evaluation(self, split: str) -> dict[str, Tensor]:
        """Log the figures of a split that has just been evaluated, and give them back."""
        values = self.evaluation.result()
        if self.is_thorough:
            further, tables = self.evidence.result()
            values |= {k: v for k, v in further.items() if k not in values}
            self.tables = tables if split == "val" else self.tables
        # already gathered over the ranks; sync_dist only tells Lightning so. What is thorough
        # comes once, of the best epoch: it is no further point of a curve over epochs
        logger = False if self.is_thorough else None
        for name, value in values.items():
            bar = name == "accuracy"
            self.log(f"{split}/{name}", value, prog_bar=bar, logger=logger, sync_dist=True)
        return values

    def configure_optimizers(self) -> OptimizerLRScheduler:
        optimizer = self.make_optimizer(self.parameter_groups())
        if self.make_lr_scheduler is None:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": self.make_lr_scheduler(optimizer)}

    def parameter_groups(self) -> list[dict[str, Any]]:
        """What is trained, in the optimizer's groups; the first is the network's."""
        return [{"params": [p for p in self.parameters() if p.requires_grad]}]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Say which network the checkpoint holds and for what data; plain values only."""
        checkpoint["network"] = self.network_name
        checkpoint["spec"] = self.spec.plain()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """The weights are those of the end of an epoch; so are settings that follow the time."""
        self.progress = checkpoint["epoch"] + 1.0


def with_channels_last(net: nn.Module) -> nn.Module:
    """The network with its convolutions in N×H×W×C order.

    A step of the reference student takes 6.3 ms so instead of 9.5 ms, an answer of the
    reference teacher 25 ms instead of 35 ms (batch 64, two CPU cores); tensor cores of
    GPUs want the same order.
    """
    for layer in net.modules():
        if isinstance(layer, nn.MaxPool2d):
            layer.register_forward_hook(_pool_in_order)
    return net.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


def _pool_in_order(pool: nn.Module, args: Any, output: Any) -> None:
    """Bring a gradient into the order of the map it is for, before it goes through a pooling.

    What comes back through a flattening is in N×C×H×W order, and torch then copies the
    large map twice: 2.7 of 17.4 ms of a step of the reference student (batch 256).
    """
    if isinstance(output, Tensor) and output.requires_grad:
        output.register_hook(lambda g: g.contiguous(memory_format=torch.channels_last))
