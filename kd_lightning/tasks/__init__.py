"""Tasks: what a network predicts, and how its outputs become rows and figures."""

from kd_lightning.tasks.classification import Classification as Classification
from kd_lightning.tasks.task import Task as Task
