"""Configured networks: a class with its arguments, preprocessing and head of its own."""

import re

from omegaconf import DictConfig, OmegaConf

from kd_lightning.runs.arguments import takes
from kd_lightning.utils.errors import UserError

OWN = ("mean", "std", "size", "interpolation")  # settings of every network's preprocessing
PREPROCESSED = "kd_lightning.nets.preprocessing.preprocessed"
PROBED = "kd_lightning.nets.probe.linear_probe"
QUANTIZED = "kd_lightning.compress.fake_quantize.fake_quantized"
PROBE = "kd_lightning.modules.ProbeModule"  # trains the head
OWN_TARGETS = (PREPROCESSED, PROBED, QUANTIZED)
SUPERVISED = ("kd_lightning.modules.TeacherModule", PROBE)


def added(word: str) -> str:
    """Return an override in the form that adds a setting, where it may not exist yet.

    No network's file lists the settings of its preprocessing, and ``pretrain`` only what differs
    for the teacher. Misspelt names are found later, with the arguments of their class.

    >>> added("teacher.mean=[0.5]"), added("pretrain.data.batch_size=8"), added("seed=1")
    ('++teacher.mean=[0.5]', '++pretrain.data.batch_size=8', 'seed=1')
    """
    is_new = re.match(
        rf"(student|teacher)\.({'|'.join((*OWN, 'head'))})=|pretrain\.[a-z_]+\.[\w.]+=", word
    )
    return f"++{word}" if is_new else word


def with_own_parts(cfg: DictConfig) -> DictConfig:
    """Return a configuration whose networks are created with preprocessing and head of their own.

    In the sections ``student`` and ``teacher``, the settings :data:`OWN` and ``head`` belong to
    this package, unless the network's class takes an argument of that name.

    With ``quantize=``, the student is created fake-quantised, wherever it is created.

    Raises:
        UserError: if a student has a ``head``, or no student is trained that could be quantised.
    """
    cfg = cfg.copy()
    OmegaConf.set_struct(cfg, False)
    for section in ("student", "teacher"):
        net = cfg.get(section)
        if not OmegaConf.is_dict(net) or net.get("_target_", PROBED) in OWN_TARGETS:
            continue
        names = [name for name in OWN if name in net and not takes(net._target_, name)]
        head = net.pop("head", None) if not takes(net._target_, "head") else None
        if names:
            own = {name: net.pop(name) for name in names}
            net = {"_target_": PREPROCESSED, "_partial_": True, "net": net, **own}
        if head is not None and section == "student":
            raise UserError("student.head: only a teacher can be a linear probe: see teacher.head=")
        if head is not None:
            net = {"_target_": PROBED, "_partial_": True, "net": net, "head": head}
            _probe(cfg)
        cfg[section] = net
    _quantize(cfg)
    return cfg


def _quantize(cfg: DictConfig) -> None:
    quantize = cfg.get("quantize")
    if not quantize or cfg.student.get("_target_") == QUANTIZED:
        return
    if cfg.model._target_ in SUPERVISED:
        raise UserError(
            "quantize= quantises a student: choose model=student, with method=ce for labels alone"
        )
    own = {"_partial_": True, "net": cfg.student, "bits": quantize.get("bits", 8)}
    cfg.student = {"_target_": QUANTIZED, **own}


def _probe(cfg: DictConfig) -> None:
    """Let teachers be trained as linear probes: in one step."""
    for job in (cfg, cfg.pretrain):
        if job.model._target_ == SUPERVISED[0]:
            job.model._target_ = PROBE
            job.trainer.max_epochs = 1
