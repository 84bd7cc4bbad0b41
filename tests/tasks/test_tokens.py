"""Tests of the task interface through a token classifier, against loops over unpadded tokens."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import run_script
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from tokens import (
    CLASSES,
    NOTHING,
    DictTagger,
    Tagger,
    TokenClassification,
    TokenData,
    TokenSpec,
    module_of,
    trainer_of,
)
from torch import Tensor

from kd_lightning import TeacherCache, TeacherModule
from kd_lightning.callbacks.pictures import Pictures
from kd_lightning.data.types import as_batch
from kd_lightning.modules import DistillationModule

SCRIPT = Path(__file__).with_name("tokens.py")


def unpadded(values: Tensor, target: Tensor) -> Tensor:
    """The entries of all tokens that have a target, gathered one by one."""
    found = [
        values[b, t]
        for b in range(target.shape[0])
        for t in range(target.shape[1])
        if target[b, t] != NOTHING
    ]
    return torch.stack(found)


def by_hand(module: DistillationModule, batch: dict[str, Any]) -> dict[str, Tensor]:
    """Logits, hidden layers and targets of the unpadded tokens of a batch."""
    found = {"target": unpadded(batch["labels"], batch["labels"])}
    for name, net in (("s", module.student), ("t", module.teacher)):
        assert isinstance(net, Tagger)
        x = net.embed(batch["ids"]) * batch["mask"][..., None]
        hidden = net.hidden(net.mix(x.mT).mT.relu())
        found[f"h_{name}"] = unpadded(hidden, batch["labels"])
        found[f"z_{name}"] = unpadded(net.head(hidden.relu()), batch["labels"])
    return found


def kd(z_s: Tensor, z_t: Tensor, **_: Tensor) -> Tensor:
    p, q = (z_t / 3).softmax(1), (z_s / 3).softmax(1)
    return 9 * (p * (p / q).log()).sum(1).mean()


def dkd(z_s: Tensor, z_t: Tensor, target: Tensor, **_: Tensor) -> Tensor:
    total = torch.zeros((), dtype=z_s.dtype)
    for s, t, y in zip((z_s / 2).softmax(1), (z_t / 2).softmax(1), target, strict=True):
        rest = torch.arange(CLASSES) != y
        a, b = torch.stack([t[y], 1 - t[y]]), torch.stack([s[y], 1 - s[y]])
        c, d = t[rest] / t[rest].sum(), s[rest] / s[rest].sum()
        total = total + (a * (a / b).log()).sum() + 8 * (c * (c / d).log()).sum()
    return 4 * total / len(target)


def sp(h_s: Tensor, h_t: Tensor, **_: Tensor) -> Tensor:
    g_s, g_t = (F.normalize(h @ h.T, dim=1) for h in (h_s, h_t))
    return (g_s - g_t).square().sum() / len(h_s) ** 2


@pytest.mark.parametrize(
    ("method", "name", "expected"),
    [("kd", "response", kd), ("dkd", "response", dkd), ("sp", "sp", sp)],
)
def test_losses_equal_those_of_the_unpadded_tokens(method: str, name: str, expected: Any) -> None:
    module, data = module_of(method).double(), TokenData()
    for batch in data.train_batches()[:2]:
        terms = module.terms(as_batch(batch))
        rows = by_hand(module, batch)
        hard = F.cross_entropy(rows["z_s"], rows["target"])
        torch.testing.assert_close(terms["hard"], hard, rtol=1e-12, atol=0)
        torch.testing.assert_close(terms[name], expected(**rows), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("method", ["kd", "dkd", "sp"])
def test_training_from_the_cache_equals_training_with_the_live_teacher(
    method: str, tmp_path: Path
) -> None:
    weights = []
    for cache in (TeacherCache(str(tmp_path)), TeacherCache(None, max_bytes=0)):
        module = module_of(method, cache)
        trainer_of().fit(module, TokenData())
        weights.append({k: v.clone() for k, v in module.student.state_dict().items()})
        assert set(module.outputs.cached) == ({"train", "val"} if cache.root else set())
    torch.testing.assert_close(*weights, rtol=1e-5, atol=1e-6)


def test_padding_changes_no_gradient() -> None:
    module, data = module_of("kd").double(), TokenData()
    (batch, *_) = data.train_batches()
    wider = {k: v if k in ("index", "share") else F.pad(v, (0, 5)) for k, v in batch.items()}
    wider["labels"][:, -5:] = NOTHING
    found = []
    for each in (batch, wider):
        loss = module.terms(as_batch(each))["loss"]
        found.append(torch.autograd.grad(loss, list(module.student.parameters())))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-14)


def expected_figures(module: DistillationModule, data: TokenData, split: str) -> dict[str, float]:
    """Figures over all tokens of a split, in float64."""
    whole = data._batch(split, torch.arange(len(data.splits[split][0])))
    with torch.no_grad():
        rows = by_hand(module.double(), whole)
    z_s, z_t, target = rows["z_s"], rows["z_t"], rows["target"]
    p, q = z_t.softmax(1), z_s.softmax(1)
    return {
        "accuracy": (z_s.argmax(1) == target).double().mean().item(),
        "teacher_accuracy": (z_t.argmax(1) == target).double().mean().item(),
        "agreement": (z_s.argmax(1) == z_t.argmax(1)).double().mean().item(),
        "loss": F.cross_entropy(z_s, target).item(),
        "kl_teacher": (p * (p / q).log()).sum(1).mean().item(),
    }


def test_figures_are_those_of_all_unpadded_tokens() -> None:
    module, data, trainer = module_of("kd"), TokenData(), trainer_of()
    trainer.fit(module, data)
    (figures,) = trainer.test(module, data, verbose=False)
    for name, value in expected_figures(module, data, "test").items():
        assert figures[f"test/{name}"] == pytest.approx(value, rel=1e-5), name


@pytest.mark.filterwarnings("ignore:.*exists and is not empty")
def test_a_resumed_run_equals_one_that_was_never_stopped(tmp_path: Path) -> None:
    found = []
    for legs in ((4,), (2, 4)):
        for epochs in legs:
            module, data = module_of("sp"), TokenData()
            saver = ModelCheckpoint(tmp_path / str(len(legs)), save_last=True)
            settings = {"max_epochs": epochs, "enable_checkpointing": True, "callbacks": [saver]}
            last = tmp_path / str(len(legs)) / "last.ckpt"
            trainer_of(**settings).fit(
                module, data, ckpt_path=last if last.is_file() else None, weights_only=True
            )
        found.append(module.student.state_dict())
    torch.testing.assert_close(*found, rtol=0, atol=0)


def weights_after(steps: int, data: TokenData, **settings: Any) -> dict[str, Tensor]:
    module = module_of("kd", TeacherCache(None))
    trainer_of(precision="64-true", max_epochs=-1, max_steps=steps, **settings).fit(module, data)
    return module.student.state_dict()


@pytest.mark.parametrize("parts", [2, 4])
def test_shares_make_accumulated_batches_equal_to_one(parts: int) -> None:
    whole = weights_after(6, TokenData(16))
    split = weights_after(6, TokenData(16, parts), accumulate_grad_batches=parts)
    torch.testing.assert_close(split, whole, rtol=1e-10, atol=1e-12)


@pytest.mark.slow
def test_two_processes_equal_one_and_measure_all_tokens(tmp_path: Path) -> None:
    run_script(SCRIPT, tmp_path)
    weights = torch.load(tmp_path / "weights.pt", weights_only=True)
    module, data = module_of("kd", TeacherCache(None)), TokenData()
    trainer_of(precision="64-true").fit(module, data)
    torch.testing.assert_close(dict(module.state_dict()), dict(weights), rtol=1e-9, atol=1e-11)
    figures = json.loads((tmp_path / "figures.json").read_text())
    for name, value in expected_figures(module, data, "test").items():
        assert figures[f"test/{name}"] == pytest.approx(value, rel=1e-5), name


def test_costs_graph_and_pictures_take_the_tasks_example(tmp_path: Path) -> None:
    module = module_of("kd")
    costs = module.describe()
    assert costs["parameters"] == sum(p.numel() for p in module.student.parameters())
    linear = 12 * (3 * 8 * 8 + 8 * 8 + 8 * CLASSES)  # multiply-adds of one sentence
    assert costs["multiply_adds"] == linear
    logger = TensorBoardLogger(tmp_path, name="", version="", default_hp_metric=False)
    trainer = trainer_of(max_epochs=1, logger=logger, callbacks=[Pictures(samples=50)])
    trainer.fit(module, TokenData())
    trainer.validate(module, TokenData(), verbose=False)


def test_a_teacher_of_tokens_learns_the_rule() -> None:
    data = TokenData()
    module = TeacherModule(
        Tagger,
        task=TokenClassification(TokenSpec()),
        optimizer=lambda groups: torch.optim.Adam(groups, lr=0.03),
    )
    trainer = trainer_of(max_epochs=1)
    trainer.fit(module, data)
    before = trainer.validate(module, data, verbose=False)[0]["val/accuracy"]
    trainer = trainer_of(max_epochs=60)
    trainer.fit(module, data)
    after = trainer.validate(module, data, verbose=False)[0]["val/accuracy"]
    assert after > before + 0.2  # chance is 0.2


def test_outputs_of_any_usual_form_are_unwrapped() -> None:
    torch.manual_seed(0)
    plain, wrapped = Tagger(23, CLASSES), DictTagger(23, CLASSES)
    wrapped.load_state_dict(plain.state_dict())
    example = TokenSpec().example()
    modules = [TeacherModule(net, task=TokenClassification()) for net in (plain, wrapped)]
    first, second = (module(**example.inputs) for module in modules)
    assert torch.equal(first, second)
