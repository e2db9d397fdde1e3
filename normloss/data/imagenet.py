"""ImageNet 2012 (or any photographs) as {train,val}/<class>/*: augmentation of fb.resnet.torch, D16.

Worker processes decode and crop to uint8; colour, flip and normalisation are batched on the device. Every random choice
depends on (seed, epoch, image) or (seed, epoch, step) alone, so workers, prefetch and restarts change nothing.
Shapes: B images, S = size.
"""

import atexit
import errno
import hashlib
import itertools
import math
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from normloss.config import ImageNet
from normloss.config.images import class_folders
from normloss.config.shares import Part
from normloss.data.augment import Share, color_jitter, lighting, random_flip
from normloss.data.decode import jpeg_decoder, read_image
from normloss.data.folder import check_same_classes, list_tree
from normloss.data.held_out import choose
from normloss.data.order import generator, steps_per_epoch
from normloss.errors import Interrupted, UserError
from normloss.runs.provenance import cores
from normloss.signals import SIGNALS

EVAL_BATCH = 250  # at most; no batch of the test set is more than two of training's


class ImageNetData:
    """Training and validation files; `train` and `test` yield normalised float batches on the device."""

    def __init__(
        self,
        cfg: ImageNet,
        data_dir: Path,
        seed: int,
        batch_size: int,
        workers: int | None,
        device: torch.device,
        part: Part = Part(0, 1),
        micro_batch: int | None = None,
    ) -> None:
        if cfg.val == "file":
            raise UserError("dataset.val: must be a number for imagenet, whose val/ is the test set, got 'file'")
        if not (data_dir / "train").is_dir():
            raise UserError(
                f"no imagenet: looked for {data_dir / 'train'}/<class>/*.JPEG; data_dir=DIR must hold train/ and val/"
                " with one folder per class, or go on at once with dataset=digits"
            )
        self.cfg, self.seed, self.batch_size, self.device = cfg, seed, batch_size, device
        check_same_classes(data_dir / "train", data_dir / "val")
        train, test = (list_tree(data_dir / split, cfg.num_classes) for split in ("train", "val"))
        self.classes = [path.name for path in class_folders(data_dir / "train")]
        self.fingerprint = fingerprint(data_dir, train, test)
        held: list[tuple[Path, int]] = []
        if cfg.val:
            chosen = choose(np.array([label for _, label in train]), cfg.val, self.classes)
            held = list(itertools.compress(train, chosen))
            train = list(itertools.compress(train, ~chosen))
        self.train_size, self.test_size, self.val_size = len(train), len(test), len(held)
        self.steps_per_epoch = steps_per_epoch(self.train_size, batch_size)
        self.decoder = jpeg_decoder().name  # found before the workers start, which then inherit it
        workers = default_workers() if workers is None else workers
        if workers:
            with report_full_shared_memory():
                leaving = multiprocessing.Event()
            atexit.register(leaving.set)  # runs before multiprocessing's own, which was registered first
        options: dict[str, Any] = dict(
            num_workers=workers,
            persistent_workers=workers > 0,
            prefetch_factor=4 if workers else None,
            pin_memory=device.type == "cuda",
            collate_fn=collate,
            worker_init_fn=partial(leave_signals_to_parent, leaving) if workers else None,
            generator=torch.Generator(),  # its own: the global one is the model's, and must not depend on workers
        )
        own = partial(part.images, size=micro_batch) if part.world > 1 else None
        self.batches = EpochBatches(seed, self.train_size, batch_size, own)
        self.labels = torch.tensor([label for _, label in train])
        self.train_loader = DataLoader(Crops(train, cfg, seed), batch_sampler=self.batches, **options)
        self.test_loader, self.val_loader, self.train_in_order_loader = (  # a loader starts its workers when it is used
            DataLoader(Centres(files, cfg), batch_size=min(EVAL_BATCH, 2 * batch_size), **options)
            for files in (test, held, train)
        )
        self.mean = torch.tensor(cfg.mean, device=device).view(1, -1, 1, 1) / 255
        self.std = torch.tensor(cfg.std, device=device).view(1, -1, 1, 1) / 255

    def describe(self) -> dict[str, Any]:
        """Return which data this is and what decoded it, for meta.json."""
        return {"data": self.fingerprint, "classes": self.classes, "decoder": self.decoder}

    def train(self, epoch: int, first_step: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (x, y) of each step of `epoch` from `first_step` on; x (B, 3, S, S) float32, y (B,) int64.

        Of several processes that share out a step each has its own images x, (B', 3, S, S), and all labels y.
        """
        self.batches.epoch, self.batches.first_step = epoch, first_step
        for step, batch in enumerate(batches_of(self.train_loader), start=first_step):
            x, y = self._to_device(batch)
            share = None
            if self.batches.own:
                images = self.batches.images_of(step)
                share = Share(len(images), self.batches.own(len(images)))
                y = self.labels[images].to(self.device, non_blocking=True)
            g = generator(self.seed, epoch, step)
            x = color_jitter(x, self.cfg.color_jitter, g, share)
            x = lighting(x, self.cfg.lighting, g, share)
            x = random_flip(x, self.cfg.flip, g, share)
            yield self._normalise(x), y

    def test(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (x, y) of the test set, in order."""
        return self._in_order(self.test_loader)

    def val(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (x, y) of the images held out, in order."""
        return self._in_order(self.val_loader)

    def train_in_order(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (x, y) of the training images, their centres, without augmentation."""
        return self._in_order(self.train_in_order_loader)

    def _in_order(self, loader: DataLoader) -> Iterator[tuple[Tensor, Tensor]]:
        for batch in batches_of(loader):
            x, y = self._to_device(batch)
            yield self._normalise(x), y

    def _to_device(self, batch: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Move a batch as uint8, then scale it to 0..1."""
        x, y = (part.to(self.device, non_blocking=True) for part in batch)
        return x.to(torch.float32, memory_format=torch.channels_last) / 255, y

    def _normalise(self, x: Tensor) -> Tensor:
        return ((x - self.mean) / self.std).contiguous(memory_format=torch.channels_last)


class EpochBatches:
    """The batches of an epoch as lists of (epoch, image), from first_step on.

    own: the slice of a batch's images that is wanted, by how many it has; None for all.
    """

    def __init__(self, seed: int, images: int, batch_size: int, own: Callable[[int], slice] | None = None) -> None:
        self.seed, self.images, self.batch_size, self.own = seed, images, batch_size, own
        self.epoch = self.first_step = 0
        self.order: list[int] = []  # of the epoch

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch = self.epoch
        self.order = torch.randperm(self.images, generator=generator(self.seed, epoch)).tolist()
        for step in range(self.first_step, steps_per_epoch(self.images, self.batch_size)):
            images = self.images_of(step)
            yield [(epoch, i) for i in (images[self.own(len(images))] if self.own else images)]

    def images_of(self, step: int) -> list[int]:
        """Return all images of a step's batch, in order."""
        return self.order[step * self.batch_size : (step + 1) * self.batch_size]

    def __len__(self) -> int:
        return steps_per_epoch(self.images, self.batch_size) - self.first_step


class Photographs(Dataset):
    """Files as samples: a square cut out of each image, uint8 (3, S, S), and its label."""

    def __init__(self, files: list[tuple[Path, int]], cfg: ImageNet) -> None:
        self.files, self.cfg = files, cfg

    def __len__(self) -> int:
        return len(self.files)

    def sample(self, image: int, cut: Callable[[Tensor], Tensor]) -> tuple[Tensor, int] | UserError:
        """Return cut(photograph) and its label, or the error of an unreadable file; cut: (3, H, W) -> (3, S, S)."""
        path, label = self.files[image]
        try:
            return cut(read_image(path)), label
        except UserError as error:
            return error


class Crops(Photographs):
    """Random crops of the training images; a key is (epoch, image)."""

    def __init__(self, files: list[tuple[Path, int]], cfg: ImageNet, seed: int) -> None:
        super().__init__(files, cfg)
        self.seed = seed

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, int] | UserError:
        return self.sample(key[1], lambda image: self.cut(image, key))

    def cut(self, image: Tensor, key: tuple[int, int]) -> Tensor:
        size, (height, width) = self.cfg.size, image.shape[1:]
        box = random_box(width, height, self.cfg.min_area, np.random.default_rng((self.seed, *key)))
        if box is None:
            return resize_and_centre(image, size, size)
        left, top, right, bottom = box
        # cut out, then resized, as in fb.resnet.torch: nothing from beyond the crop's border shines in
        return resize(image[:, top:bottom, left:right], size, size)


class Centres(Photographs):
    """Centre crops of the validation images; a key is the image."""

    def __getitem__(self, key: int) -> tuple[Tensor, int] | UserError:
        return self.sample(key, lambda image: resize_and_centre(image, self.cfg.resize, self.cfg.size))


def random_box(width: int, height: int, min_area: float, rng: np.random.Generator) -> tuple[int, int, int, int] | None:
    """Return (left, top, right, bottom) of fb.resnet.torch's RandomSizedCrop; None after ten misses."""
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


def resize(image: Tensor, height: int, width: int) -> Tensor:
    """Resize uint8 (3, H, W) to (3, height, width), antialiased bicubic by torch's port of PIL's filter.

    PIL takes 1.5 times as long per photograph; its weights have more bits, which is less than 0.1 of 255 in the mean.
    """
    image = image[None].contiguous(memory_format=torch.channels_last)  # the layout of the vectorized form
    return F.interpolate(image, size=(height, width), mode="bicubic", antialias=True)[0]


def resize_and_centre(image: Tensor, short_side: int, size: int) -> Tensor:
    """Scale the short side of (3, H, W) to `short_side`; return the centre, (3, size, size)."""
    scale = short_side / min(image.shape[1:])
    height, width = (max(short_side, round(side * scale)) for side in image.shape[1:])
    top, left = (height - size) // 2, (width - size) // 2
    return resize(image, height, width)[:, top : top + size, left : left + size]


def default_workers() -> int:
    """Return a process per core that this one may use, except for the core that trains; at most 16."""
    return min(16, max(1, cores() - 1))


def leave_signals_to_parent(leaving: Event, worker: int) -> None:
    """Ignore signals in a worker, which a signal to the process group reaches too: the training process decides.

    SIGTERM is also how multiprocessing ends its processes at exit; `leaving` is set by then. Threads need no word
    here: torch gives each worker one.
    """
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: os._exit(0) if leaving.is_set() else None)


def collate(samples: list[tuple[Tensor, int] | UserError]) -> list[Tensor] | UserError:
    """Return the samples as a batch, or the error of the first unreadable file.

    An exception in a worker would come with its traceback, and leaves torch's workers waiting for seconds.
    """
    errors = [sample for sample in samples if isinstance(sample, UserError)]
    return errors[0] if errors else default_collate(samples)


def batches_of(loader: DataLoader) -> Iterator[list[Tensor]]:
    """Yield the loader's batches; raises UserError for an unreadable file, Interrupted if a worker is gone."""
    with report_lost_worker(loader):
        batches = iter(loader)
    if loader.num_workers and threading.current_thread() is threading.main_thread():
        # torch's own handler would raise wherever this process is when a worker dies, amid a step too
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    while True:
        with report_lost_worker(loader):
            batch = next(batches, None)
        if batch is None:
            return
        if isinstance(batch, UserError):
            # a new one: an exception that its own traceback's frame holds is a cycle, and keeps the workers
            raise UserError(str(batch))
        yield batch


@contextmanager
def report_lost_worker(loader: DataLoader) -> Iterator[None]:
    """Within this block the loss of a worker, or of what it shares with this process, interrupts the run in a line."""
    try:
        with report_full_shared_memory():
            yield
    except (RuntimeError, OSError, EOFError) as error:
        if not loader.num_workers or str(error).startswith("Caught "):  # raised by our own code, in a worker
            raise
        line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise Interrupted(f"a process that reads images was lost ({line}); start it again to go on") from None


@contextmanager
def report_full_shared_memory() -> Iterator[None]:
    """Within this block too little shared memory, here or in a worker, interrupts the run in a line that says so."""
    try:
        yield
    except (RuntimeError, OSError) as error:
        if "shared memory" not in str(error) and getattr(error, "errno", None) != errno.ENOSPC:
            raise
        raise Interrupted(
            "too little shared memory (/dev/shm) for the processes that read images; allow more (docker run"
            " --shm-size=2g), or read with fewer (workers=1) or none (workers=0), and start it again to go on"
        ) from None


def fingerprint(data_dir: Path, *splits: list[tuple[Path, int]]) -> str:
    """Return 16 hex digits that change with the list of files (not their pixels: there may be a million)."""
    digest = hashlib.sha256()
    for files in splits:
        for path, _ in files:
            digest.update(f"{path.relative_to(data_dir)}\n".encode())
    return digest.hexdigest()[:16]
