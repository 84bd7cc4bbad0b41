"""Tests of checkpoint files: written whole, read without running code, matched to networks."""

import pickle
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from kd_lightning.nets.mlp import MLP
from kd_lightning.runs.checkpoints import (
    AtomicCheckpointIO,
    load_network,
    network_state,
    read_checkpoint,
)
from kd_lightning.utils.errors import UserError

SHAPE = (1, 4, 4)


class RunsCode:
    """Touches a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.file,)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A checkpoint of a student as a run writes it."""
    state = {f"student.{k}": v for k, v in MLP(SHAPE, 3).state_dict().items()}
    path = tmp_path / "checkpoints" / "best.ckpt"
    AtomicCheckpointIO().save_checkpoint({"state_dict": state, "network": "student"}, path)
    return path


def test_checkpoint_is_read_as_it_was_saved(tmp_path: Path) -> None:
    saved = {"w": torch.randn(3, 2), "epoch": 4, "spec": {"std": [0.5]}}
    path = tmp_path / "deep" / "in" / "x.ckpt"
    AtomicCheckpointIO().save_checkpoint(saved, path)
    torch.testing.assert_close(AtomicCheckpointIO().load_checkpoint(path), saved, rtol=0, atol=0)
    assert [p.name for p in path.parent.iterdir()] == ["x.ckpt"]


def test_failed_save_leaves_only_the_old_file(checkpoint: Path) -> None:
    before = checkpoint.read_bytes()
    broken = {"weights": torch.zeros(100_000), "not for pickling": lambda: 0}
    with pytest.raises((pickle.PicklingError, AttributeError, TypeError)):
        AtomicCheckpointIO().save_checkpoint(broken, checkpoint)
    assert checkpoint.read_bytes() == before
    assert [p.name for p in checkpoint.parent.iterdir()] == ["best.ckpt"]
    AtomicCheckpointIO().save_checkpoint({"epoch": 1}, checkpoint)
    assert read_checkpoint(checkpoint) == {"epoch": 1}


SAVES: dict[str, Callable[[Any, Path], Any]] = {
    "zip": torch.save,
    "old": partial(torch.save, _use_new_zipfile_serialization=False),
    "pickle": lambda content, path: path.write_bytes(pickle.dumps(content, protocol=2)),
}


@pytest.mark.parametrize("form", SAVES)
def test_reading_runs_no_code(form: str, tmp_path: Path) -> None:
    proof, path = tmp_path / "proof", tmp_path / "evil.ckpt"
    SAVES[form]({"state_dict": {}, "callbacks": RunsCode(proof)}, path)
    with pytest.raises(UserError, match=r"evil\.ckpt is not a checkpoint.*refused"):
        read_checkpoint(path)
    assert not proof.exists()
    with suppress(RuntimeError, pickle.UnpicklingError):
        torch.load(path, weights_only=False)
    assert proof.exists(), "unpickling does not run the code"


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.7, 0.99])
@pytest.mark.parametrize("as_zip", [True, False])
def test_file_cut_short_is_refused(checkpoint: Path, share: float, as_zip: bool) -> None:
    torch.save(read_checkpoint(checkpoint), checkpoint, _use_new_zipfile_serialization=as_zip)
    whole = checkpoint.read_bytes()
    checkpoint.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(UserError, match=r"best\.ckpt is .*damaged") as caught:
        read_checkpoint(checkpoint)
    assert "\n" not in str(caught.value)


def test_every_cut_of_the_old_format_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "old.ckpt"
    torch.save({"w": torch.zeros(3)}, path, _use_new_zipfile_serialization=False)
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError):
            read_checkpoint(path)


@pytest.mark.parametrize("content", [b"", b"hello, world", b"\x89PNG\r\n\x1a\n", bytes(100)])
def test_file_of_another_kind_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "foreign.ckpt"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"foreign\.ckpt"):
        read_checkpoint(path)


@pytest.mark.parametrize("name", [".", "none.ckpt", "file/none.ckpt"])
def test_missing_file_or_folder_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="there is no checkpoint file"):
        read_checkpoint(tmp_path / name)


@pytest.mark.parametrize("content", [[1, 2], torch.zeros(2), 3.0])
def test_content_other_than_a_dictionary_is_refused(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "x.ckpt")
    with pytest.raises(UserError, match=f"holds a {type(content).__name__}, not a checkpoint"):
        read_checkpoint(tmp_path / "x.ckpt")


def test_network_gets_weights_of_its_checkpoint(checkpoint: Path) -> None:
    saved = read_checkpoint(checkpoint)["state_dict"]
    net = load_network(MLP(SHAPE, 3), checkpoint, option="net@student")
    assert all(torch.equal(v, saved[f"student.{k}"]) for k, v in net.state_dict().items())


def test_only_the_named_network_is_loaded(tmp_path: Path) -> None:
    nets = {name: MLP(SHAPE, 3) for name in ("student", "studentB")}
    state = {f"{name}.{k}": v for name, net in nets.items() for k, v in net.state_dict().items()}
    torch.save({"state_dict": state, "network": "student"}, tmp_path / "x.ckpt")
    net = load_network(MLP(SHAPE, 3), tmp_path / "x.ckpt", option="net@student")
    torch.testing.assert_close(net.state_dict(), nets["student"].state_dict(), rtol=0, atol=0)


def test_plain_state_dict_is_loaded(tmp_path: Path) -> None:
    source = MLP(SHAPE, 3)
    torch.save(source.state_dict(), tmp_path / "plain.pt")
    net = load_network(MLP(SHAPE, 3), tmp_path / "plain.pt", option="net@teacher")
    torch.testing.assert_close(net.state_dict(), source.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("net", "difference"),
    [
        (MLP(SHAPE, 5), r"layers\.4\.weight is \[3, 128\] there and \[5, 128\] here"),
        (MLP(SHAPE, 3, hidden=(9,)), r"layers\.1\.weight is \[128, 16\] there and \[9, 16\] here"),
        (MLP(SHAPE, 3, hidden=(128, 128)), r"it lacks layers\.7\.weight"),
        (MLP(SHAPE, 3, hidden=()), r"it has layers\.4\.weight"),
    ],
)
def test_other_network_is_refused_with_the_difference(
    checkpoint: Path, net: MLP, difference: str
) -> None:
    before = {k: v.clone() for k, v in net.state_dict().items()}
    with pytest.raises(UserError, match=difference) as caught:
        load_network(net, checkpoint, option="net@teacher")
    assert all(word in str(caught.value) for word in ("best.ckpt", "MLP", "net@teacher="))
    torch.testing.assert_close(net.state_dict(), before, rtol=0, atol=0)


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"state_dict": 5},
        {0: torch.zeros(2)},
        {"state_dict": {"layers.1.weight": 3}},
        torch.optim.Adam(MLP(SHAPE, 3).parameters()).state_dict(),
    ],
)
def test_dictionary_without_weights_is_refused(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "x.ckpt")
    with pytest.raises(UserError, match=r"another network than MLP.*net@student="):
        load_network(MLP(SHAPE, 3), tmp_path / "x.ckpt", option="net@student")


@pytest.mark.parametrize("place", [0.1, 0.5, 0.9])
def test_a_flipped_bit_in_a_weight_is_refused(tmp_path: Path, place: float) -> None:
    file = tmp_path / "x.ckpt"
    AtomicCheckpointIO().save_checkpoint({"state_dict": {"w": torch.ones(10_000)}}, file)
    content = bytearray(file.read_bytes())
    start = content.index(torch.ones(100).numpy().tobytes())
    content[start + int(place * 40_000)] ^= 1
    file.write_bytes(content)
    assert torch.load(file, weights_only=True)  # torch itself does not notice
    with pytest.raises(UserError, match="is damaged"):
        read_checkpoint(file)


@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "model", None])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod."])
def test_weights_of_other_programs_are_unwrapped(key: str | None, prefix: str) -> None:
    weights = {"0.weight": torch.ones(2), "0.bias": torch.zeros(1)}
    wrapped = {f"{prefix}{name}": w for name, w in weights.items()}
    found = network_state({key: wrapped, "epoch": 3} if key else wrapped)
    assert found.keys() == weights.keys()
    assert all(torch.equal(found[name], w) for name, w in weights.items())


def test_a_network_with_a_part_called_module_keeps_its_names() -> None:
    weights = {"module.weight": torch.ones(2), "head.weight": torch.ones(2)}
    assert network_state(weights).keys() == weights.keys()
