"""What a run leaves to be looked at: TensorBoard's tabs, and tables for a report's pictures."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout

from kd_lightning import load_run
from kd_lightning.data.digits import DigitsDataModule


@pytest.fixture(scope="module")
def events(digits_run: Path) -> EventAccumulator:
    return EventAccumulator(str(digits_run / "tensorboard"), size_guidance={"images": 0}).Reload()


def test_custom_scalars_have_their_categories(events: EventAccumulator) -> None:
    (event,) = events.Tensors("custom_scalars__config__")
    layout = Layout.FromString(event.tensor_proto.string_val[0])
    assert [category.title for category in layout.category] == [
        "losses",
        "accuracies",
        "fidelity",
        "temperature and weights",
        "gradients",
    ]


def test_pictures_before_and_after(events: EventAccumulator) -> None:
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


def test_gradient_balance(events: EventAccumulator) -> None:
    tags = {tag for tag in events.Tags()["scalars"] if tag.startswith("gradient/")}
    assert tags == {"gradient/hard", "gradient/response", "gradient/cosine_response"}
    for tag in tags:  # every 200 of 162 batches
        assert [event.step for event in events.Scalars(tag)] == [0]
    assert -1 <= events.Scalars("gradient/cosine_response")[0].value <= 1


def test_evidence_is_what_the_best_student_says_of_the_validation_data(digits_run: Path) -> None:
    run, data = load_run(digits_run), DigitsDataModule()
    data.setup()
    inputs, target = data.splits["val"]
    p = run.predict(inputs)
    with np.load(digits_run / "evidence.npz", allow_pickle=False) as file:
        tables = dict(file)
    assert {name: table.shape for name, table in tables.items()} == {
        "bins": (15, 3),
        "teacher_bins": (15, 3),
        "class_probabilities": (10, 10),
        "teacher_class_probabilities": (4, 10, 10),
        "confusion": (10, 10),
        "teacher_confusion": (10, 10),
        "temperature_curves": (25, 4),
        "temperatures": (4,),
    }
    assert {table.dtype for table in tables.values()} == {np.dtype("float32")}
    own = torch.stack([p[target == c].mean(0) for c in range(10)])
    torch.testing.assert_close(torch.from_numpy(tables["class_probabilities"]), own)
    counted = torch.bincount(target * 10 + p.argmax(1), minlength=100)
    assert tables["confusion"].tolist() == counted.view(10, 10).tolist()
    count, confidence, accuracy = np.nan_to_num(tables["bins"]).T
    error = (count * abs(confidence - accuracy)).sum() / len(target)
    assert run.metrics["val/ece"] == pytest.approx(error, rel=1e-4)
    assert tables["temperatures"].tolist() == [1, 2, 5, 20]
    entropy = -(p := tables["teacher_class_probabilities"]) * np.log(p)
    assert (np.diff(entropy.sum(2), axis=0) > 0).all()  # softer from T = 1 to 20


def test_a_teachers_run_has_evidence_of_its_own(digits_run: Path) -> None:
    teacher = Path(json.loads((digits_run / "metrics.json").read_text())["teacher"])
    home = teacher.parent.parent
    with np.load(home / "evidence.npz") as tables:
        assert set(tables) == {"bins", "class_probabilities", "confusion"}
        confusion = tables["confusion"]
    metrics = json.loads((home / "metrics.json").read_text())
    assert confusion.trace() / confusion.sum() == pytest.approx(metrics["val/accuracy"])
    assert not [name for name in metrics if "teacher_" in name or "agreement" in name]
    board = EventAccumulator(str(home / "tensorboard")).Reload()
    assert board.Tags()["images"] == ["pictures/confusion"]
