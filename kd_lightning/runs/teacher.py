"""The teacher of a job: its network, and its training.

A teacher is trained by a job whose configuration is this job's with the changes in the
section ``pretrain``, in a run directory inside the store.
"""

import copy
import logging
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.seed import isolate_rng
from omegaconf import DictConfig, OmegaConf
from torch import nn

from kd_lightning.data.types import ImageSpec, Spec, as_batch
from kd_lightning.metrics.evaluation import is_near_chance
from kd_lightning.metrics.figures import show
from kd_lightning.modules import DistillationModule
from kd_lightning.nets.ensemble import Ensemble, mean_probabilities
from kd_lightning.runs.build import build_data
from kd_lightning.runs.checkpoints import load_network, read_checkpoint, recorded_spec
from kd_lightning.runs.checks import check
from kd_lightning.runs.directory import plain
from kd_lightning.runs.load import build_network, load_run, untrained
from kd_lightning.runs.networks import PROBE
from kd_lightning.runs.processes import chosen_options, option_alone
from kd_lightning.runs.teacher_key import key_of
from kd_lightning.runs.trust import is_given
from kd_lightning.teachers.sources import FromStore
from kd_lightning.utils.errors import UserError
from kd_lightning.utils.run_directory import find_checkpoint

log = logging.getLogger(__name__)

# Largest difference in mean and standard deviation (of values in 0…1) between two parts of one
# data set; a larger one means other data or another normalisation.
SAME_SCALE = 0.03

Train = Callable[[DictConfig], Any]


class TeacherOrder:
    """Specification of the teacher that a job needs, for the teacher sources.

    Args:
        cfg: configuration of the job.
        data: datamodule of the job.
        spec: specification of the data, from which networks are built.
        train: runs the job of a configuration.
    """

    def __init__(
        self, cfg: DictConfig, data: L.LightningDataModule, spec: Spec, train: Train
    ) -> None:
        self.cfg, self.data, self.spec, self._train = cfg, data, spec, train
        self._key: str | None = None

    @property
    def training(self) -> str:
        """How a missing teacher is trained, as in "for 5 epochs"."""
        if self.cfg.pretrain.model._target_ == PROBE:
            return "as a linear probe"
        limits = self.cfg.pretrain.trainer
        steps = f"{limits.max_steps} steps"
        return f"for {limits.max_epochs} epochs" if limits.max_epochs else f"for {steps}"

    def build(self) -> nn.Module:
        """Return the network of ``net@teacher`` with its initial weights."""
        return untrained(self.cfg.teacher, self.spec)

    def pretrained(self) -> nn.Module:
        """Return the network of ``net@teacher`` with the pretrained weights that it names."""
        return build_network(self.cfg.teacher, self.spec)

    def load(self, net: nn.Module, run_dir: Path) -> None:
        """Load the best checkpoint of a run into a network."""
        load_network(net, find_checkpoint(run_dir), option="net@teacher")

    def given(self, paths: Sequence[str]) -> nn.Module:
        """Return the network in a checkpoint, or the ensemble of several.

        A single checkpoint is loaded into the network of ``net@teacher``. Of several, each
        network is built from the configuration of its own run.

        Raises:
            UserError: if a checkpoint is missing, damaged, or of another network or data.
        """
        if not paths:
            raise UserError("teacher_ckpt=[] names no checkpoint")
        checkpoints = [find_checkpoint(path) for path in paths]
        if len(checkpoints) > 1:
            return Ensemble([self._member(checkpoint) for checkpoint in checkpoints])
        net = load_network(self.build(), checkpoints[0], option="net@teacher")
        if not hasattr(net, "preprocessing"):  # else the user knows about it
            self._warn_of_other_scale(checkpoints[0], read_checkpoint(checkpoints[0]).get("spec"))
        return net

    def key(self) -> str:
        """Return a key that identifies everything that determines the teacher's weights."""
        if self._key is None:
            self._key = self._make_key()
        return self._key

    def _make_key(self) -> str:
        job = teacher_job(self.cfg)
        # The data's seed only determines the order of samples, and the teacher has its own:
        # data that differ in nothing else need not be read a second time.
        same = {**plain(job.data), "seed": 0} == {**plain(self.cfg.data), "seed": 0}
        return key_of(job, self.data if same else build_data(job), world_size=1)

    def train(self, home: Path) -> Any:
        """Train the teacher in a run directory, resuming an unfinished training there."""
        job = teacher_job(self.cfg)
        job.run_dir = str(home)
        job.resume = str(home) if home.is_dir() else None
        try:
            check(job)
            return self._train(job)
        except UserError as error:
            raise UserError(f"the teacher: {of_pretrain(str(error), self.cfg)}") from error

    def _member(self, checkpoint: Path) -> nn.Module:
        home = checkpoint.parent.parent
        if not (home / ".hydra").is_dir():
            raise UserError(
                f"teacher_ckpt: {checkpoint} lies in no run directory; with several teachers, "
                "each network is built from the configuration in its run directory"
            )
        run = load_run(home, checkpoint.stem, trust=is_given())
        wanted = self.spec.network_arguments
        if run.spec.network_arguments != wanted:
            shape, classes = run.spec.network_arguments
            raise UserError(
                f"teacher_ckpt: {run.path} was trained on samples of shape {shape} in {classes} "
                f"classes, these are {wanted[0]} in {wanted[1]}"
            )
        self._warn_of_other_scale(run.path, run.spec.plain())
        return run.network

    def _warn_of_other_scale(self, where: Path, found: Any) -> None:
        """Warn if the teacher was trained on images that were normalised differently."""
        spec = self.spec
        if found is None or not isinstance(spec, ImageSpec):
            return  # a plain state dict has no specification
        there = recorded_spec(where, found)
        one, other = (torch.tensor([*s.mean, *s.std]) for s in (there, spec))
        if one.shape != other.shape or (one - other).abs().max() > SAME_SCALE:
            log.warning(
                "the teacher in %s was trained on images of mean %s and standard deviation %s, "
                "but these are normalised by %s and %s: its predictions may be poor; see data=",
                *(where, *map(list, (there.mean, there.std, spec.mean, spec.std))),
            )


def measure_teacher(
    module: DistillationModule, data: L.LightningDataModule, device: torch.device
) -> dict[str, float]:
    """Accuracy and loss of a module's teacher on validation data, before the student trains.

    A warning says where it is of no use: weights of another normalisation or order of classes
    load without an error, and only the student's figures would suffer. Only cached outputs are
    measured, so a datamodule without ``prepared`` is left alone: its validation data may have no
    end, and its hooks may need a trainer.
    """
    prepared: Any = getattr(data, "prepared", None)
    if module.teacher is None or prepared is None:
        return {}
    cached = module.outputs.cache.outputs(module.teacher, prepared("val"), device)
    if cached is None:
        return {}
    evaluation, classes = None, 0
    with isolate_rng(), torch.inference_mode():  # a loader draws a seed
        for batch in map(as_batch, data.val_dataloader()):
            if batch.index is None:
                return {}
            logits = cached.read(batch.index, 0)["logits"]
            z = mean_probabilities(module.task.rows(logits, batch.target))
            classes = z.shape[-1]
            evaluation = evaluation or module.task.evaluation(classes, with_teacher=False)
            evaluation.update(z, module.task.rows(batch.target, batch.target))
    if evaluation is None:
        return {}
    found = {name: float(value) for name, value in evaluation.result().items()}
    text = ", ".join(f"{name} {show(f'val/{name}', value)}" for name, value in found.items())
    log.info("The teacher on validation data: %s", text)
    near_chance = is_near_chance(found.get("accuracy", 1.0), classes)
    if near_chance or found.get("loss", 0.0) > math.log(classes):
        log.warning(
            "this teacher is hardly better than chance (%.3g %% accuracy, loss %.3g): check its "
            "checkpoint, and whether it was trained on images normalised like these",
            *(100 / classes, math.log(classes)),
        )
    return found


def publish(cfg: DictConfig, data: L.LightningDataModule, world_size: int) -> None:
    """Copy a finished teacher's run into the store, for other jobs to use."""
    FromStore(cfg.teacher_store).store.publish(key_of(cfg, data, world_size), Path(cfg.run_dir))


def teacher_job(cfg: DictConfig) -> DictConfig:
    """Return a job's configuration with the changes in its section ``pretrain``."""
    job = copy.deepcopy(cfg)
    OmegaConf.set_struct(job, False)
    # Not what the user adds for the student, such as +trainer.gradient_clip_val=1.
    if option := chosen_options().get("trainer"):
        usual = option_alone("trainer", option).trainer
        for name in [name for name in job.trainer if name not in usual]:
            del job.trainer[name]
    as_written, values = plain(cfg.pretrain, resolve=False), plain(cfg.pretrain)
    for name, change in as_written.items():
        if isinstance(change, dict) and "_target_" in change:
            # Unresolved: interpolations in an object refer to the teacher's configuration.
            OmegaConf.update(job, name, change, merge=False)
        else:
            OmegaConf.update(job, name, values[name])  # those in a value, to the student's
    job.teacher_ckpt = None
    job.quantize = job.export = None  # of the student
    # A sweep over the student's batch size must not train another teacher for each value.
    option, given = chosen_options().get("data"), OmegaConf.select(cfg, "pretrain.data.batch_size")
    if option and given is None:
        own = option_alone("data", option).data
        if "batch_size" in own and not OmegaConf.is_missing(own, "batch_size"):
            job.data.batch_size = own.batch_size
    return job


def of_pretrain(message: str, cfg: DictConfig) -> str:
    """Name settings of a teacher's job as the user sets them: ``pretrain.optimizer.lr``.

    Args:
        message: an error of that job, which names its settings ``optimizer.lr``.
        cfg: configuration of the student's job.
    """
    sections = "|".join(map(re.escape, map(str, cfg.pretrain)))
    return re.sub(rf"(?<![\w./-])({sections})(?=[.=:]| must)", r"pretrain.\1", message)
