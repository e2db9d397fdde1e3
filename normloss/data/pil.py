"""One image by PIL: any kind and size of picture as a square of bytes. Shapes: C channels."""

from pathlib import Path

import numpy as np
from PIL import Image

from normloss.errors import UserError

UNREADABLE = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)  # what PIL raises for a bad file


def decode(path: Path, size: int, channels: int) -> np.ndarray:
    """The file as uint8 (C, size, size); raises UserError that names a bad one."""
    try:
        with Image.open(path) as image:
            return fit(eight_bits(image), size, channels)
    except UNREADABLE as error:
        raise UserError(f"{path}: not a readable image ({error})") from None


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
