"""Jobs that are trained together: prepared at the turn of the first, in the order of a job."""

import copy
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from kd_lightning.callbacks.dashboard import has_board
from kd_lightning.callbacks.gradients import GradientBalance
from kd_lightning.callbacks.profiler import Unprofiled
from kd_lightning.callbacks.watching import LastCheckpoint, LearningRate
from kd_lightning.data.images import ImageDataModule
from kd_lightning.data.types import UNLABELLED
from kd_lightning.modules import DistillationModule
from kd_lightning.runs.announce import announce
from kd_lightning.runs.build import build_data, build_trainer, make
from kd_lightning.runs.checks import check, check_values
from kd_lightning.runs.job import Finished, Job, described, find_weights, prepare
from kd_lightning.runs.naming import keep_name
from kd_lightning.runs.networks import with_own_parts
from kd_lightning.runs.rehearsal import rehearse
from kd_lightning.runs.teacher import measure_teacher
from kd_lightning.sweeps.evaluation import Samples, samples_of
from kd_lightning.sweeps.history import History
from kd_lightning.sweeps.probe import disagreement, is_slower
from kd_lightning.sweeps.recipe import Limits, Recipe
from kd_lightning.sweeps.students import State, Students
from kd_lightning.sweeps.training import Training
from kd_lightning.utils.errors import UserError

log = logging.getLogger(__name__)


class Seat:
    """One job of a group.

    Args:
        config: its composed configuration, with Hydra's part.
        run_dir: its run directory.
    """

    def __init__(self, config: DictConfig, run_dir: str) -> None:
        self.config, self.run_dir = config, run_dir
        self.cfg: Any = None  # what a job gets: without Hydra's part, and with its own parts
        self.recipe: Any = None

    @contextmanager
    def presented(self) -> Iterator[None]:
        """Let everything that asks Hydra for the current job find this one."""
        hydra: Any = HydraConfig.instance()
        before = hydra.cfg
        hydra.cfg = self.config  # not set_config(), which copies it
        try:
            yield
        finally:
            hydra.cfg = before


class Group:
    """Jobs that differ in :data:`~kd_lightning.sweeps.grouping.VARYING` only.

    Args:
        seats: the jobs, at least two.
        mode: ``auto`` times both ways and takes the faster; ``always`` does not.
    """

    def __init__(self, seats: Sequence[Seat], mode: str) -> None:
        self.seats, self.mode = list(seats), mode
        self.history: History | None = None
        self.is_tried = False
        self.teacher, self.costs = "", {}

    def train(self, finished: Finished) -> bool:
        """Train all jobs, at the first call; return whether they are trained together."""
        if not self.is_tried and len(self.seats) > 1:
            try:
                reason = self._prepare(finished) or self._train()
            except UserError:
                self.seats.pop(0)  # it fails at its turn, which is now, and the next is the first
                raise
            self.is_tried = True
            if reason:
                log.info("%d jobs run one by one: %s", len(self.seats), reason)
        return self.history is not None

    def _prepare(self, finished: Finished) -> str:
        """Build what the jobs share, find their teacher, and check what each has of its own."""
        first = self.seats[0]
        with first.presented():
            first.cfg = _configured(first.config, check)
            self.data: Any = build_data(first.cfg)
            module, self.source, self.order = prepare(first.cfg, self.data, Job(finished))
            self.trainer = build_trainer(first.cfg, Unprofiled())
            if reason := _why_not(module, self.data, self.trainer):
                return reason
            assert isinstance(module, DistillationModule)
            self.module = module
            announce(first.cfg, self.data, module, self.source, self.order)
            initial = {first.cfg.seed: _copied(module.student)}
        self._orders = {first.cfg.data.seed: self.data}
        self.seats = [seat for seat in self.seats if self._is_fit(seat, initial, finished)]
        if len(self.seats) < 2:
            return "the other jobs do not pass the checks"
        with first.presented():
            self._load(initial[first.cfg.seed])
            self.teacher = find_weights(module, self.source, self.order)
            self.device = self.trainer.strategy.root_device
            if module.with_teacher:
                measure_teacher(module, self.data, self.device)
        self.initial = [initial[seat.cfg.seed] for seat in self.seats]
        return ""

    def _is_fit(self, seat: Seat, initial: dict[int, State], finished: Finished) -> bool:
        """Check a job with its own initial weights, as it would check itself."""
        try:
            with seat.presented():
                if seat.cfg is None:
                    seat.cfg = _configured(seat.config, check_values)
                cfg, module = seat.cfg, self.module
                if cfg.seed not in initial:
                    other, _, _ = prepare(cfg, self.data, Job(finished))
                    assert isinstance(other, DistillationModule)
                    initial[cfg.seed] = _copied(other.student)
                if cfg.data.seed not in self._orders:
                    self._orders[cfg.data.seed] = _reordered(self.data, cfg.data.seed)
                module.objective = make(cfg.method, "method")
                module.make_optimizer = make(cfg.optimizer, "optimizer")
                module.make_lr_scheduler = make(cfg.lr_scheduler, "lr_scheduler")
                self._load(initial[cfg.seed])
                rehearse(module)
                seat.recipe = module.objective, module.make_optimizer, module.make_lr_scheduler
        except UserError as error:
            if seat is self.seats[0]:
                raise
            # It says so again at its own turn.
            log.info("%s runs by itself: %s", seat.run_dir, error)
            return False
        return True

    def _load(self, state: State) -> None:
        self.module.student.load_state_dict(state)

    def _train(self) -> str:
        """Train the students; return why not, if they are not trained together."""
        trainer, module = self.trainer, self.module
        plugin = trainer.precision_plugin
        module.to(self.device)
        plugin.convert_module(module)
        module.train()
        with plugin.train_step_context():
            if module.teacher is not None and module.objective.needs_teacher:
                module.outputs.fill(module.teacher, self.data, self.device, {"train": []})
            if self.device.type != "cpu":
                self.data.splits = {k: v.to(self.device) for k, v in self.data.splits.items()}
            self.val = samples_of(self.data, "val", module, self.device)
            if reason := disagreement(self._training()):
                return reason
            if self.mode == "auto" and (reason := is_slower(self._training(), module, trainer)):
                return reason
            training = self._training()
            wants_pictures = has_board(trainer)
            initial = self.logits(training.students) if wants_pictures else None
            self.recipes = training.recipes
            self.history = training.run()
            self.history.initial = initial
            self.students = training.students
            self.test: Samples = samples_of(self.data, "test", module, self.device)
            best = self.history.best.state
            self.results = {
                samples.split: self.logits(self.students, samples, best) if best else None
                for samples in (self.val, self.test)
            }
        self.costs = described(module)
        return ""

    def logits(
        self, students: Students, samples: Samples | None = None, state: State | None = None
    ) -> Tensor:
        """Return the logits of all students for a split, S×N×C, for validation by default."""
        batches = (samples or self.val).batches
        return torch.cat([students.logits(batch.inputs, state) for batch in batches], dim=1)

    def _training(self) -> Training:
        """Return a new training, of students with their initial weights."""
        module = self.module
        recipes = []
        for seat in self.seats:
            objective, make_optimizer, make_scheduler = seat.recipe
            optimizer = make_optimizer(module.parameter_groups())
            optimizer._opt_called = True  # it is not stepped, of which a scheduler would warn
            scheduler = make_scheduler(optimizer)
            best = str(Path(seat.run_dir) / "checkpoints" / "best.ckpt")
            data: ImageDataModule = self._orders[seat.cfg.data.seed]
            recipes.append(Recipe(objective, optimizer, scheduler, data, best))
        students = Students(module.student, self.initial)
        return Training(
            students, module, self.seats[0].recipe[1], recipes, self._limits(), self.val
        )

    def _limits(self) -> Limits:
        trainer, cfg = self.trainer, self.seats[0].cfg
        callbacks: list[Any] = trainer.callbacks  # pyright: ignore[reportAttributeAccessIssue]
        balance = [c.every_n_steps for c in callbacks if isinstance(c, GradientBalance)]
        rate = any(isinstance(c, LearningRate) for c in callbacks) and bool(trainer.loggers)
        name = str(cfg.optimizer._target_).rpartition(".")[2]
        is_max = cfg.monitor_mode == "max"
        return Limits(
            epochs=cfg.trainer.max_epochs,
            log_every=max(trainer.log_every_n_steps, 1),  # pyright: ignore[reportAttributeAccessIssue]
            gradients_every=balance[0] if balance and has_board(trainer) else 0,
            monitor=cfg.monitor,
            is_better=(lambda new, old: new > old) if is_max else (lambda new, old: new < old),
            lr_name=f"lr-{name}" if rate else "",
        )


def _configured(config: DictConfig, checked: Any) -> DictConfig:
    """Return the configuration of a job as the command prepares it."""
    cfg = with_own_parts(
        OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
    )
    checked(cfg)
    return keep_name(cfg)


def _why_not(module: nn.Module, data: Any, trainer: L.Trainer) -> str:
    """Return why jobs cannot be trained together, told from what they create."""
    if not isinstance(module, DistillationModule) or module.objective.has_layers:
        return f"their module is a {type(module).__name__} with layers of its own"
    for name, layer in module.student.named_modules():
        if isinstance(layer, nn.modules.dropout._DropoutNd) and layer.p > 0:
            return f"the student has dropout ({name})"
    if not isinstance(data, ImageDataModule) or not isinstance(data.splits["train"].inputs, Tensor):
        return "their images are not in memory"
    if bool((data.labels == UNLABELLED).any()):
        return "some of their images have no label"
    if trainer.world_size > 1:
        return f"{trainer.world_size} processes train each"
    kinds: list[Any] = trainer.callbacks  # pyright: ignore[reportAttributeAccessIssue]
    if not any(isinstance(c, LastCheckpoint) for c in kinds):
        return "they keep no last checkpoint"
    return ""


def _copied(net: nn.Module) -> State:
    return {name: value.detach().clone() for name, value in net.state_dict().items()}


def _reordered(data: ImageDataModule, seed: int) -> ImageDataModule:
    """Return the same data in the order of another seed."""
    found = copy.copy(data)
    found.seed = seed
    return found
