"""The command, end to end: what a run leaves behind, and which teacher it learns from."""

import csv
import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import Command
from omegaconf import OmegaConf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from kd_lightning import load_run
from kd_lightning.data.digits import DigitsDataModule
from kd_lightning.runs.directory import commit
from kd_lightning.utils.errors import UserError

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
    """Every file in a folder and what is in it."""
    files = (p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): p.read_bytes() for p in files}


def test_the_run_directory_is_as_designed(digits_run: Path) -> None:
    names = {p.name for p in digits_run.iterdir()}
    files = {"metrics.json", "metrics.csv", "evidence.npz", "train.log"}
    assert names == {".hydra", "checkpoints", "tensorboard", *files}
    assert {p.name for p in (digits_run / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}


def test_the_kept_configuration_is_resolved(digits_run: Path) -> None:
    text = (digits_run / ".hydra" / "config.yaml").read_text()
    assert "max_epochs: 2" in text
    assert "${" not in text


def test_metrics_are_flat_and_complete(digits_run: Path, store: Path) -> None:
    metrics = json.loads((digits_run / "metrics.json").read_text())
    measured = {name for name in metrics if name.startswith(SPLITS)}
    assert measured == {split + name for split in SPLITS for name in FIGURES | OF_CLASSES}
    assert not [k for k, v in metrics.items() if not isinstance(v, int | float | str)]
    assert (metrics["parameters"], metrics["teacher_parameters"]) == (27_210, 1_199_882)
    assert metrics["compression"] == 1_199_882 / 27_210
    assert (metrics["seed"], metrics["epochs"]) == (0, 2)
    assert metrics["seconds"] > 0
    assert metrics["commit"].split("-dirty")[0] == commit().split("-dirty")[0]
    assert store in Path(metrics["teacher"]).parents
    assert metrics["test/accuracy"] > 0.8
    assert metrics["test/teacher_accuracy"] > 0.9


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


def test_tensorboard_shows_choices_with_final_figures(
    events: EventAccumulator, digits_run: Path
) -> None:
    metrics = json.loads((digits_run / "metrics.json").read_text())
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


def test_load_run_gives_the_trained_student_back(digits_run: Path) -> None:
    run = load_run(digits_run)
    _, test = DigitsDataModule().load()
    probabilities = run.predict(test.inputs)
    assert torch.allclose(probabilities.sum(1), torch.ones(360))
    correct = probabilities.argmax(1) == test.target
    assert correct.float().mean().item() == run.metrics["test/accuracy"]


def test_load_run_refuses_a_stranger_without_running_it(digits_run: Path, tmp_path: Path) -> None:
    run_dir, trace = shutil.copytree(digits_run, tmp_path / "run"), tmp_path / "trace"
    config = load_run(run_dir).config
    config.model.student = {"_target_": "os.system", "command": f"touch {trace}"}
    OmegaConf.save(config, run_dir / ".hydra" / "config.yaml")
    with pytest.raises(UserError, match=r"the run names os\.system, which is no network"):
        load_run(run_dir)
    assert not trace.exists()


@pytest.mark.slow
def test_a_teacher_is_found_in_the_store_or_given_by_path(
    digits_run: Path, command: Command, tmp_path: Path
) -> None:
    trained = Path(json.loads((digits_run / "metrics.json").read_text())["teacher"])
    store = tmp_path / "store"  # of its own: other tests fill the common one at the same time
    home = shutil.copytree(trained.parent.parent, store / trained.parent.parent.name)
    before = content(home)
    copy = shutil.copytree(home, tmp_path / "teacher")
    file = shutil.copy(trained, tmp_path / "teacher.pt")
    done = command(
        *("-m", "data=digits", "trainer.max_epochs=1", f"teacher_ckpt=null,{copy},{file}"),
        f"hydra.sweep.dir={tmp_path / 'sweep'}",
        KD_TEACHERS=str(store),
    )
    assert done.returncode == 0, done.stderr
    assert "training the teacher" not in done.stdout
    assert content(home) == before
    assert [path for path in store.iterdir() if path.is_dir()] == [home]
    jobs = [tmp_path / "sweep" / str(n) for n in range(3)]
    metrics = [json.loads((job / "metrics.json").read_text()) for job in jobs]
    given = [home / "checkpoints/best.ckpt", copy / "checkpoints/best.ckpt", file]
    assert [Path(m["teacher"]) for m in metrics] == given
    first, *others = (load_run(job).network.state_dict() for job in jobs)
    for other in others:
        assert all(torch.equal(first[k], other[k]) for k in first)


@pytest.mark.slow
def test_a_trained_teacher_is_offered_to_later_students(command: Command, tmp_path: Path) -> None:
    shared = tmp_path / "store"
    done = command(
        *("-m", "data=digits", "teacher.width=2", "model=teacher,student"),
        *("trainer.max_epochs=1", "pretrain.trainer.max_epochs=1"),
        f"hydra.sweep.dir={tmp_path / 'sweep'}",
        KD_TEACHERS=str(shared),
    )
    assert done.returncode == 0, done.stderr
    assert "training the teacher" not in done.stdout
    (home,) = (p for p in shared.iterdir() if p.is_dir())
    metrics = json.loads((tmp_path / "sweep" / "1" / "metrics.json").read_text())
    assert Path(metrics["teacher"]) == home / "checkpoints" / "best.ckpt"
    trained = load_run(tmp_path / "sweep" / "0")
    published = load_run(home)
    for name, weight in trained.network.state_dict().items():
        assert torch.equal(weight, published.network.state_dict()[name])
    assert metrics["test/teacher_accuracy"] == trained.metrics["test/accuracy"]


@pytest.mark.slow
def test_other_precisions_run_to_their_end(command: Command, tmp_path: Path) -> None:
    done = command(
        *("-m", "data=digits", "trainer.max_epochs=1", "trainer.precision=bf16-true,64-true"),
        *("method=crd", "data.train_fraction=0.3", f"hydra.sweep.dir={tmp_path}"),
        *("teacher.width=8", "pretrain.trainer.max_epochs=1"),
    )
    assert done.returncode == 0, done.stderr
    for job in "01":
        metrics = json.loads((tmp_path / job / "metrics.json").read_text())
        assert metrics["test/accuracy"] > 0.3
        assert metrics["latency_ms"] > 0


@pytest.mark.slow
def test_an_untrained_teacher_can_be_compared_with_by_any_method(
    command: Command, tmp_path: Path
) -> None:
    done = command(
        *("data=digits", "trainer.max_epochs=1", "model=untrained_teacher", "method=crd"),
        f"hydra.run.dir={tmp_path}",
    )
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "metrics.json").read_text())["test/accuracy"] > 0.5


@pytest.mark.slow
def test_a_teacher_of_images_on_another_scale_is_said(
    command: Command, digits_run: Path, tmp_path: Path
) -> None:
    done = command(
        *("data=digits", "data.mean=[0.9]", "data.std=[0.1]", "trainer.max_epochs=1"),
        *(f"teacher_ckpt={digits_run}", "net@teacher=student_cnn", f"hydra.run.dir={tmp_path}"),
    )
    assert done.returncode == 0, done.stderr
    assert "was trained on images of mean" in (tmp_path / "train.log").read_text()
