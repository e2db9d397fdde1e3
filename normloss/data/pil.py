"""One image by PIL: any kind and size of picture as a square of bytes. Shapes: C channels."""

from pathlib import Path

import numpy as np
import PIL
from PIL import Image

from normloss.errors import UserError

# what PIL raises for a bad file, or for one that needs more memory than there is
UNREADABLE = (OSError, ValueError, SyntaxError, MemoryError, OverflowError, Image.DecompressionBombError)
LONGEST = 1000  # times the short side: a strip's short side is enlarged with its long one


def decode(path: Path, size: int, channels: int) -> np.ndarray:
    """The file as uint8 (C, size, size), of an animation the first picture; raises UserError that names a bad one."""
    try:
        with Image.open(path) as image:
            check_sides(*image.size)
            return fit(eight_bits(image), size, channels)
    except UNREADABLE as error:
        raise UserError(f"{path}: not a readable image ({reason(error)})") from None


def check_sides(*sides: int) -> None:
    if max(sides) > LONGEST * min(sides):
        raise ValueError(f"one side is more than {LONGEST} times the other, {max(sides)} to {min(sides)} pixels")


def reason(error: Exception) -> str:
    """Why a file is not readable, in one line, without the name or the address that PIL prints."""
    if isinstance(error, PIL.UnidentifiedImageError):
        return "of no known format"
    return getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__


def fit(image: Image.Image, size: int, channels: int) -> np.ndarray:
    """uint8 (C, size, size): the short side scaled to `size`, then the centre."""
    image = image.convert("L" if channels == 1 else "RGB")
    if image.size != (size, size):
        scale = size / min(image.size)
        width, height = (max(size, round(side * scale)) for side in image.size)
        left, top = (width - size) // 2, (height - size) // 2
        image = image.resize((width, height), Image.Resampling.BICUBIC).crop((left, top, left + size, top + size))
    return np.asarray(image).reshape(size, size, channels).transpose(2, 0, 1)


def eight_bits(image: Image.Image) -> Image.Image:
    """16-bit grey as 8-bit: PIL's convert() would clip it at 255."""
    if not image.mode.startswith("I"):
        return image
    return Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8))
