"""normloss evaluate: a stored run's own numbers, another split, other images, and refusals."""

import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from normloss import data
from normloss.cli import evaluate
from normloss.data import digits
from normloss.data.tensors import hold_out
from normloss.runs import weights
from normloss.runs.records import load_run
from tests.conftest import ROOT
from tests.data_support import save_tree
from tests.docs_support import BLOCKS


@pytest.fixture(scope="module")
def store(tmp_path_factory, trained):
    """By method, the folder of a run of four steps."""
    words = ("dataset.val=100", "train.epochs=1", "train.max_steps=4", "train.lr=0.01")
    folders = {method: tmp_path_factory.mktemp("runs") for method in ("nl", "wn")}
    return {method: trained(folder, *words, f"reg={method}").path for method, folder in folders.items()}


def told(capsys, *arguments):
    assert evaluate.main([str(argument) for argument in arguments]) == 0
    return capsys.readouterr().out


def numbers(text):
    """error, top-5 error, cross entropy and ECE as printed."""
    patterns = (r"^error +([\d.]+) %", r"^top-5 error +([\d.]+) %", r"cross entropy +([\d.]+)$", r"ECE ([\d.]+) %")
    return [float(re.search(pattern, text, re.M)[1]) for pattern in patterns]


@pytest.mark.parametrize("method", ["nl", "wn"])
@pytest.mark.parametrize("split", ["test", "val"])
def test_a_run_and_its_exported_file_have_the_numbers_of_its_done(capsys, store, tmp_path, method, split):
    path = store[method]
    final = load_run(path).final
    text = told(capsys, path.name, "--store", path.parent, "--split", split, "--device", "cpu")
    error, top5, ce, ece = numbers(text)
    assert error == pytest.approx(final[f"{split}_error"], abs=0.005)
    assert ce == pytest.approx(final[f"{split}_ce"], abs=5e-5)
    if split == "test":
        assert top5 == pytest.approx(final["test_error_top5"], abs=0.005)
        fitted = re.search(r"cross entropy \S+ at temperature (\S+), fitted to 100 images held out", text)
        assert float(fitted[1]) != 1
    else:
        assert "temperature" not in text  # it would be fitted to what it is judged on
    assert f"{split} of digits, {360 if split == 'test' else 100} images" in text
    file = tmp_path / f"{path.name}.safetensors"
    weights.export(path, final, file)
    assert numbers(told(capsys, file, "--split", split)) == pytest.approx([error, top5, ce, ece], abs=2e-4)


def test_training_images_come_as_they_are(capsys, store):
    path = store["nl"]
    assert "train of digits, 1,337 images" in told(capsys, path, "--split", "train")
    cfg = evaluate.find(str(path), path.parent, None, "cpu").cfg
    built = data.build(cfg, torch.device("cpu"))
    x, y = next(iter(built.in_order("train")))
    assert len(x) == min(500, 4 * cfg.train.batch_size)
    train, _ = hold_out(digits.load(cfg.dataset, None)[0], 100)
    assert torch.equal((x * 81.2 + 77.9).round().byte(), torch.from_numpy(train.images[: len(x)]))
    assert torch.equal(y, torch.from_numpy(train.labels[: len(y)]))


def test_other_images_than_those_of_training_are_reported(capsys, store, tmp_path):
    path = shutil.copytree(store["nl"], tmp_path / store["nl"].name)
    assert "not the images" not in told(capsys, path)
    meta = json.loads((path / "meta.json").read_text())
    (path / "meta.json").write_text(json.dumps(meta | {"data": "0123456789abcdef"}))
    assert "not the images it was trained on (fingerprint 0123456789abcdef, got " in told(capsys, path)


def test_other_images_of_the_same_classes(capsys, store, tmp_path):
    for split, count in (("train", 1), ("test", 3)):
        save_tree(tmp_path / "mine" / split, [f"digit{digit}" for digit in range(10)], count, size=(20, 20), mode="L")
    text = told(capsys, store["nl"], "--dataset", "folder", "--data", tmp_path / "mine")
    assert "test of folder, 30 images" in text
    assert re.search(r"confused most  digit\d classified as digit\d: [1-3] of 3", text)
    for split in ("train", "test"):
        shutil.rmtree(tmp_path / "mine" / split / "digit9")
    line = refused(capsys, store["nl"], "--dataset", "folder", "--data", tmp_path / "mine")
    assert "--dataset: must have the model's 10 classes, folder has 9" in line


COLOURS = {"amber": 60, "blue": 120, "coral": 200}
OWN = ("dataset=folder", "recipe=digits_resnet8", "dataset.channels=1", "dataset.mean=[127]", "dataset.std=[60]",
       "dataset.size=16", "train.batch_size=4", "train.lr=0.05", "train.epochs=8")  # fmt: skip


@pytest.fixture(scope="module")
def colours(tmp_path_factory, trained):
    """Class folders that are easily told apart, and the folder of a run that does."""
    root, rng = tmp_path_factory.mktemp("colours") / "mine", np.random.default_rng(0)
    for split, count in (("train", 4), ("test", 6)):
        for name, grey in COLOURS.items():
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                noise = (grey + rng.integers(-40, 40, (20, 27))).astype(np.uint8)
                Image.fromarray(noise).save(root / split / name / f"{i}.png")
    return root, trained(root.parent / "runs", *OWN, f"data_dir={root}").path


def test_classes_are_matched_by_name_and_other_names_are_refused(capsys, colours, tmp_path):
    """A network whose outputs are permuted, as if its class folders had another order: the same numbers."""
    root, run = colours
    file, other = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    weights.export(run, load_run(run).final, file)
    assert load_run(run).meta["classes"] == list(COLOURS) == weights.describe(file)["classes"]
    header, tensors = weights.describe(file), load_file(file)
    for name in ("fc.weight", "fc.bias"):
        tensors[name] = tensors[name][[1, 2, 0]].contiguous()

    def cross_entropy(file, classes):
        save_file(tensors, other, {"normloss": json.dumps(header | {"classes": classes})})
        text = told(capsys, file, "--data", root)
        return re.search(r"^cross entropy +([\d.]+)$", text, re.M)[1], "matched by their order" in text

    expected = cross_entropy(file, None)[0]
    assert cross_entropy(other, ["blue", "coral", "amber"]) == (expected, False)
    assert cross_entropy(other, None) != (expected, True)  # by order: wrong labels, said so
    save_file(tensors, other, {"normloss": json.dumps(header | {"classes": ["blue", "coral", "zamber"]})})
    line = refused(capsys, other, "--data", root)
    assert line == "normloss: data_dir: must hold the model's classes blue coral zamber, got amber blue coral\n"


def test_the_page_on_weights_ends_at_the_suites_own_numbers(capsys, colours, monkeypatch):
    """Its block of plain PyTorch, given a file and images of another size than the network's."""
    root, run = colours
    monkeypatch.chdir(root.parent)
    file = root.parent / "results" / "weights" / "1a2b3c4d.safetensors"
    final = load_run(run).final
    weights.export(run, final, file)
    root.rename(root.parent / "DIR")
    try:
        (block,) = (each for each in BLOCKS if each.page == "docs/weights.md" and each.kind == "python")
        names = {}
        exec(block.text, names)
        assert capsys.readouterr().out == f"{final['test_error']} %\n"
        trained = evaluate.find(str(file), run.parent, "DIR", "cpu")
        own = evaluate.predict(trained.model, data.build(trained.cfg, torch.device("cpu")), "test", trained.cfg)
        np.testing.assert_allclose(names["logits"], own[0], rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(names["labels"], own[1])
    finally:
        (root.parent / "DIR").rename(root)
    assert names["header"] == weights.describe(file) | {"config": names["header"]["config"]}
    page = (ROOT / "docs" / "weights.md").read_text()
    assert all(f"`{key}`" in page for key in [*names["header"], *names["how"], *names["how"]["training"]])


def refused(capsys, *arguments):
    assert evaluate.main([str(argument) for argument in arguments]) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    return line


def test_what_cannot_be_evaluated_is_one_line(capsys, monkeypatch, store, colours, tmp_path):
    path, own = store["nl"], colours[1]
    assert "must be a run of" in refused(capsys, "12345678", "--store", tmp_path)
    assert "must be a file that" in refused(capsys, tmp_path / "none.safetensors")
    assert "--dataset: must be one of cifar10" in refused(capsys, path, "--dataset", "mnist")
    line = refused(capsys, path, "--dataset", "cifar10")
    assert line == "normloss: --dataset: cifar10 does not fit the model (dataset.channels: must be 3, got 1)\n"
    assert "--split val: needs images held out of training (dataset.val), got 0" in refused(capsys, own, "--split=val")
    assert "temperature" not in told(capsys, own)
    (tmp_path / "empty").mkdir()
    assert "must be the folder of a run" in refused(capsys, tmp_path / "empty")
    monkeypatch.setattr(evaluate, "CONFIGS", tmp_path / "configs")
    assert "--dataset: needs a checkout of the suite" in refused(capsys, path, "--dataset", "folder")


@pytest.mark.parametrize("command", ["scripts/plan.py table1 --dry", "-m normloss.diagnostics FILE"])
def test_a_reader_that_has_enough_is_no_error(store, command):
    command = command.replace("FILE", str(store["nl"] / "last.pt"))
    line = f"{sys.executable} {command} | head -1; echo ${{PIPESTATUS[0]}} >&2"
    ran = subprocess.run(["bash", "-c", line], cwd=ROOT, capture_output=True, text=True)
    assert ran.stderr == "0\n"
