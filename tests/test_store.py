"""The run store: what kills, full disks and flipped bits leave behind, and what starting again makes of it."""

import errno
import os
import random
import shutil
import socket
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from normloss.errors import Diverged, Interrupted, Locked, UserError
from normloss.runs import files, store
from normloss.runs.files import find_damage, write_whole
from normloss.runs.records import load_run, load_runs, read_epochs, read_steps
from normloss.runs.store import open_run

STEPS = 4  # an epoch
HOLD = "import sys, filelock; lock = filelock.FileLock(sys.argv[1]); lock.acquire(); print(flush=True); input()"


@pytest.fixture
def cfg(config, tmp_path):
    return config("dataset=digits", "model=resnet8", f"store={tmp_path}")


@pytest.fixture
def folder(cfg):
    """Where the run of `cfg` is."""
    return Path(cfg.store) / cfg.id


def restarted(cfg):
    return cfg.model_copy(update={"restart": True})


@contextmanager
def session(cfg):
    run = open_run(cfg)
    with run.session():
        yield run


def state_at(step):
    """A checkpoint between two epochs, as the trainer makes them."""
    return {"weights": torch.full((300,), float(step)), "step": step, "logged_steps": step}


def metrics(epochs, error=5.0):
    """What a finished run ends with."""
    measured = dict.fromkeys(("train_ce", "train_error", "test_ce", "test_error_top5", "penalty"), 1.0)
    norms = dict.fromkeys(("norm_mean", "norm_min", "norm_max"), 1.0)
    return {"epochs": epochs, "steps": epochs * STEPS, "test_error": error, **measured, **norms}


def finish(run, epochs):
    """Train that many epochs, then end."""
    run.describe(data="abc")
    train(run, 1, epochs)
    run.finish(metrics(epochs))


def log_epoch(run, epoch):
    first = (epoch - 1) * STEPS
    run.log_epoch({"epoch": epoch, "seconds": 1.5}, np.arange(first, first + STEPS))


def train(run, epoch, last):
    """Epochs up to `last`, each logged and then saved."""
    for number in range(epoch, last + 1):
        log_epoch(run, number)
        run.save(state_at(number * STEPS), number, number * STEPS)


def killed_after(cfg, last, unsaved=False):
    """A run that a kill ended after epoch `last`; unsaved: the next epoch was logged but not saved."""
    run = open_run(cfg)
    run._set_state("running", attempts=1)
    run.describe(data="abc")
    train(run, 1, last)
    if unsaved:
        log_epoch(run, last + 1)
    run._lock.release()  # as the kernel does
    return run.path


def load(cfg):
    """What starting again finds, and the folder after it."""
    with session(cfg) as run:
        return run.load("cpu")


def fail_with(number):
    def fail(*arguments, **options):
        raise OSError(number, os.strerror(number))

    return fail


# writes ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["open", "fsync"])
def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, where):
    file = tmp_path / "status.json"
    write_whole(file, b"old")
    if where == "open":
        monkeypatch.setattr(files, "open", fail_with(errno.ENOSPC), raising=False)
    else:
        monkeypatch.setattr(os, "fsync", fail_with(errno.ENOSPC))
    with pytest.raises(OSError, match="No space left"):
        write_whole(file, b"new and longer")
    assert [path.name for path in tmp_path.iterdir()] == ["status.json"]
    assert file.read_bytes() == b"old"


def test_a_kill_before_the_rename_leaves_the_old_file_and_the_next_write_works(tmp_path, monkeypatch):
    file = tmp_path / "status.json"
    write_whole(file, b"old")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "replace", kill_at_call(1))
        write_whole(file, b"new")
    assert file.read_bytes() == b"old"
    write_whole(file, b"newer")
    assert file.read_bytes() == b"newer"
    assert [path.name for path in tmp_path.iterdir()] == ["status.json"]


def kill_at_call(number, real=os.replace):
    """`real`, until its call of this number (counted from 1), where the process dies."""
    calls = []

    def call(*arguments, **options):
        calls.append(arguments)
        if len(calls) == number:
            raise KeyboardInterrupt
        return real(*arguments, **options)

    return call


# checkpoints -------------------------------------------------------------------------------------


def test_the_newest_checkpoint_is_loaded_and_the_one_before_is_kept(cfg):
    path = killed_after(cfg, last=3)
    assert torch.load(path / "last.pt.prev", weights_only=True)["step"] == 2 * STEPS
    state = load(cfg)
    assert state["step"] == 3 * STEPS
    assert torch.equal(state["weights"], state_at(3 * STEPS)["weights"])


@pytest.mark.parametrize("rename", [1, 2])
def test_a_kill_between_the_renames_of_a_save_leaves_a_whole_checkpoint(cfg, monkeypatch, rename):
    path = killed_after(cfg, last=2)
    run = open_run(cfg)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "replace", kill_at_call(rename))
        run.save(state_at(3 * STEPS), 3, 3 * STEPS)
    run._lock.release()
    assert load(cfg)["step"] == 2 * STEPS
    assert not list(path.glob("*.corrupt"))


DAMAGES = {
    "empty": lambda content: b"",
    "one byte": lambda content: content[:1],
    "half": lambda content: content[: len(content) // 2],
    "short by a byte": lambda content: content[:-1],
    "zeros at the end": lambda content: content[:-512] + bytes(512),
    "another file": lambda content: b"<html>not found</html>" * 100,
    "a flipped bit": lambda content: flip(content, 8 * (len(content) // 2)),
}


def flip(content, bit):
    flipped = bytearray(content)
    flipped[bit // 8] ^= 1 << bit % 8
    return bytes(flipped)


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_taken(cfg, capsys, damage):
    path = killed_after(cfg, last=2)
    broken = damage((path / "last.pt").read_bytes())
    (path / "last.pt").write_bytes(broken)
    assert load(cfg)["step"] == STEPS
    assert (path / "last.pt.corrupt").read_bytes() == broken
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1
    assert f"run {cfg.id}: last.pt is damaged" in lines[0]


@pytest.mark.parametrize("part", ["anywhere", "directory"])
def test_a_flipped_bit_of_a_checkpoint_is_found_or_harmless(cfg, part):
    """directory: the archive's list of contents, which its own checksums do not cover."""
    path = killed_after(cfg, last=1)
    file, whole = path / "last.pt", (path / "last.pt").read_bytes()
    first = 0 if part == "anywhere" else whole.index(b"PK\x01\x02")
    draw = random.Random(0)
    silent = []
    for bit in draw.sample(range(8 * first, 8 * len(whole)), 40 if part == "anywhere" else 400):
        file.write_bytes(flip(whole, bit))
        if not (find_damage(file) or torch.equal(torch.load(file)["weights"], state_at(STEPS)["weights"])):
            silent.append(bit)
    assert not silent


def test_without_a_whole_checkpoint_nothing_starts_until_restart(cfg):
    path = killed_after(cfg, last=2)
    for name in ("last.pt", "last.pt.prev"):
        (path / name).write_bytes(b"")
    for _ in range(2):  # the second time both are set aside already
        with pytest.raises(UserError, match="restart=true") as refusal:
            load(cfg)
        assert "\n" not in str(refusal.value)
    assert [record["epoch"] for record in read_epochs(path)] == [1, 2]  # for whoever wants to look
    assert load(restarted(cfg)) is None
    assert not list(path.glob("*.corrupt"))


# logs --------------------------------------------------------------------------------------------


def test_a_torn_last_line_is_not_read(cfg):
    path = killed_after(cfg, last=2)
    with open(path / "epochs.jsonl", "a") as file:
        file.write('{"epoch": 3, "secon')
    assert [record["epoch"] for record in load_run(path).epochs] == [1, 2]


def test_the_logs_are_cut_back_to_the_checkpoint(cfg):
    path = killed_after(cfg, last=2, unsaved=True)
    with open(path / "epochs.jsonl", "a") as file:
        file.write('{"epoch": 4, "secon')
    assert load(cfg)["step"] == 2 * STEPS
    assert [record["epoch"] for record in read_epochs(path)] == [1, 2]
    assert read_steps(path)[1].tolist() == list(range(2 * STEPS))


def test_the_logs_are_cut_back_further_with_the_checkpoint_before(cfg):
    path = killed_after(cfg, last=2, unsaved=True)
    (path / "last.pt").write_bytes(b"")
    assert load(cfg)["step"] == STEPS
    assert [record["epoch"] for record in read_epochs(path)] == [1]
    assert len(read_steps(path)[0]) == STEPS


def test_going_on_logs_every_epoch_and_step_once(cfg):
    path = killed_after(cfg, last=2, unsaved=True)
    with session(cfg) as run:
        run.load("cpu")
        train(run, 3, 4)
    assert [record["epoch"] for record in read_epochs(path)] == [1, 2, 3, 4]
    steps, ce = read_steps(path)
    assert steps.tolist() == list(range(1, 4 * STEPS + 1))
    assert ce.tolist() == list(range(4 * STEPS))
    assert ce.dtype == np.float32


def test_a_checkpoint_within_the_first_epoch_empties_the_logs(cfg):
    run = open_run(cfg)
    run.save({**state_at(2), "logged_steps": 0}, 0, 2)
    log_epoch(run, 1)
    run._lock.release()
    assert load(cfg)["step"] == 2
    assert read_epochs(run.path) == []
    assert len(read_steps(run.path)[0]) == 0


def test_without_a_checkpoint_the_logs_are_emptied(cfg):
    run = open_run(cfg)
    log_epoch(run, 1)
    run._lock.release()
    assert load(cfg) is None
    assert read_epochs(run.path) == []
    assert len(read_steps(run.path)[0]) == 0


# states ------------------------------------------------------------------------------------------


def state_of(cfg):
    (run,) = load_runs(cfg.store)
    return run.state


def test_a_run_that_was_only_opened_is_new(cfg):
    open_run(cfg)._lock.release()
    assert state_of(cfg) == "new"


def test_a_run_held_by_a_live_process_is_running_and_locked(cfg):
    path = killed_after(cfg, last=1)
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, path / ".lock"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    holder.stdout.readline()
    try:
        assert state_of(cfg) == "running"
        with pytest.raises(Locked) as locked:
            open_run(cfg)
        assert socket.gethostname() in str(locked.value)
        assert f"pid {os.getpid()}" in str(locked.value)  # status.json's, which this process wrote
        assert "\n" not in str(locked.value)
    finally:
        holder.kill()
        holder.communicate()
    assert state_of(cfg) == "incomplete"
    assert load(cfg)["step"] == STEPS  # at once


def test_a_reader_that_looks_whether_a_run_is_alive_does_not_lock_it_out(cfg):
    path = killed_after(cfg, last=1)
    look = "import sys, time, filelock; lock = filelock.FileLock(sys.argv[1]); lock.acquire(); print(flush=True)"
    reader = subprocess.Popen(
        [sys.executable, "-c", f"{look}; time.sleep(0.1)", path / ".lock"], stdout=subprocess.PIPE
    )
    reader.stdout.readline()
    assert load(cfg)["step"] == STEPS
    reader.communicate()


ENDS = {"incomplete": Interrupted("stopped"), "diverged": Diverged("nan"), "failed": RuntimeError("a defect\nmore")}


@pytest.mark.parametrize("state", ENDS)
def test_how_a_session_ends_is_the_state(cfg, state):
    with pytest.raises(type(ENDS[state])), session(cfg):
        assert state_of(cfg) == "running"
        raise ENDS[state]
    assert state_of(cfg) == state
    status = files.read_json(Path(cfg.store) / cfg.id / "status.json")
    assert status["error"] == str(ENDS[state]).splitlines()[0]
    assert status["attempts"] == 1


def test_a_diverged_run_opens_again_only_with_restart(cfg, folder):
    with pytest.raises(Diverged), session(cfg) as run:
        train(run, 1, 1)
        raise Diverged("nan")
    for _ in range(2):
        with pytest.raises(Diverged, match="restart=true"):
            open_run(cfg)
    with session(restarted(cfg)) as run:
        assert run.load("cpu") is None
    assert not (folder / "epochs.jsonl").exists()


@pytest.mark.parametrize("state", ["incomplete", "failed"])
def test_an_incomplete_or_failed_run_goes_on(cfg, state):
    with pytest.raises(type(ENDS[state])), session(cfg) as run:
        train(run, 1, 1)
        raise ENDS[state]
    assert load(cfg)["step"] == STEPS
    assert files.read_json(Path(cfg.store) / cfg.id / "status.json")["attempts"] == 2


def test_done_is_written_last_and_the_run_then_needs_no_lock(cfg, folder, monkeypatch):
    written = []
    real = files.write_whole

    def noted(file, *rest, **options):
        written.append(file.name)
        real(file, *rest, **options)

    for module in (files, store):
        monkeypatch.setattr(module, "write_whole", noted)
    with session(cfg) as run:
        finish(run, 2)
    assert written[-1] == "DONE"
    assert state_of(cfg) == "done"
    assert load_run(folder).final == {**metrics(2), "id": cfg.id, "seconds": 3.0}
    assert not (folder / "last.pt.prev").exists()
    (folder / ".lock").unlink()
    assert open_run(cfg).done
    assert not (folder / ".lock").exists()


def test_a_kill_just_before_done_leaves_a_run_to_go_on_with(cfg, folder, monkeypatch):
    real = store.write_json
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt), session(cfg) as run:
        patch.setattr(store, "write_json", lambda file, value: real(file, value) if file.name != "DONE" else die())
        finish(run, 2)
    assert state_of(cfg) != "done"
    assert load(cfg)["step"] == 2 * STEPS


def die():
    raise KeyboardInterrupt


@pytest.mark.parametrize("deleted", range(5))
def test_a_restart_cut_short_leaves_no_run_that_looks_done_or_whole(cfg, folder, monkeypatch, deleted):
    with session(cfg) as run:
        finish(run, 2)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "iterdir", lambda path: sorted(path.glob("*"), reverse=True))  # DONE last, at the worst
        patch.setattr(Path, "unlink", kill_at_call(deleted + 1, Path.unlink))
        open_run(restarted(cfg))
    whole = len(read_epochs(folder)) == 2 and len(read_steps(folder)[0]) == 2 * STEPS
    assert whole or not (folder / "DONE").exists()
    assert whole or not (folder / "last.pt").exists()


def test_a_sign_of_life_is_written_now_and_then(cfg, monkeypatch):
    with session(cfg) as run:
        run.beat(1, 10)
        assert run.status["step"] == 0
        monkeypatch.setattr(store, "HEARTBEAT_SECONDS", 0)
        run.beat(1, 20)
        assert files.read_json(run.path / "status.json")["step"] == 20


def test_every_session_is_in_the_meta_data(cfg, folder):
    with pytest.raises(Interrupted), session(cfg) as run:
        run.describe(data="abc", device="cpu")
        train(run, 1, 1)
        raise Interrupted("stopped")
    with session(cfg) as run:
        run.load("cpu")
        run.describe(data="abc", device="cuda")
        train(run, 2, 2)
        run.finish(metrics(2))
    meta = load_run(folder).meta
    assert [part["device"] for part in meta["sessions"]] == ["cpu", "cuda"]
    assert [part["from_step"] for part in meta["sessions"]] == [0, STEPS]
    assert meta["device"] == "cuda"
    assert meta["seconds_per_epoch"] == 1.5
    assert all(part["ended"] for part in meta["sessions"])


def test_a_session_that_ends_early_leaves_the_one_before_alone(cfg, folder):
    with pytest.raises(Interrupted), session(cfg) as run:
        run.describe(data="abc")
        raise Interrupted("stopped")
    before = (folder / "meta.json").read_bytes().replace(b"20", b"19")  # an hour that is not now
    (folder / "meta.json").write_bytes(before)
    with pytest.raises(UserError), session(cfg):
        raise UserError("no data")  # before it could describe itself
    assert (folder / "meta.json").read_bytes() == before


def test_folders_without_a_config_are_no_runs(cfg):
    open_run(cfg)._lock.release()
    (Path(cfg.store) / "notes").mkdir()
    (Path(cfg.store) / "multirun.yaml").write_text("")
    assert [run.id for run in load_runs(cfg.store)] == [cfg.id]
    assert load_runs(Path(cfg.store) / "nowhere") == []


# data --------------------------------------------------------------------------------------------


def test_going_on_with_other_data_is_refused(cfg):
    killed_after(cfg, last=1)  # with data abc
    with session(cfg) as run:
        run.check_data("abc")
    with pytest.raises(UserError, match="data changed") as refusal, session(cfg) as run:
        run.check_data("abd")
    assert "restart=true" in str(refusal.value)
    with session(restarted(cfg)) as run:
        run.check_data("abd")


def test_data_may_change_before_anything_was_trained(cfg):
    with pytest.raises(Interrupted), session(cfg) as run:
        run.describe(data="abc")
        raise Interrupted("stopped")
    with session(cfg) as run:
        run.check_data("abd")


# a full disk -------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("where", ["open", "fsync"])
def test_a_full_disk_stops_the_run_with_its_old_checkpoint_whole(cfg, folder, monkeypatch, capsys, where, number):
    with monkeypatch.context() as patch, pytest.raises(Interrupted) as stop, session(cfg) as run:
        run.describe(data="abc")
        train(run, 1, 1)
        for module in (files, store) if where == "open" else (os,):
            patch.setattr(module, where, fail_with(number), raising=False)
        train(run, 2, 2)
    assert stop.value.status == 75
    assert "full" in str(stop.value)
    assert "\n" not in str(stop.value)
    assert "could not note its state" in capsys.readouterr().out
    assert state_of(cfg) == "incomplete"
    assert not list(folder.glob(".*.partial"))
    assert load(cfg)["step"] == STEPS
    assert [record["epoch"] for record in read_epochs(folder)] == [1]


@pytest.mark.parametrize("written", range(2))
def test_a_disk_that_is_full_from_the_start_stops_the_run(cfg, monkeypatch, written):
    """0: config.yaml cannot be written; 1: status.json cannot."""
    calls = []
    monkeypatch.setattr(os, "fsync", lambda number: calls.append(number) if len(calls) < 2 * written else full())
    full = fail_with(errno.ENOSPC)
    with pytest.raises(Interrupted), session(cfg):
        pass
    monkeypatch.undo()
    assert load(cfg) is None  # and the lock is free


def test_another_disk_error_is_a_failure(cfg, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(OSError, match="Input/output"), session(cfg) as run:
        run.describe(data="abc")
        patch.setattr(store, "write_whole", lambda file, *_, keep=None: fail_with(errno.EIO)() if keep else None)
        train(run, 1, 1)
    assert state_of(cfg) in ("failed", "incomplete")
    open_run(cfg)._lock.release()


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 256 KiB."""
    if os.geteuid() or not shutil.which("mount"):
        pytest.skip("mounting a small file system needs root")
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", disk], capture_output=True, text=True)
    if mount.returncode:
        pytest.skip(f"no small file system: {mount.stderr.strip()}")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "--lazy", disk], check=True)


def test_a_disk_that_fills_up_loses_nothing_that_was_saved(config, small_disk, capsys):
    cfg = config("dataset=digits", "model=resnet8", f"store={small_disk}")
    path, filler = small_disk / cfg.id, small_disk / "filler"
    with pytest.raises(Interrupted, match="full") as stop, session(cfg) as run:
        run.describe(data="abc")
        train(run, 1, 2)
        with pytest.raises(OSError, match="No space left"):
            filler.write_bytes(bytes(2**18))
        train(run, 3, 3)
    assert "\n" not in str(stop.value)
    assert state_of(cfg) == "incomplete"
    assert load_run(path).epochs[1:2] == [{"epoch": 2, "seconds": 1.5}]

    with pytest.raises(Interrupted, match="full"):  # still full
        load(cfg)

    filler.unlink()
    with session(cfg) as run:
        assert run.load("cpu")["step"] == 2 * STEPS
        train(run, 3, 3)
        run.finish(metrics(3))
    assert state_of(cfg) == "done"
    assert [record["epoch"] for record in read_epochs(path)] == [1, 2, 3]
    assert read_steps(path)[1].tolist() == list(range(3 * STEPS))


# a store that cannot be written ------------------------------------------------------------------


def test_an_impossible_store_is_refused(config, tmp_path):
    (tmp_path / "file").write_text("")
    for place in ("/proc/nowhere", tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UserError, match="store: must be") as refusal:
            open_run(config("dataset=digits", "model=resnet8", f"store={place}"))
        assert "\n" not in str(refusal.value)


def test_a_file_in_the_way_of_the_run_folder_is_refused(cfg, folder):
    folder.parent.mkdir(exist_ok=True)
    folder.write_text("")
    with pytest.raises(UserError, match="store: must be"):
        open_run(cfg)


@pytest.mark.skipif(not os.geteuid(), reason="root may write everywhere")
def test_a_store_without_permission_is_refused(cfg):
    Path(cfg.store).chmod(0o500)
    with pytest.raises(UserError, match="store: must be"):
        open_run(cfg)
