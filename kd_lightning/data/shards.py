"""Image files packed into the shards of litdata, to be streamed from a disk or a mounted bucket.

A packed folder contains ``index.json`` and ``chunk-*.bin``, which litdata reads, with the bytes of
the original files and their labels; ``images.json`` with the names of the classes and the number of
images in each split; and ``columns.npz`` with the label and checksum of each image. The images of a
split are stored in random order, so that any part of it is a random sample.
"""

import hashlib
import io
import json
import logging
import os
import shutil
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from filelock import FileLock, Timeout
from torch import Tensor

from kd_lightning.data.decode import read_image
from kd_lightning.data.decoded import Squares
from kd_lightning.data.listing import PARTS, ImageFolder
from kd_lightning.data.photos import Photos
from kd_lightning.data.stored import StoredImages
from kd_lightning.utils.errors import UserError
from kd_lightning.utils.files import PARTIAL
from kd_lightning.utils.progress import progress

FORMAT = 1
ABOUT, COLUMNS = "images.json", "columns.npz"
A_SHARD = 2**26  # bytes
A_BLOCK = 256  # files read between two writes
UNUSED = "100GB"  # limit of litdata's cache of remote shards; it is given to keep litdata silent
CHECKED = 32  # side to which images are decoded to find unreadable ones, in pixels


class Packed(NamedTuple):
    """Result of :func:`pack`.

    Attributes:
        counts: number of images in each split.
        shards: number of shards.
        is_readable: which files of the listing were packed, a mask.
    """

    counts: dict[str, int]
    shards: int
    is_readable: Tensor


def pack(folder: ImageFolder, out: Path, shard_bytes: int = A_SHARD) -> Packed:
    """Pack the readable images of a folder into shards.

    The folder ``out`` appears when it is complete.

    Args:
        folder: the images.
        out: folder of the shards, which must not exist.
        shard_bytes: size of a shard.

    Raises:
        UserError: if ``out`` exists or cannot be written, or no image can be read.
    """
    if out.exists():
        raise UserError(f"{out} exists already: choose another folder, or delete it")
    partial = out.with_name(f".{out.name}{PARTIAL}")
    try:
        with _writing(out):
            shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed
            packed = _pack(folder, partial, shard_bytes)
            partial.rename(out)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise UserError(f"the shards cannot be written: {error}") from error
    return packed


def _pack(folder: ImageFolder, out: Path, shard_bytes: int) -> Packed:
    writer = litdata().streaming.Cache(str(out), chunk_bytes=shard_bytes, max_cache_size=UNUSED)
    generator = torch.Generator().manual_seed(0)
    splits = np.array(folder.split)
    members = {name: torch.from_numpy((splits == name).nonzero()[0]) for name in PARTS}
    counts, packed, checksums = dict.fromkeys(PARTS, 0), [], []
    digest = hashlib.blake2b(digest_size=16)
    count = len(folder.listing.files)
    with progress(f"Packing {count:,} images", count) as advance:
        for name, found in members.items():
            order = found[torch.randperm(len(found), generator=generator)].tolist()
            for position, content in _contents(folder, order):
                advance(1)
                if content is None:
                    continue
                label = int(folder.target[position])
                writer[len(packed)] = {"image": content, "label": label}
                packed.append(position)
                checksums.append(zlib.crc32(content))
                digest.update(content)
                counts[name] += 1
    if not packed:
        raise UserError(f"none of the {count} files in {folder.listing.root} is an image")
    writer.done()
    writer.merge()
    is_readable = torch.zeros(count, dtype=torch.bool)
    is_readable[packed] = True
    target = folder.target[packed].numpy()
    digest.update(target.tobytes())
    np.savez(out / COLUMNS, target=target, crc32=np.array(checksums, dtype=np.uint32))
    about = {"format": FORMAT, "class_names": folder.class_names, "counts": counts}
    text = json.dumps({**about, "digest": digest.hexdigest()}, indent=2, ensure_ascii=False)
    (out / ABOUT).write_text(text)
    return Packed(counts, len(list(out.glob("*.bin"))), is_readable)


def _contents(folder: ImageFolder, order: list[int]) -> Iterator[tuple[int, bytes | None]]:
    """Yield positions in the listing and the bytes of the files, None of unreadable ones."""

    def read(position: int) -> bytes | None:
        try:
            content = (folder.listing.root / folder.listing.files[position]).read_bytes()
            read_image(io.BytesIO(content), CHECKED)
        except (OSError, UserError):
            return None
        return content

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in range(0, len(order), A_BLOCK):
            block = order[start : start + A_BLOCK]
            yield from zip(block, pool.map(read, block), strict=True)


def open_shards(path: Path, squares: Squares) -> Photos:
    """Open a packed folder.

    Args:
        path: the folder, written by :func:`pack`.
        squares: what its images are decoded to when they are read.

    Raises:
        UserError: if the folder is missing, incomplete or damaged.
    """
    if not path.is_dir():
        raise UserError(f"data.path: there is no folder {path}")
    if not (path / ABOUT).is_file():
        raise UserError(f"{path} has no shards: write them with kd-data {path} NEW_FOLDER")
    try:
        about = json.loads((path / ABOUT).read_text())
        with np.load(path / COLUMNS, allow_pickle=False) as columns:
            target, checksums = columns["target"], columns["crc32"]
        if about["format"] != FORMAT:
            raise ValueError(f"its format is {about['format']}, not {FORMAT}")
        counts = [int(about["counts"][name]) for name in PARTS]
        names, digest = tuple(map(str, about["class_names"])), str(about["digest"])
        if not len(target) == len(checksums) == sum(counts):
            raise ValueError("its columns do not have one row per image")
        first = _shards(path, len(target))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged: {error}; write it again with kd-data") from error
    rows = torch.arange(len(target))
    content = hashlib.blake2b(repr((digest, squares)).encode(), digest_size=16).hexdigest()
    images = StoredImages(
        ShardReader(path, squares, checksums), rows, squares.shape, content, True, first
    )
    parts = dict(zip(PARTS, rows.split(counts), strict=True))
    return Photos(names, images, torch.from_numpy(target), parts)


def _shards(path: Path, count: int) -> Tensor:
    """Return the position of the first image of each shard.

    Raises:
        ValueError: if a shard is missing or has another size.
    """
    chunks = json.loads((path / "index.json").read_text())["chunks"]
    for chunk in chunks:
        file = path / chunk["filename"]
        if not file.is_file():
            raise ValueError(f"{file.name} is missing")
        if file.stat().st_size < chunk["chunk_bytes"]:
            raise ValueError(f"{file.name} is too short")
    sizes = torch.tensor([chunk["chunk_size"] for chunk in chunks])
    if int(sizes.sum()) != count:
        raise ValueError(f"its shards have {int(sizes.sum())} images instead of {count}")
    return sizes.cumsum(0) - sizes


class ShardReader:
    """Read and decode images at positions of a packed folder.

    Args:
        path: the folder.
        squares: what the images are decoded to.
        checksums: CRC-32 of each image.
    """

    def __init__(self, path: Path, squares: Squares, checksums: np.ndarray) -> None:
        self.path, self.squares, self.checksums = path, squares, checksums
        # batch_decode=0: an image alone, not its neighbours too, which are not read in turn.
        self.dataset = litdata().StreamingDataset(str(path), batch_decode=0, max_cache_size=UNUSED)

    def __call__(self, rows: Tensor) -> Tensor:
        """Return the images at positions, B, as B×C×S×S uint8."""
        images = torch.empty(len(rows), *self.squares.shape, dtype=torch.uint8)
        # In the order of the shards, because litdata keeps a single one open.
        for k in rows.argsort().tolist():
            images[k] = self._read(int(rows[k]))
        return images

    def _read(self, row: int) -> Tensor:
        content: Any = self.dataset[row]["image"]
        if zlib.crc32(content) != self.checksums[row]:
            raise UserError(f"image {row} of {self.path} is damaged: write it again with kd-data")
        return read_image(io.BytesIO(content), *self.squares)


def litdata() -> ModuleType:
    """Import litdata.

    Raises:
        UserError: if it is not installed.
    """
    try:
        import litdata as found
    except ImportError as error:
        raise UserError(
            "data=stream and kd-data need litdata: pip install 'kd-lightning[stream]'"
        ) from error
    logging.getLogger("litdata").setLevel(logging.WARNING)
    return found


@contextmanager
def _writing(out: Path) -> Iterator[None]:
    """Keep other processes from writing the same folder."""
    out.parent.mkdir(parents=True, exist_ok=True)
    file = out.with_name(f".{out.name}.lock")
    lock = FileLock(file)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise UserError(f"another process is writing {out}") from error
    try:
        yield
    finally:
        file.unlink()
        lock.release()
