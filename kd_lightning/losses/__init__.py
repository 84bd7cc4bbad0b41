"""Losses of knowledge distillation: pure functions of tensors, a family a file."""

from kd_lightning.losses.response import soft_targets as soft_targets
