"""LightningModules: supervised training, distillation, and mutual learning."""

from kd_lightning.modules.distillation import DistillationModule as DistillationModule
from kd_lightning.modules.mutual import MutualModule as MutualModule
from kd_lightning.modules.supervised import TeacherModule as TeacherModule
