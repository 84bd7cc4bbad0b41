"""DistillationModule: a student trained on labels and on a frozen teacher's outputs."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from kd_lightning.data.types import UNLABELLED, Batch
from kd_lightning.modules.base import BaseModule, NetFactory
from kd_lightning.nets.ensemble import Ensemble, mean_probabilities
from kd_lightning.nets.memory_format import with_channels_last
from kd_lightning.nets.taps import Outputs, dry_run, tapped
from kd_lightning.objective import Objective
from kd_lightning.teachers.cache import TeacherCache
from kd_lightning.teachers.outputs import TeacherOutputs
from kd_lightning.utils.errors import UserError
from kd_lightning.utils.networks import fitting


class DistillationModule(BaseModule):
    """Knowledge distillation from a frozen teacher into a student.

    The teacher gets no gradient, stays in evaluation mode (including dropout and batch
    statistics), and is not saved in checkpoints. Adapters of transfer terms are trained and
    saved with the student, but are not part of it.

    The teacher's outputs are cached if the datamodule has ``prepared(split)`` and batches
    contain the index of each sample (see :class:`~kd_lightning.data.types.Offers`); otherwise
    the teacher runs in every step.

    Args:
        student: the network to train, or a factory that creates it for the task's data.
        teacher: the trained network, or several networks whose predictions are averaged; None
            if the objective needs no teacher.
        objective: the loss; by default soft targets at T = 5 with α = 0.5.
        labels: class of each training sample, N, for terms that need them, −100 without a label;
            the datamodule's by default.
        cache: storage of the teacher's outputs; in memory by default.
        **training: see :class:`~kd_lightning.modules.base.BaseModule`.

    Raises:
        UserError: if the objective needs a teacher and there is none, or a term does not fit
            the networks. Without a specification of the data, terms are checked when training
            starts.

    >>> student, teacher = nn.Linear(4, 3), nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 3))
    >>> module = DistillationModule(student, teacher, Objective(temperature=4.0, alpha=0.9))
    >>> sorted(module.state_dict())
    ['student.bias', 'student.weight']
    """

    network_name = "student"
    takes_teacher = True

    def __init__(
        self,
        student: nn.Module | NetFactory,
        teacher: nn.Module | NetFactory | Sequence[nn.Module] | None = None,
        objective: Objective | None = None,
        labels: Tensor | None = None,
        cache: TeacherCache | None = None,
        **training: Any,
    ) -> None:
        super().__init__(**training)
        self.objective = objective if objective is not None else Objective()
        if self.objective.is_built and self.objective.has_layers:
            raise UserError(
                "this Objective already belongs to another module, whose adapters and memories it "
                "holds: create one for each module"
            )
        if teacher is None and self.objective.needs_teacher:
            raise UserError("this objective needs a teacher: see teacher=, teacher_from=")
        self.student = with_channels_last(self.task.build(student))
        self.teacher = self._frozen(teacher)
        self.labels = labels
        self._check_labels()
        self.outputs = TeacherOutputs(cache if cache is not None else TeacherCache(root=None))
        self._unbuilt: dict[str, Tensor] = {}  # loaded weights of adapters not created yet
        # The datamodule's labels are known in setup() at the earliest.
        waits = labels is None and any(t.needs_labels for t in self.objective.terms.values())
        if (example := self.task.example()) is not None and not waits:
            self._build_objective(example)
        # Hooks instead of strict_loading = False, which would also accept a checkpoint that
        # lacks weights of the student.
        self.register_state_dict_post_hook(_drop_teacher)
        self.register_load_state_dict_pre_hook(_keep_teacher)

    def _frozen(self, teacher: Any) -> nn.Module | None:
        if teacher is None:
            return None
        several = isinstance(teacher, Sequence | nn.ModuleList)
        if several and not len(teacher):
            raise UserError("teacher=[] holds no teacher: pass None to train without one")
        net = Ensemble(list(teacher)) if several else self.task.build(teacher)
        if {id(p) for p in net.parameters()} & {id(p) for p in self.student.parameters()}:
            raise UserError(
                "teacher and student share parameters, which would be frozen: pass a copy, as in "
                "copy.deepcopy(teacher)"
            )
        # Without requires_grad, DDP and the optimizer ignore the parameters.
        return with_channels_last(net).requires_grad_(False).eval()

    def _build_objective(self, example: Batch) -> None:
        """Create the adapters of the terms for the layers' shapes, measured in a dry run."""
        if self.objective.is_built or self.teacher is None:
            return
        # Adapters are trained, so they must not be tensors of inference mode, in which
        # trainer.validate() may be the first to need them.
        with torch.inference_mode(False):
            self._build_adapters(example)

    def _build_adapters(self, example: Batch) -> None:
        assert self.teacher is not None
        inputs = fitting(example.inputs, self.student)
        classes = dry_run(self.student, inputs, ())["logits"].shape[-1]
        given = self.labels
        labels = self.task.labels(torch.as_tensor(given)) if given is not None else None
        self.objective.build(
            *(self.student, self.teacher, inputs, classes, labels),
            lambda values: self.task.rows(values, example.target),
        )
        weight = next(self.student.parameters(), None)
        self.objective.to(self.device, weight.dtype if weight is not None else None)
        if self._unbuilt:
            self.objective.load_state_dict(self._unbuilt)

    def _check_labels(self) -> None:
        """Tell the objective whether all samples have a label, and refuse it if it needs them."""
        if self.labels is None:
            return
        # As rows: positions without a target, such as padding, are none.
        rows = self.task.labels(torch.as_tensor(self.labels))
        labelled = int((rows != UNLABELLED).sum())
        self.objective.all_labelled = labelled == len(rows)
        if self.objective.all_labelled or not self.objective.needs_teacher:
            return
        if name := self.objective.needs_all_labels:
            raise UserError(f"{name} needs the label of every sample: choose another method")
        if not labelled and self.objective.hard_weight(0.0) > 0:
            raise UserError("without any labels, only the teacher can teach: set method.alpha=1")

    def setup(self, stage: str) -> None:
        super().setup(stage)
        if self.labels is None:
            self.labels = getattr(getattr(self.trainer, "datamodule", None), "labels", None)
            self._check_labels()
        if stage == "fit" and not self.objective.is_built:
            self._build_objective(self.example_batch())

    @property
    def uses_unlabelled(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.objective.needs_teacher

    @property
    def role(self) -> str:
        return self.objective.role

    @property
    def with_teacher(self) -> bool:
        return self.teacher is not None

    def train(self, mode: bool = True) -> "DistillationModule":
        super().train(mode)
        # train() sets all submodules; the teacher's dropout and batch statistics stay fixed.
        if self.teacher is not None:
            self.teacher.eval()
        return self

    def terms(self, batch: Batch) -> dict[str, Tensor]:
        return self.terms_of(self.student, self.objective, batch)

    def terms_of(self, student: nn.Module, objective: Objective, batch: Batch) -> dict[str, Tensor]:
        """Compute the terms for a training batch with a given student and objective.

        Callbacks pass copies, so that measuring does not change the state of the originals.
        """
        z_s = self._rows(tapped(student, batch.inputs, objective.student_paths), batch)
        z_t = None
        if objective.needs_teacher:
            z_t = self._rows(self.teacher_outputs(batch, "train"), batch)
        target = self.task.rows(batch.target, batch.target)
        return objective(z_s, z_t, target, self.task.row_index(batch), self.progress)

    def _rows(self, outputs: Outputs, batch: Batch) -> Outputs:
        return {name: self.task.rows(values, batch.target) for name, values in outputs.items()}

    def settings(self) -> dict[str, float]:
        return self.objective.settings(self.progress)

    def describe(self) -> dict[str, float]:
        student = self.costs_of(self.student)
        if self.teacher is None or not student:
            return student
        teacher = self.costs_of(self.teacher)
        return {
            **student,
            **{f"teacher_{name}": cost for name, cost in teacher.items()},
            "compression": teacher["parameters"] / student["parameters"],
        }

    def evaluate(self, batch: Batch) -> dict[str, Any]:
        """Return predictions of both networks; see :meth:`BaseModule.evaluate`.

        Returns:
            Also ``teacher``, a function from a temperature to the teacher's logits, N×C, and
            ``temperature``, T of the training. ``teacher`` is a function because the mean of
            several teachers' probabilities depends on T.
        """
        outputs = super().evaluate(batch)
        if self.teacher is None:
            return outputs
        if not self.objective.is_built:
            self._build_objective(batch)  # for a learned temperature, evaluated before training
        split = "test" if self.trainer.testing else "val"
        z_t = self.task.rows(self.teacher_outputs(batch, split)["logits"], batch.target)
        temperature = self.objective.temperature_of(outputs["logits"], z_t, self.progress)
        return {
            **outputs,
            "teacher": partial(mean_probabilities, z_t),
            "temperature": temperature,
        }

    def teacher_outputs(self, batch: Batch, split: str) -> Outputs:
        """Return the teacher's outputs for a batch, from the cache if the split is cached.

        Args:
            batch: samples of the split, B.
            split: ``train``, ``val`` or ``test``.

        Returns:
            ``logits`` and, for training samples, the layers that terms compare.
        """
        assert self.teacher is not None
        paths = self._paths(split)
        return self.outputs.read(self.teacher, batch, split, self.current_epoch, paths)

    def on_fit_start(self) -> None:
        # Not in setup(), where Lightning has not moved the module to its device yet.
        self.outputs.forget()
        self._fill_cache("train", "val")

    def on_validation_start(self) -> None:
        super().on_validation_start()
        if self.is_thorough:  # not in each epoch of a training
            self.outputs.forget()
        self._fill_cache("val")

    def on_test_start(self) -> None:
        super().on_test_start()
        self.outputs.forget()
        self._fill_cache("test")

    def _fill_cache(self, *splits: str) -> None:
        if self.teacher is None:
            return
        needed = [s for s in splits if s != "train" or self.objective.needs_teacher]
        self.outputs.fill(
            self.teacher,
            getattr(self.trainer, "datamodule", None),
            self.trainer.strategy.root_device,
            {split: self._paths(split) for split in needed},
        )

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return the parameter groups; terms with their own learning rate are separate groups."""
        own = {name: t for name, t in self.objective.terms.items() if t.lr is not None}
        groups = [{"params": list(term.parameters()), "lr": term.lr} for term in own.values()]
        apart = {id(p) for group in groups for p in group["params"]}
        rest = [p for p in self.parameters() if p.requires_grad and id(p) not in apart]
        return [{"params": rest}, *(group for group in groups if group["params"])]

    def _paths(self, split: str) -> list[str]:
        return self.objective.teacher_paths if split == "train" else []


def _drop_teacher(
    module: nn.Module, state: dict[str, Tensor], prefix: str, local_metadata: dict[str, Any]
) -> None:
    """Remove the teacher from a state dict: it is large and has its own checkpoint."""
    for key in [k for k in state if k.startswith(f"{prefix}teacher.")]:
        del state[key]


def _keep_teacher(module: nn.Module, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """Complete a state dict without a teacher, so that strict loading reports other differences."""
    assert isinstance(module, DistillationModule)
    if module.teacher is not None:
        own = module.teacher.state_dict(prefix=f"{prefix}teacher.")
        state.update(own)
    if module.teacher is None:  # a student loaded for inference needs no adapters
        for key in [k for k in state if k.startswith(f"{prefix}objective.")]:
            del state[key]
    if not module.objective.is_built:  # adapters are created later, with the first batch
        start = f"{prefix}objective."
        module._unbuilt = {k.removeprefix(start): state[k] for k in state if k.startswith(start)}
        for key in [k for k in state if k.startswith(start)]:
            del state[key]
