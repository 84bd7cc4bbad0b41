"""Tests of networks with preprocessing of their own, against that of torchvision."""

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Command, read_metrics
from torch import Tensor
from torchvision.transforms.v2 import Normalize, Resize
from torchvision.transforms.v2.functional import InterpolationMode

from kd_lightning.data.batches import Normalizer
from kd_lightning.data.digits import DigitsDataModule
from kd_lightning.data.types import ImageSpec
from kd_lightning.nets.cnn import StudentCNN
from kd_lightning.nets.preprocessing import Preprocessing, connect, preprocessed
from kd_lightning.teachers.cache import TeacherCache
from kd_lightning.utils.errors import UserError

DATA = ImageSpec((3, 28, 28), 5, (0.2, 0.4, 0.6), (0.3, 0.2, 0.1))
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def images() -> Tensor:
    return torch.randint(256, (4, 3, 28, 28), generator=torch.Generator().manual_seed(0)).byte()


@pytest.mark.parametrize("size", [None, 40])
def test_network_answers_as_in_its_own_code(size: int | None) -> None:
    net = connect(preprocessed(*DATA.network_arguments, StudentCNN, MEAN, STD, size), DATA).eval()
    found = net(Normalizer(DATA)(images().float()))
    own = images().double() / 255
    if size is not None:
        own = Resize((size, size), InterpolationMode.BILINEAR, antialias=True)(own)
    plain = StudentCNN((3, size or 28, size or 28), 5).eval()
    plain.load_state_dict(net.state_dict())  # the names of the weights are those of the network
    expected = plain.double()(Normalize(MEAN, STD)(own))
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5)


def test_scale_of_other_data_changes_the_key_of_cached_outputs() -> None:
    keys = set()
    for spec in (DATA, DATA._replace(mean=(0.1, 0.1, 0.1))):
        torch.manual_seed(0)
        net = connect(preprocessed(*spec.network_arguments, StudentCNN, MEAN, STD), spec)
        digits = DigitsDataModule()
        digits.setup()
        keys.add(TeacherCache()._key(net, digits.prepared("val")))
    assert len(keys) == 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mean": MEAN}, "set together"),
        ({"mean": MEAN, "std": [1, 0, 1]}, "std must be positive"),
        ({"interpolation": "cubist"}, "interpolation must be one of"),
    ],
)
def test_invalid_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Preprocessing(**settings)


def test_channels_must_be_those_of_the_data() -> None:
    with pytest.raises(UserError, match="1 and 1 values, but the data say how 3 channels"):
        Preprocessing([0.5], [0.5]).connect(DATA)


@pytest.mark.slow
def test_teacher_of_another_normalisation_is_used_as_it_was_trained(
    command: Command, digits_run: Path, tmp_path: Path
) -> None:
    """A teacher of normalised digits teaches on digits in 0…1, once by mistake and once right."""
    from conftest import read_facts

    from kd_lightning.runs.checkpoints import network_state, read_checkpoint
    from kd_lightning.utils.run_directory import find_checkpoint

    checkpoint = read_checkpoint(find_checkpoint(read_facts(digits_run)["teacher"]))
    torch.save(network_state(checkpoint), tmp_path / "teacher.pt")  # as from other code
    mean, std = (checkpoint["spec"][name] for name in ("mean", "std"))
    words = ("data=digits", "data.mean=[0]", "data.std=[0.1]", "trainer.max_epochs=1")
    words = (*words, f"teacher_ckpt={tmp_path}/teacher.pt")
    wrong = command(*words, f"hydra.run.dir={tmp_path}/wrong")
    right = command(
        *words, f"teacher.mean={mean}", f"teacher.std={std}", f"hydra.run.dir={tmp_path}/right"
    )
    assert (wrong.returncode, right.returncode) == (0, 0), wrong.stderr + right.stderr
    figure = "test/teacher_accuracy"
    expected = read_metrics(digits_run)[figure]
    assert read_metrics(tmp_path / "right")[figure] == pytest.approx(expected, abs=0.006)
    assert read_metrics(tmp_path / "wrong")[figure] < expected - 0.02
    assert "The teacher on validation data: accuracy" in right.stdout
