"""Tests of quantised training: which epoch is kept, and runs that are killed, shared or refused."""

import json
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
from conftest import Command, accuracy, read_metrics, recompute, same_weights
from killer import Killer

from kd_lightning import DistillationModule
from kd_lightning.callbacks.quantization import PostTraining, QuantizationAware
from kd_lightning.compress.fake_quantize import bits_of, is_quantized, quantized_layers
from kd_lightning.data.digits import DigitsDataModule
from kd_lightning.nets.mlp import MLP
from kd_lightning.runs.checkpoints import read_checkpoint
from kd_lightning.runs.load import load_run
from kd_lightning.utils.errors import UserError

QAT = ("data=digits", "quantize=qat", "trainer.max_epochs=3", "quantize.start_epoch=1")


def fit(callback: L.Callback, epochs: int = 2, **settings: object) -> DistillationModule:
    """Train an MLP with a callback, as a user of Lightning does."""
    L.seed_everything(0, verbose=False)
    net, teacher = MLP((1, 28, 28), 10, hidden=[16]), MLP((1, 28, 28), 10, hidden=[32])
    module = DistillationModule(net, teacher)
    trainer = L.Trainer(
        max_epochs=epochs,
        callbacks=[callback],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
        **settings,  # pyright: ignore[reportArgumentType]
    )
    trainer.fit(module, DigitsDataModule())
    return module


def unquantised(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The weights as training updates them, by the names that they have in the plain network."""
    return {
        name.replace("parametrizations.weight.original", "weight"): value
        for name, value in state.items()
        if "input_quantizer" not in name
    }


def test_the_callback_alone_quantises_a_module() -> None:
    module = fit(QuantizationAware(bits=5))
    assert bits_of(module.student) == 5
    assert not is_quantized(module.teacher)
    assert all(layer.input_quantizer.seen == 1 for _, layer in quantized_layers(module.student))


def test_epochs_before_the_start_are_those_of_floating_point() -> None:
    weights = {}
    for name, callback in (("fp32", L.Callback()), ("qat", QuantizationAware(3, start_epoch=1))):
        module = fit(callback, epochs=1 if name == "fp32" else 2)
        weights[name] = unquantised(module.student.state_dict())

    stopped = fit(PostTraining(3, images=64), epochs=1)
    assert same_weights(unquantised(stopped.student.state_dict()), weights["fp32"])
    assert not same_weights(weights["qat"], weights["fp32"])


def test_ranges_are_frozen_at_the_configured_step() -> None:
    highs: list[list[float]] = []

    class Note(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, module: object, *_: object) -> None:
            assert isinstance(module, DistillationModule)
            layers = quantized_layers(module.student)
            highs.append([float(layer.input_quantizer.high) for _, layer in layers])

    class Both(QuantizationAware, Note):
        pass

    fit(Both(8, freeze=0.5), epochs=4)
    half = len(highs) // 2
    assert highs[half - 2] != highs[half - 1]
    assert highs[half:] == [highs[half]] * (len(highs) - half)


def test_settings_that_make_no_sense_are_refused() -> None:
    with pytest.raises(UserError, match=r"start_epoch=2 leaves no epoch of trainer\.max_epochs=2"):
        fit(QuantizationAware(start_epoch=2))
    with pytest.raises(UserError, match=r"ended before quantize\.start_epoch=2"):
        fit(QuantizationAware(start_epoch=2), epochs=4, max_steps=30)
    fit(QuantizationAware(start_epoch=2), fast_dev_run=True)
    with pytest.raises(UserError, match=r"freeze must lie in 0…1, got 1\.5"):
        QuantizationAware(freeze=1.5)
    with pytest.raises(UserError, match="at least 32 training images, and there are 20"):
        fit(PostTraining(images=20))


def test_a_module_without_a_network_is_told_what_to_do() -> None:
    class Own(L.LightningModule):
        pass

    with pytest.raises(UserError, match="Own has no `network` to quantise: call"):
        QuantizationAware().setup(L.Trainer(logger=False), Own(), "fit")


@pytest.fixture(scope="module")
def qat(command: Command, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("quantised") / "whole"
    done = command(*QAT, f"hydra.run.dir={folder}")
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.slow
def test_figures_are_those_of_the_quantised_network(qat: Path) -> None:
    """Recomputed from the loaded run; the rounding makes the last digits differ in float64."""
    run = load_run(qat)
    assert is_quantized(run.network)
    assert read_metrics(qat)["test/accuracy"] == pytest.approx(
        accuracy(*recompute(qat, "test")), abs=0.01
    )
    assert run.facts["settings"]["quantize"] == "qat"
    assert run.facts["settings"]["student.width"] == 16  # as of a student that is not quantised


@pytest.mark.slow
def test_the_best_epoch_is_a_quantised_one(command: Command, tmp_path: Path) -> None:
    """At two bits, every epoch in floating point is better."""
    words = (*QAT, "quantize.bits=2", "trainer.max_epochs=4", "quantize.start_epoch=3")
    done = command(*words, f"hydra.run.dir={tmp_path}")
    assert done.returncode == 0, done.stderr
    assert read_checkpoint(tmp_path / "checkpoints" / "best.ckpt")["epoch"] == 3
    found = accuracy(*recompute(tmp_path, "test"))
    assert read_metrics(tmp_path)["test/accuracy"] == pytest.approx(found, abs=0.01)


@pytest.mark.slow
def test_a_killed_run_ends_as_if_uninterrupted(
    qat: Path, command: Command, environment: dict[str, str], tmp_path: Path
) -> None:
    last = tmp_path / "checkpoints" / "last.ckpt"
    Killer(environment)(*QAT, f"hydra.run.dir={tmp_path}", when=last.is_file)
    done = command(f"resume={tmp_path}")
    assert done.returncode == 0, done.stderr
    one, other = (read_checkpoint(p / "checkpoints" / "best.ckpt") for p in (qat, tmp_path))
    assert same_weights(one["state_dict"], other["state_dict"])
    assert one["epoch"] == other["epoch"]


@pytest.mark.slow
def test_two_processes_keep_the_same_ranges(command: Command, tmp_path: Path) -> None:
    words = ("trainer.accelerator=cpu", "trainer.devices=2", "method=fitnet")
    done = command(*QAT, *words, f"hydra.run.dir={tmp_path}")
    assert done.returncode == 0, done.stderr
    found = accuracy(*recompute(tmp_path, "test"))
    assert read_metrics(tmp_path)["test/accuracy"] == pytest.approx(found, abs=0.01)


@pytest.mark.slow
def test_post_training_rounds_the_best_epoch_of_floating_point(
    command: Command, tmp_path: Path
) -> None:
    words = ("data=digits", "trainer.max_epochs=2")
    for name, more in (("fp32", ()), ("ptq", ("quantize=ptq", "quantize.bits=4"))):
        done = command(*words, *more, f"hydra.run.dir={tmp_path / name}")
        assert done.returncode == 0, done.stderr
    fp32, ptq = (load_run(tmp_path / name) for name in ("fp32", "ptq"))
    assert same_weights(unquantised(ptq.network.state_dict()), fp32.network.state_dict())
    found = accuracy(*recompute(tmp_path / "ptq", "test"))
    assert ptq.metrics["test/accuracy"] == pytest.approx(found, abs=0.01)
    # Ranges are of training images, which are drawn without augmentation.
    data = DigitsDataModule()
    data.setup()
    first = next(layer for _, layer in quantized_layers(ptq.network))
    pixels = data.calibration(512).double() / 255
    high = (float(pixels.max()) - data.spec.mean[0]) / data.spec.std[0]
    assert float(first.input_quantizer.high) == pytest.approx(high, rel=1e-5)


def test_calibration_images_are_drawn_from_training(tmp_path: Path) -> None:
    data = DigitsDataModule()
    data.setup()
    rows = {row.numpy().tobytes() for row in data.splits["train"].inputs}
    drawn = data.calibration(100)
    assert drawn.dtype == torch.uint8
    assert all(row.numpy().tobytes() in rows for row in drawn)
    assert not np.array_equal(drawn, data.splits["train"].inputs[:100])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("model=teacher",), "quantize= quantises a student: choose model=student"),
        (("quantize.bits=1",), "quantize.bits must lie in 2…8, got 1"),
        (("quantize.bits=half",), "quantize.bits must be a whole number"),
        (("quantize.start_epoch=3",), "leaves no epoch of trainer.max_epochs=3"),
        (("export=pt2",), "format=pt2 has no int8 variant"),
        (("trainer.precision=bf16-true",), "quantize= rounds in float32"),
    ],
)
def test_wrong_settings_end_with_one_line(
    command: Command, tmp_path: Path, words: tuple[str, ...], message: str
) -> None:
    done = command(*QAT, *words, f"hydra.run.dir={tmp_path}")
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_the_file_of_a_quantised_run_answers_as_the_run(qat: Path, tmp_path: Path) -> None:
    run = load_run(qat)
    record = run.export(tmp_path / "a.onnx")
    assert record["int8"]
    assert record["int8_share"] == 1.0
    assert abs(record["accuracy"] - record["checkpoint_accuracy"]) <= 0.002
    assert record["agreement"] >= 0.995
    # In floating point, with the rounded weights: compared with a network of these.
    record = run.export(tmp_path / "b.onnx", quantize="none")
    assert not record["int8"]
    assert record["passed"], record
    assert record["agreement"] == 1


@pytest.mark.slow
def test_export_at_the_end_and_widths_without_a_file(command: Command, tmp_path: Path) -> None:
    run, words = tmp_path / "run", ("data=digits", "trainer.max_epochs=1", "export=onnx")
    done = command(*words, f"hydra.run.dir={run}")
    assert done.returncode == 0, done.stderr
    assert json.loads((run / "exported" / "export.json").read_text())["model.onnx"]["passed"]
    low = tmp_path / "low"
    done = command(*words, "quantize=qat", "quantize.bits=4", f"hydra.run.dir={low}")
    assert done.returncode == 1
    assert "quantised to 4 bits, which are simulated" in done.stderr
    assert not (low / "run.json").is_file()  # before anything is trained
    done = command("data=digits", "quantize=ptq", "quantize.images=3", f"hydra.run.dir={low}")
    assert done.stderr == "error: quantize.images must be at least 32, got 3\n"
    done = command("data=digits", "export=tflite", f"hydra.run.dir={tmp_path / 'none'}")
    assert done.returncode == 1
    assert "export=tflite is none of onnx, pt2, executorch" in done.stderr
