"""LightningModules: supervised training, linear probes, distillation, and mutual learning."""

from kd_lightning.modules.distillation import DistillationModule as DistillationModule
from kd_lightning.modules.matching import MatchingModule as MatchingModule
from kd_lightning.modules.mutual import MutualModule as MutualModule
from kd_lightning.modules.probe import ProbeModule as ProbeModule
from kd_lightning.modules.supervised import TeacherModule as TeacherModule
