"""Tests of atomic writes and checksums."""

import os
import signal
import zlib
from pathlib import Path
from typing import BinaryIO

import pytest
import torch

from kd_lightning.utils import files
from kd_lightning.utils.files import crc32, remove_partial, write_atomically, write_text


def files_in(folder: Path) -> list[str]:
    """Return the names of all files in a folder, hidden ones included."""
    return sorted(path.name for path in folder.iterdir())


def test_write_creates_the_folder_and_leaves_no_other_file(tmp_path: Path) -> None:
    target = tmp_path / "a" / "b" / "table.npz"
    write_atomically(target, lambda file: file.write(b"content"))
    assert target.read_bytes() == b"content"
    assert files_in(target.parent) == ["table.npz"]


def test_target_keeps_its_old_content_until_the_writer_returns(tmp_path: Path) -> None:
    target = tmp_path / "table.npz"
    target.write_bytes(b"old")
    seen = []

    def write(file: BinaryIO) -> None:
        file.write(b"new")
        file.flush()
        seen.append(target.read_bytes())

    write_atomically(target, write)
    assert seen == [b"old"]
    assert target.read_bytes() == b"new"


@pytest.mark.parametrize("old", [b"old", None])
def test_failed_writer_changes_nothing(tmp_path: Path, old: bytes | None) -> None:
    target = tmp_path / "table.npz"
    if old is not None:
        target.write_bytes(old)

    def write(file: BinaryIO) -> None:
        file.write(b"half of the new content")
        raise OSError("No space left on device")

    with pytest.raises(OSError, match="No space left"):
        write_atomically(target, write)
    assert files_in(tmp_path) == ([] if old is None else ["table.npz"])
    assert old is None or target.read_bytes() == old


def test_target_that_cannot_be_replaced_leaves_no_partial_file(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    with pytest.raises(OSError, match="taken"):
        write_atomically(tmp_path / "taken", lambda file: file.write(b"content"))
    assert files_in(tmp_path) == ["taken"]


def test_text_is_written_as_utf8(tmp_path: Path) -> None:
    write_text(tmp_path / "log.txt", "α = 0.9 → 97 %\n")
    assert (tmp_path / "log.txt").read_bytes() == "α = 0.9 → 97 %\n".encode()


@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 16, 1001])
def test_checksum_is_zlibs_over_the_whole_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    monkeypatch.setattr(files, "BLOCK", 8)  # so that small files span several blocks
    content = bytes(i * 37 % 256 for i in range(size))
    (tmp_path / "file").write_bytes(content)
    assert crc32(tmp_path / "file") == zlib.crc32(content)


def test_archive_that_does_not_fit_on_the_disk_is_an_error_of_the_disk(tmp_path: Path) -> None:
    def write(_: BinaryIO) -> None:
        with Path("/dev/full").open("wb") as full:  # torch raises a RuntimeError of its own
            torch.save(torch.zeros(100_000), full)

    with pytest.raises(OSError, match="No space left") as raised:
        write_atomically(tmp_path / "best.ckpt", write)
    assert raised.value.filename == str(tmp_path / "best.ckpt")
    assert files_in(tmp_path) == []


def test_what_a_killed_process_was_writing_is_removed(tmp_path: Path) -> None:
    child = os.fork()
    if child == 0:
        write_atomically(tmp_path / "a.ckpt", lambda _: os.kill(os.getpid(), signal.SIGKILL))
    os.waitpid(child, 0)
    assert len(files_in(tmp_path)) == 1
    (tmp_path / ".mine.7").touch()
    remove_partial(tmp_path)
    assert files_in(tmp_path) == [".mine.7"]
