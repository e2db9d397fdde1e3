"""ImageNet's samples, from file to collated batch: ours (bytes, for the device to normalise) against PIL + torchvision.

Photographs are made on the spot, in the size and with the detail of ImageNet's.
"""

import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torchvision.transforms as T
from PIL import Image
from torch.utils.data import default_collate

from benchmarks.steps import config
from benchmarks.timing import against_pil, interleave
from normloss.config import ImageNet
from normloss.data.imagenet import Photographs, collate, random_crop

IMAGES = 48
GRAIN = 15  # standard deviation, of 255, in photographs made on the spot: most of a file's bytes


def measure(blocks: int = 5) -> list[dict[str, Any]]:
    """A batch of 48 photographs a block, on one thread; CPU seconds."""
    cfg = config("dataset=imagenet").dataset
    assert isinstance(cfg, ImageNet)
    theirs = T.Compose([
        T.RandomResizedCrop(cfg.size, (cfg.min_area, 1), interpolation=T.InterpolationMode.BICUBIC),
        T.RandomHorizontalFlip(),
        T.ToTensor(),
        T.Normalize([value / 255 for value in cfg.mean], [value / 255 for value in cfg.std]),
    ])  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        files = make_photographs(Path(folder))
        ours = Photographs([(path, 0) for path in files], partial(random_crop, cfg, 0))
        works = {
            "ours": lambda: collate([ours[i] for i in range(len(files))]),
            "PIL": lambda: default_collate([theirs(Image.open(path).convert("RGB")) for path in files]),
        }
        times = interleave(works, blocks, time.process_time)
    return against_pil("ImageNet samples", times, len(files), at_least=1.6)


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
