"""Packing of image files into the shards that :mod:`kd_lightning.data.shards` reads."""

import hashlib
import json
import os
import shutil
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from filelock import FileLock, Timeout
from torch import Tensor

from kd_lightning.data.decode import read_image
from kd_lightning.data.listing import PARTS, ImageFolder
from kd_lightning.data.shards import ABOUT, COLUMNS, FORMAT, UNUSED, litdata
from kd_lightning.utils.errors import UserError
from kd_lightning.utils.files import PARTIAL
from kd_lightning.utils.progress import progress

A_SHARD = 2**26  # bytes
A_BLOCK = 256  # files read between two writes
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
    if out.exists() or out.is_symlink():
        raise UserError(f"{out} exists already: choose another folder, or delete it")
    partial = out.with_name(f".{out.name}{PARTIAL}")
    try:
        with _writing(out):
            shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed
            try:
                packed = _pack(folder, partial, shard_bytes)
                partial.rename(out)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        raise UserError(
            f"the shards cannot be written: {error}; choose another folder than {out}"
        ) from error
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
        file = folder.listing.root / folder.listing.files[position]
        try:
            read_image(file, CHECKED)  # first, as it refuses pipes and devices
            return file.read_bytes()
        except (OSError, UserError):
            return None

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in range(0, len(order), A_BLOCK):
            block = order[start : start + A_BLOCK]
            yield from zip(block, pool.map(read, block), strict=True)


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
