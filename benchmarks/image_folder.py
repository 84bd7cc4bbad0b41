"""Time to decode a folder of photos, and of an epoch with and without the decoded file.

    python benchmarks/image_folder.py [IMAGES]

Writes a folder of JPEG files of 224 to 320 pixels, enlarged from CIFAR-100, with two photos of
scikit-learn, grey images, rotated ones and a damaged file among them. An epoch reads, augments and
normalises every training image; nothing is trained. Needs KD_DATA_DIR, or shared/data beside the
checkout.
"""

import os
import sys
import tempfile
import time
from pathlib import Path

import torch
from PIL import Image
from sklearn.datasets import load_sample_images

from kd_lightning.data.cifar100 import read_sheets
from kd_lightning.data.image_folder import ImageFolderDataModule
from kd_lightning.data.photo_augment import PhotoAugment

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
DATA = Path(os.environ.get("KD_DATA_DIR", SHARED)) / "cifar100"


def write_folder(root: Path, images: int, classes: int = 10) -> None:
    """Write CIFAR-100's first classes as photos: ``root/train/CLASS/*.jpg``, and ``root/test``."""
    for split, count in (("train", images), ("test", images // 10)):
        pixels, target = read_sheets(DATA, split)
        assert isinstance(pixels, torch.Tensor)
        chosen = (target < classes).nonzero().flatten()[:count]
        for number, i in enumerate(chosen.tolist()):
            folder = root / split / f"class {int(target[i]):02}"
            folder.mkdir(parents=True, exist_ok=True)
            _write(folder / f"{number:05}.jpg", pixels[i], number)
    first = root / "train" / "class 00"
    for number, photo in enumerate(load_sample_images().images):
        Image.fromarray(photo).save(first / f"photo {number}.jpg")
    whole = (first / "photo 0.jpg").read_bytes()
    (first / "damaged.jpg").write_bytes(whole[: len(whole) // 3])


def _write(file: Path, pixels: torch.Tensor, number: int) -> None:
    side = 224 + 32 * (number % 4)
    image = Image.fromarray(pixels.permute(1, 2, 0).numpy()).resize((side, 224 + number % 97))
    exif = Image.Exif()
    if number % 10 == 1:  # stored lying on its side, as phones do
        exif[0x112] = 6
        image = image.transpose(Image.Transpose.ROTATE_90)
    (image.convert("L") if number % 10 == 2 else image).save(file, quality=90, exif=exif)


def _epoch(data: ImageFolderDataModule) -> float:
    start = time.perf_counter()
    for batch in data.train_dataloader():
        data._transform(batch, data.augment, 0, torch.float32)
    return time.perf_counter() - start


def main() -> None:
    images = int(sys.argv[1]) if len(sys.argv) > 1 else 5000
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place, "photos")
        write_folder(folder, images)
        settings = {"path": str(folder), "decoded": f"{place}/decoded", "augment": PhotoAugment()}
        for limit, text in ((2e10, "decoded file"), (0, "decoded by workers")):
            data = ImageFolderDataModule(max_bytes=limit, num_workers=2, **settings)
            start = time.perf_counter()
            data.setup()
            print(f"{text}: first setup {time.perf_counter() - start:.1f} s, {data.summary}")
            again = ImageFolderDataModule(max_bytes=limit, num_workers=2, **settings)
            start = time.perf_counter()
            again.setup()
            print(f"{text}: second setup {time.perf_counter() - start:.2f} s")
            print(f"{text}: epochs of {_epoch(data):.1f}, {_epoch(data):.1f} s", flush=True)
        size = sum(f.stat().st_size for f in Path(place, "decoded").iterdir())
        print(f"decoded file: {size / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
