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
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from normloss.config import Config, ImageNet
from normloss.config.images import class_folders
from normloss.config.schema import steps_per_epoch
from normloss.config.shares import Part
from normloss.data.augment import Share, color_jitter, lighting, random_flip
from normloss.data.decode import jpeg_decoder, read_image
from normloss.data.folder import check_same_classes, list_tree
from normloss.data.tensors import choose_held_out, generator
from normloss.errors import Interrupted, UserError, first_line
from normloss.runs.provenance import cores
from normloss.signals import SIGNALS

EVAL_BATCH = 250  # at most; no batch of the test set is more than two of training's
Files = list[tuple[Path, int]]  # with their labels


class ImageNetData:
    """Training and validation files; `train` and `in_order` yield normalised float batches on the device."""

    def __init__(self, whole: Config, device: torch.device, part: Part = Part(0, 1)) -> None:
        cfg, data_dir = whole.dataset, Path(whole.data_dir)
        assert isinstance(cfg, ImageNet)
        self.cfg, self.device, self.part = cfg, device, part
        self.seed, self.batch_size, self.micro_batch = whole.seed, whole.train.batch_size, whole.train.micro_batch
        check_same_classes(data_dir / "train", data_dir / "val")
        train, test = (list_tree(data_dir / split, cfg.num_classes) for split in ("train", "val"))
        self.classes = [path.name for path in class_folders(data_dir / "train")]
        self.fingerprint = fingerprint(data_dir, train, test)
        held: Files = []
        if cfg.val:
            chosen = choose_held_out(np.array([label for _, label in train]), cfg.val)
            held = list(itertools.compress(train, chosen))
            train = list(itertools.compress(train, ~chosen))
        self.train_size, self.test_size, self.val_size = len(train), len(test), len(held)
        self.steps_per_epoch = steps_per_epoch(self.train_size, self.batch_size)
        self.decoder = jpeg_decoder().name  # found before the workers start, which then inherit it
        workers = whole.workers
        if workers is None:
            workers = min(16, max(1, cores() - 1))  # a core is left to train
        if workers:
            atexit.register(kill_workers)  # runs before multiprocessing's own, which was registered first
        options: dict[str, Any] = dict(
            num_workers=workers,
            persistent_workers=workers > 0,
            prefetch_factor=4 if workers else None,
            pin_memory=device.type == "cuda",
            collate_fn=collate,
            worker_init_fn=leave_signals_to_parent,
            generator=torch.Generator(),  # its own: the global one is the model's, and must not depend on workers
        )
        self.labels = torch.tensor([label for _, label in train])
        self.batches: list[list[int]] = []  # keys of Photographs: of the epoch that is trained, from its first step on
        crops = Photographs(train, partial(random_crop, cfg, self.seed))
        self.train_loader = DataLoader(crops, batch_sampler=self.batches, **options)
        self.loaders = {  # a loader starts its workers when it is used
            name: DataLoader(Photographs(files, partial(centre, cfg)), min(EVAL_BATCH, 2 * self.batch_size), **options)
            for name, files in (("train", train), ("test", test), ("val", held))
        }
        self.mean = torch.tensor(cfg.mean, device=device).view(1, -1, 1, 1) / 255
        self.std = torch.tensor(cfg.std, device=device).view(1, -1, 1, 1) / 255

    def describe(self) -> dict[str, Any]:
        """Return which data this is and what decoded it, for meta.json."""
        return {"data": self.fingerprint, "classes": self.classes, "decoder": self.decoder}

    def train(self, epoch: int, first_step: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (x, y) of each step of `epoch` from `first_step` on; x (B, 3, S, S) float32, y (B,) int64.

        Of several processes that share out a step each has its own images x, (B', 3, S, S), and all labels y.
        """
        order = torch.randperm(self.train_size, generator=generator(self.seed, epoch))
        steps = order.split(self.batch_size)[first_step : self.steps_per_epoch]
        shares: list[Share] = [(len(images), self.part.images(len(images), self.micro_batch)) for images in steps]
        first_key = epoch * self.train_size
        pairs = zip(steps, shares, strict=True)
        self.batches[:] = [(images[own] + first_key).tolist() for images, (_, own) in pairs]
        loaded = zip(steps, shares, batches_of(self.train_loader), strict=True)
        for step, (images, share, batch) in enumerate(loaded, start=first_step):
            x, y = self._to_device(batch)
            if self.part.world > 1:
                y = self.labels[images].to(self.device, non_blocking=True)
            g = generator(self.seed, epoch, step)
            x = color_jitter(x, self.cfg.color_jitter, g, share)
            x = lighting(x, self.cfg.lighting, g, share)
            x = random_flip(x, self.cfg.flip, g, share)
            yield self._normalise(x), y

    def in_order(self, part: str) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (x, y) of the images of "test", "val" or "train" in order: their centres, without augmentation."""
        for batch in batches_of(self.loaders[part]):
            x, y = self._to_device(batch)
            yield self._normalise(x), y

    def _to_device(self, batch: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Move a batch as uint8, then scale it to 0..1."""
        x, y = (part.to(self.device, non_blocking=True) for part in batch)
        return x.to(torch.float32, memory_format=torch.channels_last) / 255, y

    def _normalise(self, x: Tensor) -> Tensor:
        return ((x - self.mean) / self.std).contiguous(memory_format=torch.channels_last)


class Photographs(Dataset):
    """Files as samples: a square cut out of each image, uint8 (3, S, S), and its label.

    The key of an image in an epoch is epoch * images + image. cut: (photograph (3, H, W), epoch, image) -> (3, S, S).
    """

    def __init__(self, files: Files, cut: Callable[[Tensor, int, int], Tensor]) -> None:
        self.files, self.cut = files, cut

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, key: int) -> tuple[Tensor, int] | UserError:
        """Return a sample, or the error of an unreadable file."""
        epoch, image = divmod(key, len(self.files))
        path, label = self.files[image]
        try:
            return self.cut(read_image(path), epoch, image), label
        except UserError as error:
            return error


def random_crop(cfg: ImageNet, seed: int, photograph: Tensor, epoch: int, image: int) -> Tensor:
    """Return a random box of a training image (3, H, W), resized to (3, S, S)."""
    height, width = photograph.shape[1:]
    box = random_box(width, height, cfg.min_area, np.random.default_rng((seed, epoch, image)))
    if box is None:
        return resize_and_centre(photograph, cfg.size, cfg.size)
    left, top, right, bottom = box
    # cut out, then resized, as in fb.resnet.torch: nothing from beyond the crop's border shines in
    return resize(photograph[:, top:bottom, left:right], cfg.size, cfg.size)


def centre(cfg: ImageNet, photograph: Tensor, epoch: int, image: int) -> Tensor:
    """Return the centre crop of an image that is tested, (3, S, S)."""
    return resize_and_centre(photograph, cfg.resize, cfg.size)


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


def leave_signals_to_parent(worker: int) -> None:
    """Ignore signals in a worker, which a signal to the process group reaches too: the training process decides.

    Threads need no word here: torch gives each worker one.
    """
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def kill_workers() -> None:
    """End the workers of a process that ends: they ignore SIGTERM, by which multiprocessing would end them."""
    for worker in multiprocessing.active_children():
        worker.kill()


def collate(samples: list[tuple[Tensor, int] | UserError]) -> list[Tensor] | UserError:
    """Return the samples as a batch, or the error of the first unreadable file.

    An exception in a worker would come with its traceback, and leaves torch's workers waiting for seconds.
    """
    errors = [sample for sample in samples if isinstance(sample, UserError)]
    return errors[0] if errors else default_collate(samples)


def batches_of(loader: DataLoader) -> Iterator[list[Tensor]]:
    """Yield the loader's batches; raises UserError for an unreadable file, Interrupted if a worker is gone."""
    with report_lost_worker(loader):
        if loader.num_workers:
            multiprocessing.Event()  # without room for locks this raises; torch's iterator would print a traceback too
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
        yield
    except (RuntimeError, OSError, EOFError) as error:
        if "shared memory" in str(error) or getattr(error, "errno", None) == errno.ENOSPC:
            raise Interrupted(
                "too little shared memory (/dev/shm) for the processes that read images; allow more (docker run"
                " --shm-size=2g), or read with fewer (workers=1) or none (workers=0), and rerun the command to resume"
            ) from None
        if not loader.num_workers or str(error).startswith("Caught "):  # raised by our own code, in a worker
            raise
        line = f"a process that reads images was lost ({first_line(error)})"
        raise Interrupted(f"{line}; rerun the command to resume") from None


def fingerprint(data_dir: Path, *splits: Files) -> str:
    """Return 16 hex digits that change with the list of files (not their pixels: there may be a million)."""
    digest = hashlib.sha256()
    for files in splits:
        for path, _ in files:
            digest.update(f"{path.relative_to(data_dir)}\n".encode())
    return digest.hexdigest()[:16]
