"""Whether training together gives the same, and whether it is faster; tried on copies."""

import copy
import logging
import time
from statistics import median
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor

from kd_lightning.callbacks.profiler import Unprofiled
from kd_lightning.modules import DistillationModule
from kd_lightning.nets.taps import tapped
from kd_lightning.sweeps.training import Training

log = logging.getLogger(__name__)

STEPS, WARM_UP = 8, 3  # timed steps, and those before them
TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-9}  # relative to the largest gradient


def disagreement(training: Training) -> str:
    """Compare one step with that of separate students; return what differs, or nothing.

    Args:
        training: a training for this purpose.
    """
    order, sizes = training.orders(0)
    count = len(training.students)
    try:
        with isolate_rng():
            # The last batch may be smaller. With a single sample in it, torch.vmap has been found
            # to give some networks with batch normalisation another gradient.
            for index in {size: order[:, -size:] for size in (sizes[0], sizes[-1])}.values():
                training.optimizer.zero_grad()
                training.terms(index, 0, 0.0)["loss"].sum().backward()
                for student in {0, count - 1}:
                    if name := _differing(training, student, index[student]):
                        size = index.shape[1]
                        return (
                            f"in a batch of {size}, the gradient of {name} is not that of a "
                            "separate student"
                        )
    # Whatever a network does that torch.vmap cannot: random numbers, conditions on values.
    except RuntimeError as error:
        return f"the student does not run under torch.vmap: {str(error).strip().splitlines()[0]}"
    return ""


def _differing(training: Training, student: int, index: Tensor) -> str:
    students, recipe = training.students, training.recipes[student]
    # The buffers are those after the step, which batch statistics do not read in training.
    net = copy.deepcopy(students.net)
    net.load_state_dict(students.of(students.state, student))
    batch = recipe.data.seen("train", index, 0, training.dtype)._replace(index=index)
    z_t = None
    if recipe.objective.needs_teacher:
        teacher: Any = training.module.teacher
        z_t = training.module.outputs.read(teacher, batch, "train", 0, [])
    z_s = tapped(net, batch.inputs, ())
    recipe.objective(z_s, z_t, batch.target, index, 0.0)["loss"].backward()
    for name, weight in net.named_parameters():
        if weight.grad is None:
            continue
        ours = students.weights[name].grad
        size = weight.grad.abs().max()
        tolerance = TOLERANCE.get(weight.dtype, 1e-3)
        if ours is None or (ours[student] - weight.grad).abs().max() > tolerance * size:
            return name
    return ""


def is_slower(training: Training, module: DistillationModule, trainer: L.Trainer) -> str:
    """Time a few steps both ways; return why students should be trained separately, or nothing.

    Args:
        training: a training for this purpose.
        module: of one student; it is copied.
        trainer: of the training, for its device and precision.
    """
    count, device = len(training.students), training.device
    with isolate_rng():
        together = _seconds_together(training)
        alone = _seconds_alone(training, module, trainer)
    ratio = count * alone / together
    figures = (count, 1000 * together, 1000 * alone, ratio)
    if ratio > 1:
        log.info(
            "%d students in one step: %.2f ms; one student alone: %.2f ms; together is "
            "%.1f times as fast",
            *figures,
        )
        return ""
    return (
        "{} students in one step take {:.2f} ms, and one alone {:.2f} ms: together is {:.1f} "
        "times as fast (hydra.launcher.mode=always trains them together; {})"
    ).format(*figures, device.type)


def _seconds_together(training: Training) -> float:
    order, sizes = training.orders(0)
    found = []
    for i, index in enumerate(order.split(sizes, dim=1)):
        if i == STEPS + WARM_UP:
            break
        _wait(training.device)
        start = time.perf_counter()
        training.step(index, 0, 0.0)
        _wait(training.device)
        found.append(time.perf_counter() - start)
    return median(found[WARM_UP:] or found)


class _Clock(L.Callback):
    """Notes when steps start."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.starts: list[float] = []

    def on_train_batch_start(self, *args: Any, **kwargs: Any) -> None:
        _wait(self.device)
        self.starts.append(time.perf_counter())


def _seconds_alone(training: Training, module: DistillationModule, trainer: L.Trainer) -> float:
    """Return the seconds of a step of one student under Lightning, as an ordinary job has them."""
    shared: Any = {id(module.teacher): module.teacher}
    twin, clock = copy.deepcopy(module, shared), _Clock(training.device)
    copied = copy.copy(training.recipes[0].data)
    short = L.Trainer(
        accelerator=trainer.accelerator,
        devices=1,
        precision=trainer.precision,
        max_steps=STEPS + WARM_UP + 1,
        limit_val_batches=0,
        logger=False,
        callbacks=[clock],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        profiler=Unprofiled(),
    )
    level = logging.getLogger("lightning.pytorch").level
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    try:
        short.fit(twin, copied)
    finally:
        logging.getLogger("lightning.pytorch").setLevel(level)
    steps = [b - a for a, b in zip(clock.starts, clock.starts[1:], strict=False)]
    return median(steps[WARM_UP:] or steps)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
