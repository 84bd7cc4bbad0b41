"""Tests of folders of photos: listing, splits, decoding, the decoded file, and whole runs."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT, Command, read_facts, read_metrics
from photos import photo, write_folder
from PIL import Image, ImageOps

from kd_lightning.data.decode import read_image
from kd_lightning.data.image_folder import ImageFolderDataModule
from kd_lightning.data.photo_augment import PhotoAugment
from kd_lightning.data.photos import stratified
from kd_lightning.data.stored import StoredImages
from kd_lightning.data.types import UNLABELLED
from kd_lightning.report.compare import build_report
from kd_lightning.report.page import write_report
from kd_lightning.report.read import read_runs
from kd_lightning.runs.load import load_run
from kd_lightning.utils.errors import UserError

CLASSES = {"ant": 30, "bee": 20, "cat": 10}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty images in three classes, without splits."""
    return write_folder(tmp_path_factory.mktemp("photos") / "all", CLASSES)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("decoded")


def opened(path: Path, decoded: Path, **settings: Any) -> ImageFolderDataModule:
    given = {"size": 16, "resize": 20, "decoded": str(decoded), "batch_size": 8, **settings}
    data = ImageFolderDataModule(str(path), **given)
    data.setup()
    return data


def pixels(data: ImageFolderDataModule, split: str) -> torch.Tensor:
    inputs = data.splits[split].inputs
    return inputs[torch.arange(len(inputs))]


def counts(target: torch.Tensor) -> list[int]:
    return torch.bincount(target, minlength=3).tolist()


def test_splits_have_each_class_in_its_share(folder: Path, root: Path) -> None:
    data = opened(folder, root, test_size=0.2, val_size=8)
    assert counts(data.splits["test"].target) == [6, 4, 2]
    assert counts(data.splits["val"].target) == [4, 3, 1]
    assert counts(data.labels) == [20, 13, 7]
    rows = [set(data.splits[s].inputs.rows.tolist()) for s in ("train", "val", "test")]  # pyright: ignore
    assert set.union(*rows) == set(range(60))
    assert data.spec.class_names == ("ant", "bee", "cat")
    assert data.spec.input_shape == (3, 16, 16)


def test_images_belong_to_their_labels(folder: Path, root: Path) -> None:
    """Each stored image equals its file, decoded and resized by Pillow, within a few levels."""
    data = opened(folder, root)
    names = sorted((n, i) for n, c in CLASSES.items() for i in map(str, range(c)))
    split = data.splits["train"]
    assert isinstance(split.inputs, StoredImages)
    for row, target, x in zip(split.inputs.rows, split.target, pixels(data, "train"), strict=True):
        name, number = names[int(row)]
        assert name == data.class_names[int(target)]
        with Image.open(folder / name / f"{number}.png") as image:
            square = ImageOps.fit(image, (20, 20), Image.Resampling.BILINEAR)
        assert np.abs(np.asarray(square).astype(int) - x.permute(1, 2, 0).numpy()).mean() < 2


def test_given_splits_are_used(tmp_path: Path, root: Path) -> None:
    for name, count in (("train", 6), ("val", 2), ("test", 3)):
        write_folder(tmp_path / name, {"a": count, "b": count + 1}, start=count)
    data = opened(tmp_path, root)
    sizes = {name: len(split.target) for name, split in data.splits.items()}
    assert sizes == {"train": 13, "val": 5, "test": 7}
    expected = read_image(tmp_path / "val" / "a" / "0.png", 20)
    assert (pixels(data, "val") == expected).flatten(1).all(1).sum() == 1


def test_stratified_split_has_exactly_the_size_asked_for() -> None:
    target = torch.randint(0, 7, (997,), generator=torch.Generator().manual_seed(0))
    first, second = stratified(target, 0.3, torch.Generator().manual_seed(1), "val")
    assert len(first) == 300
    assert sorted([*first.tolist(), *second.tolist()]) == list(range(997))
    wanted = torch.bincount(target) * 0.3
    assert (torch.bincount(target[first]) - wanted).abs().max() <= 1


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "bmp", "gif", "tiff"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_formats_and_modes(tmp_path: Path, suffix: str, mode: str) -> None:
    image = photo(0, 300, 200).convert(mode)
    image.save(tmp_path / f"a.{suffix}", quality=95)
    with Image.open(tmp_path / f"a.{suffix}") as stored:
        square = ImageOps.fit(stored.convert("RGB"), (50, 50), Image.Resampling.BILINEAR)
    found = read_image(tmp_path / f"a.{suffix}", 50)
    assert np.abs(np.asarray(square).astype(int) - found.permute(1, 2, 0).numpy()).mean() < 2
    assert read_image(tmp_path / f"a.{suffix}", 50, channels=1).shape == (1, 50, 50)


def test_other_modes(tmp_path: Path) -> None:
    """16 bits, transparency, a palette, CMYK: all within two levels of the plain image."""
    plain = photo(0, 60, 60)
    grey = np.asarray(plain.convert("L"))
    plain.save(tmp_path / "plain.png")
    plain.convert("RGBA").save(tmp_path / "rgba.png")
    plain.quantize(256).save(tmp_path / "palette.png")
    plain.convert("CMYK").save(tmp_path / "cmyk.jpg", quality=98)
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "sixteen.png")
    wanted = read_image(tmp_path / "plain.png", 30).int()
    for name in ("rgba.png", "palette.png", "cmyk.jpg"):
        assert (read_image(tmp_path / name, 30).int() - wanted).abs().float().mean() < 4
    found, wanted = (read_image(tmp_path / n, 30, 1).int() for n in ("sixteen.png", "plain.png"))
    assert (found - wanted).abs().float().mean() < 2


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_orientation_is_applied(tmp_path: Path, suffix: str) -> None:
    image = photo(3, 64, 64)
    exif = Image.Exif()
    exif[0x112] = 6
    lying = image.transpose(Image.Transpose.ROTATE_90)
    lying.save(tmp_path / f"lying.{suffix}", exif=exif, quality=95)
    image.save(tmp_path / f"upright.{suffix}", quality=95)
    one, other = (read_image(tmp_path / f"{n}.{suffix}", 32) for n in ("lying", "upright"))
    assert (one.int() - other.int()).abs().float().mean() < 3


def test_a_thin_image_takes_no_memory(tmp_path: Path) -> None:
    Image.new("RGB", (20_000, 2), (9, 9, 9)).save(tmp_path / "thin.png")
    assert torch.equal(read_image(tmp_path / "thin.png", 64), torch.full((3, 64, 64), 9).byte())


def test_an_image_of_too_many_pixels_is_unreadable(tmp_path: Path) -> None:
    Image.new("L", (12_000, 9_000)).save(tmp_path / "large.png")
    with pytest.raises(UserError, match=r"large.png cannot be read as an image"):
        read_image(tmp_path / "large.png", 8)


def test_damaged_files_are_left_out_and_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_folder(tmp_path / "photos", CLASSES)
    for name in ("bee/3.png", "bee/4.png"):
        (tmp_path / "photos" / name).write_bytes(b"\x89PNG damaged")
    data = opened(tmp_path / "photos", tmp_path / "d")
    message = "2 of 60 images cannot be read: bee/3.png, bee/4.png; they are left out"
    assert caplog.text.count(message) == 1
    assert sum(len(split.target) for split in data.splits.values()) == 58
    target = torch.cat([split.target for split in data.splits.values()])
    assert counts(target) == [30, 18, 10]
    # The images after the damaged ones still belong to their labels.
    cat = read_image(tmp_path / "photos" / "cat" / "9.png", 20)
    images = torch.cat([pixels(data, s) for s in data.splits])
    assert target[(images == cat).flatten(1).all(1)].tolist() == [2]
    with pytest.raises(UserError, match=r"2 of 60 .*; delete them, or set data.on_error=skip"):
        opened(tmp_path / "photos", tmp_path / "d", on_error="raise")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: (p / "dog").mkdir(), r"no images in .*dog: add some .*, or delete"),
        (lambda p: [(p / n).rename(p.parent / n) for n in ("bee", "cat")], r"a single class, ant"),
        (lambda p: p.rename(p.parent / "elsewhere"), r"data.path: there is no folder .*photos"),
        (lambda p: _move(p, "cat", "test/cat"), r"has test/ but no train/"),
        (lambda p: [_move(p, n, f"train/{n}") for n in CLASSES] + [(p / "test").mkdir()],
         r"test has no class folders"),
        (lambda p: [_move(p, n, f"{'test' if n == 'cat' else 'train'}/{n}") for n in CLASSES],
         r"the class cat occurs in test/ only"),
        (lambda p: [f.write_text("text") for f in (p / "ant").iterdir()],
         r"no image of the class ant can be read"),
    ],
)  # fmt: skip
def test_a_folder_of_another_structure_is_refused(
    tmp_path: Path, change: Any, message: str
) -> None:
    path = write_folder(tmp_path / "photos", CLASSES)
    change(path)
    with pytest.raises(UserError, match=message):
        opened(path, tmp_path / "decoded")


def _move(root: Path, name: str, to: str) -> None:
    (root / to).parent.mkdir(exist_ok=True)
    (root / name).rename(root / to)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"resize": 40}, "data.resize must lie between"),
        ({"resize": 8}, "data.resize must lie between"),
        ({"channels": 2}, "data.channels must be 1 or 3"),
        ({"on_error": "ignore"}, "data.on_error must be skip or raise"),
        ({"max_bytes": -1}, "data.max_bytes cannot be negative"),
        ({"test_size": 60}, "data.test_size=60 leaves no training"),
        ({"val_size": 0.999}, "data.val_size=0.999 leaves no training"),
        ({"unlabelled": "nowhere"}, "there is no folder nowhere"),
    ],
)
def test_settings_out_of_range(folder: Path, root: Path, settings: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        opened(folder, root, **settings)


def test_links_in_a_circle_end(tmp_path: Path) -> None:
    path = write_folder(tmp_path / "photos", CLASSES)
    (path / "ant" / "again").symlink_to(path / "ant")
    data = opened(path, tmp_path / "decoded")
    assert sum(len(s.target) for s in data.splits.values()) == 60


def test_the_decoded_file_is_read_again(folder: Path, tmp_path: Path, caplog: Any) -> None:
    caplog.set_level("INFO")
    first = opened(folder, tmp_path)
    second = opened(folder, tmp_path)
    assert caplog.text.count("Decoding 60 images") == 1
    assert first.fingerprint == second.fingerprint
    assert torch.equal(pixels(first, "train"), pixels(second, "train"))


@pytest.mark.parametrize("damage", ["a flipped bit", "cut short", "no record"])
def test_a_damaged_decoded_file_is_replaced(folder: Path, tmp_path: Path, damage: str) -> None:
    whole = pixels(opened(folder, tmp_path), "train")
    (file,) = tmp_path.glob("*.images")
    content = bytearray(file.read_bytes())
    content[1000] ^= 1
    if damage == "no record":
        file.with_suffix(".json").unlink()
    file.write_bytes(content if damage != "cut short" else content[:5000])
    assert torch.equal(pixels(opened(folder, tmp_path), "train"), whole)


def test_a_changed_folder_is_decoded_anew(tmp_path: Path) -> None:
    path = write_folder(tmp_path / "photos", CLASSES)
    before = opened(path, tmp_path / "decoded")
    photo(999_999).save(path / "ant" / "0.png")
    after = opened(path, tmp_path / "decoded")
    assert before.fingerprint != after.fingerprint
    new = read_image(path / "ant" / "0.png", 20)
    found = [(pixels(after, s) == new).flatten(1).all(1).sum().item() for s in after.splits]
    assert sum(found) == 1


def test_decoding_while_training_gives_the_same_batches(folder: Path, tmp_path: Path) -> None:
    """Above max_bytes images are decoded by workers: batches and fingerprint are the same."""
    stored = opened(folder, tmp_path)
    live = opened(folder, tmp_path / "other", max_bytes=1000, num_workers=2)
    assert not list((tmp_path / "other").glob("*.images"))
    assert stored.fingerprint == live.fingerprint
    for one, other in zip(stored.train_dataloader(), live.train_dataloader(), strict=True):
        assert torch.equal(one.inputs, other.inputs)
        assert torch.equal(one.target, other.target)
    one, other = (torch.cat([x for *_, x in d.prepared("val").batches(torch.device("cpu"))])
                  for d in (stored, live))  # fmt: skip
    assert torch.equal(one, other)


def test_networks_see_the_centre_or_a_crop(folder: Path, root: Path) -> None:
    data = opened(folder, root, augment=PhotoAugment(views=2), mean=[0.0] * 3, std=[1.0] * 3)
    val = torch.cat([x for *_, x in data.prepared("val").batches(torch.device("cpu"))])
    torch.testing.assert_close(val * 255, pixels(data, "val")[:, :, 2:18, 2:18].float())
    views = [(v, x.shape) for v, _, x in data.prepared("train").batches(torch.device("cpu"))]
    assert {v for v, _ in views} == {0, 1}
    assert {shape[1:] for _, shape in views} == {(3, 16, 16)}
    plain = torch.cat(
        [x for *_, x in data.prepared("train", augmented=False).batches(torch.device("cpu"))]
    )
    torch.testing.assert_close(plain * 255, pixels(data, "train")[:, :, 2:18, 2:18].float())


def test_unlabelled_images_are_appended(folder: Path, tmp_path: Path) -> None:
    write_folder(tmp_path / "more", {"deep": 5, "deeper/still": 4}, start=77)
    data = opened(folder, tmp_path / "d", unlabelled=str(tmp_path / "more"))
    plain = opened(folder, tmp_path / "d")
    assert (data.labels == UNLABELLED).sum() == 9
    assert torch.equal(data.labels[:-9], plain.labels)
    assert torch.equal(pixels(data, "train")[:-9], pixels(plain, "train"))
    wanted = read_image(tmp_path / "more" / "deep" / "0.png", 20)
    assert (pixels(data, "train")[-9:] == wanted).flatten(1).all(1).any()
    assert torch.equal(pixels(data, "val"), pixels(plain, "val"))


def test_no_training_labels_at_all(tmp_path: Path) -> None:
    write_folder(tmp_path / "more", {"x": 12}, start=77)
    for split in ("val", "test"):
        write_folder(tmp_path / "photos" / split, CLASSES)
    data = opened(tmp_path / "photos", tmp_path / "d", unlabelled=str(tmp_path / "more"))
    assert data.labels.tolist() == [UNLABELLED] * 12
    assert data.class_names == ("ant", "bee", "cat")
    assert sum(len(b.target) for b in data.train_dataloader()) == 12


DECODE = """
import sys, logging
logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
from kd_lightning.data.image_folder import ImageFolderDataModule
data = ImageFolderDataModule(sys.argv[1], size=224, decoded=sys.argv[2])
data.setup()
print(data.fingerprint)
"""


def _decoding(path: Path, decoded: Path) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", DECODE, str(path), str(decoded)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
def test_one_process_decodes_and_a_killed_one_leaves_nothing(tmp_path: Path) -> None:
    photos = write_folder(tmp_path / "photos", {"a": 600, "b": 600})
    decoded = tmp_path / "decoded"
    killed = _decoding(photos, decoded)
    while not any(f.stat().st_size for f in decoded.glob(".*.partial")):  # a block is written
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert not list(decoded.glob("*.images"))
    both = [_decoding(photos, decoded) for _ in range(2)]
    texts = [process.communicate()[0] for process in both]
    assert sum("Decoding 1,200 images" in text for text in texts) == 1
    assert len({text.splitlines()[-1] for text in texts}) == 1
    assert not list(decoded.glob(".*.partial"))
    assert len(list(decoded.glob("*.images"))) == 1


@pytest.mark.slow
def test_a_run_on_a_folder_keeps_the_names_of_classes(
    command: Command, folder: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    done = command(
        *("data=image_folder", f"data.path={folder}", "data.size=16", "augment.views=2"),
        *(f"data.decoded={tmp_path}/decoded", "trainer.max_epochs=2", "net@student=mlp"),
        *("net@teacher=resnet8", "pretrain.trainer.max_epochs=2", f"hydra.run.dir={run_dir}"),
    )
    assert done.returncode == 0, done.stderr
    assert "test/accuracy" in read_metrics(run_dir)
    assert read_facts(run_dir)["class_names"] == ["ant", "bee", "cat"]
    write_report(build_report(read_runs([run_dir])), tmp_path / "report")
    assert "ant | bee | cat" in (tmp_path / "report" / "report.md").read_text()
    run = load_run(run_dir)
    assert run.spec.class_names == ("ant", "bee", "cat")
    probabilities = run.predict(read_image(folder / "ant" / "0.png", 16))
    assert probabilities.shape == (1, 3)


def test_links_to_folders_above_and_to_nothing(tmp_path: Path, root: Path) -> None:
    """Images of other classes do not become images of the class that has the link."""
    write_folder(tmp_path / "all", {"a": 10, "b": 10})
    (tmp_path / "all" / "a" / "up").symlink_to(tmp_path / "all")
    (tmp_path / "all" / "b" / "lost.png").symlink_to(tmp_path / "nothing")
    data = opened(tmp_path / "all", root)
    sizes = [torch.bincount(split.target).tolist() for split in data.splits.values()]
    assert [sum(counted) for counted in zip(*sizes, strict=True)] == [10, 10]


def test_names_that_are_no_text_are_refused(tmp_path: Path, root: Path) -> None:
    write_folder(tmp_path / "all", {"a": 10, "b": 10})
    (tmp_path / "all" / "b").rename(tmp_path / "all" / os.fsdecode(b"caf\xe9"))
    with pytest.raises(UserError, match="is not UTF-8: rename it"):
        opened(tmp_path / "all", root)


@pytest.mark.parametrize("record", [[], {"content": "x", "unreadable": [999]}, {"content": "x"}])
def test_a_damaged_record_is_written_again(folder: Path, tmp_path: Path, record: Any) -> None:
    first = opened(folder, tmp_path)
    (file,) = tmp_path.glob("*.json")
    file.write_text(json.dumps(record))
    again = opened(folder, tmp_path)
    assert again.fingerprint == first.fingerprint
