"""results/: the archive of finished runs and the table made of it, without truncated runs; exported weights."""

import csv
import json
import os
import shutil

import numpy as np
import pytest
import torch
from conftest import PRESETS, refused
from runs_support import write_run
from safetensors.torch import load_file, save_file

import normloss
from normloss import models, regularizers
from normloss.diagnostics import diagnostics, summary
from normloss.runs import archive, weights
from normloss.runs.records import RunWarning, load_archive, load_runs
from normloss.runs.store import open_run
from normloss.training.step import train_step

DIGITS = ("dataset=digits", "model=resnet8")


@pytest.fixture
def results(config, tmp_path):
    """Two archived runs."""
    for seed in (0, 1):
        write_run(tmp_path / "runs", config(*DIGITS, "reg=nl", f"seed={seed}"), 5.0 + seed)
    archive.add(load_runs(tmp_path / "runs"), tmp_path / "results")
    return tmp_path / "results"


def table(results):
    return list(csv.DictReader((results / "summary.csv").read_text().splitlines()))


def test_an_archived_run_reads_as_the_run_in_its_folder(results, tmp_path):
    for kept, own in zip(load_archive(results), load_runs(tmp_path / "runs"), strict=True):
        assert (kept.id, kept.state, kept.final, kept.truncated) == (own.id, "done", own.final, False)
        for mine, theirs in zip(own.curve().__dict__.values(), kept.curve().__dict__.values(), strict=True):
            np.testing.assert_array_equal(mine, theirs)
        assert [epoch["epoch"] for epoch in kept.epochs] == [1, 2, 3, 4]
        assert kept.epochs[2].keys() == own.epochs[2].keys()
        for key, value in own.epochs[2].items():
            assert kept.epochs[2][key] == pytest.approx(value, rel=1e-3)  # each layer's norm in half precision
        private = {"host", "command", "sessions", "words"}
        assert kept.meta == {key: value for key, value in own.meta.items() if key not in private}


def test_the_table_for_people_is_written_from_the_archive_and_never_read(results, config, tmp_path):
    file = results / "summary.csv"
    whole = file.read_text()
    file.write_text("<<<<<<< ours\n" + whole.replace(",", ";"))
    assert len(load_archive(results)) == 2
    write_run(tmp_path / "runs", config(*DIGITS, "reg=nl", "seed=2"), 7.0)
    archive.add(load_runs(tmp_path / "runs"), results)
    assert [(row["seed"], row["test_error"], row["torch"]) for row in table(results)] == [
        ("0", "5.0", "2.11.0"), ("1", "6.0", "2.11.0"), ("2", "7.0", "2.11.0"),
    ]  # fmt: skip
    assert set(whole.splitlines()) <= set(file.read_text().splitlines())


HARMS = {
    "empty": lambda file: file.write_bytes(b""),
    "half": lambda file: os.truncate(file, file.stat().st_size // 2),
    "another's id": lambda file: file.rename(file.with_name("00000000.npz")),
    "no run": lambda file: np.savez(file, step=np.arange(3)),
    "a pickle": lambda file: np.savez(file, config=[{}], meta=[{}], final=[{}]),
}


@pytest.mark.parametrize("harm", HARMS.values(), ids=HARMS)
def test_a_damaged_file_is_named_and_left_out_until_it_is_exported_again(results, tmp_path, harm):
    damaged, whole = load_archive(results)
    harm(damaged.path)
    with pytest.warns(RunWarning, match="results/archive/.*; this run is excluded"):
        assert [run.id for run in load_archive(results)] == [whole.id]
        archive.add(load_runs(tmp_path / "runs"), results)
    (results / "archive" / "00000000.npz").unlink(missing_ok=True)
    assert [run.id for run in load_archive(results)] == [damaged.id, whole.id]


def test_a_key_that_came_within_the_run_is_kept(config, tmp_path):
    id = write_run(tmp_path / "runs", config(*DIGITS), 5.0)
    log = tmp_path / "runs" / id / "epochs.jsonl"
    first, *rest = map(json.loads, log.read_text().splitlines())
    lines = [first, *(epoch | {"turn": 0.5, "layer_turns": [1.0, 2.0]} for epoch in rest)]
    log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    archive.add(load_runs(tmp_path / "runs"), tmp_path / "results")
    (run,) = load_archive(tmp_path / "results")
    assert np.isnan(run.epochs[0]["turn"])
    assert run.epochs[1]["turn"] == 0.5
    assert np.isnan(run.epochs[0]["layer_turns"]).all()
    assert run.epochs[3]["layer_turns"] == [1.0, 2.0]


@pytest.mark.parametrize("key", ["max_steps=3", "eval_batches=1"])
def test_a_truncated_run_is_named_and_not_archived(config, tmp_path, load_script, capsys, key):
    truncated = write_run(tmp_path / "runs", config(*DIGITS, f"train.{key}"), 90.0)
    whole = write_run(tmp_path / "runs", config(*DIGITS), 5.0)
    words = [str(tmp_path / "runs"), "--results", str(tmp_path / "results")]
    export = load_script("export").main
    assert export(words) == 0
    assert f"truncated runs, not archived: {truncated}" in capsys.readouterr().out
    assert [run.id for run in load_archive(tmp_path / "results")] == [whole]
    assert export([*words, "--weights", "other/store"]) == 2
    line = f"other/store: must be the id of a finished run of {words[0]}; stores come before the options"
    assert capsys.readouterr().err == f"normloss: {line}\n"


def run_with_weights(cfg):
    """A run folder of a network that took some steps, and its logits of some images."""
    torch.manual_seed(3)
    run = open_run(cfg)
    model = models.build(cfg.model, cfg.dataset.num_classes, cfg.dataset.channels)
    reg = regularizers.build(model, cfg.reg)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    x, y = torch.randn(8, cfg.dataset.channels, 16, 16), torch.arange(8)
    for _ in range(3):
        train_step(model, reg, optimizer, x, y, cfg.train)
    parts = {"model": model.state_dict(), "reg": reg.state_dict(), "optimizer": optimizer.state_dict()}
    run.save({**parts, "logged_steps": 0}, 1, 3)
    run._lock.release()
    with torch.no_grad():
        return run.path, x.detach(), model.eval()(x.detach()), summary(diagnostics(model))


@pytest.mark.parametrize("method", PRESETS)
def test_exported_weights_give_the_model_back(config, tmp_path, method):
    cfg = config(*DIGITS, f"reg={method}", f"store={tmp_path}")
    path, x, expected, norms = run_with_weights(cfg)
    file = tmp_path / "weights" / f"{cfg.id}.safetensors"
    weights.export(path, {"test_error": 5.0}, file)
    before = torch.get_rng_state()
    model = normloss.load(file)
    assert torch.equal(torch.get_rng_state(), before)
    assert not model.training
    assert not any("parametrizations" in name for name, _ in model.named_parameters())
    assert all(parameter.requires_grad for parameter in model.parameters())
    with torch.no_grad():
        torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-5)
    assert summary(diagnostics(model))["norm_mean"] == pytest.approx(norms["norm_mean"], rel=1e-5)
    header = weights.describe(file)
    assert (header["id"], header["final"]) == (cfg.id, {"test_error": 5.0})
    assert header["config"]["reg"]["name"] == cfg.reg.name


def alter(file, tensors=None, header=None):
    """Write a weights file with other tensors or another header."""
    header = json.dumps(weights.describe(file)) if header is None else header
    save_file(tensors or load_file(file), file, {"normloss": header})


BAD_WEIGHTS = {
    "gone": lambda file: file.unlink(),
    "empty": lambda file: file.write_bytes(b""),
    "cut": lambda file: file.write_bytes(file.read_bytes()[:-1000]),
    "text": lambda file: file.write_text("<html>not found</html>" * 100),
    "no header of ours": lambda file: alter(file, header=""),
    "a header that is no JSON": lambda file: alter(file, header="{" * 1000),
    "the id of another": lambda file: alter(file, header=json.dumps(weights.describe(file) | {"id": "00000000"})),
    "a tensor less": lambda file: alter(file, {k: v for k, v in load_file(file).items() if k != "fc.bias"}),
    "other shapes": lambda file: alter(file, {name: torch.zeros(2, 2) for name in load_file(file)}),
}


@pytest.mark.parametrize("harm", BAD_WEIGHTS.values(), ids=BAD_WEIGHTS)
def test_a_file_that_is_none_of_ours_is_refused_in_a_line(config, tmp_path, harm):
    cfg = config(*DIGITS, f"store={tmp_path}")
    path, *_ = run_with_weights(cfg)
    file = tmp_path / "w.safetensors"
    weights.export(path, {"test_error": 5.0}, file)
    harm(file)
    assert "w.safetensors: must be a file that scripts/export.py" in refused(normloss.load, file)


def test_export_keeps_the_weights_of_named_runs(config, tmp_path, load_script, capsys):
    cfg = config(*DIGITS, f"store={tmp_path / 'runs'}")
    path, *_ = run_with_weights(cfg)
    shutil.move(path, tmp_path / "kept")
    write_run(tmp_path / "runs", cfg, 5.0)
    shutil.copy(tmp_path / "kept" / "last.pt", path)
    words = [str(tmp_path / "runs"), "--results", str(tmp_path / "results")]
    export, file = load_script("export").main, tmp_path / "results" / "weights" / f"{cfg.id}.safetensors"
    for outcome in ("added", "already there"):
        assert export([*words, "--weights", cfg.id]) == 0
        assert f"{file}: {outcome}\n" in capsys.readouterr().out
    assert normloss.load(file)
    (path / "last.pt").unlink()
    shutil.rmtree(tmp_path / "results" / "weights")
    assert export([*words, "--weights", cfg.id]) == 2
    assert "last.pt is gone" in capsys.readouterr().err
