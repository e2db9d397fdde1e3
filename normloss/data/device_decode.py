"""JPEGs decoded on the device: worker processes read files, the training process decodes a batch of them in one call.

What nvJPEG does not turn into the image's RGB (CMYK, cut files, other formats) the workers decode, and what it refuses
the host's decoder judges. nvJPEG has an inverse DCT and a chroma upsampling of its own: its pixels differ a little from
the host's, by how much is not measured on a GPU yet. Shapes: N bytes of a file; H, W an image's.
"""

import math
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from normloss.data.decode import JPEG, read_image, small_jpeg
from normloss.errors import UserError

END = b"\xff\xd9"  # of every whole JPEG file
SCAN, ADOBE, FRAMES = 0xDA, 0xEE, (0xC0, 0xC2)  # markers; frames: baseline and progressive, both in Huffman's code

Decode = Callable[[list[Tensor]], list[Tensor]]  # JPEG files, uint8 (N,) on the CPU -> uint8 (3, H, W) on the device


class BatchDecoder(NamedTuple):
    name: str  # with its version
    decode: Decode  # raises RuntimeError where it refuses one of the files


def nvjpeg(device: torch.device) -> BatchDecoder:
    """torchvision's nvJPEG on this device; raises UserError where there is none."""
    if device.type != "cuda":
        raise UserError(f"decode: device needs a CUDA device, got {device}")
    import torchvision
    from torchvision.io import ImageReadMode, decode_jpeg

    # nvJPEG writes at once, without waiting for the stream in whose memory the images are (pytorch/vision#9606): in the
    # training step's, queued kernels may still read what was there. Memory of a stream that has no other work comes
    # back to it when the event of record_stream has passed, and is idle by then. Nor may a kernel fill new memory
    # there, as with deterministic=true: perhaps after nvJPEG wrote.
    own = torch.cuda.Stream(device)
    torch.utils.deterministic.fill_uninitialized_memory = False

    def decode(files: list[Tensor]) -> list[Tensor]:
        with torch.cuda.stream(own), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # every call says that torchcodec will replace it
            images = decode_jpeg(files, mode=ImageReadMode.RGB, device=device)
        current = torch.cuda.current_stream(device)
        current.wait_stream(own)
        for image in images:
            image.record_stream(current)
        return images

    try:
        decode([torch.frombuffer(bytearray(small_jpeg()), dtype=torch.uint8)])
    except RuntimeError as error:
        raise UserError(f"decode: device needs nvJPEG in torchvision, got {str(error).splitlines()[0]}") from None
    return BatchDecoder(f"nvjpeg (torchvision {torchvision.__version__})", decode)


# in a worker ---------------------------------------------------------------------------------------


def read_encoded(path: Path) -> Tensor:
    """The file, uint8 (N,), where nvJPEG decodes it, else its pixels, uint8 (3, H, W); raises as read_image does."""
    with suppress(OSError):  # read_image says it in one line
        file = path.read_bytes()
        if decodes_alike(file):
            return torch.frombuffer(bytearray(file), dtype=torch.uint8)
    return read_image(path)


def decodes_alike(file: bytes) -> bool:
    """Whether nvJPEG sees the RGB that the host does: a whole JPEG of 8 bits, baseline or progressive, grey or YCbCr.

    Three components may be RGB as they are, by Adobe's segment or by their names: libjpeg looks there.
    """
    if not (file.startswith(JPEG) and file.endswith(END)):
        return False
    segments = segments_before_scan(file)
    frame = next((segments[marker] for marker in FRAMES if marker in segments), b"")
    if len(frame) < 6 or frame[0] != 8 or b"\0\0" in (frame[1:3], frame[3:5]):  # height or width still to come
        return False
    names, adobe = frame[6::3], segments.get(ADOBE, b"")
    transform = adobe[11] if adobe.startswith(b"Adobe") and len(adobe) > 11 else 1
    return len(names) == 1 or (len(names) == 3 and names != b"RGB" and transform == 1)


def segments_before_scan(file: bytes) -> dict[int, bytes]:
    """The content of each kind of segment in a JPEG's head, the last one's where there are several."""
    segments: dict[int, bytes] = {}
    at = 2
    while at + 4 <= len(file) and file[at] == 0xFF and file[at + 1] != SCAN:
        if file[at + 1] == 0xFF:  # padding
            at += 1
            continue
        end = at + 2 + int.from_bytes(file[at + 2 : at + 4])
        segments[file[at + 1]] = file[at + 4 : end]
        at = end
    return segments


class Encoded(NamedTuple):
    """A batch on its way from a worker: in one piece, for a tensor a file would be a piece of shared memory each."""

    content: Tensor  # uint8, all samples end to end
    shapes: Sequence[Sequence[int]]  # of each: (N,) a file, (3, H, W) pixels
    keys: Sequence[Any]  # of each: what the data set was asked for

    @classmethod
    def join(cls, samples: list[tuple[Tensor, Any]]) -> "Encoded":
        tensors, keys = zip(*samples, strict=True)
        return cls(torch.cat([t.reshape(-1) for t in tensors]), [tuple(t.shape) for t in tensors], keys)

    def samples(self) -> list[Tensor]:
        parts = self.content.split([math.prod(shape) for shape in self.shapes])
        return [part.view(*shape) for part, shape in zip(parts, self.shapes, strict=True)]


# in the training process ---------------------------------------------------------------------------


def decode_samples(samples: list[Tensor], paths: list[Path], decode: Decode, device: torch.device) -> list[Tensor]:
    """The pixels of each sample, uint8 (3, H, W) on the device; raises UserError that names a bad file."""
    files = [i for i, sample in enumerate(samples) if sample.dim() == 1]
    images = dict(enumerate(samples))
    if files:
        images |= zip(files, decode_files([samples[i] for i in files], [paths[i] for i in files], decode), strict=True)
    return [image.to(device, non_blocking=True) for image in images.values()]


def decode_files(files: list[Tensor], paths: list[Path], decode: Decode) -> list[Tensor]:
    """By `decode`, all in one call; if it refuses, one by one, and the refused by read_image, which names a bad one."""
    try:
        return decode(files)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError:
        if len(files) == 1:
            return [read_image(paths[0])]
        return [decode_files([file], [path], decode)[0] for file, path in zip(files, paths, strict=True)]
