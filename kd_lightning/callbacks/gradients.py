"""Balance of the terms of the loss: norms of their gradients, and the angles between them."""

import copy
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor

from kd_lightning.callbacks.dashboard import has_board
from kd_lightning.data.types import Batch, as_batch
from kd_lightning.modules import DistillationModule


class GradientBalance(L.Callback):
    """Compares the gradients of the terms of a student's loss, every n training batches.

    Logged, θ being the student's parameters:

    - ``gradient/hard``, ``gradient/response``, ``gradient/<transfer term>``: the norm
      ‖w·∂L/∂θ‖₂ of a term L with its weight w in the loss.
    - ``gradient/cosine_<term>``: the cosine between ∂L/∂θ and the hard term's gradient;
      below 0 the term works against the labels.

    Each process uses its own batch, and the first one's values are logged. The terms are
    computed once more, on copies of student and objective and with the random state restored,
    so that training is not affected. That costs as much as two or three steps.

    Args:
        every_n_steps: n, in batches; 0 for never.

    Sources: norms as a measure of balance: Chen et al. 2018, "GradNorm", arXiv 1711.02257;
    the cosine as a sign of whether another loss helps: Du et al. 2018, arXiv 1812.02224.
    """

    shapes_result = False

    def __init__(self, every_n_steps: int = 200) -> None:
        self.every_n_steps = every_n_steps

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        every = self.every_n_steps
        if every == 0 or trainer.fit_loop.total_batch_idx % every or not has_board(trainer):
            return
        if isinstance(pl_module, DistillationModule):
            with isolate_rng(), trainer.precision_plugin.train_step_context():
                values = balance(pl_module, as_batch(batch))
            for logger in trainer.loggers:
                logger.log_metrics(values, trainer.global_step)


def balance(module: DistillationModule, batch: Batch) -> dict[str, float]:
    """Norms and cosines of the terms of a training batch, by the name they are logged under."""
    # Copies: batch statistics and a bank of embeddings would otherwise be updated twice.
    student, objective = copy.deepcopy((module.student, module.objective))
    terms = module.terms_of(student, objective, batch)
    weights = objective.term_weights(module.progress)
    parameters = [p for p in student.parameters() if p.requires_grad]
    gradients = {name: gradient(terms[name], parameters) for name in weights}
    norms = {name: weights[name] * g.norm() for name, g in gradients.items()}
    hard = gradients.pop("hard")
    cosines = {f"cosine_{k}": F.cosine_similarity(hard, g, dim=0) for k, g in gradients.items()}
    return {f"gradient/{name}": float(value) for name, value in {**norms, **cosines}.items()}


def gradient(term: Tensor, parameters: list[torch.nn.Parameter]) -> Tensor:
    """Gradient of a scalar with respect to all parameters, as one vector; the graph is kept."""
    found = torch.autograd.grad(term, parameters, retain_graph=True, materialize_grads=True)
    return torch.cat([g.flatten().float() for g in found])
