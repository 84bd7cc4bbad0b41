"""Tests of the command: the run directory it writes, and the teacher it finds or trains."""

import csv
import shutil
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from conftest import Command, accuracy, read_facts, read_metrics, recompute, same_weights
from omegaconf import OmegaConf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from torch import Tensor

from kd_lightning import load_run
from kd_lightning.data.digits import DigitsDataModule
from kd_lightning.runs.checkpoints import read_checkpoint
from kd_lightning.runs.record import commit
from kd_lightning.utils.errors import UserError

pytestmark = pytest.mark.slow

SPLITS = ("val/", "test/")
OWN = ("accuracy", "loss", "ece", "brier")
FIGURES = {
    *OWN,
    *(f"teacher_{name}" for name in OWN),
    *("agreement", "kl_teacher", "kl_teacher_t", "inherited_errors"),
}
OF_CLASSES = {
    f"{name}_{c}"
    for name in ("class_accuracy", "class_agreement", "teacher_class_accuracy")
    for c in range(10)
}


@pytest.fixture(scope="module")
def events(digits_run: Path) -> EventAccumulator:
    return EventAccumulator(str(digits_run / "tensorboard"), size_guidance={"scalars": 0}).Reload()


def content(folder: Path) -> dict[str, bytes]:
    """Every file in a folder with its content."""
    files = (p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): p.read_bytes() for p in files}


def test_run_directory_has_the_documented_files(digits_run: Path) -> None:
    names = {p.name for p in digits_run.iterdir()}
    files = {"run.json", "metrics.json", "metrics.csv", "diagnostics.npz", "train.log"}
    assert names == {".hydra", "checkpoints", "tensorboard", *files}
    assert {p.name for p in (digits_run / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}


def test_saved_configuration_is_resolved(digits_run: Path) -> None:
    text = (digits_run / ".hydra" / "config.yaml").read_text()
    assert "max_epochs: 2" in text
    assert "${" not in text


def test_metrics_are_flat_numbers_and_complete(digits_run: Path) -> None:
    metrics = read_metrics(digits_run)
    measured = {name for name in metrics if name.startswith(SPLITS)}
    assert measured == {split + name for split in SPLITS for name in FIGURES | OF_CLASSES}
    assert not [k for k, v in metrics.items() if type(v) not in (int, float)]
    costs = {"parameters", "bytes", "multiply_adds", "latency_ms"}
    of_a_teacher = {f"teacher_{name}" for name in costs}
    assert {*metrics} - measured == {
        *(costs | of_a_teacher),
        *("compression", "seconds", "epochs"),
    }
    assert (metrics["parameters"], metrics["teacher_parameters"]) == (27_210, 1_199_882)
    assert metrics["compression"] == 1_199_882 / 27_210
    assert metrics["epochs"] == 2
    assert metrics["seconds"] > 0


@pytest.mark.parametrize("split", ["val", "test"])
def test_figures_equal_recomputation_in_float64(digits_run: Path, split: str) -> None:
    metrics = read_metrics(digits_run)
    z_s, target = recompute(digits_run, split)
    z_t, _ = recompute(Path(read_facts(digits_run)["teacher"]), split)
    label = F.one_hot(target, 10)
    expected = {
        "accuracy": accuracy(z_s, target),
        "teacher_accuracy": accuracy(z_t, target),
        "agreement": accuracy(z_s, z_t.argmax(1)),
        "loss": F.cross_entropy(z_s, target).item(),
        "teacher_loss": F.cross_entropy(z_t, target).item(),
        "brier": (z_s.softmax(1) - label).square().sum(1).mean().item(),
        "teacher_brier": (z_t.softmax(1) - label).square().sum(1).mean().item(),
        "kl_teacher": kl(z_t, z_s, 1.0),
        "kl_teacher_t": kl(z_t, z_s, 5.0),
        **{
            f"class_accuracy_{c}": accuracy(z_s[target == c], target[target == c])
            for c in range(10)
        },
    }
    found = {name: metrics[f"{split}/{name}"] for name in expected}
    assert found == pytest.approx(expected, rel=1e-4)


def kl(z_t: Tensor, z_s: Tensor, t: float) -> float:
    """Mean KL(p_t ‖ p_s) at a temperature."""
    log_t, log_s = (z_t / t).log_softmax(1), (z_s / t).log_softmax(1)
    return (log_t.exp() * (log_t - log_s)).sum(1).mean().item()


def test_best_checkpoint_is_that_of_the_best_epoch(digits_run: Path) -> None:
    with (digits_run / "metrics.csv").open(newline="") as file:
        epochs = [r for r in csv.DictReader(file) if r["val/accuracy"] and not r["test/accuracy"]]
    best = max(epochs, key=lambda row: float(row["val/accuracy"]))
    checkpoint = read_checkpoint(digits_run / "checkpoints" / "best.ckpt")
    assert checkpoint["epoch"] == int(best["epoch"])
    assert read_metrics(digits_run)["val/accuracy"] == pytest.approx(float(best["val/accuracy"]))


def test_facts_of_the_run(digits_run: Path, store: Path) -> None:
    facts = read_facts(digits_run)
    home = Path(facts["teacher"])
    assert home.parent == store
    about = {k: facts[k] for k in ("format", "task", "role", "method", "seed", "processes")}
    assert about == {
        "format": 1,
        "task": "classification",
        "role": "student",
        "method": "kd",
        "seed": 0,
        "processes": 1,
    }
    assert facts["links"] == []
    assert facts["overrides"] == {"data": "digits", "trainer.max_epochs": "2", "profile": "True"}
    assert facts["code"].removesuffix("-dirty") == commit().removesuffix("-dirty")
    own = read_metrics(home)
    assert facts["teacher_figures"] == {k: v for k, v in own.items() if "class_" not in k}
    teacher = read_facts(home)
    assert (teacher["role"], teacher["method"], teacher["teacher"]) == ("teacher", "", "")
    assert teacher["overrides"] == {}  # no user typed its command
    assert teacher["settings"]["trainer.max_epochs"] == 5


def test_every_term_is_in_the_csv(digits_run: Path) -> None:
    with (digits_run / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    steps = [r for r in rows if r["train/loss"]]
    assert [int(r["step"]) for r in steps] == [49, 80, 130, 161]  # every 50th, and the last
    for row in steps:
        loss, hard, response = (float(row[f"train/{k}"]) for k in ("loss", "hard", "response"))
        alpha, temperature = float(row["train/alpha"]), float(row["train/temperature"])
        assert (alpha, temperature) == (0.5, 5.0)
        assert loss == pytest.approx((1 - alpha) * hard + alpha * response, rel=1e-5)
    assert [r["epoch"] for r in rows if r["val/accuracy"]] == ["0", "1"]
    assert [r["step"] for r in rows if r["test/accuracy"]] == ["162"]


def test_tensorboard_shows_terms_settings_and_accuracies_by_step(events: EventAccumulator) -> None:
    terms = {f"train/{k}" for k in ("loss", "hard", "response", "temperature", "alpha")}
    assert terms <= set(events.Tags()["scalars"])
    for tag in terms:
        assert [e.step for e in events.Scalars(tag)] == [49, 80, 130, 161]
    assert {e.value for e in events.Scalars("train/temperature")} == {5.0}
    assert [e.value for e in events.Scalars("lr-Adam")] == pytest.approx([1e-3] * 3)
    assert [e.step for e in events.Scalars("val/accuracy")] == [80, 161]


def test_tensorboard_shows_the_graph(events: EventAccumulator) -> None:
    names = {node.name for node in events.Graph().node}
    assert any("student" in name.lower() for name in names)


def test_tensorboard_shows_settings_with_final_figures(
    events: EventAccumulator, digits_run: Path
) -> None:
    metrics = read_metrics(digits_run)
    plugin = {
        tag: HParamsPluginData.FromString(data)
        for tag, data in events.PluginTagToContent("hparams").items()
    }
    choices = plugin["_hparams_/session_start_info"].session_start_info.hparams
    assert choices["method.temperature"].number_value == 5
    assert choices["student.width"].number_value == 16
    assert choices["data"].string_value == "digits"
    assert choices["method"].string_value == "kd"
    table = plugin["_hparams_/experiment"].experiment
    assert {info.name for info in table.hparam_infos} == set(choices)
    typed = {"data", "profile", "trainer.max_epochs"}
    assert {info.name for info in table.hparam_infos if info.differs} == typed
    shown = [info.name.tag for info in table.metric_infos]
    assert shown[:2] == ["val_best/accuracy", "test/accuracy"]
    assert set(shown) == {split + name for split in ("val_best/", "test/") for name in FIGURES}
    for tag in shown:
        (point,) = events.Scalars(tag)
        assert point.value == pytest.approx(metrics[tag.replace("val_best", "val")])


def test_load_run_predicts_as_the_best_checkpoint(digits_run: Path) -> None:
    run = load_run(digits_run)
    _, test = DigitsDataModule().load()
    expected, target = recompute(digits_run, "test")
    assert torch.equal(target, test.target)
    found = run.predict(test.inputs)
    torch.testing.assert_close(found.double(), expected.softmax(1), rtol=1e-4, atol=1e-6)
    assert run.facts == read_facts(digits_run)
    assert run.metrics == read_metrics(digits_run)
    assert (run.role, run.seed, run.is_finished) == ("student", "0", True)
    assert not run.network.training


def test_load_run_refuses_an_unknown_class_without_calling_it(
    digits_run: Path, tmp_path: Path
) -> None:
    run_dir, trace = shutil.copytree(digits_run, tmp_path / "run"), tmp_path / "trace"
    config = load_run(run_dir).config
    config.model.student = {"_target_": "os.system", "command": f"touch {trace}"}
    OmegaConf.save(config, run_dir / ".hydra" / "config.yaml")
    with pytest.raises(UserError, match=r"the run names os\.system, which is no network"):
        load_run(run_dir)
    assert not trace.exists()


def test_teacher_is_found_in_the_store_or_given_by_path(
    digits_run: Path, command: Command, tmp_path: Path
) -> None:
    trained = Path(read_facts(digits_run)["teacher"])
    store = tmp_path / "store"  # of its own: other tests fill the common one meanwhile
    home = shutil.copytree(trained, store / trained.name)
    before = content(home)
    copy = shutil.copytree(home, tmp_path / "teacher")
    file = Path(shutil.copy(trained / "checkpoints" / "best.ckpt", tmp_path / "teacher.pt"))
    common = ("-m", "data=digits", "trainer.max_epochs=1")
    short = command(
        *(*common, f"teacher_ckpt=null,{copy},{file}", f"hydra.sweep.dir={tmp_path / 'short'}"),
        KD_TEACHERS=str(store),
    )
    long = command(
        *(*common, "teacher_from=checkpoint", f"teacher_from.path={copy},{file}"),
        f"hydra.sweep.dir={tmp_path / 'long'}",
        KD_TEACHERS=str(store),
    )
    for done in (short, long):
        assert done.returncode == 0, done.stderr
        assert "Training the teacher in" not in done.stdout
    assert content(home) == before
    assert [path for path in store.iterdir() if path.is_dir()] == [home]
    jobs = [tmp_path / "short" / n for n in "012"] + [tmp_path / "long" / n for n in "01"]
    facts = [read_facts(job) for job in jobs]
    assert [f["teacher"] for f in facts] == list(map(str, [home, copy, file, copy, file]))
    figures = facts[0]["teacher_figures"]
    assert figures["test/accuracy"] == read_metrics(trained)["test/accuracy"]
    assert [f["teacher_figures"] for f in facts] == [figures, figures, {}, figures, {}]
    first, *others = (load_run(job).network.state_dict() for job in jobs)
    assert all(same_weights(first, other) for other in others)


def test_trained_teacher_is_offered_to_later_students(command: Command, tmp_path: Path) -> None:
    shared = tmp_path / "store"
    done = command(
        *("-m", "data=digits", "teacher.width=2", "model=teacher,student"),
        *("trainer.max_epochs=1", "pretrain.trainer.max_epochs=1"),
        f"hydra.sweep.dir={tmp_path / 'sweep'}",
        KD_TEACHERS=str(shared),
    )
    assert done.returncode == 0, done.stderr
    assert "Training the teacher in" not in done.stdout
    (home,) = (p for p in shared.iterdir() if p.is_dir())
    teacher, student = tmp_path / "sweep" / "0", tmp_path / "sweep" / "1"
    assert read_facts(student)["teacher"] == str(home)
    for name in ("run.json", "metrics.json", "checkpoints/best.ckpt", ".hydra/config.yaml"):
        assert (home / name).read_bytes() == (teacher / name).read_bytes()
    metrics = read_metrics(student)
    assert metrics["test/teacher_accuracy"] == read_metrics(teacher)["test/accuracy"]


def test_baseline_without_teacher_has_no_teacher_figures(command: Command, tmp_path: Path) -> None:
    done = command(
        *("data=digits", "method=ce", "teacher_from=none", "trainer.max_epochs=1"),
        f"hydra.run.dir={tmp_path / 'run'}",
        KD_TEACHERS=str(tmp_path / "store"),
    )
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "store").exists()
    facts, metrics = read_facts(tmp_path / "run"), read_metrics(tmp_path / "run")
    assert (facts["role"], facts["teacher"], facts["teacher_figures"]) == ("baseline", "", {})
    teachers = ("teacher", "agreement", "inherited", "compression")
    assert not [name for name in metrics if any(word in name for word in teachers)]
    expected = accuracy(*recompute(tmp_path / "run", "test"))
    assert metrics["test/accuracy"] == pytest.approx(expected, abs=1e-7)


def test_distillation_without_teacher_is_one_line(command: Command, tmp_path: Path) -> None:
    done = command(
        "data=digits", "method=kd", "teacher_from=none", f"hydra.run.dir={tmp_path / 'run'}"
    )
    assert done.returncode == 1
    assert done.stderr == "error: this objective needs a teacher: see teacher=, teacher_from=\n"
    assert not (tmp_path / "run" / "run.json").exists()


@pytest.mark.parametrize(
    ("precision", "dtype", "tolerance"),
    [("bf16-true", torch.bfloat16, 0.02), ("64-true", torch.float64, 1e-9)],
)
def test_other_precisions_train_and_measure(
    command: Command, tmp_path: Path, precision: str, dtype: torch.dtype, tolerance: float
) -> None:
    done = command(
        *("data=digits", "trainer.max_epochs=1", f"trainer.precision={precision}"),
        *("method=crd", "data.train_fraction=0.3", f"hydra.run.dir={tmp_path}"),
        *("teacher.width=8", "pretrain.trainer.max_epochs=1"),
    )
    assert done.returncode == 0, done.stderr
    state = read_checkpoint(tmp_path / "checkpoints" / "best.ckpt")["state_dict"]
    weights = [v for k, v in state.items() if k.startswith("student.") and v.is_floating_point()]
    assert {weight.dtype for weight in weights} == {dtype}
    expected = accuracy(*recompute(tmp_path, "test", train_fraction=0.3))
    metrics = read_metrics(tmp_path)
    assert metrics["test/accuracy"] == pytest.approx(expected, abs=max(tolerance, 1e-7))


def test_untrained_teacher_works_with_methods_on_layers(command: Command, tmp_path: Path) -> None:
    done = command(
        *("data=digits", "trainer.max_epochs=1", "teacher_from=untrained", "method=crd"),
        f"hydra.run.dir={tmp_path / 'run'}",
        KD_TEACHERS=str(tmp_path / "store"),
    )
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "store").exists()
    facts, metrics = read_facts(tmp_path / "run"), read_metrics(tmp_path / "run")
    assert (facts["role"], facts["teacher"]) == ("control: untrained", "")
    assert metrics["test/teacher_accuracy"] < 0.3  # of ten classes, unlearnt
    expected = accuracy(*recompute(tmp_path / "run", "test"))
    assert metrics["test/accuracy"] == pytest.approx(expected, abs=1e-7)


def test_teacher_of_images_on_another_scale_is_warned_of(
    command: Command, digits_run: Path, tmp_path: Path
) -> None:
    done = command(
        *("data=digits", "data.mean=[0.9]", "data.std=[0.1]", "trainer.max_epochs=1"),
        *(f"teacher_ckpt={digits_run}", "net@teacher=student_cnn", f"hydra.run.dir={tmp_path}"),
    )
    assert done.returncode == 0, done.stderr
    log = (tmp_path / "train.log").read_text()
    assert f"the teacher in {digits_run}/checkpoints/best.ckpt was trained on images of mean" in log
