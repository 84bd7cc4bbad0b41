"""The LightningModules: for a teacher, for its student, for students among themselves."""

from kd_lightning.modules.distillation import DistillationModule as DistillationModule
from kd_lightning.modules.mutual import MutualModule as MutualModule
from kd_lightning.modules.supervised import TeacherModule as TeacherModule
