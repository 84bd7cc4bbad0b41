"""Tests of what a run shows: TensorBoard's tabs, and diagnostics for a report's plots."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Command, read_facts, read_metrics, recompute
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def events(digits_run: Path) -> EventAccumulator:
    return EventAccumulator(str(digits_run / "tensorboard"), size_guidance={"images": 0}).Reload()


def test_custom_scalars_have_categories(events: EventAccumulator) -> None:
    (event,) = events.Tensors("custom_scalars__config__")
    layout = Layout.FromString(event.tensor_proto.string_val[0])
    assert [category.title for category in layout.category] == [
        "losses",
        "accuracies",
        "fidelity",
        "temperature and weights",
        "gradients",
    ]


def test_pictures_are_drawn_before_and_after_training(events: EventAccumulator) -> None:
    steps = {
        tag.removeprefix("pictures/"): [image.step for image in events.Images(tag)]
        for tag in events.Tags()["images"]
    }
    assert steps == {"confusion": [0, 162], "soft_targets": [0, 162], "disagreement": [162]}
    for tag in events.Tags()["images"]:
        for event in events.Images(tag):
            with Image.open(io.BytesIO(event.encoded_image_string)) as picture:
                width, height = picture.size
            assert 300 <= width <= 350  # TensorBoard's cards are not much wider
            assert 300 <= height <= 1300


def test_gradients_are_logged_by_term(events: EventAccumulator) -> None:
    tags = {tag for tag in events.Tags()["scalars"] if tag.startswith("gradient/")}
    assert tags == {"gradient/hard", "gradient/response", "gradient/cosine_response"}
    for tag in tags:  # every 200 steps of 162
        assert [event.step for event in events.Scalars(tag)] == [0]
    assert -1 <= events.Scalars("gradient/cosine_response")[0].value <= 1


def test_diagnostics_are_those_of_the_best_student_on_validation_data(digits_run: Path) -> None:
    logits, target = recompute(digits_run, "val")
    p = logits.softmax(1)
    with np.load(digits_run / "diagnostics.npz", allow_pickle=False) as file:
        tables = dict(file)
    assert {name: table.shape for name, table in tables.items()} == {
        "bins": (15, 3),
        "teacher_bins": (15, 3),
        "class_probabilities": (10, 10),
        "teacher_class_probabilities": (4, 10, 10),
        "confusion": (10, 10),
        "teacher_confusion": (10, 10),
        "temperatures": (4,),
    }
    assert {table.dtype for table in tables.values()} == {np.dtype("float32")}
    own = torch.stack([p[target == c].mean(0) for c in range(10)]).float()
    found = torch.from_numpy(tables["class_probabilities"])
    torch.testing.assert_close(found, own, rtol=1e-4, atol=1e-6)
    counted = torch.bincount(target * 10 + p.argmax(1), minlength=100)
    assert tables["confusion"].tolist() == counted.view(10, 10).tolist()
    count, confidence, right = np.nan_to_num(tables["bins"]).T
    error = (count * abs(confidence - right)).sum() / len(target)
    assert read_metrics(digits_run)["val/ece"] == pytest.approx(error, rel=1e-4)
    assert tables["temperatures"].tolist() == [1, 2, 5, 20]
    z_t, _ = recompute(Path(read_facts(digits_run)["teacher"]), "val")
    for t, table in zip((1, 2, 5, 20), tables["teacher_class_probabilities"], strict=True):
        soft = (z_t / t).softmax(1)
        expected = torch.stack([soft[target == c].mean(0) for c in range(10)]).float()
        torch.testing.assert_close(torch.from_numpy(table), expected, rtol=1e-4, atol=1e-6)


def test_run_of_a_teacher_has_diagnostics_of_its_own(digits_run: Path) -> None:
    home = Path(read_facts(digits_run)["teacher"])
    with np.load(home / "diagnostics.npz") as tables:
        assert set(tables) == {"bins", "class_probabilities", "confusion"}
        confusion = tables["confusion"]
    metrics = read_metrics(home)
    assert confusion.trace() / confusion.sum() == pytest.approx(metrics["val/accuracy"])
    assert not [name for name in metrics if "teacher_" in name or "agreement" in name]
    board = EventAccumulator(str(home / "tensorboard")).Reload()
    assert board.Tags()["images"] == ["pictures/confusion"]


def test_temperature_curves_are_added_by_their_callback(
    digits_run: Path, command: Command, tmp_path: Path
) -> None:
    done = command(
        *("data=digits", "trainer.max_epochs=2", "callbacks=[default,temperature_curves]"),
        f"hydra.run.dir={tmp_path}",
    )
    assert done.returncode == 0, done.stderr
    with (
        np.load(tmp_path / "diagnostics.npz") as tables,
        np.load(digits_run / "diagnostics.npz") as usual,
    ):
        assert {*tables} - {*usual} == {"temperature_curves"}
        # the callback only watches: everything else is bitwise the same
        assert all(np.array_equal(tables[k], usual[k], equal_nan=True) for k in usual)
        curves = torch.from_numpy(tables["temperature_curves"]).double()
    assert read_facts(tmp_path)["settings"] == read_facts(digits_run)["settings"]
    (z_s, _), (z_t, _) = (
        recompute(run, "val") for run in (tmp_path, Path(read_facts(tmp_path)["teacher"]))
    )
    torch.testing.assert_close(curves[:, 0], torch.logspace(-1, 3, 25).double(), rtol=1e-5, atol=0)
    for t, entropy, gradient, _ in curves[::6].tolist():
        p_t, p_s = (z_t / t).softmax(1), (z_s / t).softmax(1)
        expected = torch.distributions.Categorical(p_t).entropy().mean().item()
        assert entropy == pytest.approx(expected, rel=1e-3, abs=1e-6)
        norm = ((p_s - p_t) / t).norm(dim=1).mean().item()
        assert gradient == pytest.approx(norm, rel=1e-3)
