"""Configured networks: a class with its arguments, and preprocessing of its own."""

import re

from omegaconf import DictConfig, OmegaConf

from kd_lightning.runs.arguments import takes

OWN = ("mean", "std", "size", "interpolation")  # settings of every network's preprocessing
TARGET = "kd_lightning.nets.preprocessing.preprocessed"


def added(word: str) -> str:
    """Return an override in the form that adds a setting, where it may not exist yet.

    No network's file lists the settings of its preprocessing, and ``pretrain`` only what differs
    for the teacher. Misspelt names are found later, with the arguments of their class.

    >>> added("teacher.mean=[0.5]"), added("pretrain.data.batch_size=8"), added("seed=1")
    ('++teacher.mean=[0.5]', '++pretrain.data.batch_size=8', 'seed=1')
    """
    is_new = re.match(rf"(student|teacher)\.({'|'.join(OWN)})=|pretrain\.[a-z_]+\.[\w.]+=", word)
    return f"++{word}" if is_new else word


def with_preprocessing(cfg: DictConfig) -> DictConfig:
    """Return a configuration in which networks with preprocessing of their own are created by it.

    In the sections ``student`` and ``teacher``, the settings :data:`OWN` belong to this package,
    unless the network's class takes an argument of that name.
    """
    cfg = cfg.copy()
    OmegaConf.set_struct(cfg, False)
    for section in ("student", "teacher"):
        net = cfg.get(section)
        if not OmegaConf.is_dict(net) or "_target_" not in net or net._target_ == TARGET:
            continue
        names = [name for name in OWN if name in net and not takes(net._target_, name)]
        if names:
            own = {name: net.pop(name) for name in names}
            cfg[section] = {"_target_": TARGET, "_partial_": True, "net": net, **own}
    return cfg
