"""The training of many students in one step, epoch by epoch.

Shapes: S students, B samples in a batch of each, C classes. Each student has its own order of
samples, temperature, weights of the losses, learning rate and best epoch.
"""

import copy
import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim import Optimizer

from kd_lightning.data.batches import TrainingBatches
from kd_lightning.data.images import ImageDataModule
from kd_lightning.data.types import Batch
from kd_lightning.modules import DistillationModule
from kd_lightning.modules.base import diverged
from kd_lightning.modules.step_terms import StepTerms
from kd_lightning.sweeps.evaluation import Samples, figures, logits
from kd_lightning.sweeps.history import Entry, Epoch, History, Kept
from kd_lightning.sweeps.optimizer import StackedOptimizer
from kd_lightning.sweeps.recipe import Limits, Recipe
from kd_lightning.sweeps.students import Students, Terms

log = logging.getLogger(__name__)


class Training:
    """Trains students together.

    Args:
        students: their weights, on the device of the training.
        module: of one of them, for the teacher's outputs.
        make_optimizer: creates an optimizer from parameter groups.
        recipes: how each student is trained.
        limits: what is common.
        val: validation data.
    """

    def __init__(
        self,
        students: Students,
        module: DistillationModule,
        make_optimizer: Callable[[Any], Optimizer],
        recipes: Sequence[Recipe],
        limits: Limits,
        val: Samples,
    ) -> None:
        self.students, self.module, self.recipes, self.limits = students, module, recipes, limits
        self.objective, self.val = recipes[0].objective, val
        self.device = next(iter(students.weights.values())).device
        dtype = module.dtype
        assert isinstance(dtype, torch.dtype)
        self.dtype = dtype
        self.optimizer = StackedOptimizer(
            students.weights, make_optimizer, [recipe.optimizer for recipe in recipes]
        )
        # Students with one seed have one order of samples.
        unique = {recipe.data.seed: recipe.data for recipe in recipes}
        self._which = torch.tensor([list(unique).index(recipe.data.seed) for recipe in recipes])
        self._samplers = [_sampler(data) for data in unique.values()]
        self._is_constant = all(recipe.objective.is_constant for recipe in recipes)
        self._values: dict[str, Tensor] = {}
        self.history = History(Kept.nothing(len(recipes)), Kept.nothing(len(recipes)))
        self._scores: list[float | None] = [None] * len(recipes)
        self._rows: list[list[Tensor]] = []
        self._names: list[str] = []

    def run(self) -> History:
        """Train all epochs; a student whose loss is not finite fails, and the others go on."""
        started, count = time.perf_counter(), len(self.recipes)
        for epoch in range(self.limits.epochs):
            began = time.perf_counter()
            found = Epoch()
            self.history.epochs.append(found)
            self._train(epoch, found)
            self._validate(epoch, found)
            found.seconds = (time.perf_counter() - began) / count
            self.history.seconds = (time.perf_counter() - started) / count
            self._schedule()
            self._keep(epoch, found)
            log.info(
                "%d students together: epoch %d of %d (%.1f s)",
                *(count, epoch + 1, self.limits.epochs, found.seconds * count),
            )
            if len(self.history.problems) == count:
                break
        return self.history

    def orders(self, epoch: int) -> tuple[Tensor, list[int]]:
        """Return the order of samples of each student, S×N, and the sizes of the batches."""
        orders, sizes = [], []
        for sampler in self._samplers:
            sampler.set_epoch(epoch)
            batches = list(sampler)
            orders.append(torch.cat(batches))
            sizes = [len(batch) for batch in batches]
        return torch.stack(orders)[self._which.to(orders[0].device)].to(self.device), sizes

    def terms(self, index: Tensor, epoch: int, progress: float) -> Terms:
        """Compute the terms of a step for the samples at ``index``, S×B."""
        data = self.recipes[0].data
        batch = data.seen("train", index.flatten(), epoch, self.dtype)
        z_t = None
        if self.objective.needs_teacher:
            assert self.module.teacher is not None
            flat = Batch(batch.inputs, batch.target, index.flatten())
            found = self.module.outputs.read(self.module.teacher, flat, "train", epoch, [])
            z_t = found["logits"].unflatten(0, index.shape)
        x, y = batch.inputs.unflatten(0, index.shape), batch.target.unflatten(0, index.shape)
        return self.students.terms(self.objective, self.values(progress), x, z_t, y, index)

    def step(self, index: Tensor, epoch: int, progress: float) -> Terms:
        """Train all students for one step."""
        terms = self.terms(index, epoch, progress)
        # The students do not depend on one another: the gradient of the sum is that of each.
        terms["loss"].sum().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return terms

    def values(self, progress: float) -> dict[str, Tensor]:
        """Return α, T and the weight of the labels of each student, S each."""
        if not self._values or not self._is_constant:
            objectives = [recipe.objective for recipe in self.recipes]
            rows = {
                "alpha": [o.alpha(progress) for o in objectives],
                "temperature": [float(o.settings(progress)["temperature"]) for o in objectives],
                "hard_weight": [o.hard_weight(progress) for o in objectives],
            }
            self._values = {
                k: torch.tensor(row, dtype=self.dtype, device=self.device)
                for k, row in rows.items()
            }
        return self._values

    def _train(self, epoch: int, found: Epoch) -> None:
        order, sizes = self.orders(epoch)
        self.history.steps = steps = len(sizes)
        every, balance = self.limits.log_every, self.limits.gradients_every
        for i, index in enumerate(order.split(sizes, dim=1)):
            done, progress = epoch * steps + i, epoch + i / steps
            if self.limits.lr_name and (done + 1) % every == 0:
                rates = [r.optimizer.param_groups[0]["lr"] for r in self.recipes]
                found.entries.append(Entry(done, {self.limits.lr_name: rates}))
            if balance and done % balance == 0:
                found.entries.append(Entry(done, self._balance(index, epoch, progress)))
            terms = self.step(index, epoch, progress)
            self._names = list(terms)
            self._rows.append([term.detach() for term in terms.values()])
            if (i + 1) % every == 0 or i + 1 == steps:
                self._log_steps(done + 1, epoch, progress, found)

    def _log_steps(self, done: int, epoch: int, progress: float, found: Epoch) -> None:
        """Log the mean of each term since the last entry, and find students that diverged."""
        table = torch.stack([torch.stack(row) for row in self._rows]).float().cpu()  # K×terms×S
        self._rows.clear()
        for student in (~table.isfinite().all(0).all(0)).nonzero().flatten().tolist():
            if student not in self.history.problems:
                own = StepTerms()  # its message names the first such step
                own.names, own.rows = self._names, [list(row) for row in table[:, :, student]]
                try:
                    own.flush(done)
                except FloatingPointError as error:
                    self._fail(student, str(error))
        means = dict(zip(self._names, table.mean(0).tolist(), strict=True))
        settings = [recipe.objective.settings(progress) for recipe in self.recipes]
        means |= {name: [one[name] for one in settings] for name in settings[0]}
        values = {f"train/{name}": row for name, row in means.items()}
        found.entries.append(Entry(done - 1, values, epoch))
        found.figures["train/loss"] = values["train/loss"]

    def _fail(self, student: int, what: str) -> None:
        best = self.recipes[student].best if self._scores[student] is not None else ""
        self.history.problems[student] = diverged(what, best)
        entries = sum(len(epoch.entries) for epoch in self.history.epochs)
        self.history.stopped[student] = entries

    def _balance(self, index: Tensor, epoch: int, progress: float) -> dict[str, list[float]]:
        """Return what :class:`~kd_lightning.callbacks.gradients.GradientBalance` measures."""
        kept = {name: value.clone() for name, value in self.students.rest.items()}
        terms, weights = self.terms(index, epoch, progress), self.values(progress)
        shares = {"hard": weights["hard_weight"]}
        if self.objective.uses_response:
            shares["response"] = weights["alpha"]
        gradients = {name: self._gradient(terms[name]) for name in shares}
        found = {name: shares[name] * gradients[name].norm(dim=1) for name in shares}
        for name, value in kept.items():  # batch statistics, which the pass has changed
            self.students.rest[name].copy_(value)
        hard = gradients.pop("hard")
        for name, other in gradients.items():
            found[f"cosine_{name}"] = F.cosine_similarity(hard, other, dim=1)
        return {f"gradient/{name}": value.tolist() for name, value in found.items()}

    def _gradient(self, term: Tensor) -> Tensor:
        weights = list(self.students.weights.values())
        found = torch.autograd.grad(term.sum(), weights, retain_graph=True, materialize_grads=True)
        return torch.cat([g.flatten(1).float() for g in found], dim=1)

    def _validate(self, epoch: int, found: Epoch) -> None:
        values = figures(logits(self.students, self.val), self.val)
        rows = {f"val/{name}": value.tolist() for name, value in values.items()}
        done = (epoch + 1) * self.history.steps
        found.entries.append(Entry(done - 1, rows, epoch))
        found.figures |= rows
        for student in (~values["loss"].isfinite()).nonzero().flatten().tolist():
            if student not in self.history.problems:
                loss = values["loss"][student]
                self._fail(student, f"step {done}: val/loss={loss}")

    def _schedule(self) -> None:
        for recipe in self.recipes:
            if recipe.scheduler is not None:
                recipe.scheduler.step()
        if any(recipe.scheduler is not None for recipe in self.recipes):
            self.optimizer.follow()

    def _keep(self, epoch: int, found: Epoch) -> None:
        """Keep the weights of this epoch, and those of students that were never better."""
        alive = [i not in self.history.problems for i in range(len(self.recipes))]
        scores = found.figures[self.limits.monitor]
        better = [
            own and (best is None or self.limits.is_better(score, best))
            for own, score, best in zip(alive, scores, self._scores, strict=True)
        ]
        details = [
            {
                "score": scores[i] if better[i] else self._scores[i],
                "seconds": self.history.seconds,
                "groups": copy.deepcopy(recipe.optimizer.state_dict()["param_groups"]),
                "scheduler": copy.deepcopy(recipe.scheduler.state_dict())
                if recipe.scheduler is not None
                else None,
            }
            for i, recipe in enumerate(self.recipes)
        ]
        self._scores = [detail["score"] for detail in details]
        state, optimizer = self.students.state, self.optimizer.state()
        self.history.best.take(better, epoch, state, optimizer, details)
        self.history.last.take(alive, epoch, state, optimizer, details)


def _sampler(data: ImageDataModule) -> TrainingBatches:
    sampler = data.train_dataloader().sampler
    assert isinstance(sampler, TrainingBatches)
    return sampler
