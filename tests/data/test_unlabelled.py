"""Tests of training data in which few samples have a label."""

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from conftest import Command, read_metrics

from kd_lightning import DistillationModule, Objective, TeacherModule, losses
from kd_lightning.data.batches import MixedBatches, ShuffledBatches
from kd_lightning.data.digits import DigitsDataModule
from kd_lightning.data.types import UNLABELLED
from kd_lightning.nets.mlp import MLP
from kd_lightning.tasks import Classification
from kd_lightning.transfer import CRD
from kd_lightning.utils.errors import UserError

SHAPE = (1, 28, 28)


def digits(**settings: Any) -> DigitsDataModule:
    data = DigitsDataModule(**{"batch_size": 16, **settings})
    data.setup()
    return data


def mixed(rank: int = 0, world_size: int = 1, epoch: int = 0) -> list[torch.Tensor]:
    rest = ShuffledBatches(torch.arange(5, 65), 6, 0, rank, world_size)
    batches = MixedBatches(torch.arange(5), rest, 2)
    batches.set_epoch(epoch)
    found = list(batches)
    assert len(found) == len(batches)
    return found


def test_each_batch_has_both_kinds_and_an_epoch_every_unlabelled_sample_once() -> None:
    found = mixed()
    assert [(batch < 5).sum() for batch in found] == [2] * 10
    assert sorted(int(i) for batch in found for i in batch if i >= 5) == list(range(5, 65))
    counts = torch.cat(found).bincount()[:5]
    assert counts.tolist() == [4] * 5  # 20 drawn from 5, each equally often
    assert all(torch.equal(a, b) for a, b in zip(found, mixed(), strict=True))
    assert not torch.equal(found[0], mixed(epoch=1)[0])


def test_ranks_share_the_samples() -> None:
    one, other = (torch.cat(mixed(rank, 2)) for rank in (0, 1))
    assert sorted([*one[one >= 5].tolist(), *other[other >= 5].tolist()]) == list(range(5, 65))
    assert len(one) == len(other)


def test_hidden_labels_are_those_after_the_first() -> None:
    shown, hidden = digits().labels, digits(labelled_fraction=0.1).labels
    assert int((hidden != UNLABELLED).sum()) == 129  # of 1,293
    assert torch.equal(hidden[:129], shown[:129])
    assert digits(labelled_fraction=0.1).fingerprint != digits().fingerprint


def test_hard_loss_is_the_mean_over_the_labelled_rows() -> None:
    objective = Objective(alpha=0.25, temperature=2.0)
    objective.all_labelled = False
    z_s = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    z_t = torch.randn(6, 3, dtype=torch.float64)
    target = torch.tensor([0, UNLABELLED, 2, UNLABELLED, UNLABELLED, 1])
    terms = objective({"logits": z_s}, {"logits": z_t}, target)
    asked = target != UNLABELLED
    hard = F.cross_entropy(z_s[asked], target[asked])
    p, log_q = (z_t / 2).softmax(1), (z_s / 2).log_softmax(1)
    response = 4 * (p * (p.log() - log_q)).sum(1).mean()  # of all rows
    torch.testing.assert_close(terms["loss"], 0.75 * hard + 0.25 * response)
    nothing = objective({"logits": z_s}, {"logits": z_t}, torch.full_like(target, UNLABELLED))
    assert nothing["hard"] == 0
    nothing["loss"].backward()
    assert z_s.grad is not None
    assert z_s.grad.isfinite().all()


@pytest.mark.parametrize("kind", ["teacher", "baseline"])
def test_labels_alone_are_learnt_from_labelled_samples(kind: str) -> None:
    """The weights equal those of a training that has never seen the other samples."""

    def weights(**settings: Any) -> dict[str, torch.Tensor]:
        data = digits(mean=[0.3], std=[0.3], **settings)
        task = Classification(data.spec)
        torch.manual_seed(0)
        net = MLP(SHAPE, 10, hidden=(8,))
        if kind == "teacher":
            module: Any = TeacherModule(net, task=task)
        else:
            module = DistillationModule(net, None, Objective(alpha=0.0), data.labels, task=task)
        quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
        L.Trainer(max_epochs=2, accelerator="cpu", **quiet, enable_model_summary=False).fit(
            module, data
        )
        return net.state_dict()

    few, alone = weights(labelled_fraction=0.1), weights(train_fraction=0.1)
    assert all(torch.equal(few[name], alone[name]) for name in few)


@pytest.mark.parametrize(
    ("objective", "fraction", "message"),
    [
        (Objective(response=losses.decoupled), 0.1, "method.response needs the label of every"),
        (Objective(transfer={"crd": CRD(negatives=4)}), 0.1, "method.transfer.crd needs the label"),
        (Objective(alpha=0.9), 0.0, "set method.alpha=1"),
    ],
)
def test_methods_that_need_all_labels_are_refused(
    objective: Objective, fraction: float, message: str
) -> None:
    data = digits(labelled_fraction=fraction)
    nets = MLP(SHAPE, 10, hidden=(8,)), MLP(SHAPE, 10, hidden=(8,))
    with pytest.raises(UserError, match=message):
        DistillationModule(*nets, objective, data.labels, task=Classification(data.spec))


@pytest.mark.slow
def test_student_learns_without_a_single_label(
    command: Command, digits_run: Path, tmp_path: Path
) -> None:
    """A teacher of all labels, and students of 2 % and of no labels."""
    words = ("data=digits", "trainer.max_epochs=2", "pretrain.data.labelled_fraction=1")
    for name, fraction, alpha in (("few", 0.02, 0.9), ("none", 0, 1)):
        done = command(
            *(*words, f"data.labelled_fraction={fraction}", f"method.alpha={alpha}"),
            f"hydra.run.dir={tmp_path / name}",
        )
        assert done.returncode == 0, done.stderr
        assert f"({26 if fraction else 0} labelled)" in done.stdout
    few, none = read_metrics(tmp_path / "few"), read_metrics(tmp_path / "none")
    assert (few["labels"], none["labels"]) == (26, 0)
    assert few["test/teacher_accuracy"] == read_metrics(digits_run)["test/teacher_accuracy"]
    assert min(few["test/accuracy"], none["test/accuracy"]) > 0.7
    refused = command(*words, "data.labelled_fraction=0", f"hydra.run.dir={tmp_path / 'no'}")
    assert refused.stderr == (
        "error: without any labels, only the teacher can teach: set method.alpha=1\n"
    )
