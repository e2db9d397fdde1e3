"""What is wrong with somebody's images, in both readers: handled, or refused in one line that names the file."""

import multiprocessing
import os
import signal
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import train
from normloss import data
from normloss.data import decode, folder
from normloss.errors import Interrupted
from normloss.runs import store
from tests.conftest import refused
from tests.data_support import CPU, PHOTOGRAPHS, TREE, pixels, save_image, save_photographs, save_tree, saved
from tests.forked import HERE, the_run

# Each reader gives uint8 (3, H, W) of a file of H x W pixels: of dataset=folder, and of dataset=imagenet.
READERS = {
    "folder": lambda path: folder.read_square(path, 24, 3)[0],
    "imagenet": lambda path: decode.read_image(path).numpy(),
}


@pytest.fixture(params=READERS)
def read(request):
    return READERS[request.param]


def picture(mode="RGB", size=(24, 24), seed=0):
    shape = (size[1], size[0], len(Image.new(mode, (1, 1)).getbands()))
    return Image.fromarray(pixels(*shape, seed=seed).squeeze(), mode=mode if mode == "CMYK" else None)


def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width, height, rows, depth=8, colour=0):
    """A PNG by hand; rows: its bytes, each row after a filter byte 0."""
    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows, 9)) + chunk(b"IEND", b"")


def claims_more(file, width=65_000, height=65_000):
    """A JPEG whose head announces a larger picture than it holds."""
    at = next(at for at in range(len(file)) if file[at : at + 2] in (b"\xff\xc0", b"\xff\xc2"))
    return file[: at + 5] + struct.pack(">HH", height, width) + file[at + 9 :]


JPEG = saved(picture(), "jpg")
REFUSED = {
    "empty.png": (b"", "of no known format"),
    "cut.png": (saved(picture())[:-700], "image file is truncated"),
    "cut.jpg": (JPEG[:-100], "image file is truncated"),
    "head.jpg": (JPEG[:20], ""),
    "page.jpg": (b"<!DOCTYPE html><html>404</html>", "of no known format"),
    "bomb.png": (png(40_000, 40_000, bytes(10)), "exceeds limit of 178956970 pixels"),
    "bomb.jpg": (claims_more(JPEG), "exceeds limit of 178956970 pixels"),
    "strip.png": (saved(Image.new("L", (5000, 2))), "more than 1000 times the other, 5000 to 2 pixels"),
    "strip.jpg": (saved(Image.new("L", (3, 6000)), "jpg"), "more than 1000 times the other, 6000 to 3 pixels"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_a_file_that_is_no_whole_picture_is_named_in_one_line(tmp_path, read, name):
    content, says = REFUSED[name]
    (tmp_path / name).write_bytes(content)
    line = refused(read, tmp_path / name)
    assert line.startswith(f"{tmp_path / name}: not a readable image (") and says in line and "0x" not in line


def srgb(image):
    return np.asarray(image.convert("RGB")).transpose(2, 0, 1).astype(int)


@pytest.mark.parametrize("suffix, modes", [("jpg", ["CMYK", "L", "RGB"]), ("png", ["RGBA", "LA", "P", "1"])])
def test_opaque_files_of_any_mode_are_read_as_colour(tmp_path, read, suffix, modes):
    for mode in modes:
        image = picture(mode) if suffix == "jpg" else picture().convert(mode)
        path = tmp_path / f"x.{suffix}"
        path.write_bytes(saved(image, suffix))
        assert np.abs(read(path) - srgb(Image.open(path))).max() <= (suffix == "jpg"), mode


def test_what_is_transparent_is_white(tmp_path, read):
    """c alpha + 255 (1 - alpha)"""
    values = pixels(24, 24, 4)
    (tmp_path / "x.png").write_bytes(saved(Image.fromarray(values)))
    colour, alpha = values[..., :3].astype(float), values[..., 3:] / 255
    expected = colour * alpha + 255 * (1 - alpha)
    assert np.abs(read(tmp_path / "x.png") - expected.transpose(2, 0, 1)).max() <= 1


@pytest.mark.parametrize("colour, channels", [(0, 1), (2, 3)], ids=["grey", "colour"])
def test_16_bits_become_the_upper_8(tmp_path, read, colour, channels):
    values = np.random.default_rng(0).integers(0, 2**16, (24, 24, channels), np.uint16)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    (tmp_path / "deep.png").write_bytes(png(24, 24, rows, depth=16, colour=colour))
    expected = np.broadcast_to((values >> 8).transpose(2, 0, 1), (3, 24, 24))
    np.testing.assert_array_equal(read(tmp_path / "deep.png"), expected)


@pytest.mark.parametrize("suffix", ["png", "webp", "gif"])
def test_an_animation_counts_by_its_first_picture(tmp_path, read, suffix):
    pictures = [picture("P" if suffix == "gif" else "RGB", seed=seed) for seed in range(3)]
    options = {"lossless": True} if suffix == "webp" else {}
    content = saved(pictures[0], suffix, save_all=True, append_images=pictures[1:], **options)
    (tmp_path / f"x.{suffix}").write_bytes(content)
    assert Image.open(tmp_path / f"x.{suffix}").n_frames == 3
    np.testing.assert_array_equal(read(tmp_path / f"x.{suffix}"), srgb(pictures[0]))


@pytest.fixture
def tree(tmp_path):
    for part in ("train", "test"):
        save_tree(tmp_path / part)
    return tmp_path


@pytest.fixture
def refusal(config):
    """The line that a config or its data set answers with."""
    return lambda root, *words: refused(lambda: data.build(config(*TREE, f"data_dir={root}", *words), CPU))


NOWHERE = "TREE/train/gnu: must be a folder of images, got a symbolic link that leads nowhere"
BAD_TREES = {  # a link to nowhere as a class would be left out otherwise, and fewer trained
    "an empty class": (lambda tree: [*map(Path.unlink, tree.glob("train/dog/*"))], "TREE/train/dog: no images ("),
    "a class in test only": (
        lambda tree: save_image(tree / "test/gnu/0.png"),
        "TREE/train and TREE/test: must have the same class folders, only one has gnu",
    ),
    "a class that is a link to nowhere": (lambda tree: (tree / "train/gnu").symlink_to("/nowhere/at/all"), NOWHERE),
    "an image that is a link to nowhere": (
        lambda tree: (tree / "train/dog/7.png").symlink_to("/nowhere/at/all"),
        "data_dir: cannot read TREE/train/dog/7.png (",
    ),
}


@pytest.mark.parametrize("kind", BAD_TREES)
def test_a_tree_that_cannot_be_trained_on_is_refused_in_a_line(tree, refusal, kind):
    harm, line = BAD_TREES[kind]
    harm(tree)
    assert refusal(tree).startswith(line.replace("TREE", str(tree)))


def kill_a_worker():
    """The newest: a test before may have left some, which nobody waits for."""
    workers = [process for process in multiprocessing.active_children() if "Process" in process.name]
    worker = max(workers, key=lambda process: int(process.name.rpartition("-")[2]))
    os.kill(worker.pid, signal.SIGKILL)
    worker.join(10)


@pytest.mark.slow
def test_a_run_whose_worker_is_killed_is_incomplete_and_goes_on(tmp_path, config, monkeypatch):
    root = save_photographs(tmp_path / "photographs")
    words = [*PHOTOGRAPHS, *HERE, f"data_dir={root}", "train.epochs=4", f"store={tmp_path / 'runs'}"]
    with monkeypatch.context() as patch:
        patch.setattr(store.Run, "beat", lambda run, epoch, step: kill_a_worker() if step == 7 else None)
        with pytest.raises(Interrupted, match="a process that reads images was lost"):
            train.train(config(*words, "workers=2"))
    assert the_run(tmp_path / "runs").state == "incomplete"
    train.train(config(*words, "workers=1"))
    run = the_run(tmp_path / "runs")
    assert run.state == "done" and len(run.steps()[0]) == 20
