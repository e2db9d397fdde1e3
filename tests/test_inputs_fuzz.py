"""Configs, run folders and images that nobody would write: one line each, or they are read; what was found is kept.

NORMLOSS_FUZZ=2000 python -m pytest tests/test_inputs_fuzz.py tries that many of each.
"""

import json
import os
import shutil

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from runs_support import write_run

from normloss.config import Config
from normloss.data.decode import read_image
from normloss.errors import Stop, UserError
from normloss.runs.files import Damaged
from normloss.runs.merge import merge
from normloss.runs.records import FILES, load_run
from normloss.runs.store import open_run
from normloss.sweeps.composing import expand

TRIES = int(os.environ.get("NORMLOSS_FUZZ", 10))
FUZZ = settings(max_examples=TRIES, deadline=None, derandomize=TRIES <= 10, database=None,
                suppress_health_check=list(HealthCheck))  # fmt: skip

SECTIONS = ["", "train.", "reg.", "model.", "dataset.", "wandb.", "hydra.", "+", "++", "~", "lam."]
LEAVES = [*Config.model_fields, *["batch_size", "epochs", "lam", "lr", "milestones", "depth", "mean", "name", "tags"]]
KEYS = st.builds(str.__add__, st.sampled_from(SECTIONS), st.sampled_from(LEAVES) | st.text(max_size=6))
NUMBERS = st.integers() | st.floats() | st.sampled_from([10**5000, -(10**30), 2**63, 1e308, float("nan")])
PARTS = [*"[]{}()'\"$~,:=\\\0é", "${", "${seed}", "${oc.env:HOME}", "null"]
VALUES = (
    st.builds(lambda number: str(number) if abs(number) < 10**4000 else "1" + "0" * 5000, NUMBERS)
    | st.lists(st.sampled_from(PARTS) | st.text(max_size=3), max_size=6).map("".join)
    | st.sampled_from(["choice(1)", "range(1,3)", "[1,2", "range(0)", "glob(*)", "int(x)", "str([1])", "1,2"])
)
WORDS = st.builds("{}={}".format, KEYS, VALUES) | st.text(max_size=8)


def composed(overrides):
    """What train.py does with its words before it opens a run."""
    (cfg,) = expand(["dataset=digits", "model=resnet8", *overrides])
    return cfg


def refused_or_fine(overrides):
    try:
        cfg = composed(overrides)
    except Stop as stop:
        assert stop.status == 2 and str(stop).strip() and "\n" not in str(stop)
    else:
        json.dumps(cfg.stored())
        assert len(cfg.id) == 8


@FUZZ
@given(st.lists(WORDS, min_size=1, max_size=2))
def test_words_are_taken_or_refused_in_a_line(overrides):
    refused_or_fine(overrides)


FOUND = [
    "seed=1" + "0" * 5000,  # more digits than Python converts
    "train.lr=1" + "0" * 400,  # a whole number that no float holds
    *["model=null", "dataset=null", "reg=null", "dataset=0", "experiment=null", "dataset=-1e3", "model=True"],
    *["debug={a:1}", "hydra/launcher=nan", "~dataset=0", "+dataset=0", "dataset@x=1.5", "dataset=[1]"],
    *["~hydra/launcher=false", "\n", "seed=\n1", "reg=\u2028nl"],
]


@pytest.mark.parametrize("word", FOUND)
def test_words_found_by_fuzzing(word):
    refused_or_fine([word])


@pytest.fixture(scope="module")
def whole(tmp_path_factory, config):
    """A finished run's folder."""
    cfg = config("dataset=digits", "model=resnet8", "train.epochs=4", "train.milestones=[]")
    store = tmp_path_factory.mktemp("whole")
    write_run(store, cfg, 5.0)
    return store / cfg.id


@st.composite
def damage(draw):
    """A file of a run folder, and how it is damaged: bytes replaced, cut, repeated or inserted."""
    name = draw(st.sampled_from(sorted({*FILES} - {"last.pt"})))
    where, length = draw(st.floats(0, 1)), draw(st.integers(0, 40))
    found = [b"NaN", b"1e999", b"null", b"[" * 5000, b"-", b"&a ", b"*a", b"!!python/object:os.system ", b"\xff"]
    garbage = draw(st.binary(max_size=30) | st.sampled_from(found))
    return name, where, length, garbage


def spoil(file, where, length, garbage):
    content = file.read_bytes()
    at = int(where * len(content))
    file.write_bytes(content[:at] + garbage + content[at + length :])


@FUZZ
@given(damages=st.lists(damage(), min_size=1, max_size=2))
def test_a_damaged_run_is_read_resumed_and_merged_or_named_in_a_line(whole, tmp_path_factory, damages):
    store, into = tmp_path_factory.mktemp("damaged"), tmp_path_factory.mktemp("merged")
    folder = store / whole.name
    shutil.copytree(whole, folder)
    for name, *where_and_what in damages:
        spoil(folder / name, *where_and_what)
    try:
        record = load_run(folder)
        json.dumps([record.config, record.final, record.state, record.meta, record.epochs])
        record.steps()
    except Damaged as damage:
        assert "\n" not in str(damage)
    cfg = composed(["train.epochs=4", "train.milestones=[]", f'store="{store}"'])
    assert cfg.id == whole.name
    try:
        run = open_run(cfg)
    except Stop as stop:
        assert "\n" not in str(stop)
    else:
        assert run.done
    merged = merge([store], into)
    assert len(merged["new"]) + len(merged["refused"]) == 1
    assert [load_run(into / id).id for id in merged["new"]] == merged["new"]
    shutil.rmtree(store)
    shutil.rmtree(into)


@FUZZ
@given(
    kind=st.sampled_from(["png", "jpeg", "bmp", "webp", "gif"]), where=st.floats(0, 1), length=st.integers(0, 60),
    garbage=st.binary(max_size=40),
)  # fmt: skip
def test_a_damaged_image_is_read_or_named(tmp_path_factory, kind, where, length, garbage):
    folder = tmp_path_factory.mktemp("image")
    file = folder / f"a.{kind}"
    Image.fromarray(np.random.default_rng(0).integers(256, size=(24, 16, 3), dtype=np.uint8)).save(file)
    spoil(file, where, length, garbage)
    try:
        image = read_image(file)
    except UserError as error:
        assert str(file) in str(error) and "\n" not in str(error)
    else:
        assert image.shape[0] == 3
    shutil.rmtree(folder)
