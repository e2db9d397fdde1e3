"""The run store: what kills, full disks and damaged files leave behind, what readers and the next start make of it."""

import errno
import itertools
import os
import random
import shutil
import socket
import warnings
from pathlib import Path

import numpy as np
import pytest
import runs_support
import torch
from conftest import refused
from filelock import FileLock
from runs_support import STEPS, finish, killed_after, log_epoch, metrics, session, state_at, train, write_run

from normloss.config import trained_config
from normloss.errors import Diverged, Interrupted, Locked, UserError
from normloss.runs import checkpoint, files, store
from normloss.runs.files import Damaged, write_whole
from normloss.runs.records import RunWarning, load_run, load_runs
from normloss.runs.store import open_run

DIGITS = ("dataset=digits", "model=resnet8")
HARMS = {
    "gone": lambda file: file.unlink(),
    "empty": lambda file: file.write_bytes(b""),
    "garbage": lambda file: file.write_bytes(b"\x00\xff<html>\n" * 50),
    "half": lambda file: file.write_bytes(file.read_bytes()[: file.stat().st_size // 2]),
    "another's": lambda file: file.write_text("[1, 2, 3]\n"),
    "a link": lambda file: (file.rename(file.parent.parent / "moved"), file.symlink_to(file.parent.parent / "moved")),
}
harmed = pytest.mark.parametrize("harm", HARMS.values(), ids=HARMS)


@pytest.fixture(scope="module")
def composed(config):
    return config(*DIGITS)


@pytest.fixture
def cfg(composed, tmp_path):
    return composed.model_copy(update={"store": str(tmp_path / "runs")})


@pytest.fixture
def folder(cfg):
    """Where the run of `cfg` is."""
    return Path(cfg.store) / cfg.id


def restarted(cfg):
    return cfg.model_copy(update={"restart": True})


def load(cfg):
    """What starting again finds, and the folder after it."""
    with session(cfg) as run:
        return run.load("cpu")


def epochs_of(path):
    return [record["epoch"] for record in load_run(path).epochs]


def assert_restart_is_advised(cfg, words):
    line = refused(load, cfg)
    assert words in line and "restart=true trains anew" in line


def test_what_a_kill_leaves_of_a_write_is_removed_by_the_next_start(cfg, monkeypatch):
    path = killed_after(cfg, last=1)
    whole = (path / "meta.json").read_bytes()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "replace", runs_support.kill_at_call(1, os.replace))
        write_whole(path / "meta.json", b"new")
    assert list(path.glob(".*.partial"))
    assert (path / "meta.json").read_bytes() == whole
    open_run(cfg)._lock.release()
    assert not list(path.glob(".*.partial"))


@pytest.mark.parametrize("rename", [1, 2])
def test_a_kill_between_the_renames_of_a_save_leaves_a_whole_checkpoint(cfg, monkeypatch, rename):
    killed_after(cfg, last=2)
    run = open_run(cfg)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "replace", runs_support.kill_at_call(rename, os.replace))
        run.save(state_at(3 * STEPS), 3, 3 * STEPS)
    run._lock.release()
    assert load(cfg)["step"] == 2 * STEPS


class MakesFolder:
    """Unpickled, it would run code."""

    def __reduce__(self):
        return os.mkdir, ("evil",)


DAMAGES = {
    "empty": lambda content: b"",
    "half": lambda content: content[: len(content) // 2],
    "zeros at the end": lambda content: content[:-512] + bytes(512),
    "another file": lambda content: b"<html>not found</html>" * 100,
    "another run's": lambda content: checkpoint.pack(state_at(8) | {"id": "00000000", "epochs_bytes": 0}),
    "weights only": lambda content: checkpoint.pack({"weights": torch.ones(3)}),
    "code": lambda content: checkpoint.pack(state_at(8) | {"epochs_bytes": 0, "x": MakesFolder()}),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_of_a_damaged_checkpoint_the_one_before_is_taken_and_of_two_neither(cfg, capsys, monkeypatch, tmp_path, damage):
    monkeypatch.chdir(tmp_path)
    path = killed_after(cfg, last=2, unsaved=True)
    broken = damage((path / "last.pt").read_bytes())
    (path / "last.pt").write_bytes(broken)
    assert load(cfg)["step"] == STEPS
    (line,) = capsys.readouterr().out.splitlines()
    assert f"run {cfg.id}: {path / 'last.pt'} " in line
    assert epochs_of(path) == [1]  # the records are cut back to it
    assert load(cfg)["step"] == STEPS
    assert capsys.readouterr().out == ""
    (path / "last.pt").write_bytes(broken)
    for _ in range(2):
        assert_restart_is_advised(cfg, "last.pt ")
    assert not Path("evil").exists()
    assert epochs_of(path) == [1]  # for whoever wants to look
    assert load(restarted(cfg)) is None


@pytest.mark.parametrize("part", ["anywhere", "directory"])
def test_a_flipped_bit_of_a_checkpoint_is_found(cfg, part):
    """directory: the zip file's list of contents, which its own checksums do not cover."""
    file = killed_after(cfg, last=1) / "last.pt"
    whole = file.read_bytes()
    first = 0 if part == "anywhere" else whole.index(b"PK\x01\x02")
    for bit in random.Random(0).sample(range(8 * first, 8 * len(whole)), 40):
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        file.write_bytes(flipped)
        with pytest.raises(Damaged, match="its checksum does not fit"):
            checkpoint.load(file)


def test_resuming_cuts_the_logs_back_to_the_checkpoint_and_logs_every_step_once(cfg):
    path = killed_after(cfg, last=2, unsaved=True)
    with open(path / "epochs.jsonl", "a") as file:
        file.write('{"epoch": 4, "secon')
    assert epochs_of(path) == [1, 2, 3]  # a torn last line is not read
    with session(cfg) as run:
        assert run.load("cpu")["step"] == 2 * STEPS
        assert epochs_of(path) == [1, 2]
        train(run, 3, 4)
    assert epochs_of(path) == [1, 2, 3, 4]
    steps, ce = load_run(path).steps()
    assert steps.tolist() == list(range(1, 4 * STEPS + 1))
    assert ce.tolist() == list(range(4 * STEPS))
    assert ce.dtype == np.float32


@pytest.mark.parametrize("saved", [2, 0])
def test_logs_that_no_checkpoint_knows_of_are_emptied(cfg, saved):
    """Saved within the first epoch, or never."""
    run = open_run(cfg)
    run.describe(data="abc")
    if saved:
        run.save({**state_at(saved), "logged_steps": 0}, 0, saved)
    log_epoch(run, 1)
    run._lock.release()
    assert (load(cfg) or {"step": 0})["step"] == saved
    assert epochs_of(run.path) == []
    assert len(load_run(run.path).steps()[0]) == 0


@harmed
@pytest.mark.parametrize("name", ["config.yaml", "meta.json", "status.json", "epochs.jsonl", "steps.npz"])
def test_a_damaged_file_of_an_unfinished_run_stops_the_start_with_advice(cfg, name, harm):
    path = killed_after(cfg, last=2)
    harm(path / name)
    for _ in range(2):
        assert_restart_is_advised(cfg, f"run {cfg.id}: {path / name} ")
    assert load(restarted(cfg)) is None


def state_of(cfg):
    (run,) = load_runs(cfg.store)
    return run.state


def test_a_run_that_a_process_holds_is_running_and_locked(cfg):
    open_run(cfg)._lock.release()
    assert state_of(cfg) == "new"
    path = killed_after(cfg, last=1)
    with FileLock(path / ".lock"):
        assert state_of(cfg) == "running"
        with pytest.raises(Locked) as locked:
            open_run(cfg)
    assert f"host {socket.gethostname()}, pid {os.getpid()}" in str(locked.value)  # as status.json has it
    assert "\n" not in str(locked.value)
    assert state_of(cfg) == "incomplete"
    assert load(cfg)["step"] == STEPS


ENDS = {"incomplete": Interrupted("stopped"), "diverged": Diverged("nan"), "failed": RuntimeError("a defect\nmore")}


@pytest.mark.parametrize("state", ENDS)
def test_how_a_session_ends_is_the_state(cfg, state):
    with pytest.raises(type(ENDS[state])), session(cfg) as run:
        run.describe(data="abc")
        train(run, 1, 1)
        assert state_of(cfg) == "running"
        raise ENDS[state]
    assert state_of(cfg) == state
    status = files.read_json(run.path / "status.json")
    assert (status["error"], status["attempts"]) == (str(ENDS[state]).splitlines()[0], 1)
    if state != "diverged":
        assert load(cfg)["step"] == STEPS
        return
    for _ in range(2):
        with pytest.raises(Diverged, match="restart=true"):
            open_run(cfg)
    assert load(restarted(cfg)) is None
    assert not (run.path / "epochs.jsonl").exists()


def test_a_finished_run_needs_no_lock_no_training_and_one_file_to_be_read(cfg, folder):
    with session(cfg) as run:
        finish(run, 2)
    assert not (folder / "last.pt.prev").exists()
    (folder / ".lock").unlink()
    assert open_run(cfg).done
    assert not (folder / ".lock").exists()
    (folder / "config.yaml").unlink()  # as runs of older versions need
    record = load_run(folder)
    assert (record.state, record.config) == ("done", trained_config(cfg.stored()))
    assert record.final == {**metrics(2), "id": cfg.id, "seconds": 3.0}


@pytest.mark.parametrize("deleted", range(5))
def test_a_restart_cut_short_leaves_no_run_that_looks_done_or_whole(cfg, folder, monkeypatch, deleted):
    with session(cfg) as run:
        finish(run, 2)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "unlink", runs_support.kill_at_call(deleted + 1, Path.unlink))
        open_run(restarted(cfg))
    whole = all((folder / name).exists() for name in ("epochs.jsonl", "steps.npz", "meta.json"))
    assert whole or not (folder / "DONE").exists()
    assert whole or not (folder / "last.pt").exists()


def test_a_run_that_is_refused_before_it_saved_is_as_it_was_however_many_steps_it_took(cfg, folder, monkeypatch):
    monkeypatch.setattr(store, "HEARTBEAT_SECONDS", -1)
    with pytest.raises(UserError), session(cfg) as run:
        run.beat(epoch=0, step=3)
        raise UserError("an unreadable image")
    assert not folder.exists()


def test_a_sign_of_life_is_written_now_and_then(cfg, monkeypatch):
    with session(cfg) as run:
        run.beat(1, 10)
        assert run.status["step"] == 0
        monkeypatch.setattr(store, "HEARTBEAT_SECONDS", 0)
        run.beat(1, 20)
        assert files.read_json(run.path / "status.json")["step"] == 20


def test_every_session_that_trains_is_in_the_meta_data(cfg, folder, monkeypatch):
    moments = iter("abcdefghijklmnopqrst")
    monkeypatch.setattr(store, "now", lambda: next(moments))
    with pytest.raises(Interrupted), session(cfg) as run:
        run.describe(data="abc", device="cpu")
        train(run, 1, 1)
        raise Interrupted("stopped")
    before = (folder / "meta.json").read_bytes()
    with pytest.raises(UserError), session(cfg):
        raise UserError("no data")  # before it could describe itself
    assert (folder / "meta.json").read_bytes() == before
    with session(cfg) as run:
        run.load("cpu")
        run.describe(data="abc", device="cuda")
        train(run, 2, 2)
        run.finish(metrics(2))
    meta = load_run(folder).meta
    first, second = meta["sessions"]
    assert (first["device"], first["from_step"], second["device"], second["from_step"]) == ("cpu", 0, "cuda", STEPS)
    assert (meta["device"], meta["seconds_per_epoch"]) == ("cuda", 1.5)
    assert meta["started"] == first["started"] < second["started"]
    assert all(part["ended"] for part in meta["sessions"])


def test_resuming_with_other_data_is_an_error_once_something_was_trained(cfg):
    with pytest.raises(Interrupted), session(cfg) as run:
        run.describe(data="abd")
        raise Interrupted("stopped")
    killed_after(cfg, last=1)  # with data abc
    with session(cfg) as run:
        run.check_data("abc")
    with pytest.raises(UserError, match=r"data changed.*restart=true"), session(cfg) as run:
        run.check_data("abd")
    with session(restarted(cfg)) as run:
        run.check_data("abd")


@pytest.fixture(scope="module")
def written(config, tmp_path_factory):
    """A store with wd and nl, two seeds each, and the last run's id."""
    store = tmp_path_factory.mktemp("written")
    for reg, seed in itertools.product(("wd", "nl"), (0, 1)):
        last = write_run(store, config(*DIGITS, f"reg={reg}", f"seed={seed}"), 5.0 + seed)
    return store, last


@pytest.fixture
def path(written, tmp_path):
    """That run in a copy of the store."""
    return shutil.copytree(written[0], tmp_path / "runs") / written[1]


@harmed
@pytest.mark.parametrize("name", ["config.yaml", "DONE"])
def test_a_run_whose_config_or_end_is_damaged_is_named_and_left_out(path, name, harm):
    harm(path / name)
    if name == "DONE" and not (path / name).exists():
        assert load_run(path).state == "incomplete"
        return
    with pytest.warns(RunWarning) as told:
        assert len(load_runs(path.parent)) == 3
    (line,) = (str(warning.message) for warning in told)
    assert line.startswith(f"{path / name} ") and line.endswith("; this run is excluded") and "\n" not in line


@harmed
@pytest.mark.parametrize(("name", "logs"), [("meta.json", "meta"), ("epochs.jsonl", "epochs"), ("steps.npz", "curve")])
def test_what_is_damaged_next_to_done_is_found_by_whoever_reads_it(path, name, logs, harm):
    harm(path / name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (run,) = (run for run in load_runs(path.parent) if run.path == path)
    assert run.final["test_error"] == 6.0
    assert refused(lambda: run.curve() if logs == "curve" else getattr(run, logs)).startswith(f"{path / name} ")


def test_what_is_no_run_is_left_out(path):
    runs = path.parent
    (runs / "notes").mkdir()
    (runs / "multirun.yaml").write_text("")
    assert len(load_runs(runs)) == 4
    assert load_runs(runs / "nowhere") == []
    shutil.copytree(path, runs / "\x1b[2J")
    path.rename(runs.parent / path.name)
    path.symlink_to(runs.parent / path.name)
    with pytest.warns(RunWarning) as told:
        assert len(load_runs(runs)) == 3
    copied, linked = (str(warning.message) for warning in told)
    assert f"holds the config of run {path.name}" in copied and copied.isprintable()
    assert linked.startswith(f"{path} is a symbolic link")


def test_a_yaml_tag_runs_nothing(path, tmp_path):
    (path / "config.yaml").write_text(f"!!python/object/apply:os.mkdir ['{tmp_path / 'evil'}']")
    with pytest.warns(RunWarning, match="config.yaml is damaged"):
        load_runs(path.parent)
    assert not (tmp_path / "evil").exists()


def test_commands_continue_without_a_damaged_run_and_report_it_at_the_end(path, tmp_path, load_script, capsys):
    (path / "config.yaml").unlink()
    compare, export = (load_script(name).main for name in ("compare", "export"))
    assert compare(["dataset=digits", f"--store={path.parent}", "--out", str(tmp_path / "out")]) == 0
    assert export([str(path.parent), "--results", str(tmp_path / "results")]) == 0
    assert capsys.readouterr().err == 2 * f"normloss: warning: {path}/config.yaml is gone; this run is excluded\n"
    assert len(list((tmp_path / "results" / "archive").iterdir())) == 3


@pytest.mark.parametrize("name", ["config.yaml", "status.json", "meta.json", "steps.npz", "last.pt", "DONE"])
def test_a_disk_that_is_full_at_any_file_interrupts_and_resumes(cfg, folder, monkeypatch, name):
    def replace(source, target, replace=os.replace):
        if Path(target).name == name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", replace)
        with pytest.raises(Interrupted, match="No space left") as stop, session(cfg) as run:
            finish(run, 2)
    assert stop.value.status == 75
    assert "\n" not in str(stop.value)
    assert not list(folder.glob(".*.partial"))
    with session(cfg) as run:
        state = run.load("cpu")
        run.describe(data="abc")
        train(run, 1 + (state["step"] // STEPS if state else 0), 2)
        run.finish(metrics(2))
    assert load_run(folder).state == "done"
    assert epochs_of(folder) == [1, 2]


def test_an_impossible_store_is_an_error(config, tmp_path):
    (tmp_path / "file").write_text("")
    for place in ("/proc/nowhere", tmp_path / "file", tmp_path / "file" / "below"):
        assert "store: must be" in refused(open_run, config(*DIGITS, f"store={place}"))
