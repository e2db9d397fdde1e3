"""Image files by PIL: any kind and size of picture as a square of bytes. Shapes: C channels."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import PIL
from PIL import Image, ImageOps

from normloss.errors import UserError

# what PIL raises for a bad file, or for one that needs more memory than there is
UNREADABLE = (OSError, ValueError, SyntaxError, MemoryError, OverflowError, Image.DecompressionBombError)
LONGEST = 1000  # times the short side: a strip's short side is enlarged with its long one
ORIENTATION = 0x0112  # EXIF's tag; 1 is upright


class Decoded(NamedTuple):
    pixels: np.ndarray  # uint8 (C, size, size)
    transparent: bool  # in places, which are white now
    turned: bool  # upright, as its EXIF orientation says


def decode(path: Path, size: int, channels: int) -> Decoded:
    """Return the first picture of a file, upright, on white and square; raises UserError that names a bad one."""
    with report_unreadable(path), Image.open(path) as image:
        check_sides(*image.size)
        turned = image.getexif().get(ORIENTATION, 1) != 1
        flat, transparent = flatten(ImageOps.exif_transpose(image) if turned else image)
        return Decoded(fit(flat, size, channels), transparent, turned)


@contextmanager
def report_unreadable(path: Path) -> Iterator[None]:
    """Within this block an image that PIL cannot read raises UserError that names the file."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # broken EXIF data, as of a few files of ImageNet
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


def flatten(image: Image.Image) -> tuple[Image.Image, bool]:
    """Return an image of 8 bits without transparency, and whether it had any: it is composited on white."""
    if image.mode.startswith("I"):  # 16-bit grey, which PIL's convert() would clip at 255
        return Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8)), False
    if not image.has_transparency_data:
        return image, False
    image = image.convert("RGBA")
    if image.getextrema()[3] == (255, 255):
        return image, False
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image), True


def fit(image: Image.Image, size: int, channels: int) -> np.ndarray:
    """Return uint8 (C, size, size): the short side scaled to `size`, then the centre."""
    image = image.convert("L" if channels == 1 else "RGB")
    if image.size != (size, size):
        scale = size / min(image.size)
        width, height = (max(size, round(side * scale)) for side in image.size)
        left, top = (width - size) // 2, (height - size) // 2
        image = image.resize((width, height), Image.Resampling.BICUBIC).crop((left, top, left + size, top + size))
    return np.asarray(image).reshape(size, size, channels).transpose(2, 0, 1)
