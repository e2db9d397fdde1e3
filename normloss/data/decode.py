"""Image files as uint8 tensors: JPEGs by the fastest decoder that is there, all else by PIL.

PIL is the reference: the others wrap the same library, give the same pixels on the tests' files, and what they refuse
PIL judges. Which one a run used stands in its meta.json. Shapes: H, W the image's.
"""

import io
import math
import re
import warnings
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

from normloss.data.pil import UNREADABLE, check_sides, eight_bits, reason
from normloss.errors import UserError

JPEG = b"\xff\xd8\xff"  # how every JPEG file begins
SOI = JPEG[:2]
FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # markers of the segments that say how large the picture is
MOST_PIXELS = 2 * (Image.MAX_IMAGE_PIXELS or math.inf)  # PIL refuses more
EXIF = re.compile(rb"\xff\xe1(..Exif\0\0)", re.DOTALL)  # the head of a segment APP1; as APP15, ef, nobody reads it


class Decoder(NamedTuple):
    name: str  # with its version
    decode: Callable[[bytes], Tensor]  # a JPEG file -> uint8 (3, H, W), a view of (H, W, 3)


def read_image(path: Path) -> Tensor:
    """RGB, uint8 (3, H, W), from grey, palette, CMYK and 16-bit files too; raises UserError that names a bad file."""
    try:
        image = decode(path.read_bytes())
        check_sides(*image.shape[1:])
        return image
    except UNREADABLE as error:
        raise UserError(f"{path}: not a readable image ({reason(error)})") from None


def decode(file: bytes) -> Tensor:
    if file.startswith(JPEG) and claimed_pixels(file) <= MOST_PIXELS:
        with suppress(RuntimeError, ValueError):  # damaged, or a kind of JPEG that this decoder does not know
            return jpeg_decoder().decode(file)
    return by_pil(file)


def claimed_pixels(file: bytes) -> int:
    """Of the picture that a JPEG's head announces, 0 for none: a decoder would take memory for it at once."""
    at = len(SOI)
    while at + 9 <= len(file) and file[at] == 0xFF:
        marker, length = file[at + 1], int.from_bytes(file[at + 2 : at + 4])
        if marker in FRAMES:
            return int.from_bytes(file[at + 5 : at + 7]) * int.from_bytes(file[at + 7 : at + 9])
        at += 1 if marker == 0xFF else 2 + length  # 0xFF may be repeated
    return 0


@cache
def jpeg_decoder() -> Decoder:
    """The first of torchcodec, torchvision and PIL that is installed and decodes a JPEG."""
    for find in (torchcodec_decoder, torchvision_decoder):
        # an old version has no such function, a build without libjpeg or FFmpeg fails when it loads or runs
        with suppress(ImportError, AttributeError, OSError, RuntimeError):
            decoder = find()
            decoder.decode(small_jpeg())
            return decoder
    return Decoder(f"pillow {PIL.__version__}", by_pil)


def small_jpeg() -> bytes:
    """What a decoder is tried on."""
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "JPEG")
    return file.getvalue()


def torchcodec_decoder() -> Decoder:
    import torchcodec
    from torchcodec.decoders import decode_jpeg

    def decode(file: bytes) -> Tensor:
        if b"Exif\0\0" in file:  # it would turn the image as EXIF says, which PIL's convert() and torchvision do not
            file = EXIF.sub(b"\xff\xef\\1", file)
        return decode_jpeg(file, mode="RGB")

    return Decoder(f"torchcodec {torchcodec.__version__}", decode)


def torchvision_decoder() -> Decoder:
    import torchvision
    from torchvision.io import ImageReadMode, decode_jpeg

    def decode(file: bytes) -> Tensor:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # every call says that torchcodec will replace it; frombuffer: read-only
            return decode_jpeg(torch.frombuffer(file, dtype=torch.uint8), mode=ImageReadMode.RGB)

    return Decoder(f"torchvision {torchvision.__version__}", decode)


def by_pil(file: bytes) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a few ImageNet files have broken EXIF data
        with Image.open(io.BytesIO(file)) as image:
            pixels = np.array(eight_bits(image).convert("RGB"))  # (H, W, 3)
    return torch.from_numpy(pixels).permute(2, 0, 1)
