"""ImageNet's samples, from file to collated batch: ours (bytes, for the device to normalise) against PIL + torchvision.

Photographs are made on the spot, in the size and with the detail of ImageNet's. Both ways cut the same boxes, so that
their pixels can be compared.
"""

import tempfile
import time
from functools import partial
from pathlib import Path
from statistics import fmean

import numpy as np
import torchvision.transforms as T
import torchvision.transforms.functional as TF
from PIL import Image
from torch import Tensor
from torch.utils.data import default_collate

from benchmarks.timing import Measurement, interleave
from normloss.config import ImageNet
from normloss.data.decode import read_image
from normloss.data.imagenet import Photographs, collate, random_box, random_crop

IMAGES = 48
GRAIN = 15  # standard deviation, of 255, in photographs made on the spot: most of a file's bytes
SEED, EPOCH = 0, 0
IMAGENET = ImageNet(
    name="imagenet", label="benchmark", num_classes=1, channels=3, size=224, resize=256, min_area=0.08,
    color_jitter=0.4, lighting=0.1, flip=0.5, mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375],
)  # fmt: skip
AFTER_CROP = T.Compose([
    T.RandomHorizontalFlip(),
    T.ToTensor(),
    T.Normalize([value / 255 for value in IMAGENET.mean], [value / 255 for value in IMAGENET.std]),
])  # fmt: skip


def measure(blocks: int = 5) -> list[Measurement]:
    """A batch of 48 photographs a block, on one thread; CPU seconds."""
    with tempfile.TemporaryDirectory() as folder:
        files = make_photographs(Path(folder))
        ours = Photographs([(path, 0) for path in files], partial(random_crop, IMAGENET, SEED))
        works = {
            "ours": lambda: collate([ours[EPOCH * len(files) + i] for i in range(len(files))]),
            "PIL": lambda: default_collate([reference(path, i) for i, path in enumerate(files)]),
        }
        times = interleave(works, blocks, time.process_time)
        crops = (ours.cut(read_image(path), EPOCH, i) for i, path in enumerate(files))
        difference = fmean(pixel_difference(crop, files[i], i) for i, crop in enumerate(crops))
    return [
        Measurement(
            "ImageNet samples, speed against PIL + torchvision", times.ratio("PIL", to="ours"), "x", at_least=1.6
        ),
        Measurement("ImageNet samples, mean difference to PIL's pixels", difference, "of 255", at_most=0.1),
        Measurement("ImageNet samples of ours", len(files) / times.median("ours"), "images/s"),
        Measurement("ImageNet samples by PIL + torchvision", len(files) / times.median("PIL"), "images/s"),
    ]


def reference(path: Path, i: int) -> tuple[Tensor, int]:
    """torchvision's training transform on a PIL image: float (3, S, S), and a label."""
    with Image.open(path) as image:
        crop = resized_crop(image.convert("RGB"), i)
    return AFTER_CROP(crop), 0


def resized_crop(image: Image.Image, i: int) -> Image.Image:
    """T.RandomResizedCrop's forward, with the box of image i."""
    box = random_box(*image.size, IMAGENET.min_area, np.random.default_rng((SEED, EPOCH, i)))
    assert box is not None  # a photograph of this size has room for a crop
    left, top, right, bottom = box
    size = [IMAGENET.size, IMAGENET.size]
    return TF.resized_crop(image, top, left, bottom - top, right - left, size, T.InterpolationMode.BICUBIC)


def pixel_difference(crop: Tensor, path: Path, i: int) -> float:
    """Mean absolute difference of a uint8 crop (3, S, S) to PIL's, of 255."""
    with Image.open(path) as image:
        expected = np.asarray(resized_crop(image.convert("RGB"), i)).astype(int)
    return float(np.abs(crop.permute(1, 2, 0).numpy() - expected).mean())


def make_photographs(folder: Path) -> list[Path]:
    """JPEGs of about 500x400 and 110 kB, the means of ImageNet's: soft shapes, finer ones fainter, and some grain."""
    rng = np.random.default_rng(0)
    files = []
    for i in range(IMAGES):
        width, height = ((500, 375), (375, 500), (500, 400), (500, 333))[i % 4]
        picture = np.full((height, width, 3), 128.0)
        for cell, strength in ((64, 60), (16, 30), (4, 15), (1, GRAIN)):
            noise = rng.normal(128, strength, (-(-height // cell), -(-width // cell), 3)).clip(0, 255)
            layer = Image.fromarray(noise.astype(np.uint8)).resize((width, height), Image.Resampling.BICUBIC)
            picture += np.asarray(layer) - 128.0
        files.append(folder / f"{i}.JPEG")
        Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(files[-1], quality=90)
    return files
