"""The command: find the teacher, train, validate, test once, record.

python train.py model=student method=kd          (kd-train, once installed)
"""

import logging
import os
import sys
import time
from pathlib import Path
from typing import Any

import hydra
import lightning as L
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.profilers import Profiler
from omegaconf import DictConfig, OmegaConf

from kd_lightning.callbacks.loggers import log_outcome
from kd_lightning.callbacks.profiler import PhaseProfiler, Unprofiled
from kd_lightning.cli.console import print_run
from kd_lightning.cli.launch import arranged, find_plugins, one_job, own_overrides, quieten, run_job
from kd_lightning.data.memory import InMemoryDataModule
from kd_lightning.modules import DistillationModule, TeacherModule
from kd_lightning.modules.base import Learner
from kd_lightning.runs.build import build_data, build_module, make, try_out
from kd_lightning.runs.chain import Chain
from kd_lightning.runs.checkpoints import AtomicCheckpointIO, describe_mismatch, read_checkpoint
from kd_lightning.runs.directory import (
    choices,
    commit,
    find_checkpoint,
    start_anew,
    typed,
    write_config,
    write_evidence,
    write_metrics,
)
from kd_lightning.runs.pretrain import find_teachers, publish
from kd_lightning.teachers.cache import TeacherCache
from kd_lightning.utils.errors import UserError
from kd_lightning.utils.process import tune_process

log = logging.getLogger(__name__)

CACHES: dict[str, TeacherCache] = {}

PACKAGE = Path(__file__).resolve().parent.parent
CONF = next(p for p in (PACKAGE / "conf", PACKAGE.parent / "conf") if p.is_dir())  # wheel, clone


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="train")
def _hydra_main(cfg: DictConfig) -> float:
    quieten()
    tune_process()
    find_plugins()
    job = run_chain if cfg.chain else train
    return run_job(lambda: job(cfg)[cfg.monitor])


def main() -> None:
    """Entry point of ``train.py`` and ``kd-train``."""
    try:
        sys.argv = arranged(sys.argv)
    except UserError as error:
        sys.exit(f"error: {error}")
    _hydra_main()


def run_chain(cfg: DictConfig) -> dict[str, Any]:
    """Several jobs, each link's student the next one's teacher."""
    return Chain(cfg, train).run()


def train(cfg: DictConfig) -> dict[str, Any]:
    """One job from its configuration to its metrics, in its run directory."""
    profiler = PhaseProfiler() if cfg.profile else Unprofiled()
    with profiler.profile("data_next"):
        data = build_data(cfg)
    try_out(cfg, data)  # what is wrong with these two shows before a teacher is trained
    build_trainer(cfg, profiler)
    with profiler.profile("find_teacher"):
        teachers = find_teachers(cfg, data, train) if "teacher" in cfg.model else []
    L.seed_everything(cfg.seed, verbose=False)  # found or trained, the teacher changes nothing
    module = build_module(cfg, data, teachers)
    if isinstance(profiler, PhaseProfiler) and isinstance(module, DistillationModule):
        profiler.watch(module.teacher)
    checkpoint = checkpoint_to_resume(cfg, module)
    with one_job():
        trainer = build_trainer(cfg, profiler)
        if trainer.is_global_zero:
            if not cfg.resume:
                start_anew(Path(cfg.run_dir))
            write_config(Path(cfg.run_dir), cfg, own_overrides(cfg))
        metrics = run(cfg, trainer, module, data, checkpoint)
        metrics |= {"teacher": ", ".join(map(str, teachers))} if teachers else {}
        if trainer.is_global_zero:
            finish(cfg, trainer, metrics)
            if isinstance(module, TeacherModule):
                publish(cfg, data, trainer.world_size)
            print(profiler.summary(), end="")
    return metrics


def run(
    cfg: DictConfig,
    trainer: L.Trainer,
    module: Learner,
    data: InMemoryDataModule,
    checkpoint: Path | None,
) -> dict[str, Any]:
    """Fit, validate the best epoch, and read the test data, once."""
    remember(cfg, trainer, module, data, "train", "val")
    start = time.perf_counter()
    trainer.fit(module, data, ckpt_path=checkpoint, weights_only=True)
    seconds = time.perf_counter() - start
    best = getattr(trainer.checkpoint_callback, "best_model_path", None) or None
    trainer.validate(module, data, ckpt_path=best, verbose=False, weights_only=True)
    figures = dict(trainer.callback_metrics)
    if trainer.is_global_zero:
        write_evidence(Path(cfg.run_dir), module.tables)
    remember(cfg, trainer, module, data, "test")
    trainer.test(module, data, verbose=False)
    figures |= trainer.callback_metrics
    return {
        **{name: float(value) for name, value in figures.items()},
        **module.to(trainer.strategy.root_device).describe(),  # Lightning left it on the CPU
        "role": module.role,
        "seconds": round(seconds, 2),
        "seed": cfg.seed,
        "epochs": trainer.current_epoch,
        "commit": commit(),
    }


def remember(
    cfg: DictConfig, trainer: L.Trainer, module: Learner, data: InMemoryDataModule, *splits: str
) -> None:
    """Have a teacher answer to whole splits once; all processes and jobs share the answers."""
    if isinstance(module, DistillationModule):
        cache, device = cache_of(cfg), trainer.strategy.root_device
        for split in splits:
            module.remember(split, data.prepared(split), cache, device)


def cache_of(cfg: DictConfig) -> TeacherCache:
    """The cache of these settings; the jobs of a sweep that run in one process share it."""
    settings = OmegaConf.to_yaml(cfg.cache, resolve=True)
    return CACHES.setdefault(settings, make(cfg.cache))


def finish(cfg: DictConfig, trainer: L.Trainer, metrics: dict[str, Any]) -> None:
    """Leave the run directory complete, and say what came out."""
    own = typed(cfg, own_overrides(cfg))
    log_outcome(trainer.loggers, choices(cfg) | own, metrics, trainer.global_step, first=own)
    write_metrics(Path(cfg.run_dir), metrics)
    print_run(Path(cfg.run_dir))


def build_trainer(cfg: DictConfig, profiler: Profiler) -> L.Trainer:
    callbacks = list(make(cfg.callbacks).values())
    watched = cfg.trainer.enable_progress_bar and sys.stdout.isatty()
    trainer = make(cfg.trainer)(
        callbacks=[c for c in callbacks if watched or not isinstance(c, ProgressBar)],
        logger=list(make(cfg.logger).values()),
        plugins=[AtomicCheckpointIO()],
        enable_progress_bar=watched,
        profiler=profiler,
    )
    cores = os.cpu_count() or 1
    if trainer.strategy.root_device.type == "cpu" and trainer.num_devices > cores:
        raise UserError(
            f"trainer.devices={trainer.num_devices} asks for more processes than "
            f"the {cores} cores of this machine"
        )
    return trainer


def checkpoint_to_resume(cfg: DictConfig, module: Learner) -> Path | None:
    """The checkpoint that ``resume`` means, if an epoch had ended."""
    if not cfg.resume:
        return None
    path = find_checkpoint(cfg.resume, "last")
    if Path(cfg.resume).is_dir() and not path.is_file():
        log.info("no epoch had ended in %s: starting at the beginning", cfg.resume)
        return None
    found = read_checkpoint(path).get("state_dict", {})
    if difference := describe_mismatch(module.state_dict(), found):
        raise UserError(f"resume={path} belongs to another network: {difference}")
    return path


if __name__ == "__main__":
    main()
