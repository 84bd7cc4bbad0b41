"""Chains of distillations, in which each link's student is the next link's teacher.

Generations repeat one network, the first trained on labels alone (Born-Again Networks:
Furlanello et al. 2018, arXiv 1805.04770). Assistants are networks of decreasing size between
teacher and student (Mirzadeh et al. 2020, arXiv 1902.03393). Each link has a run directory
inside the chain's; a resumed chain continues with its first unfinished link.
"""

import copy
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import lightning as L
import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn

from kd_lightning.data.types import Spec
from kd_lightning.nets.ensemble import Ensemble, mean_probabilities
from kd_lightning.runs.build import build_data, build_task, make
from kd_lightning.runs.checkpoints import load_network
from kd_lightning.runs.directory import plain, start_anew, write_config, write_metrics
from kd_lightning.runs.export import export_all
from kd_lightning.runs.job import prepare, recorded
from kd_lightning.runs.load import untrained
from kd_lightning.runs.processes import chosen_options, own_overrides
from kd_lightning.runs.ranks import ranks
from kd_lightning.runs.record import facts, parse_overrides, teacher_figures, write_facts
from kd_lightning.runs.resumption import FINISHED, is_already_finished
from kd_lightning.utils.errors import UserError
from kd_lightning.utils.reading import read_json
from kd_lightning.utils.run_directory import FACTS, LINKS, METRICS, find_checkpoint

STORE = "kd_lightning.teachers.sources.FromStore"  # gives way to a teacher_ckpt
log = logging.getLogger(__name__)

LINK = "KD_CHAIN_LINK"  # environment variable: the current link, for other ranks of a DDP job
# Link i has seed + 1000·i: consecutive seeds would repeat in the chains of a sweep over seeds.
SEEDS_APART = 1000


class Chain:
    """Sequence of links, as configured in the section ``chain``.

    Args:
        cfg: configuration of the chain.
        train: runs the job of a configuration and returns its figures.

    Raises:
        UserError: if the section has neither generations nor assistants, or the module takes
            no teacher.
    """

    def __init__(self, cfg: DictConfig, train: Callable[[DictConfig], Any]) -> None:
        self.cfg, self.train = cfg, train
        self.root = Path(cfg.run_dir)
        if not getattr(make(cfg.model, "model").func, "takes_teacher", False):
            raise UserError("a chain needs model=student: each link teaches the next one")
        chain = plain(cfg.chain)
        if "generations" in chain:
            self.nets = [cfg.student] * _count(chain["generations"])
        elif isinstance(chain.get("assistants"), dict):
            self.nets = [*cfg.chain.assistants.values(), cfg.student]
        else:
            raise UserError("chain needs generations or assistants: see conf/experiment")
        self.names = link_names(chain)

    def run(self) -> dict[str, Any]:
        """Train the unfinished links and return the figures of the chain; see :meth:`figures`."""
        if LINK in os.environ:  # this process is another rank of one link's DDP job
            return self.train(self.job(int(os.environ[LINK])))
        data = build_data(self.cfg)
        self.task = build_task(self.cfg, data)
        self.try_out(data)
        if not self.cfg.resume and ranks().is_main:
            # The last link first: if this is interrupted, no link looks finished whose teacher
            # does not.
            for home in (self.root, *map(self.home, reversed(range(len(self.names))))):
                start_anew(home)
        jobs = [self.job(i) for i in range(len(self.names))]
        if (self.root / METRICS).is_file() and all(map(is_already_finished, jobs)):
            log.info(FINISHED, self.root)
            return read_json(self.root / METRICS)
        if ranks().is_main:
            write_config(self.root, self.cfg, own_overrides(self.cfg))
            write_facts(self.root, self.facts())
        metrics: dict[str, Any] = {}
        for i, job in enumerate(jobs):
            if not is_already_finished(job):
                os.environ[LINK] = str(i)
                try:
                    metrics = self.train(job)
                finally:
                    del os.environ[LINK]
        if not ranks().is_main:
            return metrics
        write_facts(self.root, self.facts())  # again, as the last link's teacher exists only now
        metrics = self.figures(data)
        write_metrics(self.root, metrics)
        export_all(self.cfg)
        return metrics

    def try_out(self, data: L.LightningDataModule) -> None:
        """Build every link's networks, so mistakes are reported before the first training."""
        for i in range(len(self.names)):
            job = self.job(i)
            # The previous link has no checkpoint yet; the check needs networks, not weights.
            job.teacher_ckpt = None if i else job.teacher_ckpt
            prepare(job, data, self.train)

    def facts(self) -> dict[str, Any]:
        """Return the facts of the chain, for ``run.json``."""
        last, own = str(self.home(len(self.names) - 2)), self.home(len(self.names) - 1) / FACTS
        link = read_json(own) if own.is_file() else {}  # once the last link has begun
        record = facts(
            recorded(self.cfg),
            chosen_options(),
            parse_overrides(own_overrides(self.cfg) or []),
            role=link.get("role", "student"),
            processes=link.get("processes", 1),
            unresolved=plain(self.cfg, resolve=False),
            task=self.task.name,
            teacher=last,
            links=self.names,
        )
        return {**record, "teacher_figures": teacher_figures(Path(last))}

    def home(self, i: int) -> Path:
        """Return the run directory of a link."""
        return self.root / LINKS / str(i)

    def job(self, i: int) -> DictConfig:
        """Return the configuration of a link."""
        job = copy.deepcopy(self.cfg)
        OmegaConf.set_struct(job, False)
        net = copy.deepcopy(self.nets[i])
        if i == 0 and "first" in self.cfg.chain:
            job.model = job.chain.first  # on labels alone
        elif i > 0:
            job.teacher, job.teacher_ckpt = copy.deepcopy(self.nets[i - 1]), str(self.home(i - 1))
            # what teacher_from= names teaches the first link only
            job.teacher_from = {"_target_": STORE, "root": job.teacher_store}
        job.student = net
        job.seed = self.cfg.seed + SEEDS_APART * i
        # Resolved before it is copied: a reference to seed would differ from link to link.
        job.pretrain.seed = self.cfg.pretrain.seed
        job.run_dir = str(self.home(i))
        job.resume = str(self.home(i)) if self.cfg.resume and self.home(i).is_dir() else None
        job.chain = job.export = None  # the chain exports its last link
        return job

    def network(self, i: int, spec: Spec) -> nn.Module:
        """Return the network of a finished link, at its best epoch."""
        net = untrained(self.nets[i], spec)
        return load_network(net, find_checkpoint(self.home(i)), option="net@student").eval()

    def figures(self, data: L.LightningDataModule) -> dict[str, Any]:
        """Return the last link's figures, each link's accuracies, and those of their ensemble."""
        links = [read_json(self.home(i) / METRICS) for i in range(len(self.names))]
        metrics = dict(links[-1])
        for i, link in enumerate(links):
            metrics |= {f"{s}/accuracy_{i}": link[f"{s}/accuracy"] for s in ("val", "test")}
        spec = self.task.spec
        assert spec is not None
        ensemble = Ensemble([self.network(i, spec) for i in range(len(links))])
        for split in ("val", "test"):
            metrics[f"{split}/ensemble_accuracy"] = accuracy(ensemble, data, split)
        return {**metrics, "seconds": sum(m["seconds"] for m in links)}


def link_names(chain: Mapping[str, Any]) -> list[str]:
    """Return the names of a chain's links, from first to last."""
    if "generations" in chain:
        return [f"generation {i}" for i in range(chain["generations"])]
    return [*map(str, chain["assistants"]), "student"]


def _count(generations: Any) -> int:
    if not isinstance(generations, int) or generations < 2:
        raise UserError(f"chain.generations must be a whole number from 2, got {generations}")
    return generations


@torch.inference_mode()
def accuracy(ensemble: Ensemble, data: Any, split: str) -> float:
    """Return the accuracy of the mean of the members' probabilities on a split."""
    target, correct = data.splits[split].target, 0
    for _, index, inputs in data.prepared(split).batches(torch.device("cpu")):
        predicted = mean_probabilities(ensemble(inputs)).argmax(1)
        correct += int((predicted == target[index]).sum())
    return correct / len(target)
