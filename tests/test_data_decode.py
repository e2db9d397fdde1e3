"""torchcodec gives PIL's pixels; which decoder is taken, and its place in the record."""

import io
import json
import sys
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image

from normloss.data import decode
from tests.data_support import imagenet_data, pixels, save_photographs, saved, smooth

jpeg = partial(saved, suffix="jpg")


def pil(file):
    """(3, H, W) by PIL alone."""
    return np.asarray(Image.open(io.BytesIO(file)).convert("RGB")).transpose(2, 0, 1)


def rotated():
    tags = Image.Exif()
    tags[0x0112] = 6  # orientation: turn by 90 degrees to see it upright
    return jpeg(smooth(40, 30), exif=tags)


KINDS = {
    "colour": lambda: jpeg(smooth(61, 47), quality=90),
    "444": lambda: jpeg(smooth(61, 47), subsampling=0),
    "progressive": lambda: jpeg(smooth(61, 47), progressive=True),
    "RGB inside": lambda: jpeg(smooth(61, 47), keep_rgb=True),
    "grey": lambda: jpeg(smooth(61, 47).convert("L")),
    "CMYK": lambda: jpeg(Image.fromarray(pixels(41, 53, 4), mode="CMYK")),
    "a pixel": lambda: jpeg(smooth(1, 1)),
    "turned by EXIF": rotated,
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_decoder_gives_pils_pixels(kind):
    file, decoder = KINDS[kind](), decode.jpeg_decoder()
    if decoder.name.startswith("pillow"):
        pytest.skip("no torchcodec")
    found = decoder.decode(file)
    assert found.dtype == torch.uint8
    np.testing.assert_array_equal(found.numpy(), pil(file))


def test_without_torchcodec_pil_decodes(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchcodec", None)
    assert decode.jpeg_decoder.__wrapped__().name.startswith("pillow ")


def test_what_torchcodec_refuses_pil_still_reads(tmp_path, monkeypatch):
    def refuse(file):
        raise RuntimeError("no such JPEG")

    path = tmp_path / "x.JPEG"
    path.write_bytes(KINDS["colour"]())
    monkeypatch.setattr(decode, "jpeg_decoder", lambda: decode.Decoder("strict", refuse))
    np.testing.assert_array_equal(decode.read_image(path).numpy(), pil(path.read_bytes()))


def test_the_decoder_is_on_record(tmp_path):
    described = imagenet_data(save_photographs(tmp_path)).describe()
    assert json.loads(json.dumps(described)) == described
    assert described["decoder"] == decode.jpeg_decoder().name and len(described["data"]) == 16
