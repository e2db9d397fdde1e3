"""results/: the archive refuses what a spreadsheet or a merge made of it, and leaves trials out; exported weights."""

import csv
import io
import json
import re
import shutil

import numpy as np
import pytest
import torch
from conftest import ROOT
from runs_support import write_run
from safetensors.torch import load_file, save_file

import normloss
from normloss import models, regularizers
from normloss.analysis import archive
from normloss.diagnostics import diagnostics, summary
from normloss.errors import UserError
from normloss.runs import weights
from normloss.runs.records import load_runs
from normloss.runs.store import open_run

DIGITS = ("dataset=digits", "model=resnet8")
METHODS = sorted(path.stem for path in (ROOT / "configs" / "reg").glob("*.yaml"))


@pytest.fixture
def results(config, tmp_path):
    """Two archived runs."""
    for seed in (0, 1):
        write_run(tmp_path / "runs", config(*DIGITS, "reg=nl", f"seed={seed}"), 5.0 + seed)
    archive.add(load_runs(tmp_path / "runs"), tmp_path / "results")
    return tmp_path / "results"


def other_id(id: str):
    """The first row under another id."""
    return lambda file: file.write_text(re.sub(r"\n\w{8},", f"\n{id},", file.read_text(), count=1))


def edit(file, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))


def semicolons(file) -> None:
    rows = list(csv.reader(io.StringIO(file.read_text())))
    with open(file, "w", newline="") as out:
        csv.writer(out, delimiter=";").writerows(rows)


def conflict(file) -> None:
    head, one, two = file.read_text().splitlines(keepends=True)
    file.write_text(f"{head}<<<<<<< ours\n{one}=======\n{two}>>>>>>> theirs\n")


HARMS = {
    "an id as a number": (other_id("4.91E+287"), 2),
    "an id of another": (other_id("00000000"), 2),
    "semicolons": (semicolons, 1),
    "conflict marks": (conflict, 2),
    "a decimal comma": (lambda file: edit(file, ",0.01,", ',"0,01",'), 2),
    "a rounded error": (lambda file: edit(file, ",5.0,", ",5,"), 2),
    "a column less": (lambda file: edit(file, ",GTX 1080 Ti,", ","), 2),
    "no JSON": (lambda file: edit(file, '{""dataset""', "{dataset"), 2),
    "a row twice": (lambda file: file.write_text(file.read_text() + file.read_text().splitlines(keepends=True)[1]), 4),
    "an open quote": (lambda file: file.write_text(file.read_text() + '"x'), 4),
    "nothing": (lambda file: file.write_text(""), 1),
}


@pytest.mark.parametrize(("harm", "line"), HARMS.values(), ids=HARMS)
def test_a_damaged_summary_is_refused_by_file_and_line(results, tmp_path, harm, line):
    file = results / "summary.csv"
    harm(file)
    before = file.read_bytes()
    for use in (lambda: archive.read(results), lambda: archive.add(load_runs(tmp_path / "runs"), results)):
        with pytest.raises(UserError, match=rf"^{file}, line {line}: ") as refusal:
            use()
        assert "\n" not in str(refusal.value)
        assert file.read_bytes() == before


def test_a_summary_without_the_newest_column_is_read_and_written_with_it(results, config, tmp_path):
    file = results / "summary.csv"
    rows = list(csv.reader(io.StringIO(file.read_text())))
    column = rows[0].index("trial")
    with open(file, "w", newline="") as out:
        csv.writer(out, lineterminator="\n").writerows([row[:column] + row[column + 1 :] for row in rows])
    assert len(archive.read(results)) == 2
    write_run(tmp_path / "runs", config(*DIGITS, "reg=nl", "seed=2"), 5.0)
    assert len(archive.add(load_runs(tmp_path / "runs"), results)[0]) == 1
    assert file.read_text().startswith("id,dataset,model,reg,lam,batch_size,epochs,seed,trial,")
    assert len(archive.read(results)) == 3


def test_damaged_curves_are_named(results):
    run = archive.read(results)[0]
    run.path.write_bytes(run.path.read_bytes()[:100])
    with pytest.raises(UserError, match=f"curves/{run.id}.npz: is damaged"):
        run.curve()


def test_a_key_that_came_within_the_run_is_kept(config, tmp_path):
    id = write_run(tmp_path / "runs", config(*DIGITS), 5.0)
    log = tmp_path / "runs" / id / "epochs.jsonl"
    first, *rest = map(json.loads, log.read_text().splitlines())
    lines = [first, *(epoch | {"turn": 0.5, "layer_turns": [1.0, 2.0]} for epoch in rest)]
    log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    archive.add(load_runs(tmp_path / "runs"), tmp_path / "results")
    (run,) = archive.read(tmp_path / "results")
    assert np.isnan(run.epochs[0]["turn"])
    assert run.epochs[1]["turn"] == 0.5
    assert np.isnan(run.epochs[0]["layer_turns"]).all()
    assert run.epochs[3]["layer_turns"] == [1.0, 2.0]


@pytest.mark.parametrize("key", ["max_steps=3", "eval_batches=1"])
def test_a_trial_is_archived_only_by_name_and_says_what_it_is(config, tmp_path, load_script, capsys, key):
    trial = write_run(tmp_path / "runs", config(*DIGITS, f"train.{key}"), 90.0)
    whole = write_run(tmp_path / "runs", config(*DIGITS), 5.0)
    words = [str(tmp_path / "runs"), "--results", str(tmp_path / "results")]
    export = load_script("export").main
    assert export(words) == 0
    assert f"trials, left out: {trial}" in capsys.readouterr().out
    assert [run.id for run in archive.read(tmp_path / "results")] == [whole]
    assert export([*words, "--trial", trial]) == 0
    archived = {run.id: run.trial for run in archive.read(tmp_path / "results")}
    assert archived == {trial: True, whole: False}
    with open(tmp_path / "results" / "summary.csv") as file:
        told = {row["id"]: row["trial"] for row in csv.DictReader(file)}
    assert told == {trial: "3 steps" if "steps" in key else "on 1 test batches", whole: ""}
    assert export([*words, "--trial", "00000000"]) == 2


def test_the_records_know_trials(config, tmp_path):
    write_run(tmp_path, config(*DIGITS, "train.max_steps=3"), 90.0)
    assert [run.trial for run in load_runs(tmp_path)] == [True]


# weights -----------------------------------------------------------------------------------------


def run_with_weights(cfg):
    """A run folder of a network that took some steps, and its logits of some images."""
    torch.manual_seed(3)
    run = open_run(cfg)
    model = models.build(cfg.model, cfg.dataset.num_classes, cfg.dataset.channels)
    reg = regularizers.build(model, cfg.reg)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    x, y = torch.randn(8, cfg.dataset.channels, 16, 16), torch.arange(8)
    for _ in range(3):
        optimizer.zero_grad()
        logits = model(x.requires_grad_(reg.needs_input_grad))
        (torch.nn.functional.cross_entropy(logits, y) + reg.loss(x, logits)).backward()
        reg.before_step()
        optimizer.step()
        reg.after_step()
    parts = {"model": model.state_dict(), "reg": reg.state_dict(), "optimizer": optimizer.state_dict()}
    run.save({**parts, "logged_steps": 0}, 1, 3)
    run._lock.release()
    with torch.no_grad():
        return run.path, x.detach(), model.eval()(x.detach()), summary(diagnostics(model))


@pytest.mark.parametrize("method", METHODS)
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
    told = weights.describe(file)
    assert (told["id"], told["final"], told["config"]["reg"]["name"]) == (cfg.id, {"test_error": 5.0}, cfg.reg.name)


def altered(change):
    """A weights file with another header or other tensors."""

    def harm(file):
        tensors, header = load_file(file), json.dumps(weights.describe(file))
        tensors, header = change(tensors, json.loads(header))
        save_file(tensors, file, {"normloss": header if isinstance(header, str) else json.dumps(header)})

    return harm


def other_depth(tensors, header):
    header["config"]["model"]["depth"] = 6_000_002
    return tensors, header | {"id": normloss.config.run_id(header["config"])}


def without_first_convolution(tensors):
    first = next(name for name, tensor in tensors.items() if tensor.ndim == 4)
    return {name: tensor for name, tensor in tensors.items() if name != first}


BAD_WEIGHTS = {
    "gone": lambda file: file.unlink(),
    "empty": lambda file: file.write_bytes(b""),
    "cut": lambda file: file.write_bytes(file.read_bytes()[:-1000]),
    "text": lambda file: file.write_text("<html>not found</html>" * 100),
    "a header of a terabyte": lambda file: file.write_bytes(b"\xff" * 8 + file.read_bytes()[8:]),
    "no header of ours": altered(lambda tensors, header: (tensors, "")),
    "a header that is no JSON": altered(lambda tensors, header: (tensors, "{" * 1000)),
    "the id of another": altered(lambda tensors, header: (tensors, header | {"id": "00000000"})),
    "a million layers": altered(other_depth),
    "a tensor less": altered(lambda tensors, header: (without_first_convolution(tensors), header)),
    "other shapes": altered(lambda tensors, header: ({name: torch.zeros(2, 2) for name in tensors}, header)),
}


@pytest.mark.parametrize("harm", BAD_WEIGHTS.values(), ids=BAD_WEIGHTS)
def test_a_file_that_is_none_of_ours_is_refused_in_a_line(config, tmp_path, harm):
    cfg = config(*DIGITS, f"store={tmp_path}")
    path, *_ = run_with_weights(cfg)
    file = tmp_path / "w.safetensors"
    weights.export(path, {"test_error": 5.0}, file)
    harm(file)
    with pytest.raises(UserError, match=r"w\.safetensors: must be a file that scripts/export\.py") as refusal:
        normloss.load(file)
    assert "\n" not in str(refusal.value)


def test_export_keeps_the_weights_of_named_runs(config, tmp_path, load_script, capsys):
    cfg = config(*DIGITS, f"store={tmp_path / 'runs'}")
    path, *_ = run_with_weights(cfg)
    shutil.move(path, tmp_path / "kept")
    write_run(tmp_path / "runs", cfg, 5.0)
    shutil.copy(tmp_path / "kept" / "last.pt", path)
    words = [str(tmp_path / "runs"), "--results", str(tmp_path / "results")]
    export = load_script("export").main
    for times in (1, 0):
        assert export([*words, "--weights", cfg.id]) == 0
        assert f"weights of {times} runs added" in capsys.readouterr().out
    assert normloss.load(tmp_path / "results" / "weights" / f"{cfg.id}.safetensors")
    assert export([*words, "--weights"]) == 0
    assert "weights of 0 runs added, 0 were there" in capsys.readouterr().out  # none of the small studies'
    (path / "last.pt").unlink()
    shutil.rmtree(tmp_path / "results" / "weights")
    assert export([*words, "--weights", cfg.id]) == 2
    assert "its weights: last.pt is gone" in capsys.readouterr().err


def test_small_table1_keeps_every_seed_and_the_others_one(config, tmp_path):
    from scripts.export import chosen

    table1 = ("dataset=cifar10", "model=resnet20", "recipe=mini", "train.epochs=16", "train.milestones=[8,12]")
    fig2 = ("dataset=cifar10", "model=resnet8", "recipe=mini", "train.epochs=8", "train.milestones=[4,6]")
    of_table1 = {write_run(tmp_path, config(*table1, "reg=nl", f"seed={seed}"), 5.0) for seed in (1, 2)}
    first, second = (write_run(tmp_path, config(*fig2, "reg=nl", "reg.lam=1e-3", f"seed={s}"), 5.0) for s in (1, 2))
    other = write_run(tmp_path, config(*DIGITS), 5.0)
    kept = chosen(load_runs(tmp_path))
    assert kept == {*of_table1, first}
    assert not {second, other} & kept
