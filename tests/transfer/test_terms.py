"""Every term of conf/transfer with real networks: layers, gradients, adapters, errors."""

from collections.abc import Callable, Iterable
from typing import Any

import lightning as L
import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from kd_lightning.cli.paths import CONF
from kd_lightning.data.digits import DigitsDataModule
from kd_lightning.losses import similarity
from kd_lightning.modules import DistillationModule
from kd_lightning.nets.cnn import StudentCNN, TeacherCNN
from kd_lightning.nets.mlp import MLP
from kd_lightning.nets.taps import tapped
from kd_lightning.objective import Objective
from kd_lightning.runs.build import make
from kd_lightning.schedules import LearnedTemperature, LearnedTemperatures
from kd_lightning.tasks.classification import Classification
from kd_lightning.transfer.crd import CRD
from kd_lightning.transfer.fitnet import FitNet
from kd_lightning.transfer.fsp import FSP
from kd_lightning.transfer.review import Fusion
from kd_lightning.transfer.term import Term
from kd_lightning.transfer.vid import VID
from kd_lightning.utils.errors import UserError

TERMS = sorted(p.stem for p in (CONF / "transfer").glob("*.yaml") if p.stem != "term")
WITHOUT_LAYERS = {"at", "nst", "sp", "rkd", "cc", "pkt"}
SHAPE = (1, 28, 28)

Make = Callable[..., Term]


@pytest.fixture(scope="module")
def described() -> DictConfig:
    """Return the configuration of all terms, as the command line composes it."""
    chosen = [f"+transfer@method.transfer.{name}={name}" for name in TERMS]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("train", chosen).method.transfer


@pytest.fixture
def term_of(described: DictConfig) -> Make:
    """Return a function that creates a term by name, with overrides."""

    def term(name: str, **settings: Any) -> Term:
        return make(OmegaConf.merge(described[name], settings))

    return term


def networks(student: type[nn.Module] = StudentCNN) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    return student(SHAPE, 10), TeacherCNN(SHAPE, 10, width=6).eval()


def connected(term: Term, student: nn.Module, teacher: nn.Module) -> Term:
    """Connect a term to both networks and return it."""
    term.connect(student, teacher, torch.zeros(2, *SHAPE), labels=torch.arange(40) % 10)
    return term


def value(term: Term, student: nn.Module, teacher: nn.Module) -> Tensor:
    x = torch.randn(8, *SHAPE, generator=torch.Generator().manual_seed(1))
    outputs = tapped(student, x, term.student), tapped(teacher, x, term.teacher)
    return term(*outputs, torch.arange(8))


@pytest.mark.parametrize("name", TERMS)
def test_a_term_connects_by_default_and_its_gradient_reaches_the_student(
    name: str, term_of: Make
) -> None:
    student, teacher = networks()
    term = connected(term_of(name), student, teacher)
    assert len(term.student) == len(term.teacher) == (2 if name in ("fsp", "review") else 1)
    loss = value(term, student, teacher)
    assert loss.shape == ()
    assert loss.isfinite()
    loss.backward()
    first = next(student.parameters()).grad
    assert first is not None
    assert first.isfinite().all()
    assert first.abs().sum() > 0
    assert all(p.grad is None for p in teacher.parameters())  # although they require gradients
    # DDP raises on parameters that get no gradient.
    assert all(p.grad is not None for p in term.parameters())
    assert (not list(term.parameters())) == (name in WITHOUT_LAYERS)


@pytest.mark.parametrize("name", [*sorted(WITHOUT_LAYERS), "fitnet", "fsp"])
def test_equal_networks_need_no_adapters_and_give_zero(name: str, term_of: Make) -> None:
    _, teacher = networks()
    term = connected(term_of(name), teacher, teacher)
    assert not list(term.parameters())
    assert value(term, teacher, teacher).item() == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("kind", [FitNet, FSP])
def test_adapters_are_built_only_where_shapes_differ(kind: type[Term]) -> None:
    _, teacher = networks()
    student = StudentCNN(SHAPE, 10, width=6)
    term = connected(
        kind(["features.0", "features.2"], ["features.0", "features.4"]), student, teacher
    )
    assert {name.split(".")[1] for name, _ in term.named_parameters()} == {"1"}  # the second pair
    assert value(term, student, teacher).isfinite()


def test_fusion_depends_on_the_later_stages() -> None:
    x, later = torch.randn(2, 4, 8, 8), torch.randn(2, 5, 2, 2)
    torch.manual_seed(0)
    fusion = Fusion(4, width=5, outputs=6, fuse=True).eval()
    out, fused = fusion(x, later, (4, 4))
    assert (out.shape, fused.shape) == ((2, 6, 4, 4), (2, 5, 4, 4))
    assert not torch.allclose(out, fusion(x, -later, (4, 4))[0])
    last = Fusion(4, width=5, outputs=6, fuse=False).eval()
    assert torch.equal(last(x, None, (4, 4))[0], last(x, later, (4, 4))[0])


def test_vid_starts_with_the_published_variance() -> None:
    term = connected(VID(), *networks())
    (scale,) = term.log_scales
    torch.testing.assert_close(nn.functional.softplus(scale) + 1e-5, torch.full((12,), 5.0))


@pytest.fixture(scope="module")
def data() -> DigitsDataModule:
    data = DigitsDataModule(batch_size=32, train_fraction=0.1)
    data.setup()
    return data


def module_for(objective: Objective, data: DigitsDataModule) -> DistillationModule:
    _, teacher = networks()
    labels = data.splits["train"].target
    task = Classification(data.spec)
    return DistillationModule(StudentCNN, teacher, objective, labels, task=task)


@pytest.mark.parametrize("name", sorted({*TERMS} - WITHOUT_LAYERS))
def test_adapters_have_their_own_learning_rate_and_are_in_checkpoints(
    name: str, term_of: Make, data: DigitsDataModule
) -> None:
    def groups(**settings: Any) -> tuple[DistillationModule, Term, list[dict[str, Any]]]:
        term = term_of(name, **settings)
        module = module_for(Objective(transfer={name: term}), data)
        optimizer: Any = module.configure_optimizers()
        return module, term, optimizer.param_groups

    def ids(parameters: Iterable[nn.Parameter]) -> list[int]:
        return sorted(id(p) for p in parameters)  # a list: each parameter must be in it once

    module, term, (together,) = groups()
    assert ids(together["params"]) == ids([*module.student.parameters(), *term.parameters()])
    module, term, (students, own) = groups(lr=0.5)
    assert ids(students["params"]) == ids(module.student.parameters())
    assert ids(own["params"]) == ids(term.parameters())
    assert (students["lr"], own["lr"]) == (1e-3, 0.5)
    of_term = {f"objective.transfer.{name}.{k}" for k in term.state_dict()}
    of_student = {f"student.{k}" for k in module.student.state_dict()}
    assert set(module.state_dict()) == of_term | of_student


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "64-true"])
@pytest.mark.parametrize("learned", [LearnedTemperature, LearnedTemperatures])
def test_all_terms_train_together_in_other_precisions(
    precision: Any, learned: type[LearnedTemperature], term_of: Make, data: DigitsDataModule
) -> None:
    transfer = {name: term_of(name, weight=1.0) for name in TERMS}
    module = module_for(Objective(temperature=learned(), transfer=transfer), data)
    before = [p.detach().double() for p in module.student.parameters()]
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    settings = {"max_steps": 3, "limit_val_batches": 0, "enable_checkpointing": False, **quiet}
    L.Trainer(accelerator="cpu", precision=precision, **settings).fit(module, data)
    after = [p.detach().double() for p in module.student.parameters()]
    assert not any(torch.equal(a, b) for a, b in zip(after, before, strict=True))
    assert all(p.isfinite().all() for p in module.parameters())


NO_MAP = "but this term compares maps (B×C×H×W): name another layer"
WRONG: dict[str, tuple[str, dict[str, Any], str]] = {
    "numbers": (
        "fitnet",
        {"student": "features.1", "teacher": ["features.1", "features.3"]},
        "layers are compared in pairs, but there are 1 of the student (features.1) and 2 "
        "of the teacher (features.1, features.3); name as many of each",
    ),
    "proposed": (
        "at",
        {"student": ["features.0", "features.1"]},
        "layers are compared in pairs, but there are 2 of the student (features.0, features.1)",
    ),
    "flat": (
        "vid",
        {"student": "classifier.0", "teacher": "features.1"},
        f"classifier.0 of the student has shape B×2704, {NO_MAP}",
    ),
    "flat teacher": (
        "at",
        {"student": "features.1", "teacher": "classifier.2"},
        f"classifier.2 of the teacher has shape B×24, {NO_MAP}",
    ),
    "flat, under one name": (  # the same path is a map of the teacher
        "fitnet",
        {"student": "features", "teacher": "features"},
        f"features of the student has shape B×8, {NO_MAP}",
    ),
    "one flow": (
        "fsp",
        {"student": "features.1", "teacher": "features.1"},
        "fsp compares the flow between layers and needs at least two, got 1",
    ),
    "unknown": (
        "rkd",
        {"student": "clasifier.0"},
        "StudentCNN has no layer 'clasifier.0'; it has classifier.0, classifier",
    ),
    "no layer": (
        "cc",
        {"student": 3, "teacher": "classifier"},
        "StudentCNN has no layer '3'; it has ",
    ),
}


class FlatFeatures(nn.Sequential):
    """A network whose layer ``features`` returns a vector."""

    def __init__(self, input_shape: tuple[int, ...], num_classes: int) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Flatten(), nn.Linear(784, 8))
        self.classifier = nn.Linear(8, num_classes)


@pytest.mark.parametrize("case", WRONG)
def test_layers_that_do_not_fit_are_rejected_with_one_line(case: str, term_of: Make) -> None:
    name, settings, said = WRONG[case]
    student, teacher = networks(FlatFeatures if "one name" in case else StudentCNN)
    with pytest.raises(UserError) as error:
        connected(term_of(name, **settings), student, teacher)
    assert str(error.value).startswith(said)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["fitnet", "review"])
def test_networks_without_maps_get_methods_on_embeddings_proposed(name: str, term_of: Make) -> None:
    student, teacher = networks(MLP)
    with pytest.raises(
        UserError, match=r"MLP and TeacherCNN have no maps .* \(rkd, cc, pkt, crd, sp\)"
    ):
        connected(term_of(name), student, teacher)
    for embedded in ("rkd", "cc", "pkt", "crd", "sp"):
        assert value(connected(term_of(embedded), student, teacher), student, teacher).isfinite()


def test_sp_compares_maps_by_default_and_accepts_any_layer(term_of: Make) -> None:
    student, teacher = networks()
    maps = connected(term_of("sp"), student, teacher)
    at = connected(term_of("at"), student, teacher)
    assert (maps.student, maps.teacher) == (at.student, at.teacher)  # the last pair of maps
    named = term_of("sp", student="features.1", teacher="classifier.2")
    named = connected(named, student, teacher)
    x = torch.randn(8, *SHAPE, generator=torch.Generator().manual_seed(1))
    f_s, f_t = student.features[:2](x).flatten(1), teacher.classifier[:3](teacher.features(x))
    torch.testing.assert_close(value(named, student, teacher), similarity(f_s, f_t))
    with pytest.raises(UserError, match="role must be one of map, maps, embedding, any"):
        term_of("sp", role="vector")


def test_only_terms_with_a_memory_need_index_and_labels(term_of: Make) -> None:
    student, teacher = networks()
    x = torch.randn(8, *SHAPE, generator=torch.Generator().manual_seed(1))
    for name in TERMS:
        term = term_of(name)
        assert (term.needs_index, term.needs_labels) == ((name == "crd"),) * 2
        if name == "crd":
            continue
        term.connect(student, teacher, x, torch.empty(0, dtype=torch.long))
        outputs = tapped(student, x, term.student), tapped(teacher, x, term.teacher)
        torch.testing.assert_close(term(*outputs, None), term(*outputs, torch.arange(8)))


class Keyword(nn.Module):
    """A network that takes its input by keyword, as from a dictionary batch."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.last = nn.Linear(6, 5), nn.Linear(5, 3)

    def forward(self, values: Tensor) -> Tensor:
        return self.last(self.hidden(values))


def test_a_sample_may_be_a_mapping_of_tensors() -> None:
    term = FitNet("hidden", "hidden")  # the error shows that the mapping reached the networks
    with pytest.raises(UserError, match="hidden of the student has shape B×5"):
        term.connect(Keyword(), Keyword(), {"values": torch.zeros(2, 6)}, torch.arange(4))
    term = CRD(negatives=3, size=2)
    term.connect(Keyword(), Keyword(), {"values": torch.zeros(2, 6)}, torch.arange(4))
    assert (term.student, term.teacher) == (["hidden"], ["hidden"])
    assert term.embed_s.in_features == 5


def test_rows_are_selected_before_shapes_are_used() -> None:
    """Of a token model's layers, B×L×D, the terms are built for N×D."""
    term = CRD(negatives=3, size=2)
    tokens = {"values": torch.zeros(2, 4, 6)}
    term.connect(Keyword(), Keyword(), tokens, torch.arange(4), rows=lambda f: f.flatten(0, 1))
    assert term.embed_s.in_features == 5  # not 4·5


def test_unnamed_layers_have_numbers_as_paths(term_of: Make) -> None:
    student = nn.Sequential(nn.Sequential(nn.Flatten(), nn.Linear(784, 8)), nn.Linear(8, 10))
    _, teacher = networks()
    for path in (0, "0.1", ["0"]):
        term = connected(term_of("cc", student=path), student, teacher)
        assert value(term, student, teacher).isfinite()
    with pytest.raises(
        UserError,
        match=r"path 0\.1 was read as a number; put it in two pairs of quotes",
    ):
        term_of("cc", student=0.1)  # YAML reads 0.10 as the same number
