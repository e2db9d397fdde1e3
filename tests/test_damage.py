"""One file of one run gone, empty or garbage: named, left out by readers, and repaired or refused where it trains."""

import errno
import json
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT
from runs_support import write_run
from test_store import STEPS, finish, killed_after, metrics, session, state_at, train

from normloss.errors import Diverged, Interrupted, UserError
from normloss.runs import cache, contract, files
from normloss.runs import store as store_module
from normloss.runs.records import RunWarning, load_run, load_runs
from normloss.runs.store import open_run

DIGITS = ("dataset=digits", "model=resnet8")
RECORD = ("config.yaml", "meta.json", "status.json", "epochs.jsonl", "steps.npz", "DONE")
HARMS = {
    "gone": lambda file: file.unlink(),
    "empty": lambda file: file.write_bytes(b""),
    "garbage": lambda file: file.write_bytes(b"\x00\xff<html>\n" * 50),
    "half": lambda file: file.write_bytes(file.read_bytes()[: file.stat().st_size // 2]),
    "another's": lambda file: file.write_text("[1, 2, 3]\n"),
}


@pytest.fixture
def store(config, tmp_path):
    """wd and nl, two seeds each."""
    for reg in ("wd", "nl"):
        for seed in (0, 1):
            write_run(tmp_path / "runs", config(*DIGITS, f"reg={reg}", f"seed={seed}"), 5.0 + seed)
    return tmp_path / "runs"


# readers -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("harm", HARMS.values(), ids=HARMS)
@pytest.mark.parametrize("name", RECORD)
def test_a_damaged_run_is_named_and_the_others_are_read(store, config, name, harm):
    cfg = config(*DIGITS, "reg=nl", "seed=1")
    harm(store / cfg.id / name)
    with pytest.warns(RunWarning) as told:
        runs = load_runs(store)
    assert len(runs) == 3
    assert cfg.id not in {run.id for run in runs}
    (line,) = (str(warning.message) for warning in told)
    assert line.startswith(f"{store / cfg.id} is left out: {name} ")
    assert "\n" not in line


@pytest.mark.parametrize("name", RECORD)
def test_commands_go_on_without_a_damaged_run_and_say_so_at_the_end(store, config, tmp_path, load_script, capsys, name):
    cfg = config(*DIGITS, "reg=nl", "seed=1")
    (store / cfg.id / name).unlink()
    for script, words in (
        ("compare", ["dataset=digits", "--store", str(store), "--out", str(tmp_path / "out")]),
        ("export", [str(store), "--results", str(tmp_path / "results")]),
    ):
        assert load_script(script).main(words) == 0
        out, err = capsys.readouterr()
        assert out
        assert err == f"normloss: warning: {store / cfg.id} is left out: {name} is gone\n"
    assert len(list((tmp_path / "results" / "curves").iterdir())) == 3


@pytest.mark.parametrize("name", ["RUN.bak", "RUN (copy)", "00000000", "results"])
def test_a_copy_of_a_run_does_not_count(store, config, name):
    cfg = config(*DIGITS, "reg=nl")
    shutil.copytree(store / cfg.id, store / name.replace("RUN", cfg.id))
    with pytest.warns(RunWarning, match=f"is left out: config.yaml is that of run {cfg.id}"):
        assert len(load_runs(store)) == 4


def test_numbers_that_do_not_fit_each_other_are_found(store, config):
    path = store / config(*DIGITS, "reg=nl").id
    whole = {name: (path / name).read_bytes() for name in RECORD}

    def left_out(name, content, words):
        (path / name).write_bytes(content)
        with pytest.warns(RunWarning, match=words):
            load_runs(store)
        (path / name).write_bytes(whole[name])

    lines = whole["epochs.jsonl"].splitlines(keepends=True)
    done = json.loads(whole["DONE"])
    left_out("epochs.jsonl", b"".join(lines[:-1]), "epochs.jsonl holds 3 of 4 epochs")
    left_out("epochs.jsonl", b"".join(reversed(lines)), "epochs.jsonl is damaged in line 1")
    left_out("DONE", json.dumps(done | {"test_error": 1.0}).encode(), "epochs.jsonl and DONE differ in test_error")
    left_out("DONE", json.dumps(done | {"test_error": "low"}).encode(), "DONE lacks test_error")
    left_out("DONE", json.dumps(done | {"id": "00000000"}).encode(), "DONE is that of run '00000000'")
    left_out("status.json", b'{"state": "fine"}', "status.json has no state that a run can be in, got 'fine'")
    np.savez(path / "steps.npz", step=np.arange(1, 4), ce=np.zeros(3, np.float32))
    with pytest.warns(RunWarning, match="steps.npz holds 3 of 160 steps"):
        load_runs(store)


def test_every_file_of_the_record_is_in_the_contract():
    assert set(RECORD) | {"last.pt"} == set(contract.MOST_BYTES)


# a large store -----------------------------------------------------------------------------------


@pytest.fixture
def cached(store, monkeypatch):
    """A store that is taken for a large one, whose files have settled."""
    monkeypatch.setattr(cache, "FROM_RUNS", 2)
    monkeypatch.setattr(cache, "SETTLED_SECONDS", 0.0)
    load_runs(store)
    assert (store / cache.NAME).exists()
    return store


def test_nothing_is_parsed_twice_and_the_answers_are_the_same(cached, monkeypatch):
    (cached / cache.NAME).unlink()
    first = load_runs(cached)
    monkeypatch.setattr(contract, "examine", None)  # would fail
    assert load_runs(cached) == first
    assert [run.epochs for run in load_runs(cached)] == [run.epochs for run in first]


@pytest.mark.parametrize("name", RECORD)
@pytest.mark.parametrize("how", ["gone", "same size and time", "same size, time and inode"])
def test_a_changed_file_is_noticed(cached, config, name, how):
    file = cached / config(*DIGITS, "reg=nl").id / name
    whole, stat = file.read_bytes(), file.stat()
    changed = whole[: len(whole) // 2] + b"\xff" + whole[len(whole) // 2 + 1 :]
    if how == "gone":
        file.unlink()
    elif how == "same size and time":
        file.with_suffix(".new").write_bytes(changed)
        file.with_suffix(".new").rename(file)
    else:
        file.write_bytes(changed)
    if how != "gone":
        os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    with pytest.warns(RunWarning, match=name):
        assert len(load_runs(cached)) == 3


def test_a_run_that_is_damaged_is_named_every_time(cached, config):
    cfg = config(*DIGITS, "reg=nl")
    (cached / cfg.id / "DONE").write_text("")
    for _ in range(3):
        with pytest.warns(RunWarning, match="DONE is empty"):
            assert len(load_runs(cached)) == 3


@pytest.mark.parametrize("harm", HARMS.values(), ids=HARMS)
def test_a_damaged_cache_costs_time_alone(cached, harm):
    whole = load_runs(cached)
    harm(cached / cache.NAME)
    assert load_runs(cached) == whole


def test_a_cache_with_a_flipped_bit_is_not_believed(cached):
    whole = load_runs(cached)
    content = bytearray((cached / cache.NAME).read_bytes())
    for place in range(0, len(content), 997):
        flipped = content.copy()
        flipped[place] ^= 4
        (cached / cache.NAME).write_bytes(flipped)
        assert load_runs(cached) == whole


def test_a_file_that_was_just_written_is_read_again(store, monkeypatch):
    """Within the resolution of a file's time it may change without a trace."""
    monkeypatch.setattr(cache, "FROM_RUNS", 2)
    monkeypatch.setattr(cache, "SETTLED_SECONDS", 3600.0)
    load_runs(store)
    assert not (store / cache.NAME).exists()


def test_a_store_that_can_only_be_read_is_read(cached):
    (cached / cache.NAME).unlink()
    (cached / f"{cache.NAME}.{os.getpid()}.partial").mkdir()  # cannot be written
    assert len(load_runs(cached)) == 4


# training ----------------------------------------------------------------------------------------


@pytest.fixture
def cfg(config, tmp_path):
    return config(*DIGITS, f"store={tmp_path}")


@pytest.fixture
def folder(cfg):
    return Path(cfg.store) / cfg.id


@pytest.mark.parametrize("harm", HARMS.values(), ids=HARMS)
@pytest.mark.parametrize("name", ["config.yaml", "meta.json", "status.json"])
def test_a_finished_run_is_repaired(cfg, folder, capsys, name, harm):
    with session(cfg) as run:
        finish(run, 2)
    harm(folder / name)
    assert open_run(cfg).done
    line, *more = capsys.readouterr().out.splitlines()
    assert line.startswith(f"run {cfg.id}: {name} ")
    assert "; written again" in line
    assert not more
    assert load_run(folder).state == "done"
    assert open_run(cfg).done
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("harm", HARMS.values(), ids=HARMS)
def test_a_finished_run_without_its_end_goes_on_from_its_checkpoint(cfg, folder, capsys, harm):
    with session(cfg) as run:
        finish(run, 2)
    harm(folder / "DONE")
    with session(cfg) as run:
        assert run.load("cpu")["step"] == 2 * STEPS
    assert not (folder / "DONE").exists()
    assert ("DONE" in capsys.readouterr().out) == (harm is not HARMS["gone"])


@pytest.mark.parametrize("harm", HARMS.values(), ids=HARMS)
@pytest.mark.parametrize("name", ["epochs.jsonl", "steps.npz"])
@pytest.mark.parametrize("finished", [True, False], ids=["finished", "unfinished"])
def test_a_run_that_lost_its_logs_is_refused(cfg, folder, name, harm, finished):
    if finished:
        with session(cfg) as run:
            finish(run, 2)
    else:
        killed_after(cfg, last=2)
    harm(folder / name)
    for _ in range(2):
        with pytest.raises(UserError, match=rf"{name}.*restart=true trains anew") as refusal, session(cfg) as run:
            run.load("cpu")
        assert "\n" not in str(refusal.value)
    with session(cfg.model_copy(update={"restart": True})) as run:
        assert run.load("cpu") is None


@pytest.mark.parametrize("harm", HARMS.values(), ids=HARMS)
@pytest.mark.parametrize("name", ["config.yaml", "meta.json", "status.json"])
def test_an_unfinished_run_is_repaired_and_goes_on(cfg, folder, capsys, name, harm):
    killed_after(cfg, last=2)
    harm(folder / name)
    with session(cfg) as run:
        assert run.load("cpu")["step"] == 2 * STEPS
        assert f"{name} " in capsys.readouterr().out
        run.describe(data="abc")
        train(run, 3, 3)
    assert len(load_run(folder).epochs) == 3


def test_a_checkpoint_that_is_lost_after_status_json_was_is_noticed(cfg, folder):
    killed_after(cfg, last=2)
    (folder / "status.json").unlink()
    with session(cfg):
        pass
    for name in ("last.pt", "last.pt.prev"):
        (folder / name).unlink()
    with pytest.raises(UserError, match="last.pt is gone"), session(cfg) as run:
        run.load("cpu")


# checkpoints -------------------------------------------------------------------------------------


def test_the_checkpoint_of_another_run_is_not_taken(cfg, config, folder, tmp_path, capsys):
    other = config(*DIGITS, "seed=1", f"store={tmp_path}")
    theirs = killed_after(other, last=2)
    killed_after(cfg, last=2)
    shutil.copy(theirs / "last.pt", folder / "last.pt")
    with session(cfg) as run:
        assert run.load("cpu")["step"] == STEPS
    assert f"last.pt is damaged (it is run {other.id}'s); trying the one before" in capsys.readouterr().out
    assert load_run(folder).id == cfg.id


def test_both_checkpoints_of_other_runs_are_refused(cfg, config, folder, tmp_path):
    theirs = killed_after(config(*DIGITS, "seed=1", f"store={tmp_path}"), last=2)
    killed_after(cfg, last=2)
    for name in ("last.pt", "last.pt.prev"):
        shutil.copy(theirs / "last.pt", folder / name)
    with pytest.raises(UserError, match="no whole checkpoint is left"), session(cfg) as run:
        run.load("cpu")


def test_a_checkpoint_of_a_version_that_kept_less_is_refused_in_words(cfg, folder, capsys):
    killed_after(cfg, last=1)
    with pytest.raises(UserError, match="no whole checkpoint is left"), session(cfg) as run:
        run.load("cpu", keys=("optimizer", "rng"))
    assert "it holds no optimizer rng: weights alone, or written by another version" in capsys.readouterr().out


def test_a_checkpoint_without_an_id_is_of_version_0_1_0_and_taken(cfg, folder):
    import hashlib
    import io

    killed_after(cfg, last=1)
    state = torch.load(folder / "last.pt", weights_only=True)
    del state["id"]
    buffer = io.BytesIO()
    torch.save(state, buffer)
    (folder / "last.pt").write_bytes(buffer.getvalue() + hashlib.sha256(buffer.getvalue()).digest())
    with session(cfg) as run:
        assert run.load("cpu")["step"] == STEPS


def test_a_pickle_that_runs_code_is_not_run(cfg, folder, tmp_path):
    import hashlib
    import io

    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "evil"),)

    killed_after(cfg, last=1)
    buffer = io.BytesIO()
    torch.save(state_at(4) | {"x": Evil(), "epochs_bytes": 0}, buffer)
    (folder / "last.pt").write_bytes(buffer.getvalue() + hashlib.sha256(buffer.getvalue()).digest())
    with pytest.raises(UserError, match="no whole checkpoint is left"), session(cfg) as run:
        run.load("cpu")
    assert not (tmp_path / "evil").exists()


# two processes -----------------------------------------------------------------------------------


def test_a_lock_left_by_a_process_that_is_gone_or_on_another_host_does_not_hold(cfg, folder):
    killed_after(cfg, last=1)
    status = json.loads((folder / "status.json").read_text())
    status |= {"state": "running", "host": "elsewhere", "pid": 1, "heartbeat": "2020-01-01T00:00:00+00:00"}
    (folder / "status.json").write_text(json.dumps(status))
    assert (folder / ".lock").exists()
    assert load_run(folder).state == "incomplete"
    with session(cfg) as run:
        assert run.load("cpu")["step"] == STEPS


def test_a_diverged_run_stays_diverged_where_config_yaml_is_written_again(cfg, folder):
    with pytest.raises(Diverged), session(cfg) as run:
        run.describe(data="abc")
        train(run, 1, 1)
        raise Diverged("nan")
    (folder / "config.yaml").unlink()
    with pytest.raises(Diverged, match="restart=true"):
        open_run(cfg)


def test_reading_warns_of_nothing_in_a_store_of_whole_runs(store):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(load_runs(store)) == 4


RACE = """
import json, sys, time
from pathlib import Path
from normloss.config import read_stored
from normloss.errors import Locked
from normloss.runs.store import open_run

def meet(what):
    (here / f"{what} {who}").touch()
    while len(list(here.glob(f"{what} *"))) < 2:
        time.sleep(0.001)

stored, here, who = json.loads(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
for seed in range(10):
    cfg = read_stored(stored | {"seed": seed})
    meet(f"begin {seed}")
    try:
        with open_run(cfg).session():
            meet(f"tried {seed}")
            print("trains", flush=True)
    except Locked:
        meet(f"tried {seed}")
        print("locked", flush=True)
"""


def test_of_two_processes_that_start_a_run_at_once_one_trains_ten_times(cfg, tmp_path):
    (tmp_path / "meet").mkdir()
    command = [sys.executable, "-c", RACE, json.dumps(cfg.stored()), str(tmp_path / "meet")]
    both = [subprocess.Popen([*command, who], cwd=ROOT, stdout=subprocess.PIPE, text=True) for who in "ab"]
    told = [process.communicate(timeout=120)[0].split() for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert [sorted(pair) for pair in zip(*told, strict=True)] == [["locked", "trains"]] * 10


def flips(content: bytes) -> dict[str, int]:
    """A bit in every region of a checkpoint: (name, byte)."""
    return {f"at {share} %": len(content) * share // 100 for share in range(0, 100, 5)} | {"checksum": len(content) - 1}


def test_a_flipped_bit_in_any_region_of_the_newest_checkpoint_leads_to_the_one_before(cfg, folder, capsys):
    killed_after(cfg, last=2)
    whole = {file.name: file.read_bytes() for file in folder.iterdir() if file.name != ".lock"}
    for region, place in flips(whole["last.pt"]).items():
        for name, content in whole.items():
            (folder / name).write_bytes(content)
        broken = bytearray(whole["last.pt"])
        broken[place] ^= 16
        (folder / "last.pt").write_bytes(broken)
        with session(cfg) as run:
            assert run.load("cpu")["step"] == STEPS, region
        assert "last.pt is damaged" in capsys.readouterr().out
        (folder / "last.pt.corrupt").unlink()


WRITES = ("config.yaml", "status.json", "meta.json", "steps.npz", "last.pt", "DONE")


@pytest.mark.parametrize("name", WRITES)
def test_a_disk_that_is_full_at_any_file_interrupts_and_goes_on(cfg, folder, monkeypatch, name):
    def full(file, *rest, **options):
        if file.name == name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(file, *rest, **options)

    real = files.write_whole
    with monkeypatch.context() as patch:
        for module in (files, store_module):
            patch.setattr(module, "write_whole", full)
        with pytest.raises(Interrupted, match="full") as stop, session(cfg) as run:
            finish(run, 2)
        assert stop.value.status == 75
        assert "\n" not in str(stop.value)
    with session(cfg) as run:
        state = run.load("cpu")
        run.describe(data="abc")
        train(run, 1 + (state["step"] // STEPS if state else 0), 2)
        run.finish(metrics(2))
    assert load_run(folder).state == "done"
    assert [epoch["epoch"] for epoch in load_run(folder).epochs] == [1, 2]
