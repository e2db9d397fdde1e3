"""ImageNet's JPEGs decoded a batch at a time in the training process: by torchvision on the CPU in nvJPEG's place."""

import io
import itertools
import multiprocessing
from contextlib import contextmanager

import numpy as np
import pytest
import torch
import torchvision.io
from PIL import Image

from normloss import data
from normloss.benchmarks import imagenet as benchmark
from normloss.config import read_stored
from normloss.data import device_decode, imagenet
from normloss.data.device_decode import BatchDecoder, decodes_alike, nvjpeg, read_encoded
from normloss.errors import UserError
from tests.conftest import cuda
from tests.data_support import CPU, imagenet_config, pixels, same, smooth

pytestmark = pytest.mark.filterwarnings("ignore:The image decoding:DeprecationWarning")


def torchvisions(files):
    return torchvision.io.decode_jpeg(files, mode=torchvision.io.ImageReadMode.RGB)


STAND_IN = BatchDecoder("stand-in 1.0", torchvisions)


def file_of(image, form="JPEG", **options):
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def turned():
    tags = Image.Exif()
    tags[0x0112] = 6  # orientation: turn by 90 degrees to see it upright
    return file_of(smooth(40, 30), exif=tags)


def cmyk():
    return file_of(Image.fromarray(pixels(41, 53, 4), mode="CMYK"))


COLOUR = file_of(smooth(61, 47), quality=90)
FRAME = COLOUR.index(b"\xff\xc0")  # where its frame begins: marker, length, precision, height, width, components
ADOBE = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00"  # and the byte that says how the components are to be taken


def patched(at, content):
    return COLOUR[:at] + content + COLOUR[at + len(content) :]


def before_frame(content):
    return COLOUR[:FRAME] + content + COLOUR[FRAME:]


ALIKE = {
    "420": COLOUR,
    "422": file_of(smooth(61, 47), subsampling=1),
    "444": file_of(smooth(61, 47), subsampling=0),
    "progressive": file_of(smooth(61, 47), progressive=True),
    "grey": file_of(smooth(61, 47).convert("L")),
    "odd": file_of(smooth(13, 17)),
    "small": file_of(smooth(1, 1)),
    "long": file_of(smooth(480, 12)),  # no random box fits
    "wide": file_of(smooth(200, 90)),
    "turned": turned(),
    "padded": before_frame(b"\xff\xff"),
    "Adobe's YCbCr": before_frame(ADOBE + b"\x01"),
}
OTHERS = {
    "CMYK": cmyk(),
    "RGB inside": file_of(smooth(61, 47), keep_rgb=True),
    "PNG": file_of(smooth(61, 47), "PNG"),
    "RGBA": file_of(Image.fromarray(pixels(31, 45, 4)), "PNG"),
}
BROKEN = {
    "cut": COLOUR[:-40],
    "cut in its tables, then ended": COLOUR[:300] + b"\xff\xd9",  # for all that its markers say it is whole
}


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return save(tmp_path_factory.mktemp("imagenet"), ALIKE | OTHERS)


def save(root, files):
    for split, (i, content) in itertools.product(("train", "val"), enumerate(files.values())):
        path = root / split / "ab"[i % 2] / f"{i:02d}.JPEG"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return root


def loaded(root, decoder=STAND_IN, workers=0, device=CPU, **keys):
    return imagenet.ImageNetData(imagenet_config(**keys), root, 0, 4, workers, device, decoder)


PLAIN = dict(color_jitter=0.0, lighting=0.0, flip=0.0, mean=[0.0] * 3, std=[1.0] * 3)  # batches of bytes, as floats


def in_bytes(batches):
    x, y = (torch.cat(parts) for parts in zip(*batches, strict=True))
    return x.round().cpu(), y.cpu()


# which files go to the device ------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ALIKE)
def test_a_jpeg_goes_to_the_device_as_it_is(tmp_path, kind):
    path = tmp_path / "x.JPEG"
    path.write_bytes(ALIKE[kind])
    sample = read_encoded(path)
    assert sample.dtype == torch.uint8 and sample.numpy().tobytes() == ALIKE[kind]
    (image,) = torchvisions([sample])
    expected = np.asarray(Image.open(path).convert("RGB"))  # as it lies in the file, whatever EXIF says
    np.testing.assert_array_equal(image.permute(1, 2, 0), expected)


@pytest.mark.parametrize("kind", OTHERS)
def test_what_nvjpeg_sees_otherwise_is_decoded_by_the_worker(tmp_path, kind):
    path = tmp_path / "x.JPEG"
    path.write_bytes(OTHERS[kind])
    sample = read_encoded(path)
    np.testing.assert_array_equal(sample.permute(1, 2, 0), np.asarray(Image.open(path).convert("RGB")))


@pytest.mark.parametrize(
    "file",
    [
        b"",
        b"\xff\xd8\xff\xd9",
        COLOUR[:-1],
        COLOUR + b"\0",
        patched(FRAME, b"\xff\xc1"),  # extended: up to 12 bits
        patched(FRAME, b"\xff\xc3"),  # lossless
        patched(FRAME, b"\xff\xc9"),  # in arithmetic code
        patched(FRAME + 4, b"\x0c"),  # 12 bits
        patched(FRAME + 5, b"\0\0"),  # the height stands at the end
        before_frame(ADOBE + b"\x00"),  # RGB
        before_frame(ADOBE + b"\x02"),
    ],
)
def test_the_markers_decide(file):
    assert decodes_alike(COLOUR)
    assert not decodes_alike(file)


def test_components_by_the_names_of_rgb_are_the_hosts():
    names = [FRAME + 10 + 3 * i for i in range(3)]
    assert [COLOUR[at] for at in names] == [1, 2, 3]
    renamed = bytearray(COLOUR)
    for at, name in zip(names, b"RGB", strict=True):
        renamed[at] = name
    assert not decodes_alike(bytes(renamed))


def test_what_stands_after_the_scan_began_decides_nothing():
    scan = COLOUR.index(b"\xff\xda") + 14  # its head is 14 bytes
    assert decodes_alike(COLOUR[:scan] + ADOBE + b"\x00" + COLOUR[scan:])


# the batches ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", ["train", "test"])
def test_batches_of_the_device_are_the_hosts_but_for_rounding(tree, part):
    sides = [loaded(tree, decoder, size=64, resize=72, **PLAIN) for decoder in (STAND_IN, None)]
    (x, y), (expected, labels) = (in_bytes(side.train(0) if part == "train" else side.test()) for side in sides)
    assert x.shape == (16, 3, 64, 64) and torch.equal(y, labels) and expected.std() > 50
    difference = (x - expected).abs()
    # one where a value lay near a half, two where that happened between the axes and at the end
    assert difference.mean() < 0.02 and difference.max() <= 2 and (difference > 1).float().mean() < 1e-4


def test_crops_of_the_device_are_pils(tmp_path):
    """The box by the same key, cut out, then resized."""
    sizes = [(300, 260), (180, 320), (95, 71)]
    root = save(tmp_path, {size: file_of(smooth(*size), quality=95) for size in sizes})
    images = imagenet.Crops([(path, 0) for path in sorted(root.glob("train/*/*"))], imagenet_config(), 3)
    keys = [(epoch, i) for epoch in range(5) for i in range(3)]
    batch = imagenet.collate([imagenet.Files(images)[key] for key in keys], device_decode.Encoded.join)
    x, _ = imagenet.cut_on_device(batch, images, torchvisions, CPU)
    assert x.dtype == torch.uint8
    differences = []
    for crop, (epoch, i) in zip(x, keys, strict=True):
        with Image.open(images.files[i][0]) as image:
            box = imagenet.random_box(*image.size, 0.08, np.random.default_rng((3, epoch, i)))
            expected = np.asarray(image.crop(box).resize((24, 24), Image.Resampling.BICUBIC)).astype(int)
        differences.append(np.abs(crop.permute(1, 2, 0).numpy() - expected))
    assert np.mean(differences) < 0.1 and np.max(differences) <= 2


def test_floats_are_resized_as_bytes_are():
    image = torch.from_numpy(255 * (pixels(3, 60, 80) > 127).astype(np.uint8))  # black and white: bicubic overshoots
    for size in ((24, 24), (60, 24), (90, 130), (60, 80)):
        difference = imagenet.to_bytes(imagenet.resize(image.float(), *size)) - imagenet.resize(image, *size)
        assert difference.abs().max() <= 2 and difference.abs().mean() < 0.05


def test_workers_change_nothing(tree):
    alone, together = loaded(tree), loaded(tree, workers=2)
    for epoch in (0, 1):
        assert same(alone.train(epoch), together.train(epoch))
    assert same(alone.test(), together.test())
    assert not same(alone.train(0), alone.train(1))


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_can_be_entered_at_any_step_and_left_at_any(tree, workers):
    whole = list(loaded(tree).train(5))
    again = loaded(tree, workers=workers)
    next(again.train(2))  # left, with its prefetched batches
    for first in range(5):
        assert same(again.train(5, first_step=first), whole[first:])


def test_a_batch_without_jpegs_needs_no_decoder(tmp_path):
    def no_call(files):
        raise AssertionError("called")

    root = save(tmp_path, OTHERS)
    x, expected = (in_bytes(loaded(root, way, **PLAIN).test())[0] for way in (BatchDecoder("none", no_call), None))
    assert (x - expected).abs().max() <= 2


def test_the_decoder_is_on_record(tree):
    assert loaded(tree).describe() == {"data": loaded(tree, None).fingerprint, "decoder": "stand-in 1.0"}


# what can be wrong ------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_file_is_named_in_one_line_and_leaves_no_worker_behind(tmp_path, kind, split, workers):
    root = save(tmp_path, ALIKE)
    bad = root / split / "a/02.JPEG"
    bad.write_bytes(BROKEN[kind])
    before = set(multiprocessing.active_children())
    broken = loaded(root, workers=workers)
    with pytest.raises(UserError) as error:
        list(broken.train(0) if split == "train" else broken.test())
    message = str(error.value)
    assert message.startswith(f"{bad}: not a readable image (") and "\n" not in message
    del broken, error
    assert set(multiprocessing.active_children()) <= before


def test_a_file_that_is_gone_is_named(tmp_path):
    with pytest.raises(UserError, match=r"^\S+gone.JPEG: not a readable image"):
        read_encoded(tmp_path / "gone.JPEG")


def test_what_the_decoder_refuses_the_host_judges(tmp_path):
    """It says neither which file of a batch it refuses nor whether that is a good one."""
    root = save(tmp_path, {key: ALIKE[key] for key in ("420", "444", "grey", "wide")})
    calls = []

    def fussy(files):
        calls.append(len(files))
        if any(file.numpy().tobytes() == ALIKE["444"] for file in files):
            raise RuntimeError("Unknown chroma subsampling")
        return torchvisions(files)

    assert same(loaded(root, BatchDecoder("fussy", fussy)).train(0), loaded(root).train(0))
    assert calls == [4, 1, 1, 1, 1]


def test_a_device_without_memory_is_not_a_bad_file(tree):
    def full(files):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        next(loaded(tree, BatchDecoder("full", full)).train(0))


# the key ----------------------------------------------------------------------------------------------


IMAGENET = ("dataset=imagenet", "model=resnet50")


def test_the_key_says_how_not_what(config):
    assert config(*IMAGENET).decode == "host"
    cfg = config(*IMAGENET, "decode=device")
    assert cfg.decode == "device" and cfg.id == config(*IMAGENET).id
    stored = cfg.model_dump(mode="json")
    del stored["decode"]  # as before there was a key
    older = read_stored(stored)
    assert older.decode == "host" and older.id == cfg.id


def test_the_key_is_refused_where_it_cannot_be_had(config, tree):
    with pytest.raises(UserError, match="^decode: must be 'host' or 'device', got 'gpu'$"):
        config(*IMAGENET, "decode=gpu")
    with pytest.raises(UserError, match="^decode: device needs dataset=imagenet, got cifar10$"):
        config("dataset=cifar10", "model=resnet110", "decode=device")
    with pytest.raises(UserError, match="^decode: device needs a CUDA device, got cpu$"):
        data.build(config(*IMAGENET, "decode=device", f"data_dir={tree}"), CPU)


def test_build_takes_nvjpeg_where_the_key_says_so(config, tree, monkeypatch):
    monkeypatch.setattr(data, "nvjpeg", lambda device: STAND_IN)
    keys = (*IMAGENET, f"data_dir={tree}", "workers=0", "dataset.num_classes=2", "dataset.label=mine")
    assert data.build(config(*keys, "decode=device"), CPU).describe()["decoder"] == "stand-in 1.0"
    assert data.build(config(*keys), CPU).describe()["decoder"] != "stand-in 1.0"


# nvJPEG -----------------------------------------------------------------------------------------------


class FakeStream:
    """Who waits for whom, and where work is queued, as a list of events."""

    events = []
    current = "training"

    def __init__(self, device="training"):
        self.name = "own" if isinstance(device, torch.device) else device

    def wait_stream(self, other):
        self.events.append(f"{self.name} waits for {other.name}")


class FakeImage:
    def record_stream(self, stream):
        FakeStream.events.append(f"image used by {stream.name}")


@pytest.fixture
def fake_cuda(monkeypatch):
    @contextmanager
    def enter(stream):
        monkeypatch.setattr(FakeStream, "current", stream.name)
        yield
        monkeypatch.setattr(FakeStream, "current", "training")

    monkeypatch.setattr(FakeStream, "events", [])
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    monkeypatch.setattr(torch.cuda, "Stream", FakeStream)
    monkeypatch.setattr(torch.cuda, "stream", enter)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: FakeStream(FakeStream.current))
    return FakeStream


def test_nvjpegs_images_are_not_in_memory_that_a_training_step_still_reads(fake_cuda, monkeypatch):
    """nvJPEG does not wait for the stream that its images' memory belongs to (pytorch/vision#9606)."""

    def decode_jpeg(files, mode, device):
        fake_cuda.events.append(f"{len(files)} {mode.name} in memory of {fake_cuda.current} on {device}")
        return [FakeImage() for _ in files]

    monkeypatch.setattr(torchvision.io, "decode_jpeg", decode_jpeg)
    decoder = nvjpeg(torch.device("cuda:0"))
    assert decoder.name == f"nvjpeg (torchvision {torchvision.__version__})"
    fake_cuda.events.clear()
    assert len(decoder.decode([torch.zeros(1)] * 2)) == 2
    used = "image used by training"
    assert fake_cuda.events == ["2 RGB in memory of own on cuda:0", "training waits for own", used, used]
    assert not torch.utils.deterministic.fill_uninitialized_memory


def test_a_torchvision_without_nvjpeg_is_said_in_one_line(fake_cuda, monkeypatch):
    def decode_jpeg(files, mode, device):
        raise RuntimeError("decode_jpegs_cuda: torchvision not compiled with nvJPEG support\nException raised from")

    monkeypatch.setattr(torchvision.io, "decode_jpeg", decode_jpeg)
    message = "^decode: device needs nvJPEG in torchvision, got decode_jpegs_cuda: .* not compiled with nvJPEG support$"
    with pytest.raises(UserError, match=message):
        nvjpeg(torch.device("cuda"))


@cuda
@pytest.mark.parametrize("part", ["train", "test"])
def test_nvjpegs_batches_are_nearly_the_hosts(tmp_path, part):
    """Of pictures so soft that chroma repeated, where libjpeg interpolates it, is off by 0.2 of 255 in the mean."""
    options = [dict(quality=90), dict(subsampling=0), dict(progressive=True), dict(quality=75)]
    soft = [smooth(24, 16, seed).resize((500 - seed, 375), Image.Resampling.BICUBIC) for seed in range(4)]
    files = [file_of(image, **chosen) for image, chosen in zip(soft, options, strict=True)]
    files += [file_of(soft[0].convert("L")), *OTHERS.values()]
    root = save(tmp_path, dict(enumerate(files)))
    device = torch.device("cuda")
    decoders = nvjpeg(device), None
    sides = [loaded(root, decoder, 2, device, size=224, resize=256, **PLAIN) for decoder in decoders]
    (x, y), (expected, labels) = (in_bytes(side.train(0) if part == "train" else side.test()) for side in sides)
    assert torch.equal(y, labels)
    assert (x - expected).abs().mean((1, 2, 3)).max() <= 1


# its speed --------------------------------------------------------------------------------------------


def test_the_device_is_measured_on_photographs_of_ones_own(tmp_path, monkeypatch):
    for i in range(3):
        smooth(300, 260, seed=i).save(tmp_path / f"{i}.jpg")
    monkeypatch.setenv(benchmark.FOLDER, str(tmp_path))
    monkeypatch.setattr(benchmark, "BATCH", 5)
    samples, files, difference = benchmark.measure_device(blocks=1, device="cpu", decoder=STAND_IN)
    assert [bar.unit for bar in (samples, files, difference)] == ["images/s", "images/s", "of 255"]
    assert "stand-in 1.0" in samples.subject and not any(bar.bar for bar in (samples, files, difference))
    assert files.value > samples.value > 0  # to read is less work than to decode
    assert difference.value < 0.1


def test_the_device_is_measured_on_what_is_decoded(tmp_path, monkeypatch):
    """The difference sees a decoder that is off by two."""
    smooth(300, 260).point(lambda value: 20 + value // 2).save(tmp_path / "x.jpg")
    monkeypatch.setattr(benchmark, "BATCH", 2)
    off = BatchDecoder("off", lambda files: [image + 2 for image in torchvisions(files)])
    *_, difference = benchmark.measure_device(1, tmp_path, "cpu", off)
    assert difference.value == pytest.approx(2, abs=0.1)
