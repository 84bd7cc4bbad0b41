"""Balance of the loss terms: norms of their gradients, and cosines between them."""

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
    """Log norms and cosines of the loss terms' gradients, every n training batches.

    With θ the student's parameters:

    - ``gradient/hard``, ``gradient/response``, ``gradient/<transfer term>``: the norm
      ‖w·∂L/∂θ‖₂ of a term L with weight w.
    - ``gradient/cosine_<term>``: the cosine between ∂L/∂θ and the gradient of the hard term;
      if negative, the term works against the labels.

    Each process uses its own batch, and the values of the first process are logged. The terms
    are computed again, on copies of student and objective and with the random state restored,
    so training is not affected. A measurement takes as long as two or three steps.

    Args:
        every_n_steps: n, in batches; 0 disables the callback.

    Sources: Chen et al. 2018, "GradNorm", arXiv 1711.02257, for norms as a measure of balance;
    Du et al. 2018, arXiv 1812.02224, for the cosine as a sign of whether a loss helps another.
    """

    shapes_result = False

    def __init__(self, every_n_steps: int = 200) -> None:
        self.every_n_steps = every_n_steps

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        every = self.every_n_steps
        # has_board() is the same on all ranks, so all of them measure at the same steps and none
        # waits for another.
        if every == 0 or trainer.fit_loop.total_batch_idx % every or not has_board(trainer):
            return
        if isinstance(pl_module, DistillationModule):
            with isolate_rng(), trainer.precision_plugin.train_step_context():
                values = balance(pl_module, as_batch(batch))
            for logger in trainer.loggers:
                logger.log_metrics(values, trainer.global_step)


def balance(module: DistillationModule, batch: Batch) -> dict[str, float]:
    """Return norms and cosines of the terms for a training batch, by logged name."""
    # Copies, since batch statistics and memory banks would otherwise be updated twice.
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
    """Return the gradient of a scalar with respect to all parameters, as one vector."""
    # The graph is kept for the other terms. Zeros for parameters that a term does not use.
    found = torch.autograd.grad(term, parameters, retain_graph=True, materialize_grads=True)
    return torch.cat([g.flatten().float() for g in found])
