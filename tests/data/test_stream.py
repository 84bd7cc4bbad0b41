"""Tests of packed folders, their streaming, and epochs that are resumed in the middle."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import litdata
import numpy as np
import pytest
import torch
from conftest import ROOT, Command, RunsCode, read_facts
from killer import Killer
from photos import write_folder
from seen import Seen, read_seen

from kd_lightning import TeacherModule
from kd_lightning.cli.data import main as kd_data
from kd_lightning.data import batches
from kd_lightning.data.batches import near
from kd_lightning.data.image_folder import ImageFolderDataModule
from kd_lightning.data.images import ImageDataModule
from kd_lightning.data.listing import list_folder
from kd_lightning.data.packing import pack
from kd_lightning.data.stored import StoredImages
from kd_lightning.data.stream import StreamDataModule
from kd_lightning.nets.mlp import MLP
from kd_lightning.utils.errors import UserError

CLASSES = {"ant": 120, "bee": 80, "cat": 40}
SETTINGS: dict[str, Any] = {"size": 16, "resize": 16, "batch_size": 8}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """240 training images, 30 validation and test images."""
    root = tmp_path_factory.mktemp("photos")
    write_folder(root / "train", CLASSES)
    write_folder(root / "val", dict.fromkeys(CLASSES, 10), start=500)
    write_folder(root / "test", dict.fromkeys(CLASSES, 10), start=700)
    return root


@pytest.fixture(scope="module")
def packed(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same in shards of about a dozen images."""
    out = tmp_path_factory.mktemp("packed") / "shards"
    assert pack(list_folder(folder), out, shard_bytes=30_000).shards > 10
    return out


def opened(path: Path, **settings: Any) -> StreamDataModule:
    data = StreamDataModule(str(path), **{**SETTINGS, "num_workers": 0, **settings})
    data.setup()
    return data


def content(data: ImageDataModule, split: str) -> Counter[tuple[int, bytes]]:
    """The labels and pixels of a split, in no order."""
    inputs, target = data.splits[split]
    pixels = inputs[torch.arange(len(inputs))]
    return Counter((int(y), x.numpy().tobytes()) for x, y in zip(pixels, target, strict=True))


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_a_stream_has_the_images_of_its_folder(
    folder: Path, packed: Path, tmp_path: Path, split: str
) -> None:
    data = ImageFolderDataModule(str(folder), decoded=str(tmp_path), **SETTINGS)
    data.setup()
    assert content(opened(packed), split) == content(data, split)
    assert opened(packed).spec.class_names == data.spec.class_names


def test_missing_splits_are_stratified(tmp_path: Path) -> None:
    write_folder(tmp_path / "all", {"a": 30, "b": 30})
    pack(list_folder(tmp_path / "all"), tmp_path / "out")
    data = opened(tmp_path / "out", val_size=0.2, test_size=0.2)
    sizes = {name: torch.bincount(split.target).tolist() for name, split in data.splits.items()}
    assert sizes == {"train": [19, 19], "val": [5, 5], "test": [6, 6]}
    parts = [content(data, name) for name in sizes]
    assert (parts[0] + parts[1] + parts[2]).total() == 60
    assert not parts[0] & parts[1] | parts[0] & parts[2] | parts[1] & parts[2]


def test_images_without_labels_are_packed(folder: Path, tmp_path: Path) -> None:
    write_folder(tmp_path / "more", {"x": 25}, start=900)
    pack(list_folder(folder, tmp_path / "more"), tmp_path / "out", shard_bytes=30_000)
    data = opened(tmp_path / "out")
    assert int((data.labels == -100).sum()) == 25
    assert all((batch.target == -100).any() for batch in data.train_dataloader())


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_an_epoch_has_each_sample_once_and_reads_few_shards_at_a_time(
    packed: Path, monkeypatch: pytest.MonkeyPatch, world_size: int
) -> None:
    monkeypatch.setattr(batches, "NEARBY", 2)
    data = opened(packed)
    inputs = data.splits["train"].inputs
    assert isinstance(inputs, StoredImages)
    assert inputs.shard is not None
    assert inputs.rows.equal(inputs.rows.sort().values)  # tables of outputs are read in order
    orders = []
    for epoch in range(2):
        seen = []
        for rank in range(world_size):
            drawn = batches.ShuffledBatches(240, 8, 0, rank, world_size, shard=inputs.shard)
            drawn.set_epoch(epoch)
            mine = [inputs.shard[batch].unique() for batch in drawn]
            # Two shards at a time; three or four where a batch is of two groups.
            assert max(map(len, mine)) <= 4
            seen += [i for batch in drawn for i in batch.tolist()]
        assert sorted(seen) == list(range(240))
        orders.append(seen)
    assert orders[0] != orders[1]


def test_neighbours_are_shuffled_within_their_group_and_groups_among_each_other() -> None:
    shard = torch.arange(4000) // 100
    generator = torch.Generator().manual_seed(0)
    order = near(torch.randperm(4000, generator=generator), shard, generator)
    group = order.view(-1, 800)  # eight shards
    assert all(len(shard[part].unique()) == 8 for part in group)
    assert all((part.diff() < 0).float().mean() > 0.4 for part in group)


def test_workers_yield_the_same_batches(packed: Path) -> None:
    alone, shared = (list(opened(packed, num_workers=n).train_dataloader()) for n in (0, 2))
    assert len(alone) == len(shared) == 30
    for one, other in zip(alone, shared, strict=True):
        assert one.inputs.equal(other.inputs)
        assert one.index is not None
        assert other.index is not None
        assert one.index.equal(other.index)


class Interrupt(L.Callback):
    """Save a checkpoint after a number of steps, and end the training there."""

    def __init__(self, steps: int, file: Path) -> None:
        self.steps, self.file = steps, file

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any, **kwargs: Any) -> None:
        if trainer.global_step == self.steps:
            trainer.save_checkpoint(self.file)
            raise InterruptedError


@pytest.mark.parametrize("stop", [7, 30, 41])
def test_a_trainer_goes_on_in_mid_epoch(packed: Path, tmp_path: Path, stop: int) -> None:
    """Also at the end of an epoch: each sample is seen once in each epoch."""

    def fit(checkpoint: Path | None, *callbacks: L.Callback) -> None:
        trainer = L.Trainer(
            max_epochs=2,
            callbacks=[Seen(str(tmp_path / "seen")), *callbacks],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            accelerator="cpu",
        )
        module = TeacherModule(MLP((3, 16, 16), 3, (8,)))
        trainer.fit(module, datamodule=opened(packed), ckpt_path=checkpoint)

    with pytest.raises(InterruptedError):
        fit(None, Interrupt(stop, tmp_path / "last.ckpt"))
    fit(tmp_path / "last.ckpt")
    _each_sample_once(read_seen(tmp_path / "seen"), epochs=2)


def _each_sample_once(seen: list[tuple[int, int, list[int]]], epochs: int) -> None:
    for epoch in range(epochs):
        found = [i for number, _, index in seen if number == epoch for i in index]
        assert sorted(found) == list(range(240)), f"epoch {epoch}"


@pytest.mark.slow
def test_a_killed_run_of_two_processes_goes_on_in_mid_epoch(
    packed: Path, tmp_path: Path, command: Command, environment: dict[str, str]
) -> None:
    seen = tmp_path / "seen"
    arguments = (
        *("data=stream", f"data.path={packed}", "data.size=16", "data.resize=16"),
        *(
            "data.batch_size=8",
            "method=ce",
            "teacher_from=none",
            "student.width=2",
            "augment=none",
            "~logger",
            "~callbacks.pictures",
        ),
        *("trainer.max_epochs=2", "trainer.devices=2", "trainer.accelerator=cpu"),
        *("callbacks=[default,mid_epoch]", "callbacks.mid_epoch.every_n_train_steps=4"),
        f"+callbacks.seen={{_target_:seen.Seen,folder:{seen},pause:0.1}}",
        f"hydra.run.dir={tmp_path / 'run'}",
    )

    def is_in_second_epoch() -> bool:
        return any(epoch == 1 and step >= 22 for epoch, step, _ in read_seen(seen))

    Killer(environment)(*arguments, when=is_in_second_epoch)
    last = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    before = [line for line in read_seen(seen) if line[1] < last["global_step"]]
    assert last["global_step"] in (20, 24)  # 15 steps an epoch
    for file in seen.iterdir():
        file.unlink()
    (tmp_path / "run" / "run.json").unlink()  # it is written before the first step
    done = command(
        *arguments, f"resume={tmp_path / 'run'}", "trust=true", PYTHONPATH=str(ROOT / "tests")
    )
    assert done.returncode == 0, done.stderr
    assert "litdata" not in done.stdout
    assert read_facts(tmp_path / "run")["role"] == "baseline"
    _each_sample_once(before + read_seen(seen), epochs=2)


@pytest.mark.slow
def test_ctrl_c_with_workers_ends_the_run_in_one_line(
    packed: Path, tmp_path: Path, environment: dict[str, str]
) -> None:
    """A terminal sends it to the workers, too."""
    log = tmp_path / "run" / "train.log"
    code, stderr = Killer(environment).send(
        signal.SIGINT,
        *("data=stream", f"data.path={packed}", "data.size=16", "data.resize=16", "~logger"),
        *("method=ce", "teacher_from=none", "augment=none", "trainer.max_epochs=4000"),
        f"hydra.run.dir={tmp_path / 'run'}",
        when=lambda: log.is_file() and "epoch 3 of" in log.read_text(),
    )
    assert code == 130, stderr
    assert stderr.splitlines()[-1].startswith("interrupted in epoch")
    assert "Traceback" not in stderr


@pytest.mark.slow
def test_a_killed_kd_data_leaves_no_folder_and_is_run_again(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = [sys.executable, "-m", "kd_lightning.cli.data", str(folder), str(out)]
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not (tmp_path / ".out.partial").is_dir():
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not out.exists()
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert "240 train, 30 val, 30 test images of 3 classes" in done.stdout
    assert len(opened(out).labels) == 240
    assert [file.name for file in tmp_path.iterdir()] == ["out"]


def test_damage_is_named(packed: Path, tmp_path: Path) -> None:
    def copy() -> Path:
        out = tmp_path / "copy"
        for file in out.glob("*"):
            file.unlink()
        out.mkdir(exist_ok=True)
        for file in packed.iterdir():
            (out / file.name).write_bytes(file.read_bytes())
        return out

    flipped = copy() / "chunk-0-0.bin"
    flipped.write_bytes(flipped.read_bytes()[:-300] + bytes(300))
    data = StreamDataModule(str(flipped.parent), **SETTINGS, mean=[0, 0, 0], std=[1, 1, 1])
    data.setup()
    with pytest.raises(UserError, match="is damaged: write it again with kd-data"):
        list(data.train_dataloader())
    (copy() / "chunk-0-3.bin").unlink()
    with pytest.raises(UserError, match=r"is damaged: chunk-0-3.bin is missing"):
        opened(tmp_path / "copy")
    short = copy() / "chunk-0-3.bin"
    short.write_bytes(short.read_bytes()[:100])
    with pytest.raises(UserError, match=r"chunk-0-3.bin is too short"):
        opened(tmp_path / "copy")
    about = copy() / "images.json"
    about.write_text(json.dumps({**json.loads(about.read_text()), "format": 9}))
    with pytest.raises(UserError, match=r"format in images.json is 9"):
        opened(tmp_path / "copy")
    (copy() / "columns.npz").write_bytes(b"no archive")
    with pytest.raises(UserError, match="is damaged"):
        opened(tmp_path / "copy")


def test_shards_of_a_stranger_run_no_code(tmp_path: Path) -> None:
    """litdata itself would unpickle these samples."""
    trace, out = tmp_path / "trace", tmp_path / "out"
    write_folder(tmp_path / "all", {"a": 5, "b": 5})
    pack(list_folder(tmp_path / "all"), out)
    for file in (*out.glob("chunk-*"), out / "index.json"):
        file.unlink()
    writer = litdata.streaming.Cache(str(out), chunk_bytes=2**20)
    for i in range(10):
        writer[i] = {"image": RunsCode(trace), "label": 0}
    writer.done()
    writer.merge()
    with pytest.raises(UserError, match="describes other shards than those of kd-data"):
        opened(out)
    assert not trace.exists()
    _ = litdata.StreamingDataset(str(out))[0]
    assert trace.exists()  # the attack works


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("images.json", lambda about: about["counts"].update(val=-1)),
        ("images.json", lambda about: about["counts"].update(val=30.0)),
        ("images.json", lambda about: about.update(class_names="abc")),
        ("images.json", lambda about: about.update(class_names=["a", "a", "b"])),
        ("index.json", lambda index: index["chunks"][0].update(filename="../chunk-0-0.bin")),
        ("index.json", lambda index: index["chunks"][0].update(chunk_bytes=-1)),
        ("index.json", lambda index: index["config"].update(encryption="fernet")),
        ("index.json", lambda index: index.update(chunks=None)),
        ("columns.npz", lambda columns: columns["target"].fill(3)),
        ("columns.npz", lambda columns: columns["target"].fill(-1)),
        ("columns.npz", lambda columns: columns.update(target=columns["target"][1:])),
        ("columns.npz", lambda columns: columns.update(crc32=columns["crc32"] * 1.0)),
    ],
)
def test_changed_descriptions_are_refused(
    packed: Path, tmp_path: Path, name: str, change: Callable[[Any], object]
) -> None:
    file = shutil.copytree(packed, tmp_path / "copy") / name
    if file.suffix == ".json":
        content = json.loads(file.read_text())
        change(content)
        file.write_text(json.dumps(content))
    else:
        with np.load(file) as columns:
            content = dict(columns)
        change(content)
        np.savez(file, **content)
    with pytest.raises(UserError, match=r"copy is damaged: .*; write it again with kd-data"):
        opened(file.parent)


def test_a_folder_that_is_not_packed_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no shards: write them with kd-data"):
        opened(folder)
    with pytest.raises(UserError, match="there is no folder"):
        opened(tmp_path / "nothing")


def test_kd_data_leaves_out_what_it_cannot_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_folder(tmp_path / "all", {"a": 5, "b": 5})
    (tmp_path / "all" / "a" / "3.png").write_bytes(b"no image")
    (tmp_path / "all" / "a" / "4.png").unlink()
    (tmp_path / "all" / "a" / "4.png").symlink_to("nowhere")
    os.mkfifo(tmp_path / "all" / "a" / "pipe.png")
    monkeypatch.setattr(sys, "argv", ["kd-data", str(tmp_path / "all"), str(tmp_path / "out")])
    kd_data()
    printed = capsys.readouterr().out
    assert "3 of 11 images cannot be read: a/3.png, a/4.png, a/pipe.png; they were" in printed
    assert "8 train images of 2 classes; shards: 1" in printed
    with pytest.raises(SystemExit, match="out exists already: choose another folder"):
        kd_data()


def test_a_missing_library_is_named(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "litdata", None)
    with pytest.raises(UserError, match=r"pip install 'kd-lightning\[stream\]'"):
        opened(packed)
