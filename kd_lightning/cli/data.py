"""``kd-data FOLDER OUT``: pack a folder of images into shards for ``data=stream``.

FOLDER is one that ``data=image_folder`` reads: train/CLASS/*.jpg, and optionally val/ and test/.
OUT appears when it is complete; the images are copied unchanged, and unreadable ones left out.
"""

import argparse
import logging
import sys
from pathlib import Path

from kd_lightning.cli.console import fail, print_line, print_path
from kd_lightning.cli.outcome import INTERRUPTED
from kd_lightning.data.decoded import describe_unreadable
from kd_lightning.data.listing import list_folder
from kd_lightning.data.packing import A_SHARD, pack
from kd_lightning.utils.errors import UserError


def main() -> None:
    """Entry point of ``kd-data``."""
    arguments = _parser().parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        _pack(arguments.folder, arguments.out, arguments.unlabelled, arguments.shard_mb)
    except UserError as error:
        fail(error)
    except KeyboardInterrupt:
        print(f"interrupted: {arguments.out} was not written", file=sys.stderr)
        sys.exit(INTERRUPTED)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="kd-data", description=__doc__)
    parser.add_argument("folder", type=Path, help="folder of images")
    parser.add_argument("out", type=Path, help="folder to write, which must not exist")
    parser.add_argument(
        "--unlabelled", type=Path, metavar="DIR", help="folder of more images, without labels"
    )
    parser.add_argument(
        "--shard-mb",
        type=_size,
        default=A_SHARD // 2**20,
        metavar="MB",
        help="size of a shard in MiB (default: %(default)s)",
    )
    return parser


def _size(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) < 2**12:  # litdata counts bytes in 32 bits
        raise argparse.ArgumentTypeError(f"must lie in 1…4095, got {text}")
    return int(text)


def _pack(source: Path, out: Path, unlabelled: Path | None, shard_mb: int) -> None:
    for given in (source, unlabelled):
        if given is not None and not given.is_dir():
            raise UserError(f"there is no folder {given}")
    folder = list_folder(source, unlabelled)
    packed = pack(folder, out, shard_mb * 2**20)
    if unreadable := describe_unreadable(folder.listing, packed.is_readable):
        print_line(f"{unreadable}; they were left out", style="yellow")
    counts = ", ".join(f"{count:,} {name}" for name, count in packed.counts.items() if count)
    print_line(f"{counts} images of {len(folder.class_names)} classes; shards: {packed.shards}")
    print_path("packed", out)


if __name__ == "__main__":
    main()
