"""Tests of every method on the command line: it runs, learns, and trains a student of its own."""

import csv
import json
from itertools import combinations
from pathlib import Path

import figures
import pytest
import torch
from conftest import ROOT, Command, Sweep, read_facts, read_metrics
from spy import Banks
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from kd_lightning import load_run
from kd_lightning.cli.paths import CONF
from kd_lightning.nets.cnn import StudentCNN
from kd_lightning.runs.checkpoints import network_state, read_checkpoint

pytestmark = pytest.mark.slow

METHODS = sorted(p.stem for p in (CONF / "method").glob("*.yaml"))
SAMPLES = 1293  # of the digits, for training
ON_MAPS, ON_EMBEDDINGS = (
    ("at", "fitnet", "nst", "sp", "vid"),
    ("cc", "crd", "feature_matching", "pkt", "rkd"),
)


@pytest.fixture(scope="module")
def sweep(command: Command, tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    """A sweep of one epoch of every method, with a cache of its own."""
    folder = tmp_path_factory.mktemp("methods")
    done = command(
        *("-m", "data=digits", "trainer.max_epochs=1", f"method={','.join(METHODS)}"),
        f"hydra.sweep.dir={folder / 'sweep'}",
        KD_CACHE=str(folder / "cache"),
    )
    assert done.returncode == 0, done.stderr
    return Sweep(folder / "sweep", done.stdout)


def job(sweep: Sweep, method: str) -> Path:
    return sweep.folder / str(METHODS.index(method))


def rows(job: Path) -> list[dict[str, str]]:
    """The logged rows of training steps."""
    with (job / "metrics.csv").open(newline="") as file:
        return [row for row in csv.DictReader(file) if row["train/loss"]]


@pytest.mark.parametrize("method", METHODS)
def test_student_learns(sweep: Sweep, method: str) -> None:
    run_dir = job(sweep, method)
    metrics = read_metrics(run_dir)
    first, *_, last = (float(row["train/loss"]) for row in rows(run_dir))
    assert last < first
    # after one epoch the methods lie between 0.836 and 0.878, the baseline at 0.861
    baseline = read_metrics(job(sweep, "ce"))["test/accuracy"]
    assert metrics["test/accuracy"] > baseline - 0.05


@pytest.mark.parametrize("method", METHODS)
def test_figures_of_each_method(sweep: Sweep, method: str) -> None:
    figures.check(job(sweep, method))


ROLES = {
    "ce": "baseline",
    "label_smoothing": "control: label_smoothing",
    "permuted": "control: permuted",
    "untrained": "control: untrained",
}


@pytest.mark.parametrize("method", METHODS)
def test_facts_of_each_method(sweep: Sweep, method: str, store: Path) -> None:
    facts = read_facts(job(sweep, method))
    assert (facts["method"], facts["role"]) == (method, ROLES.get(method, "student"))
    if method in ("untrained", "mutual"):
        assert (facts["teacher"], facts["teacher_figures"]) == ("", {})
    else:
        assert Path(facts["teacher"]).parent == store
        own = read_metrics(Path(facts["teacher"]))
        assert facts["teacher_figures"]["test/accuracy"] == own["test/accuracy"]
        if method != "feature_matching":  # which compares no predictions
            assert read_metrics(job(sweep, method))["test/teacher_accuracy"] == own["test/accuracy"]
    assert facts["settings"]["method"] == method
    assert facts["overrides"] == {"data": "digits", "trainer.max_epochs": "1", "method": method}


def test_no_two_methods_train_the_same_student(sweep: Sweep) -> None:
    def weights(method: str) -> torch.Tensor:
        state = network_state(read_checkpoint(job(sweep, method) / "checkpoints" / "last.ckpt"))
        return torch.cat([weight.flatten() for weight in state.values()])

    found = {method: weights(method) for method in METHODS}
    alike = [pair for pair in combinations(METHODS, 2) if torch.equal(*(found[m] for m in pair))]
    assert alike == []


def test_table_names_every_method(sweep: Sweep) -> None:
    with (sweep.folder / "sweep.csv").open(newline="") as file:
        named = [row["method"] for row in csv.DictReader(file)]
    assert [name for name in named if name] == METHODS


@pytest.mark.parametrize("method", METHODS)
def test_checkpoint_holds_the_student_and_layers_of_its_terms(sweep: Sweep, method: str) -> None:
    run = load_run(job(sweep, method))
    expected = StudentCNN(run.spec.input_shape, run.spec.num_classes)
    assert run.network.state_dict().keys() == expected.state_dict().keys()
    state = read_checkpoint(job(sweep, method) / "checkpoints" / "best.ckpt")["state_dict"]
    beside = {name.split(".")[2] for name in state if name.startswith("objective.transfer.")}
    with_layers = {"fitnet", "vid", "fsp", "review", "crd", "feature_matching"}
    assert beside == {method} & with_layers
    assert not [name for name in state if name.startswith("teacher.")]


def test_each_teacher_output_is_computed_once(sweep: Sweep) -> None:
    def computed(*methods: str) -> int:
        logs = [(job(sweep, method) / "train.log").read_text() for method in methods]
        return sum(log.count("Computing teacher outputs for") for log in logs)

    assert computed(*ON_MAPS) == computed(*ON_EMBEDDINGS) == 1
    assert computed("fsp", "review") == 1  # one more map; the other is there
    others = {*METHODS} - {*ON_MAPS, *ON_EMBEDDINGS, "fsp", "review", "untrained", "mutual"}
    assert computed(*others) == 3  # the logits of each split
    assert computed("untrained") == 3  # another teacher's
    assert computed("mutual") == 0


def test_schedules_are_logged(sweep: Sweep) -> None:
    def logged(method: str, name: str) -> list[float]:
        return [float(row[f"train/{name}"]) for row in rows(job(sweep, method))]

    steps = torch.tensor([49, 80]) / 81  # of the only epoch
    assert logged("annealed", "temperature") == pytest.approx((10 - 9 * steps).tolist())
    assert logged("dkd", "alpha") == pytest.approx((steps / 20).tolist())
    assert logged("review", "weight_review") == pytest.approx((steps / 20).tolist())
    assert logged("kd", "temperature") == [5, 5]


@pytest.mark.parametrize("method", ["ctkd", "ctkd_instance"])
def test_learned_temperature_is_logged_and_saved(sweep: Sweep, method: str) -> None:
    first, last = (float(row["train/temperature"]) for row in rows(job(sweep, method)))
    assert abs(last - first) > 1e-3
    assert 1 < last < 21
    board = EventAccumulator(str(job(sweep, method) / "tensorboard")).Reload()
    plotted = [event.value for event in board.Scalars("train/temperature")]
    assert plotted == pytest.approx([first, last])
    kept = read_checkpoint(job(sweep, method) / "checkpoints" / "last.ckpt")["state_dict"]
    if method == "ctkd":  # one step after the last row
        temperature = 1 + 20 * kept["objective.temperature.theta"].sigmoid()
        assert temperature.item() == pytest.approx(last, abs=0.05)
    else:
        assert "objective.temperature.layers.2.weight" in kept


@pytest.fixture(scope="module")
def pairs(command: Command, tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    """A sweep of methods on two processes, each with a second term of a growing weight."""
    folder = tmp_path_factory.mktemp("pairs")
    done = command(
        *("-m", "data=digits", "trainer.devices=2", "trainer.max_epochs=1"),
        "method=fitnet,crd,feature_matching",
        *("+transfer@method.transfer.sp=sp", "+schedule@method.transfer.sp.weight=linear"),
        *("method.transfer.sp.weight.end=3000", "trainer.log_every_n_steps=10", *Banks.USE),
        f"hydra.sweep.dir={folder / 'sweep'}",
        PYTHONPATH=str(ROOT / "tests"),
        KD_CACHE=str(folder / "cache"),
    )
    assert done.returncode == 0, done.stderr
    return Sweep(folder / "sweep", done.stdout)


def test_weight_of_a_second_term_may_be_a_schedule(pairs: Sweep) -> None:
    terms = ("fitnet", "crd", "feature_matching")
    for job, term, weight in zip(pairs, terms, (100, 0.8, 1), strict=True):
        logged = rows(job)
        assert {float(row[f"train/weight_{term}"]) for row in logged} == {weight}
        grows = [float(row["train/weight_sp"]) for row in logged]
        assert grows == pytest.approx([3000 * step / 41 for step in (9, 19, 29, 39, 40)])
        assert all(float(row[f"train/{name}"]) > 0 for row in logged for name in (term, "sp"))
        figures.check(job)


def test_banks_are_equal_on_both_processes_and_hold_all_samples(
    pairs: Sweep,
) -> None:
    first, second = (
        json.loads((pairs.folder / "1" / f"banks-{rank}.json").read_text()) for rank in (0, 1)
    )
    assert first == second
    assert first["moved"] == [SAMPLES, SAMPLES]


def test_two_processes_share_teacher_outputs(pairs: Sweep) -> None:
    files = [p.name for p in (pairs.folder.parent / "cache").glob("*.pt")]
    kinds = sorted(name.partition("-")[2] for name in files)
    # a map for fitnet and sp, the embedding for the others, the logits of each split
    assert kinds == ["classifier.3.pt", "features.pt", "logits.pt", "logits.pt", "logits.pt"]
