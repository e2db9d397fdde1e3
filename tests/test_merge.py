"""Runs of other stores: what is taken, what is named and left, and what a stranger's folder cannot do."""

import json
import os
import shutil
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import ROOT
from test_store import STEPS, finish, killed_after, metrics, session, train

from normloss.config import run_id
from normloss.errors import Locked, UserError
from normloss.runs import contract
from normloss.runs.files import find_damage, read_json
from normloss.runs.merge import ORDER, merge
from normloss.runs.records import load_run, load_runs, read_epochs
from normloss.signals import Signalled

DIGITS = ["dataset=digits", "model=resnet8", "wandb.mode=disabled", "threads=1", "device=cpu"]
DATA = Path(__file__).parent / "data"


@pytest.fixture
def there(config, tmp_path):
    return config("dataset=digits", "model=resnet8", f"store={tmp_path / 'there'}")


@pytest.fixture
def here(there, tmp_path):
    """The same run in the store that others are merged into."""
    return there.model_copy(update={"store": str(tmp_path / "here")})


def start(*words: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "train.py", *words], cwd=ROOT, capture_output=True, text=True)


def take(*stores, into):
    return merge([Path(cfg.store) for cfg in stores], Path(into.store))


def folder(cfg) -> Path:
    return Path(cfg.store) / cfg.id


def content(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.iterdir() if file.name != ".lock"}


def change(path: Path, **values) -> None:
    """Other values in a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


# what is taken -----------------------------------------------------------------------------------


def test_a_new_run_is_taken_whole_and_twice_is_once(there, here):
    killed_after(there, last=2)
    assert take(there, into=here).new == [there.id]
    taken = content(folder(here))
    assert taken == {name: data for name, data in content(folder(there)).items() if name != "last.pt.prev"}
    assert take(there, into=here).here == [there.id]
    assert content(folder(here)) == taken
    assert sorted(path.name for path in Path(here.store).iterdir()) == [".merge.lock", here.id]


def test_a_run_that_went_on_elsewhere_is_taken_and_goes_on_here(there, here):
    killed_after(here, last=1)
    shutil.copytree(here.store, there.store)
    with pytest.raises(KeyboardInterrupt), session(there) as run:
        run.load("cpu")
        train(run, 2, 3)
        raise KeyboardInterrupt
    log = folder(there) / "epochs.jsonl"
    log.write_text(log.read_text().replace('"seconds": 1.5', '"seconds": 1.25'))  # of another machine; of other length
    assert take(there, into=here).new == []
    log.write_text(log.read_text().replace('"seconds": 1.25', '"seconds": 9.5'))  # of the length in the checkpoint
    assert content(folder(here))["last.pt"] == content(folder(there))["last.pt"]
    with session(here) as run:
        assert run.load("cpu")["step"] == 3 * STEPS


def test_a_finished_run_replaces_an_unfinished_one(there, here):
    killed_after(here, last=1)
    with session(there) as run:
        finish(run, 2)
    assert take(there, into=here).further == [here.id]
    assert load_run(folder(here)).final["test_error"] == 5.0
    assert not (folder(here) / "last.pt.prev").exists()


def test_a_run_that_is_further_here_stays(there, here):
    killed_after(there, last=1)
    killed_after(here, last=2)
    before = content(folder(here))
    assert take(there, into=here).here == [here.id]
    assert content(folder(here)) == before


def test_a_checkpoint_within_an_epoch_counts(there, here):
    for cfg, step in ((here, 5), (there, 7)):
        path = killed_after(cfg, last=1)
        change(path / "status.json", saved=step)
    assert take(there, into=here).further == [here.id]
    assert take(there, into=here).here == [here.id]


def test_finished_runs_that_agree_but_for_their_seconds_are_one(there, here):
    for cfg in (there, here):
        with session(cfg) as run:
            finish(run, 2)
    change(folder(there) / "DONE", seconds=77.0)
    before = content(folder(here))
    assert take(there, into=here).here == [here.id]
    assert content(folder(here)) == before


def test_several_stores_at_once(there, here, config, tmp_path):
    other = config("dataset=digits", "model=resnet8", "seed=1", f"store={tmp_path / 'third'}")
    for cfg in (there, other):
        killed_after(cfg, last=1)
    assert sorted(take(there, other, into=here).new) == sorted([there.id, other.id])


def test_a_run_that_was_only_opened_here_is_taken(there, here):
    killed_after(there, last=1)
    folder(here).mkdir(parents=True)
    (folder(here) / ".lock").touch()
    assert take(there, into=here).new == [here.id]


def test_runs_of_version_0_1_0_are_taken(here, tmp_path):
    with tarfile.open(DATA / "runs_0.1.0.tar.xz") as archive:
        archive.extractall(tmp_path / "old", filter="data")
    merged = merge([tmp_path / "old"], Path(here.store))
    assert sorted(merged.new) == ["9f444f44", "f3db9b67"]
    assert not merged.refused
    assert [run.state for run in load_runs(here.store)] == ["incomplete", "done"]
    assert find_damage(Path(here.store) / "9f444f44" / "last.pt") is None


@pytest.mark.slow
def test_budgets_on_empty_machines_end_like_one_undisturbed_run(tmp_path):
    """Budgets stop a run twice; each time it goes on in a store that has merged the one before."""
    words = [*DIGITS, "reg=nl", "seed=5", "train.epochs=8", "train.milestones=[4]"]
    whole = start(*words, f"store={tmp_path / 'whole'}")
    assert whole.returncode == 0, whole.stderr
    stopped = 0
    for machine in range(9):
        store = tmp_path / f"machine{machine}"
        if machine:
            assert len(merge([tmp_path / f"machine{machine - 1}"], store).new) == 1
        budget = ["budget_minutes=0.25"] if machine < 2 else []
        ran = start(*words, f"store={store}", *budget)
        if ran.returncode == 0:
            break
        assert ran.returncode == 75
        assert "stopped by the end of its budget at step" in ran.stderr
        stopped += 1
    assert stopped
    (one,), (other,) = load_runs(tmp_path / "whole"), load_runs(store)
    for mine, theirs in zip(one.epochs, other.epochs, strict=True):
        assert {**mine, "seconds": 0} == {**theirs, "seconds": 0}
    np.testing.assert_array_equal(one.steps()[1], other.steps()[1])
    assert len(other.meta["sessions"]) == stopped + 1


# what is named and left --------------------------------------------------------------------------


def assert_left(there, here, words):
    """The run there is named with `words`, and both are as they were."""
    before, theirs = content(folder(here)) if folder(here).exists() else None, content(folder(there))
    merged = take(there, into=here)
    (line,) = merged.refused
    assert words in line
    assert "\n" not in line
    assert not (merged.new or merged.further)
    assert (content(folder(here)) if folder(here).exists() else None) == before
    assert content(folder(there)) == theirs


@pytest.mark.parametrize("longer", ["there", "here"])
def test_runs_that_took_different_ways_are_left(there, here, longer):
    killed_after(there, last=2 if longer == "there" else 1)
    killed_after(here, last=2 if longer == "here" else 1)
    log = folder(there) / "epochs.jsonl"
    log.write_text(log.read_text().replace('"epoch": 1,', '"epoch": 1, "test_error": 3.5,'))
    assert_left(there, here, "its epochs are not those of the run here")


def test_finished_runs_that_ended_differently_are_left(there, here):
    for cfg, error in ((there, 5.0), (here, 6.0)):
        with session(cfg) as run:
            run.describe(data="abc")
            train(run, 1, 2)
            run.finish(metrics(2, error))
    assert_left(there, here, "it ended with other metrics than the run here")


def test_runs_on_different_images_are_left(there, here):
    for cfg in (there, here):
        killed_after(cfg, last=1)
    change(folder(there) / "meta.json", data="other")
    assert_left(there, here, "other data")


def test_a_damaged_run_of_ours_is_left(there, here):
    for cfg in (there, here):
        killed_after(cfg, last=1)
    (folder(here) / "meta.json").write_text("")
    assert_left(there, here, "the run here is damaged (meta.json is empty)")


def test_a_run_in_training_is_left_alone_on_both_sides(there, here):
    killed_after(there, last=2)
    with session(here):
        assert take(there, into=here).busy == [here.id]
    with session(there):
        assert take(there, into=here).busy == [here.id]


def test_a_run_without_anything_saved_is_no_mistake(there, here):
    with pytest.raises(KeyboardInterrupt), session(there):
        raise KeyboardInterrupt
    assert take(there, into=here).unsaved == [there.id]
    assert not folder(here).exists()


def test_a_store_is_not_merged_into_itself(here):
    killed_after(here, last=1)
    with pytest.raises(UserError, match="is the store"):
        take(here, into=here)


def signalled(work, done_first):
    """The same work, a signal at its end or in its place: Python notices one between any two steps."""

    def do(*arguments, **words):
        if done_first:
            work(*arguments, **words)
        raise Signalled("SIGINT")

    return do


@pytest.mark.parametrize(("module", "name", "done_first"), [(tempfile, "mkdtemp", True), (shutil, "rmtree", False)])
def test_a_signal_between_a_copys_making_and_removing_leaves_none(there, here, monkeypatch, module, name, done_first):
    killed_after(there, last=2)
    work = getattr(module, name)
    once = iter([signalled(work, done_first)])
    with monkeypatch.context() as patched:
        patched.setattr(module, name, lambda *arguments, **words: next(once, work)(*arguments, **words))
        with pytest.raises(Signalled):
            take(there, into=here)
    assert not list(Path(here.store).glob(".merge-*"))
    take(there, into=here)
    assert load_run(folder(here)).state == load_run(folder(there)).state


def test_one_merge_at_a_time(there, here):
    killed_after(there, last=1)
    from filelock import FileLock

    Path(here.store).mkdir()
    with FileLock(Path(here.store) / ".merge.lock"), pytest.raises(Locked):
        take(there, into=here)


@pytest.mark.parametrize("cut", range(1, 9))
def test_a_merge_that_is_killed_is_ended_by_the_next(there, here, monkeypatch, cut):
    killed_after(here, last=1)
    with session(there) as run:
        finish(run, 2)
    from test_store import kill_at_call

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", kill_at_call(cut))
        if cut <= len(ORDER):
            with pytest.raises(KeyboardInterrupt):
                take(there, into=here)
            assert not (folder(here) / "DONE").exists() or load_run(folder(here)).state == "done"
        else:
            take(there, into=here)
    take(there, into=here)
    assert load_run(folder(here)).state == "done"
    assert not list(Path(here.store).glob(".merge-*"))


# a stranger's folders ----------------------------------------------------------------------------


def tree(path: Path) -> dict[str, bytes | None]:
    """Everything below a folder."""
    return {str(file.relative_to(path)): file.read_bytes() if file.is_file() else None for file in path.rglob("*")}


def rename(path: Path) -> None:
    path.rename(path.with_name("00000000"))


def link_to_elsewhere(path: Path) -> None:
    path.rename(path.parent.parent / "elsewhere")
    path.symlink_to(path.parent.parent / "elsewhere")


def replaced(name: str, make):
    def harm(path: Path) -> None:
        (path / name).unlink(missing_ok=True)
        make(path / name)

    return harm


def socket_at(file: Path) -> None:
    here = os.getcwd()
    os.chdir(file.parent)  # a socket's path is short
    try:
        socket.socket(socket.AF_UNIX).bind(file.name)
    finally:
        os.chdir(here)


def sparse(size: int):
    return lambda file: os.truncate(os.open(file, os.O_CREAT | os.O_RDWR), size)


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(f"b{i}: &b{i} [*a, *a, *a]\n" for i in range(30))
HARMS = {
    "the id of another": (rename, "a folder is named by the id of its own config"),
    "a name that is none": (lambda path: path.rename(path.with_name("..evil")), None),
    "a copy": (lambda path: path.rename(path.with_name(f"{path.name} (copy)")), "not named by the id"),
    "a name with a command for terminals": (lambda path: path.rename(path.with_name("\x1b[2Jx\n")), "?[2Jx"),
    "a link": (link_to_elsewhere, "it is not a folder"),
    "a file": (lambda path: (shutil.rmtree(path), path.write_text("")), "it is not a folder"),
    "a pipe as config": (replaced("config.yaml", os.mkfifo), "config.yaml is not a regular file"),
    "a pipe as log": (replaced("epochs.jsonl", os.mkfifo), "epochs.jsonl is not a regular file"),
    "a socket as weights": (replaced("last.pt", socket_at), "last.pt cannot be read"),
    "a link to a file as config": (replaced("config.yaml", lambda f: f.symlink_to("/etc/passwd")), "a symbolic link"),
    "a link to a file as weights": (replaced("last.pt", lambda f: f.symlink_to("/etc/passwd")), "a symbolic link"),
    "a link to a device": (replaced("steps.npz", lambda f: f.symlink_to("/dev/zero")), "a symbolic link"),
    "a folder as log": (replaced("epochs.jsonl", Path.mkdir), "epochs.jsonl cannot be read"),
    "a huge config": (replaced("config.yaml", sparse(2**40)), "config.yaml is larger"),
    "huge weights": (replaced("last.pt", sparse(2**40)), "last.pt is larger"),
    "deep YAML": (replaced("config.yaml", lambda f: f.write_text("a: " + "[" * 50_000)), "nested more than"),
    "deep JSON": (replaced("status.json", lambda f: f.write_text('{"a":' + "[" * 60_000)), "status.json is damaged"),
    "a YAML bomb": (replaced("config.yaml", lambda f: f.write_text(BOMB)), "anchors"),
    "a YAML tag": (
        replaced("config.yaml", lambda f: f.write_text("!!python/object/apply:os.system ['touch evil']")),
        "tags",
    ),
    "a date in YAML": (replaced("config.yaml", lambda f: f.write_text("seed: 2026-01-01")), "plain values"),
    "binary": (replaced("config.yaml", lambda f: f.write_bytes(os.urandom(500))), "config.yaml is"),
    "no UTF-8": (replaced("meta.json", lambda f: f.write_bytes(b'{"a": "\xff\xfe"}')), "meta.json is damaged"),
    "a list": (replaced("status.json", lambda f: f.write_text("[1, 2]")), "no JSON object"),
    "a pickle in the steps": (
        replaced("steps.npz", lambda f: np.savez(f, step=[{}], ce=[{}])),
        "steps.npz is damaged",
    ),
    "a truncated checkpoint": (lambda path: os.truncate(path / "last.pt", 100), "last.pt is damaged"),
    "half a log": (replaced("epochs.jsonl", lambda f: f.write_text('{"epoch": 7}\n')), "epochs.jsonl is damaged"),
}


@pytest.mark.parametrize(("harm", "words"), HARMS.values(), ids=HARMS)
def test_a_strangers_folder_is_named_in_a_line_and_nothing_of_it_is_written(there, here, tmp_path, harm, words):
    killed_after(here.model_copy(update={"seed": 5}), last=1)
    killed_after(there, last=2)
    harm(folder(there))
    before, began = tree(Path(here.store)), time.monotonic()
    merged = take(there, into=here)
    assert time.monotonic() - began < 10
    assert tree(Path(here.store)) == before | {".merge.lock": b""}
    assert not (tmp_path / "evil").exists()
    assert not (merged.new or merged.further or merged.here)
    if words is None:
        assert merged.refused == []
    else:
        (line,) = merged.refused
        assert words in line
        assert line.isprintable()


def test_only_the_files_of_a_run_are_taken(there, here):
    path = killed_after(there, last=1)
    for name in ("evil.py", "last.pt.corrupt", "..", "..."):
        if not (path / name).exists():
            (path / name).write_text("evil")
    (path / "wandb").mkdir()
    (path / "wandb" / "evil").symlink_to("/etc/passwd")
    assert take(there, into=here).new == [there.id]
    assert content(folder(here)).keys() == {
        "config.yaml",
        "meta.json",
        "status.json",
        "epochs.jsonl",
        "steps.npz",
        "last.pt",
    }


def test_a_lock_that_is_a_link_opens_nothing(there, here, tmp_path):
    path = killed_after(there, last=1)
    (tmp_path / "precious").write_text("mine")
    (path / ".lock").unlink()
    (path / ".lock").symlink_to(tmp_path / "precious")
    assert take(there, into=here).new == [there.id]
    assert (tmp_path / "precious").read_text() == "mine"


def test_a_config_that_is_not_ours_is_no_run_even_under_its_own_id(there, here):
    path = killed_after(there, last=1)
    stored = yaml.safe_load((path / "config.yaml").read_text())
    stored["reg"]["lam"] = "../../evil"
    (path / "config.yaml").write_text(yaml.safe_dump(stored))
    path.rename(path.with_name(run_id(stored)))
    (line,) = take(there, into=here).refused
    assert "config.yaml is no config of a run (reg.lam" in line


def test_a_small_steps_file_does_not_unfold_into_a_large_one(there, here):
    path = killed_after(there, last=1)
    np.savez_compressed(path / "steps.npz", step=np.arange(1, 5), ce=np.zeros(10**7, np.float32))
    (line,) = take(there, into=here).refused
    assert "steps.npz is damaged (compressed)" in line


def test_a_read_only_store_is_read(there, here):
    path = killed_after(there, last=1)
    for file in (*path.iterdir(), path, path.parent):
        file.chmod(0o500 if file.is_dir() else 0o400)
    assert take(there, into=here).new == [there.id]
    path.parent.chmod(0o700)
    path.chmod(0o700)
    assert os.access(folder(here), os.W_OK)
    assert os.access(folder(here) / "epochs.jsonl", os.W_OK)
    assert read_epochs(folder(here))
    assert read_json(folder(here) / "status.json")["saved"] == STEPS


# the command -------------------------------------------------------------------------------------


def test_the_command_says_what_was_taken(there, here, load_script, capsys):
    path = killed_after(there, last=1)
    main = load_script("merge").main
    assert main([there.store, "--store", here.store]) == 0
    assert (
        capsys.readouterr().out
        == f"{here.store}: 1 runs are new, 0 further than they were, 0 were here as far or further\n"
    )
    path.rename(path.with_name("00000000"))
    assert main([there.store, "--store", here.store]) == 2
    out, err = capsys.readouterr()
    assert f"left out: {there.store}/00000000: config.yaml is that of run {there.id}" in out
    assert err == "normloss: 1 of the folders could not be taken, see above\n"
    assert main([f"{there.store}x", "--store", here.store]) == 2
    assert "x: no such store" in capsys.readouterr().err


def test_a_busy_run_is_a_status_of_its_own(there, here, load_script, capsys):
    with session(there) as run:
        run.describe(data="abc")
        train(run, 1, 1)
        assert load_script("merge").main([there.store, "--store", here.store]) == 4
    assert f"left alone: {there.id}" in capsys.readouterr().out


def test_every_file_of_the_contract_has_its_place_in_the_order():
    assert set(ORDER) == set(contract.MOST_BYTES)
