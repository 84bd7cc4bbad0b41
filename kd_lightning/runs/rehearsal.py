"""A rehearsal: one training step with copies, before anything expensive happens.

It finds what no signature shows: a response loss that does not fit the logits, an optimizer or
schedule that refuses its settings, a loss that is not finite.
"""

import copy

import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor

from kd_lightning.modules import DistillationModule
from kd_lightning.modules.base import BaseModule
from kd_lightning.utils.errors import UserError, explaining


def rehearse(module: BaseModule) -> list[str]:
    """Train copies of a module's networks for one step; the module stays as it is.

    Args:
        module: a module on the CPU. Without a specification of the data there is no batch to
            rehearse with, and nothing is done.

    Returns:
        The classes of its optimizers; empty if nothing was done.

    Raises:
        UserError: if the step fails, or its loss is not finite.
    """
    example = module.task.example()
    if example is None:
        return []
    with isolate_rng(), torch.inference_mode(False), torch.enable_grad():
        twin = _copied(module).train()
        batch = example._replace(index=torch.arange(len(example.target)))
        with explaining("method"):
            terms = twin.terms(batch)
            _check_terms(terms)
            terms["loss"].backward()
        with explaining("optimizer"):
            optimizer = twin.make_optimizer(twin.parameter_groups())
        with explaining("lr_scheduler"):
            scheduler = twin.make_lr_scheduler(optimizer) if twin.make_lr_scheduler else None
        with explaining("optimizer"):
            optimizer.step(lambda: float(terms["loss"].detach()))  # LBFGS needs a closure
            if not all(p.isfinite().all() for p in twin.parameters()):
                raise UserError("optimizer: the first step leads to weights that are not finite")
        with explaining("lr_scheduler"):
            if scheduler is not None:
                scheduler.step()
    return [type(optimizer).__name__]


def _copied(module: BaseModule) -> BaseModule:
    """Return a copy that shares the teacher, which no step changes."""
    teacher = module.teacher if isinstance(module, DistillationModule) else None
    return copy.deepcopy(module, {id(teacher): teacher} if teacher is not None else {})


def _check_terms(terms: dict[str, Tensor]) -> None:
    for name, value in terms.items():
        if not isinstance(value, Tensor) or value.dim():
            what = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)
            raise UserError(f"method: the loss {name} must be a single number, but is of {what}")
    bad = [f"{name}={value:g}" for name, value in terms.items() if not value.isfinite()]
    if bad:
        raise UserError(f"method: the loss of the first step is not finite: {', '.join(bad)}")
