"""Ensembles of teachers: means of their predictions, the cache, and the command."""

import subprocess
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import yaml
from conftest import Command, accuracy, read_facts, read_metrics, recompute
from omegaconf import OmegaConf
from torch import nn

from kd_lightning import load_run
from kd_lightning.data.digits import DigitsDataModule
from kd_lightning.losses import soft_targets
from kd_lightning.nets.cnn import TeacherCNN
from kd_lightning.nets.ensemble import Ensemble, mean_logits, mean_probabilities
from kd_lightning.nets.mlp import MLP
from kd_lightning.objective import Objective
from kd_lightning.runs.checkpoints import read_checkpoint
from kd_lightning.runs.teacher import TeacherOrder
from kd_lightning.teachers.cache import TeacherCache, run_teacher

CPU = torch.device("cpu")
Z = torch.randn(5, 3, 4, generator=torch.Generator().manual_seed(0)).double() * 4  # B×M×C
Z_S = torch.randn(5, 4, generator=torch.Generator().manual_seed(1)).double()
TARGET = torch.tensor([0, 1, 2, 3, 0])


def softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0, "per sample"])
def test_probabilities_are_averaged_at_t(temperature: float | str) -> None:
    t = torch.linspace(1, 9, 5).double()[:, None] if isinstance(temperature, str) else temperature
    found = (mean_probabilities(Z, t) / t).softmax(1)
    inner = np.asarray(t)[..., None]
    torch.testing.assert_close(found, torch.from_numpy(softmax(Z.numpy() / inner).mean(1)))


def test_a_single_teacher_is_unchanged() -> None:
    torch.testing.assert_close(mean_probabilities(Z[:, :1], 3.0).softmax(1), Z[:, 0].softmax(1))
    for mean in (mean_probabilities, mean_logits):
        assert torch.equal(mean(Z[:, 0], 3.0), Z[:, 0])


@pytest.mark.parametrize("mean", ["probabilities", "logits"])
def test_the_objective_uses_the_configured_mean(mean: str) -> None:
    objective = Objective(alpha=1.0, temperature=3.0, ensemble=mean)
    found = objective({"logits": Z_S}, {"logits": Z}, TARGET)["response"]
    if mean == "logits":
        expected = soft_targets(Z_S, Z.mean(1), 3.0)
    else:
        p_t, p_s = softmax(Z.numpy() / 3).mean(1), softmax(Z_S.numpy() / 3)
        expected = torch.tensor(9 * (p_t * np.log(p_t / p_s)).sum(1).mean())
    torch.testing.assert_close(found, expected)


@pytest.fixture(scope="module")
def data() -> DigitsDataModule:
    data = DigitsDataModule(train_fraction=0.1)
    data.setup()
    return data


@pytest.fixture(scope="module")
def teachers(data: DigitsDataModule) -> Ensemble:
    """Return an ensemble of two different networks."""
    torch.manual_seed(0)
    shape, classes = data.spec.input_shape, data.spec.num_classes
    return Ensemble([TeacherCNN(shape, classes, width=2), MLP(shape, classes)]).eval()


def test_the_cache_keeps_the_outputs_of_each_member(
    data, teachers: Ensemble, tmp_path: Path
) -> None:
    inputs, paths = data.prepared("train"), ["members.0.features"]
    cached = TeacherCache(str(tmp_path)).outputs(teachers, inputs, CPU, paths)
    assert cached is not None
    assert cached.tables["logits"].shape == (1, inputs.size, 2, 10)
    _, index, batch = next(iter(inputs.batches(CPU)))
    found, live = cached.read(index, epoch=0), run_teacher(teachers, batch, paths)
    assert found.keys() == live.keys()
    for name in live:
        torch.testing.assert_close(found[name], live[name])
    member: nn.Module = teachers.members[1]
    torch.testing.assert_close(found["logits"][:, 1], member(batch))


def test_the_cache_keeps_the_top_k_of_each_member(data, teachers: Ensemble) -> None:
    inputs = data.prepared("val")
    cached = TeacherCache(None, top_k=3).outputs(teachers, inputs, CPU)
    assert cached is not None
    assert cached.tables["logits"].shape == (1, inputs.size, 2, 3)
    index = torch.arange(inputs.size)
    found = cached.read(index, epoch=0)["logits"].softmax(-1)
    logits = torch.cat([run_teacher(teachers, x)["logits"] for *_, x in inputs.batches(CPU)])
    live = logits.softmax(-1)
    largest, where = live.topk(3)
    torch.testing.assert_close(found.gather(-1, where), largest)
    rest = found.scatter(-1, where, 0.0).sum(-1)
    torch.testing.assert_close(rest, 1 - largest.sum(-1), atol=1e-6, rtol=1e-4)
    expected = rest / 7  # spread evenly over the other seven classes
    torch.testing.assert_close(found.scatter(-1, where, 0.0).amax(-1), expected)


def experiment(folder: Path, name: str, options: dict[str, str], **values: Any) -> None:
    """Write the configuration of a job on the digits for one epoch."""
    values["defaults"] = [{f"override /{k}": v} for k, v in {"data": "digits", **options}.items()]
    values.setdefault("trainer", {"max_epochs": 1})
    file = folder / "experiment" / f"{name}.yaml"
    file.parent.mkdir(exist_ok=True)
    file.write_text(f"# @package _global_\n{yaml.safe_dump(values)}")


class Jobs(NamedTuple):
    """A sweep's jobs by name, and the finished process."""

    folder: Path
    names: list[str]
    done: subprocess.CompletedProcess[str]

    def __getitem__(self, name: Any) -> Path:
        return self.folder / str(self.names.index(name))


@pytest.fixture(scope="module")
def jobs(command: Command, tmp_path_factory: pytest.TempPathFactory) -> Jobs:
    """Run three teachers, the last of colour images, and students with two teachers each."""
    folder = tmp_path_factory.mktemp("ensemble")
    images, labels = np.random.default_rng(0).integers(0, 255, (40, 8, 8, 3), np.uint8), [0, 1] * 20
    colour = folder / "colour.npz"
    np.savez(colour, x_train=images, y_train=labels, x_test=images, y_test=labels)
    cnn, mlp, other = (str(folder / "sweep" / number) for number in "012")
    experiment(folder, "cnn", {"model": "teacher"}, trainer={"max_epochs": 2})
    experiment(folder, "mlp", {"model": "teacher", "net@teacher": "mlp"})
    options = {"model": "teacher", "net@teacher": "mlp", "data": "arrays"}
    experiment(folder, "colour", options, data={"path": str(colour)})
    experiment(folder, "kd", {}, teacher_ckpt=[cnn, mlp])
    fitnet = {"transfer": {"fitnet": {"teacher": "members.0.features"}}}
    experiment(folder, "fitnet", {"method": "fitnet"}, teacher_ckpt=[cnn, mlp], method=fitnet)
    experiment(folder, "unfit", {}, teacher_ckpt=[cnn, other])
    names = ["cnn", "mlp", "colour", "kd", "fitnet", "unfit"]
    done = command(
        *("-m", "--config-dir", str(folder), f"experiment={','.join(names)}"),
        f"hydra.sweep.dir={folder / 'sweep'}",
        KD_TEACHERS=str(folder / "store"),
        KD_CACHE=str(folder / "cache"),
    )
    return Jobs(folder / "sweep", names, done)


@pytest.mark.slow
@pytest.mark.parametrize("student", ["kd", "fitnet"])
def test_a_student_learns_from_teachers_of_different_architectures(
    jobs: Jobs, student: str
) -> None:
    metrics = read_metrics(jobs[student])
    both = Ensemble([load_run(jobs[name]).network for name in ("cnn", "mlp")])
    data = DigitsDataModule()
    data.setup()
    inputs = torch.cat([x for *_, x in data.prepared("val").batches(CPU)])
    right = mean_probabilities(both(inputs)).argmax(1) == data.splits["val"].target
    assert metrics["val/teacher_accuracy"] == pytest.approx(right.float().mean().item())
    expected = accuracy(*recompute(jobs[student], "test"))
    assert metrics["test/accuracy"] == pytest.approx(expected, abs=1e-7)
    runs = [str(jobs[name]) for name in ("cnn", "mlp")]
    assert read_facts(jobs[student])["teacher"] == ", ".join(runs)
    assert metrics["teacher_parameters"] == 1_199_882 + 101_770


@pytest.mark.slow
def test_students_share_one_cache(jobs: Jobs) -> None:
    logits = list((jobs.folder.parent / "cache").glob("*-logits.pt"))
    assert len(logits) == 3  # one file per split


@pytest.mark.slow
def test_a_member_of_other_data_is_rejected_by_name(jobs: Jobs) -> None:
    assert jobs.done.stderr.splitlines() == [
        f"error: teacher_ckpt: {jobs['colour']} was trained on samples of shape (3, 8, 8) in "
        "2 classes, these are (1, 28, 28) in 10",
        "error: 1 of 6 jobs failed; see above",
    ]
    assert not (jobs["unfit"] / "metrics.json").exists()


@pytest.mark.slow
def test_a_member_may_be_any_checkpoint_of_a_run(jobs: Jobs, data: DigitsDataModule) -> None:
    run = jobs["cnn"] / "checkpoints"
    changed = read_checkpoint(run / "last.ckpt")
    changed["state_dict"]["net.classifier.4.bias"] += 100.0
    torch.save(changed, run / "epoch=1.ckpt")
    config: Any = OmegaConf.load(jobs["kd"] / ".hydra" / "config.yaml")
    order = TeacherOrder(config, data, data.spec, train=lambda job: None)
    teacher = order.given([str(run / "best.ckpt"), str(run / "epoch=1.ckpt")])
    assert isinstance(teacher, Ensemble)
    best = read_checkpoint(run / "best.ckpt")["state_dict"]["net.classifier.4.bias"]
    last = changed["state_dict"]["net.classifier.4.bias"]
    for member, expected in zip(teacher.members, (best, last), strict=True):
        assert torch.equal(member.classifier[4].bias, expected)
