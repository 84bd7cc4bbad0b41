"""Distillations one after the other: each link's student teaches the next.

Generations: the same network again and again, the first on labels alone (Born-Again
Networks: Furlanello et al. 2018, arXiv 1805.04770). Assistants: networks of falling size
between teacher and student (Mirzadeh et al. 2020, arXiv 1902.03393). A link is a run
directory inside the chain's; a resumed chain goes on in the link it was in.
"""

import copy
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn

from kd_lightning.cli.launch import own_overrides
from kd_lightning.data.memory import InMemoryDataModule
from kd_lightning.data.types import DataSpec
from kd_lightning.nets.ensemble import Ensemble, mean_probabilities
from kd_lightning.report.chain import link_names, print_chain
from kd_lightning.runs.build import build_data, try_out
from kd_lightning.runs.checkpoints import load_network
from kd_lightning.runs.directory import (
    find_checkpoint,
    plain,
    read_metrics,
    start_anew,
    untrained,
    write_config,
    write_metrics,
)
from kd_lightning.utils.errors import UserError

LINK = "KD_CHAIN_LINK"  # tells the other processes of a DDP job which link is theirs
SEEDS_APART = 1000  # links start from different weights, and chains of a sweep too


class Chain:
    """The links that a configuration's section ``chain`` asks for, one after the other.

    Args:
        cfg: the configuration of the whole.
        train: one job from its configuration to its metrics.

    Raises:
        UserError: if the section asks for nothing that can be run.
    """

    def __init__(self, cfg: DictConfig, train: Callable[[DictConfig], Any]) -> None:
        self.cfg, self.train = cfg, train
        self.root = Path(cfg.run_dir)
        if "teacher" not in cfg.model:
            raise UserError("a chain needs model=student: each link is the next one's teacher")
        chain = plain(cfg.chain)
        if "generations" in chain:
            self.nets = [cfg.student] * _count(chain["generations"])
        elif isinstance(chain.get("assistants"), dict):
            self.nets = [*cfg.chain.assistants.values(), cfg.student]
        else:
            raise UserError("chain needs generations or assistants: see conf/experiment")
        self.names = link_names(chain)

    def run(self) -> dict[str, Any]:
        """Train what is not finished; the last link's figures, and those of all."""
        if LINK in os.environ:  # a process that belongs to one link
            return self.train(self.job(int(os.environ[LINK])))
        data = build_data(self.cfg)
        self.try_out(data)
        if not self.cfg.resume:
            for home in (self.root, *map(self.home, reversed(range(len(self.names))))):
                start_anew(home)
        write_config(self.root, self.cfg, own_overrides(self.cfg))
        for i in range(len(self.names)):
            if not (self.cfg.resume and (self.home(i) / "metrics.json").is_file()):
                os.environ[LINK] = str(i)
                try:
                    self.train(self.job(i))
                finally:
                    del os.environ[LINK]
        metrics = self.figures(data)
        write_metrics(self.root, metrics)
        print_chain(self.root)
        return metrics

    def try_out(self, data: InMemoryDataModule) -> None:
        """Build what every link will train, so that what is wrong shows before the first."""
        for i in range(len(self.names)):
            job = self.job(i)
            job.teacher_ckpt = None if i else job.teacher_ckpt  # links are not there yet
            try_out(job, data)

    def home(self, i: int) -> Path:
        """The run directory of a link."""
        return self.root / "links" / str(i)

    def job(self, i: int) -> DictConfig:
        """The configuration of a link."""
        job = copy.deepcopy(self.cfg)
        OmegaConf.set_struct(job, False)
        net = copy.deepcopy(self.nets[i])
        if i == 0 and "first" in self.cfg.chain:
            job.model = job.chain.first  # on labels alone
        elif i > 0:
            job.teacher, job.teacher_ckpt = copy.deepcopy(self.nets[i - 1]), str(self.home(i - 1))
        job.student = net
        job.seed = self.cfg.seed + SEEDS_APART * i
        job.pretrain.seed = self.cfg.pretrain.seed
        job.run_dir = str(self.home(i))
        job.resume = str(self.home(i)) if self.cfg.resume and self.home(i).is_dir() else None
        job.chain = None
        return job

    def network(self, i: int, spec: DataSpec) -> nn.Module:
        """What a link has trained, at its best epoch."""
        net = untrained(self.nets[i], spec)
        return load_network(net, find_checkpoint(self.home(i)), option="net@student").eval()

    def figures(self, data: InMemoryDataModule) -> dict[str, Any]:
        """The last link's figures, each link's accuracies, and those of all links together."""
        links = [read_metrics(self.home(i)) for i in range(len(self.names))]
        metrics = dict(links[-1])
        for i, link in enumerate(links):
            metrics |= {f"{s}/accuracy_{i}": link[f"{s}/accuracy"] for s in ("val", "test")}
        ensemble = Ensemble([self.network(i, data.spec) for i in range(len(links))])
        for split in ("val", "test"):
            metrics[f"{split}/ensemble_accuracy"] = accuracy(ensemble, data, split)
        return {**metrics, "seed": self.cfg.seed, "seconds": sum(m["seconds"] for m in links)}


def _count(generations: Any) -> int:
    if not isinstance(generations, int) or generations < 2:
        raise UserError(f"chain.generations must be a whole number from 2, got {generations}")
    return generations


@torch.inference_mode()
def accuracy(ensemble: Ensemble, data: InMemoryDataModule, split: str) -> float:
    """Share of a split's samples that the mean of the members' probabilities gets right."""
    target, correct = data.splits[split].target, 0
    for _, index, inputs in data.prepared(split).batches(torch.device("cpu")):
        answers = mean_probabilities(ensemble(inputs)).argmax(1)
        correct += int((answers == target[index]).sum())
    return correct / len(target)
