"""Image files as bytes: any kind and size of picture as a square by PIL, photographs as tensors in their own size.

PIL is the reference. torchcodec, where it is there, decodes the JPEGs among photographs: it wraps the same library and
gives the same pixels on the tests' files, and what it refuses PIL judges. Which one a run used stands in its meta.json.
Shapes: C channels; H, W the image's.
"""

import io
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import PIL
import torch
from PIL import Image, ImageOps
from torch import Tensor

from normloss.errors import UserError

# what PIL raises for a bad file, or for one that needs more memory than there is
UNREADABLE = (OSError, ValueError, SyntaxError, MemoryError, OverflowError, Image.DecompressionBombError)
LONGEST = 1000  # times the short side: a strip's short side is enlarged with its long one
EXIF = re.compile(rb"\xff\xe1(..Exif\0\0)", re.DOTALL)  # the head of a segment APP1; as APP15, ef, nobody reads it


@contextmanager
def report_unreadable(path: Path) -> Iterator[None]:
    """Within this block an image that PIL cannot read raises UserError that names the file."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # broken EXIF data, as of a few files of ImageNet
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # twice as many pixels are an error
            yield
    except UNREADABLE as error:
        raise UserError(f"{path}: not a readable image ({reason(error)})") from None


def check_sides(*sides: int) -> None:
    if max(sides) > LONGEST * min(sides):
        raise ValueError(f"one side is more than {LONGEST} times the other, {max(sides)} to {min(sides)} pixels")


def reason(error: Exception) -> str:
    """Return why a file is not readable, in one line, without the name or the address that PIL prints."""
    if isinstance(error, PIL.UnidentifiedImageError):
        return "of no known format"
    return getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__


# squares -----------------------------------------------------------------------------------------


def read_square(path: Path, size: int, channels: int) -> tuple[np.ndarray, bool]:
    """Return a file's first picture as uint8 (C, size, size), upright as its EXIF orientation says, and whether it was
    transparent in places, which are white; raises UserError that names a bad file."""
    with report_unreadable(path), Image.open(path) as image:
        check_sides(*image.size)
        flat, transparent = flatten(ImageOps.exif_transpose(image))
        return fit(flat, size, channels), transparent


def flatten(image: Image.Image) -> tuple[Image.Image, bool]:
    """Return an image of 8 bits without transparency, and whether it had any: it is composited on white."""
    if image.mode.startswith("I"):  # 16-bit grey, which PIL's convert() would clip at 255
        return Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8)), False
    if not image.has_transparency_data:
        return image, False
    image = image.convert("RGBA")
    if image.getchannel("A").getextrema() == (255, 255):
        return image, False
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image), True


def on_white(transparent: int) -> str:
    """Return the remark on images that flatten() composited."""
    return f"{transparent} images are transparent in places, which are white to the network"


def fit(image: Image.Image, size: int, channels: int) -> np.ndarray:
    """Return uint8 (C, size, size): the short side scaled to `size`, then the centre."""
    image = image.convert("L" if channels == 1 else "RGB")
    if image.size != (size, size):
        scale = size / min(image.size)
        width, height = (max(size, round(side * scale)) for side in image.size)
        left, top = (width - size) // 2, (height - size) // 2
        image = image.resize((width, height), Image.Resampling.BICUBIC).crop((left, top, left + size, top + size))
    return np.asarray(image).reshape(size, size, channels).transpose(2, 0, 1)


# photographs -------------------------------------------------------------------------------------


class Decoder(NamedTuple):
    name: str  # with its version
    decode: Callable[[bytes], Tensor]  # a JPEG file -> uint8 (3, H, W), a view of (H, W, 3)


def read_image(path: Path) -> Tensor:
    """Return an image file as RGB, uint8 (3, H, W), as it is stored and not turned upright; raises UserError that
    names a bad file."""
    with report_unreadable(path):
        file = path.read_bytes()
        with Image.open(io.BytesIO(file)) as image:  # reads the head, and raises where it claims too many pixels
            check_sides(*image.size)
            if image.format in ("JPEG", "MPO"):
                with suppress(RuntimeError, ValueError):  # damaged, or a kind of JPEG that torchcodec does not know
                    return jpeg_decoder().decode(file)
        return by_pil(file)


@cache
def jpeg_decoder() -> Decoder:
    """Return torchcodec's decoder if it is installed, with the libraries that it needs, else PIL's, which is slower."""
    try:
        import torchcodec
        from torchcodec.decoders import decode_jpeg
    except (ImportError, OSError, RuntimeError):
        return Decoder(f"pillow {PIL.__version__}", by_pil)

    def decode(file: bytes) -> Tensor:
        if b"Exif\0\0" in file:  # it would turn the image as EXIF says, which the paper's code did not
            file = EXIF.sub(b"\xff\xef\\1", file)
        return decode_jpeg(file, mode="RGB")

    return Decoder(f"torchcodec {torchcodec.__version__}", decode)


def by_pil(file: bytes) -> Tensor:
    with Image.open(io.BytesIO(file)) as image:
        pixels = np.array(flatten(image)[0].convert("RGB"))  # (H, W, 3)
    return torch.from_numpy(pixels).permute(2, 0, 1)
