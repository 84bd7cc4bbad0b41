"""The LightningModules: of a teacher, of its student, and of students of one another."""

from kd_lightning.modules.distillation import DistillationModule as DistillationModule
from kd_lightning.modules.mutual import MutualModule as MutualModule
from kd_lightning.modules.supervised import TeacherModule as TeacherModule
