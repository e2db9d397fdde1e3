"""torchcodec gives PIL's pixels, and what neither can read is named."""

import io
import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from normloss.data import decode
from tests.data_support import PHOTOS, imagenet_data, pixels, save_photographs, smooth


@pytest.fixture
def decoder():
    try:
        return decode.torchcodec_decoder()
    except ImportError as error:
        pytest.skip(f"no torchcodec with decode_jpeg ({error})")


def file_of(image, **options):
    file = io.BytesIO()
    image.save(file, "JPEG", **options)
    return file.getvalue()


def pil(file):
    """(H, W, 3) by PIL alone."""
    return np.asarray(Image.open(io.BytesIO(file)).convert("RGB"))


def rotated():
    tags = Image.Exif()
    tags[0x0112] = 6  # orientation: turn by 90 degrees to see it upright
    return file_of(smooth(40, 30), exif=tags)


KINDS = {
    "colour": lambda: file_of(smooth(61, 47), quality=90),
    "444": lambda: file_of(smooth(61, 47), subsampling=0),
    "progressive": lambda: file_of(smooth(61, 47), progressive=True),
    "RGB inside": lambda: file_of(smooth(61, 47), keep_rgb=True),
    "grey": lambda: file_of(smooth(61, 47).convert("L")),
    "CMYK": lambda: file_of(Image.fromarray(pixels(41, 53, 4), mode="CMYK")),
    "a pixel": lambda: file_of(smooth(1, 1)),
    "turned by EXIF": rotated,
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_decoder_gives_pils_pixels(decoder, kind):
    file = KINDS[kind]()
    found = decoder.decode(file)
    assert found.dtype == torch.uint8
    np.testing.assert_array_equal(found.permute(1, 2, 0).numpy(), pil(file))


def test_a_decoder_gives_pils_pixels_of_real_photographs(decoder):
    if not PHOTOS.is_dir():
        pytest.skip(f"no photographs: {PHOTOS} is not there")
    for path in sorted(PHOTOS.glob("*.JPEG"))[::9]:
        file = path.read_bytes()
        np.testing.assert_array_equal(decoder.decode(file).permute(1, 2, 0).numpy(), pil(file))


# which decoder -------------------------------------------------------------------------------------


def refuse(*arguments, **keys):
    raise RuntimeError("Couldn't load the image extension")


@pytest.mark.parametrize("module", [None, SimpleNamespace(__version__="9.9", decode_jpeg=refuse), SimpleNamespace()])
def test_without_a_torchcodec_that_works_pil_decodes(monkeypatch, module):
    """Not installed, without its libraries, and a version that has no decode_jpeg."""
    assert decode.jpeg_decoder().name.startswith("torchcodec ")
    for name in ("torchcodec", "torchcodec.decoders"):
        monkeypatch.setitem(sys.modules, name, module)
    assert decode.jpeg_decoder.__wrapped__().name.startswith("pillow ")


def test_the_decoder_is_on_record(tmp_path):
    described = imagenet_data(save_photographs(tmp_path)).describe()
    assert json.loads(json.dumps(described)) == described
    assert described["decoder"] == decode.jpeg_decoder().name and len(described["data"]) == 16


# what can be wrong with a file ---------------------------------------------------------------------


def test_what_torchcodec_refuses_pil_still_reads(tmp_path, monkeypatch):
    path = tmp_path / "x.JPEG"
    path.write_bytes(KINDS["colour"]())
    monkeypatch.setattr(decode, "jpeg_decoder", lambda: decode.Decoder("strict", refuse))
    np.testing.assert_array_equal(decode.read_image(path).permute(1, 2, 0).numpy(), pil(path.read_bytes()))
