"""Tests of the teacher cache: equal to the live teacher, computed once, rebuilt when damaged."""

import errno
import json
import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from conftest import run_script
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from kd_lightning.data.augment import Augment
from kd_lightning.data.digits import DigitsDataModule
from kd_lightning.losses import correlation_congruence
from kd_lightning.modules import DistillationModule
from kd_lightning.nets.cnn import StudentCNN, TeacherCNN
from kd_lightning.nets.taps import tapped
from kd_lightning.objective import Objective
from kd_lightning.schedules import LearnedTemperature
from kd_lightning.tasks import Classification
from kd_lightning.teachers import cache as cache_module
from kd_lightning.teachers.cache import CachedOutputs, TeacherCache, run_teacher
from kd_lightning.transfer.fitnet import FitNet
from kd_lightning.transfer.pairwise import Pairwise
from kd_lightning.utils.errors import UserError

CPU = torch.device("cpu")
SCRIPT = Path(__file__).parent / "cache_under_ddp.py"


@pytest.fixture
def data() -> DigitsDataModule:
    data = DigitsDataModule(batch_size=48, train_fraction=0.3, augment=Augment(shift=2, views=2))
    data.setup()
    return data


@pytest.fixture
def teacher(data: DigitsDataModule) -> nn.Module:
    torch.manual_seed(0)
    return TeacherCNN(data.spec.input_shape, data.spec.num_classes, width=4).eval()


class Comparing(DistillationModule):
    """Compares loss and gradients from the cache with those from the live teacher, each step."""

    worst, compared = 0.0, 0

    def terms(self, batch):
        params = list(self.student.parameters())
        results = []
        paths = self.objective.student_paths
        live = run_teacher(self.teacher, batch.inputs, self.objective.teacher_paths)
        for teacher in (self.teacher_outputs(batch, "train"), live):
            student = tapped(self.student, batch.inputs, paths)
            terms = self.objective(student, teacher, batch.target, batch.index, self.progress)
            grads = torch.autograd.grad(terms["loss"], params, retain_graph=True)
            results.append([terms["loss"].detach(), *grads])
        differences = [(a - b).abs().max().item() for a, b in zip(*results, strict=True)]
        self.worst = max(self.worst, *differences)
        self.compared += 1
        return terms


def fit(module: L.LightningModule, data: DigitsDataModule, **settings) -> L.Trainer:
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=3,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        **settings,
    )
    trainer.fit(module, data)
    return trainer


def student_of(
    data: DigitsDataModule, teacher: nn.Module, kind=DistillationModule, terms=None, **settings
):
    torch.manual_seed(1)
    objective = Objective(temperature=5.0, transfer=terms)
    return kind(StudentCNN, teacher, objective, task=Classification(data.spec), **settings)


def feature_terms() -> dict[str, nn.Module]:
    """Terms that compare a map and an embedding."""
    return {"fitnet": FitNet(), "cc": Pairwise(correlation_congruence, role="embedding")}


@pytest.mark.parametrize("terms", [dict, feature_terms])
def test_cached_equals_live_with_shuffling_and_augmentation(data, teacher, tmp_path, terms) -> None:
    module = student_of(data, teacher, Comparing, terms(), cache=TeacherCache(str(tmp_path)))
    trainer = fit(module, data)
    tables = module.outputs.cached["train"].tables
    assert tables.keys() == {"logits", *module.objective.teacher_paths}
    assert {len(table) for table in tables.values()} == {2}  # views
    assert module.compared == trainer.global_step > 0
    assert module.worst < 1e-6


@pytest.mark.slow
def test_cached_equals_live_under_ddp(tmp_path: Path) -> None:
    run_script(SCRIPT, tmp_path)
    found = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in (0, 1)]
    assert [f["world_size"] for f in found] == [2, 2]
    assert all(f["worst"] < 1e-6 and f["compared"] == f["steps"] > 0 for f in found)
    rows = [f["rows"] for f in found]
    assert sum(rows) == found[0]["needed"]
    assert min(rows) > 0  # each has computed a share of them
    outputs = sorted(file.name.partition("-")[2] for file in tmp_path.glob("*.pt"))
    # each once, shared by both ranks: the terms' two layers, and the logits of train and val
    assert outputs == ["classifier.3.pt", "features.pt", "logits.pt", "logits.pt"]


def test_warm_cache_runs_teacher_only_to_size_tables(data, teacher, tmp_path) -> None:
    first = student_of(data, teacher, cache=TeacherCache(str(tmp_path)))
    fit(first, data)
    calls = []
    teacher.register_forward_hook(lambda _, args, output: calls.append(len(args[0])))
    second = student_of(data, teacher, cache=TeacherCache(str(tmp_path)))
    trainer = fit(second, data)
    assert calls == [1, 1]  # one sample a split, for the size of its output
    samples = len(data.splits["train"].target)
    assert trainer.global_step == 3 * -(-samples // 48)
    weights = first.state_dict(), second.state_dict()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


WAITING = (  # these read a number from a tensor, or need one to know a shape
    torch.ops.aten._local_scalar_dense.default,
    torch.ops.aten.nonzero.default,
    torch.ops.aten.masked_select.default,
    torch.ops.aten.is_nonzero.default,
)


class NoWaiting(TorchDispatchMode):
    """Fails on every operation that waits for the device."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func not in WAITING, "the step synchronises"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("terms", [dict, feature_terms])
@pytest.mark.parametrize("temperature", [5.0, LearnedTemperature()])
def test_no_step_synchronises(data, teacher, monkeypatch, terms, temperature) -> None:
    torch.manual_seed(1)
    objective = Objective(temperature=temperature, transfer=terms())
    module = DistillationModule(StudentCNN, teacher, objective, task=Classification(data.spec))
    augment, steps, batches = data.on_after_batch_transfer, [], []

    def watched(batch, dataloader_idx):
        batches.append(1)
        with NoWaiting():  # augmentation and normalisation
            return augment(batch, dataloader_idx)

    class Guarded(L.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            self.mode = NoWaiting()
            self.mode.__enter__()

        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            self.mode.__exit__(None, None, None)  # the optimizer is torch's own

        def on_before_zero_grad(self, trainer, pl_module, optimizer):
            steps.append(1)

    monkeypatch.setattr(data, "on_after_batch_transfer", watched)
    fit(module, data, callbacks=[Guarded()], log_every_n_steps=10**6)
    assert len(batches) >= len(steps) > 10
    for waits in (lambda: torch.ones(1).item(), lambda: torch.ones(2).nonzero()):
        with NoWaiting(), pytest.raises(AssertionError, match="synchronises"):
            waits()


def log_of(caplog: pytest.LogCaptureFixture) -> str:
    return "\n".join(record.getMessage() for record in caplog.records)


@pytest.mark.parametrize("damage", ["cut", "changed", "foreign", "no checksum"])
def test_damaged_file_is_computed_again(
    damage: str, data, teacher, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    right = TeacherCache(str(tmp_path)).outputs(teacher, data.prepared("val"), CPU)
    assert right is not None
    expected = right.tables["logits"].clone()
    (file,) = tmp_path.glob("*.pt")
    content = bytearray(file.read_bytes())
    if damage == "cut":
        file.write_bytes(content[: len(content) // 2])
    elif damage == "changed":
        content[len(content) // 2] ^= 0xFF
        file.write_bytes(content)
    elif damage == "foreign":
        torch.save({"logits": torch.zeros_like(expected), ":classes": torch.tensor(10)}, file)
    else:
        file.with_suffix(".json").unlink()
    with caplog.at_level(logging.WARNING):
        again = TeacherCache(str(tmp_path)).outputs(teacher, data.prepared("val"), CPU)
    assert again is not None
    assert torch.equal(again.tables["logits"], expected)
    assert f"the cache file {file} is damaged: its outputs are computed again" in log_of(caplog)


def test_whatever_changes_the_outputs_changes_the_file(data, teacher, tmp_path) -> None:
    def files() -> int:
        return len(list(tmp_path.glob("*.pt")))

    def compute(cache: TeacherCache, net: nn.Module, split: str = "val") -> None:
        assert cache.outputs(net, data.prepared(split), CPU) is not None

    compute(TeacherCache(str(tmp_path)), teacher)
    compute(TeacherCache(str(tmp_path)), teacher)
    assert files() == 1
    compute(TeacherCache(str(tmp_path), dtype="float16"), teacher)
    assert files() == 2
    compute(TeacherCache(str(tmp_path)), teacher, split="train")
    assert files() == 3
    with torch.no_grad():
        next(teacher.parameters()).view(-1)[0] += 1e-3
    compute(TeacherCache(str(tmp_path)), teacher)
    assert files() == 4
    data.augment = Augment(shift=1, views=2)
    compute(TeacherCache(str(tmp_path)), teacher, split="train")
    assert files() == 5
    compute(TeacherCache(str(tmp_path)), nn.Sequential(teacher, nn.ReLU()).eval())
    assert files() == 6


def test_source_code_of_teacher_is_in_the_key(data, teacher, tmp_path, monkeypatch) -> None:
    cache, split = TeacherCache(str(tmp_path)), data.prepared("val")
    assert cache.outputs(teacher, split, CPU)
    monkeypatch.setattr(
        "kd_lightning.teachers.cache.sources", lambda modules: dict.fromkeys(modules, "new")
    )
    assert TeacherCache(str(tmp_path)).outputs(teacher, split, CPU)
    assert len(list(tmp_path.glob("*-logits.pt"))) == 2


def test_large_tables_are_computed_in_a_file(data, teacher, tmp_path, monkeypatch) -> None:
    """And in memory where there is no room for it, with the same numbers."""
    split = data.prepared("train")
    expected = TeacherCache(None).outputs(teacher, split, CPU)
    monkeypatch.setattr(cache_module, "IN_MEMORY", 1000)
    mapped = []
    allocate = os.posix_fallocate
    monkeypatch.setattr(os, "posix_fallocate", lambda *a: (mapped.append(a[2]), allocate(*a)))
    found = TeacherCache(str(tmp_path / "a")).outputs(teacher, split, CPU)
    assert mapped == [expected.tables["logits"].nbytes]
    assert found.tables["logits"].equal(expected.tables["logits"])

    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    found = TeacherCache(str(tmp_path / "b")).outputs(teacher, split, CPU)
    assert found.tables["logits"].equal(expected.tables["logits"])


def test_labels_are_not_in_the_key(data, teacher, tmp_path) -> None:
    noisy = DigitsDataModule(label_noise=0.4, train_fraction=0.3, augment=data.augment)
    noisy.setup()
    for module in (data, noisy):
        TeacherCache(str(tmp_path)).outputs(teacher, module.prepared("train"), CPU)
    assert len(list(tmp_path.glob("*.pt"))) == 1


@pytest.mark.parametrize("max_bytes", [0, 1000])
def test_teacher_runs_in_every_step_without_room(
    data, teacher, max_bytes: int, caplog: pytest.LogCaptureFixture
) -> None:
    cache = TeacherCache(None, max_bytes=max_bytes)
    module = student_of(data, teacher, cache=cache)
    calls = []
    teacher.register_forward_hook(lambda _, args, output: calls.append(len(args[0])))
    with caplog.at_level(logging.WARNING):
        trainer = fit(module, data)
    assert module.outputs.cached == {}
    train, val = (len(data.splits[split].target) for split in ("train", "val"))
    sized = 2 if max_bytes else 0  # one sample a split; a cache that is off needs no size
    assert sum(calls) == 3 * (train + val) + sized
    assert trainer.global_step == 3 * -(-train // 48)
    assert log_of(caplog).count("more than cache.max_bytes = 1e-06 GB") == sized


def test_endless_views_are_not_cached(data, teacher) -> None:
    data.augment = Augment(shift=2)
    assert TeacherCache(None).outputs(teacher, data.prepared("train"), CPU) is None


def test_half_precision_is_close_and_its_error_is_logged(data, teacher, caplog) -> None:
    inputs = data.prepared("val")
    with torch.no_grad():  # logits of about ±100, so that the error exceeds that of float32
        teacher.classifier[4].weight.mul_(500)
    with caplog.at_level(logging.INFO):
        half = TeacherCache(None, dtype="float16").outputs(teacher, inputs, CPU)
    full = TeacherCache(None).outputs(teacher, inputs, CPU)
    assert half is not None
    assert full is not None
    assert half.tables["logits"].dtype == torch.float16
    index = torch.arange(inputs.size)
    a, b = half.read(index, 0)["logits"], full.read(index, 0)["logits"]
    assert a.dtype == torch.float32
    torch.testing.assert_close(a, b, rtol=2**-11, atol=1e-6)  # float16 has 11 bits
    assert not torch.equal(a, b)
    p, q = (z.double().log_softmax(1) for z in (b, a))
    kl = (p.exp() * (p - q)).sum(1).max().item()
    logged = re.search(r"differ from exact ones by at most KL = (\S+) nats", log_of(caplog))
    assert logged is not None
    assert float(logged[1]) == pytest.approx(kl, rel=0.1, abs=1e-7)


def test_top_k_keeps_the_largest_and_the_total_of_the_rest(data, teacher) -> None:
    inputs = data.prepared("val")
    index = torch.arange(inputs.size)
    stored, full = (TeacherCache(None, top_k=k).outputs(teacher, inputs, CPU) for k in (3, None))
    assert isinstance(stored, CachedOutputs)
    assert isinstance(full, CachedOutputs)
    p, q = (F.softmax(a.read(index, 0)["logits"].double(), 1) for a in (full, stored))
    largest, where = p.topk(3)
    torch.testing.assert_close(q.gather(1, where), largest, rtol=1e-5, atol=1e-6)
    rest = q.scatter(1, where, 0.0)
    expected = (1 - largest.sum(1, keepdim=True)) / 7
    torch.testing.assert_close(rest.max(1, keepdim=True).values, expected, rtol=1e-4, atol=1e-6)


def test_bf16_is_close_and_its_error_is_logged(data, teacher, tmp_path, caplog) -> None:
    with torch.no_grad():
        teacher.classifier[-1].weight.mul_(50)  # as certain as a trained network
    inputs = data.prepared("train")
    index = torch.arange(len(data.labels))
    with caplog.at_level(logging.INFO):
        caches = [TeacherCache(str(tmp_path), precision=p) for p in ("float32", "bf16")]
        exact, close = (c.outputs(teacher, inputs, CPU).read(index, 0)["logits"] for c in caches)
    assert close.dtype == torch.float32
    assert not torch.equal(exact, close)
    torch.testing.assert_close(close, exact, rtol=0.05, atol=0.5)
    (said,) = (m for m in caplog.messages if "differ" in m)
    claimed = float(re.search(r"KL = (\S+) nats", said)[1])
    first = next(iter(inputs.batches(CPU)))[1]
    p, q = (z[first].double().log_softmax(1) for z in (exact, close))
    assert claimed == pytest.approx((p.exp() * (p - q)).sum(1).max().item(), rel=0.1)


@pytest.mark.parametrize("setting", [{"dtype": "int8"}, {"top_k": 0}])
def test_invalid_setting_is_refused(setting) -> None:
    with pytest.raises(UserError, match=r"cache\."):
        TeacherCache(None, **setting)


class Cutout(Augment):
    """An augmentation that a user might write."""

    def __init__(self, size: int) -> None:
        super().__init__(shift=2, views=2)
        self.size = size


def test_augmentations_have_different_fingerprints(data) -> None:
    found = set()
    for augment in (Augment(shift=2, views=2), Cutout(4), Cutout(9)):
        data.augment = augment
        found.add(data.prepared("train").fingerprint)
    assert len(found) == 3


@pytest.mark.parametrize("name", ["top", "other", "classes"])
def test_layer_may_have_any_name(data, name: str) -> None:
    net = nn.Sequential()
    net.add_module("flat", nn.Flatten())
    net.add_module(name, nn.Linear(784, 10))
    cache = TeacherCache(None, top_k=3)
    outputs = cache.outputs(net.eval(), data.prepared("val"), CPU, [name])
    assert outputs is not None
    _, index, inputs = next(iter(data.prepared("val").batches(CPU)))
    found = outputs.read(index, 0)
    torch.testing.assert_close(found[name], net(inputs).detach(), rtol=0, atol=0)
    assert found["logits"].shape == (len(index), 10)


def test_next_job_of_a_process_reuses_tables_in_memory(data, teacher) -> None:
    cache = TeacherCache(None)
    calls = []
    teacher.register_forward_hook(lambda *_: calls.append(1))
    for _ in range(2):
        before = len(calls)
        assert cache.outputs(teacher, data.prepared("val"), CPU) is not None
    assert len(calls) == before


def test_tables_in_memory_stay_within_max_bytes(data, teacher) -> None:
    once = TeacherCache(None)
    once.outputs(teacher, data.prepared("train"), CPU)
    (tables,) = once.held.values()
    cache = TeacherCache(None, max_bytes=1.5 * sum(table.nbytes for table in tables.values()))
    for seed in range(3):
        data.augment = Augment(shift=2, views=2, seed=seed)
        assert cache.outputs(teacher, data.prepared("train"), CPU) is not None
    assert len(cache.held) == 1


def test_unusable_folder_is_reported_and_outputs_stay_in_memory(
    data, teacher, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    with caplog.at_level(logging.WARNING):
        outputs = TeacherCache(str(tmp_path / "file" / "cache")).outputs(
            teacher, data.prepared("val"), CPU
        )
    assert outputs is not None
    assert torch.equal(outputs.tables["logits"], live(data, teacher))
    assert re.search(r"teacher outputs stay in memory: .*\(see cache\.root=\)", log_of(caplog))


def test_full_folder_is_reported_once_and_outputs_are_computed_once(
    data, teacher, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    cache = TeacherCache(str(tmp_path))
    with caplog.at_level(logging.INFO):
        outputs = [cache.outputs(teacher, data.prepared(split), CPU) for split in ("val", "test")]
    assert outputs[0] is not None
    assert torch.equal(outputs[0].tables["logits"], live(data, teacher))
    assert log_of(caplog).count("teacher outputs stay in memory") == 1
    assert log_of(caplog).count("Computing teacher outputs") == 2
    assert [path.suffix for path in tmp_path.iterdir()] == [".lock", ".lock"]


def live(data: DigitsDataModule, teacher: nn.Module) -> torch.Tensor:
    """The teacher's logits for the validation data, 1×N×C."""
    with torch.no_grad():
        return torch.cat([teacher(x) for *_, x in data.prepared("val").batches(CPU)])[None]


def test_half_precision_of_layers_is_logged_or_refused(data, teacher, caplog) -> None:
    cache = TeacherCache(None, dtype="float16")
    with caplog.at_level(logging.INFO):
        cache.outputs(teacher, data.prepared("val"), CPU, ["features"])
    assert "stored features differs by at most" in log_of(caplog)
    with torch.no_grad():
        teacher.features[0].weight.mul_(1e6)
    with pytest.raises(UserError, match=r"reach .* use cache\.dtype=float32"):
        cache.outputs(teacher, data.prepared("val"), CPU, ["features"])


SLOW_TEACHER = """
import logging, sys, time
from pathlib import Path
import torch
from torch import nn
from kd_lightning.teachers.cache import TeacherCache
from kd_lightning.data.digits import DigitsDataModule

class Slow(nn.Linear):
    def forward(self, x):
        time.sleep(0.2)
        return super().forward(x.flatten(1))

folder = Path(sys.argv[1])
logging.basicConfig(level=logging.INFO)
data = DigitsDataModule()
data.setup()
torch.manual_seed(0)
net = Slow(784, 10).eval()
(folder / f"ready-{sys.argv[2]}").touch()
while len(list(folder.glob("ready-*"))) < 2:
    time.sleep(0.01)
cache = TeacherCache(str(folder / "cache"))
print(cache.outputs(net, data.prepared("train"), torch.device("cpu")).tables["logits"].sum().item())
"""


@pytest.mark.slow
def test_one_of_concurrent_processes_computes(tmp_path: Path) -> None:
    command = [sys.executable, "-c", SLOW_TEACHER, str(tmp_path)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen([*command, name], **pipes) for name in "ab"]
    ended = [(*process.communicate(timeout=120), process.returncode) for process in processes]
    assert [code for *_, code in ended] == [0, 0], ended
    assert len({printed for printed, *_ in ended}) == 1
    logs = [stderr for _, stderr, _ in ended]
    assert sum(log.count("Computing teacher outputs for 1,293 samples") for log in logs) == 1
