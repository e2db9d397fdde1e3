"""Photographs as uint8 tensors: JPEGs by torchcodec where it is there, all else by PIL.

PIL is the reference: torchcodec wraps the same library and gives the same pixels on the tests' files, and what it
refuses PIL judges. Which one a run used stands in its meta.json. Shapes: H, W the image's.
"""

import io
import re
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import PIL
import torch
from PIL import Image
from torch import Tensor

from normloss.data.pil import check_sides, flatten, report_unreadable

EXIF = re.compile(rb"\xff\xe1(..Exif\0\0)", re.DOTALL)  # the head of a segment APP1; as APP15, ef, nobody reads it


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
