"""The LightningModules: one that trains a teacher, one that distils a student."""

from kd_lightning.modules.distillation import DistillationModule as DistillationModule
from kd_lightning.modules.teacher import TeacherModule as TeacherModule
