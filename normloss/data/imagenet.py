"""ImageNet 2012 (or any photographs) as {train,val}/<class>/*: augmentation of fb.resnet.torch, README D16.

Worker processes decode and crop to uint8; colour, flip and normalisation are batched on the device. Every random
choice depends on (seed, epoch, image) or (seed, epoch, step) alone, so workers, prefetch and restarts change nothing.
Shapes: B images, S = size.
"""

import atexit
import hashlib
import math
import multiprocessing
import os
import signal
import warnings
from collections.abc import Iterator
from functools import partial
from multiprocessing.synchronize import Event
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from normloss.config import ImageNet
from normloss.data.folder import UNREADABLE, check_same_classes, eight_bits, list_tree
from normloss.data.order import generator, steps_per_epoch
from normloss.errors import UserError
from normloss.signals import SIGNALS

EVAL_BATCH = 250  # at most; no batch of the test set is more than two of training's
LUMA = torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
# Principal components of ImageNet's colours: fb.resnet.torch datasets/imagenet.lua
EIGENVALUES = torch.tensor([0.2175, 0.0188, 0.0045])
EIGENVECTORS = torch.tensor(
    [[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]]
)  # a component a column


class ImageNetData:
    """Training and validation files; `train` and `test` yield normalised float batches on the device."""

    def __init__(
        self, cfg: ImageNet, data_dir: Path, seed: int, batch_size: int, workers: int | None, device: torch.device
    ) -> None:
        if not (data_dir / "train").is_dir():
            raise UserError(
                f"no imagenet: looked for {data_dir / 'train'}/<class>/*.JPEG; data_dir=DIR must hold train/ and val/"
                " with a folder a class, or go on at once with dataset=digits"
            )
        self.cfg, self.seed, self.batch_size, self.device = cfg, seed, batch_size, device
        check_same_classes(data_dir / "train", data_dir / "val")
        train, test = (list_tree(data_dir / split, cfg.num_classes) for split in ("train", "val"))
        self.train_size, self.test_size = len(train), len(test)
        self.steps_per_epoch = steps_per_epoch(self.train_size, batch_size)
        self.fingerprint = fingerprint(data_dir, train, test)
        leaving = multiprocessing.Event()
        atexit.register(leaving.set)  # runs before multiprocessing's own, which was registered first
        workers = min(16, os.cpu_count() or 1) if workers is None else workers
        options = dict(
            num_workers=workers,
            persistent_workers=workers > 0,
            prefetch_factor=4 if workers else None,
            pin_memory=device.type == "cuda",
            collate_fn=collate,
            worker_init_fn=partial(leave_signals_to_parent, leaving),
            generator=torch.Generator(),  # its own: the global one is the model's, and must not depend on workers
        )
        self.batches = EpochBatches(seed, self.train_size, batch_size)
        self.train_loader = DataLoader(Crops(train, cfg, seed), batch_sampler=self.batches, **options)
        self.test_loader = DataLoader(Centres(test, cfg), batch_size=min(EVAL_BATCH, 2 * batch_size), **options)
        self.mean = torch.tensor(cfg.mean, device=device).view(1, -1, 1, 1) / 255
        self.std = torch.tensor(cfg.std, device=device).view(1, -1, 1, 1) / 255

    def train(self, epoch: int, first_step: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """(x, y) of each step of `epoch` from `first_step` on; x (B, 3, S, S) float32, y (B,) int64."""
        self.batches.epoch, self.batches.first_step = epoch, first_step
        for step, (x, y) in enumerate(batches_of(self.train_loader), start=first_step):
            x, y = self._to_device(x, y)
            g = generator(self.seed, epoch, step)
            x = color_jitter(x, self.cfg.color_jitter, g)
            x = x + lighting(len(x), self.cfg.lighting, g).to(self.device)
            flip = (torch.rand(len(x), generator=g) < self.cfg.flip).to(self.device)
            x = torch.where(flip.view(-1, 1, 1, 1), x.flip(3), x)
            yield self._normalise(x), y

    def test(self) -> Iterator[tuple[Tensor, Tensor]]:
        for x, y in batches_of(self.test_loader):
            x, y = self._to_device(x, y)
            yield self._normalise(x), y

    def _to_device(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 over the bus, then 0..1."""
        x, y = x.to(self.device, non_blocking=True), y.to(self.device, non_blocking=True)
        return x.to(torch.float32, memory_format=torch.channels_last) / 255, y

    def _normalise(self, x: Tensor) -> Tensor:
        return ((x - self.mean) / self.std).contiguous(memory_format=torch.channels_last)


class EpochBatches:
    """The batches of an epoch as lists of (epoch, image), from first_step on."""

    def __init__(self, seed: int, images: int, batch_size: int) -> None:
        self.seed, self.images, self.batch_size = seed, images, batch_size
        self.epoch = self.first_step = 0

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch = self.epoch
        order = torch.randperm(self.images, generator=generator(self.seed, epoch)).tolist()
        for step in range(self.first_step, steps_per_epoch(self.images, self.batch_size)):
            yield [(epoch, i) for i in order[step * self.batch_size : (step + 1) * self.batch_size]]

    def __len__(self) -> int:
        return steps_per_epoch(self.images, self.batch_size) - self.first_step


class Crops(Dataset):
    """Random crops of the training images, uint8 (3, S, S); asked for by (epoch, image)."""

    def __init__(self, files: list[tuple[Path, int]], cfg: ImageNet, seed: int) -> None:
        self.files, self.cfg, self.seed = files, cfg, seed

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, int] | UserError:
        epoch, i = key
        path, label = self.files[i]
        try:
            image = open_image(path)
        except UserError as error:
            return error
        rng = np.random.default_rng((self.seed, epoch, i))
        box = random_box(*image.size, self.cfg.min_area, rng)
        if box is None:
            return to_tensor(resize_and_centre(image, self.cfg.size, self.cfg.size)), label
        size = (self.cfg.size, self.cfg.size)
        return to_tensor(image.resize(size, Image.Resampling.BICUBIC, box=box)), label

    def __len__(self) -> int:
        return len(self.files)


class Centres(Dataset):
    """Centre crops of the validation images, uint8 (3, S, S)."""

    def __init__(self, files: list[tuple[Path, int]], cfg: ImageNet) -> None:
        self.files, self.cfg = files, cfg

    def __getitem__(self, i: int) -> tuple[Tensor, int] | UserError:
        path, label = self.files[i]
        try:
            image = open_image(path)
        except UserError as error:
            return error
        return to_tensor(resize_and_centre(image, self.cfg.resize, self.cfg.size)), label

    def __len__(self) -> int:
        return len(self.files)


def open_image(path: Path) -> Image.Image:
    """RGB, from grey, palette and CMYK files too."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # a few ImageNet files have broken EXIF data
            with Image.open(path) as image:
                return eight_bits(image).convert("RGB")
    except UNREADABLE as error:
        raise UserError(f"{path}: not a readable image ({error})") from None


def random_box(width: int, height: int, min_area: float, rng: np.random.Generator) -> tuple[int, int, int, int] | None:
    """(left, top, right, bottom) of fb.resnet.torch's RandomSizedCrop; None after ten misses."""
    for _ in range(10):
        area = rng.uniform(min_area, 1) * width * height
        aspect = rng.uniform(3 / 4, 4 / 3)
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if rng.uniform() < 0.5:
            w, h = h, w
        if 0 < w <= width and 0 < h <= height:
            left, top = rng.integers(width - w + 1), rng.integers(height - h + 1)
            return int(left), int(top), int(left + w), int(top + h)
    return None


def resize_and_centre(image: Image.Image, short_side: int, size: int) -> Image.Image:
    scale = short_side / min(image.size)
    width, height = (max(short_side, round(side * scale)) for side in image.size)
    left, top = (width - size) // 2, (height - size) // 2
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    return image.crop((left, top, left + size, top + size))


def to_tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def color_jitter(x: Tensor, strength: float, g: torch.Generator) -> Tensor:
    """Brightness, contrast and saturation of x (B, 3, S, S) in 0..1, each by its own factor an image.

    Each blends the image with a target, a x + (1 - a) t, a = U(1 - strength, 1 + strength): t is black, the mean
    grey, or the grey image. The result may leave 0..1, as in fb.resnet.torch; since nothing is clamped the three
    commute, and fb's random order of them changes nothing.
    """
    factors = (1 + strength * (2 * torch.rand(3, len(x), 1, 1, 1, generator=g) - 1)).to(x.device)
    brightness, contrast, saturation = factors  # each (B, 1, 1, 1)
    grey = (x * LUMA.to(x.device)).sum(1, keepdim=True)  # (B, 1, S, S)
    x = torch.lerp(grey, x, saturation)
    x = torch.lerp(grey.mean((2, 3), keepdim=True), x, contrast)
    return brightness * x


def lighting(images: int, sigma: float, g: torch.Generator) -> Tensor:
    """A colour shift an image along the principal components, (B, 3, 1, 1): sum_k N(0, sigma) eigenvalue_k v_k."""
    alpha = sigma * torch.randn(images, 3, generator=g)
    return ((alpha * EIGENVALUES) @ EIGENVECTORS.T).view(images, 3, 1, 1)


def leave_signals_to_parent(leaving: Event, worker: int) -> None:
    """A signal to the process group reaches workers too, but the training process decides when to stop.

    SIGTERM is also how multiprocessing ends its processes at exit; `leaving` is set by then.
    """
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: os._exit(0) if leaving.is_set() else None)
    torch.set_num_threads(1)


def collate(samples: list[tuple[Tensor, int] | UserError]) -> list[Tensor] | UserError:
    """A batch, or the error of its first unreadable file: an exception in a worker would come with its traceback, and
    leaves torch's workers waiting for seconds."""
    errors = [sample for sample in samples if isinstance(sample, UserError)]
    return errors[0] if errors else default_collate(samples)


def batches_of(loader: DataLoader) -> Iterator[list[Tensor]]:
    for batch in loader:
        if isinstance(batch, UserError):
            # a new one: an exception that its own traceback's frame holds is a cycle, and keeps the workers
            raise UserError(str(batch))
        yield batch


def fingerprint(data_dir: Path, *splits: list[tuple[Path, int]]) -> str:
    """16 hex digits that change with the list of files (not their pixels: there may be a million)."""
    digest = hashlib.sha256()
    for files in splits:
        for path, _ in files:
            digest.update(f"{path.relative_to(data_dir)}\n".encode())
    return digest.hexdigest()[:16]
