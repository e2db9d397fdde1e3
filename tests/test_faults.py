"""Real runs and sweeps that diverge, are told to leave, doubled and starved: documented status, one line, one end."""

import functools
import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import forked
import numpy as np
import pytest
import torch
from conftest import ROOT, ran
from data_support import PHOTOGRAPHS, save_photographs
from forked import DIGITS, HERE, SAVE_OFTEN, Command, assert_same_end, by_seed, start, status, the_run, wait_until

from normloss.runs import files
from normloss.runs.records import load_runs
from normloss.signals import SIGNALS
from normloss.training.executors import Eager

LONG = (*DIGITS, "train.epochs=2", "train.max_steps=40")
FAULTS = [pytest.mark.slow, pytest.mark.faults]


@pytest.fixture
def command(tmp_path):
    """command(*words, **environment) -> the process under way, with store=tmp_path/runs."""
    processes = []

    def run(*words, store=tmp_path / "runs", **environment):
        log = tmp_path / f"log{len(processes)}"
        processes.append(Command(log, *words, f"store={store}", **environment))
        return processes[-1]

    yield run
    for process in processes:
        process.kill()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """undisturbed(words) -> how the run of these words ends."""
    return functools.cache(lambda words: forked.undisturbed(words, tmp_path_factory.mktemp("undisturbed")))


def last_line(process):
    return process.text().splitlines()[-1]


def test_a_done_run_says_so_without_torch(undisturbed):
    run = undisturbed(LONG)
    ended = ran("-X", "importtime", "train.py", *LONG, f"store={run.path.parent}")
    assert "| torch\n" not in ended.stderr
    assert ended.stdout.startswith(f"run {run.id} ")
    assert " is done: " in ended.stdout


def test_a_divergence_names_the_last_good_value(command, tmp_path):
    process = command(*DIGITS, "train.lr=1e30", "train.epochs=1", "train.max_steps=6")
    assert process.wait() == 3
    run = the_run(tmp_path / "runs")
    ce = run.steps()[1]
    assert f"of step {len(ce)} is {ce[-1]}, after {ce[-2]:.4g} at step {len(ce) - 1}" in last_line(process)
    assert np.isfinite(ce[:-1]).all()
    assert (run.state, run.epochs, run.final) == ("diverged", [], None)


def test_a_decomposition_that_fails_is_a_divergence(command, tmp_path):
    process = command(*DIGITS, "reg=olm", "train.lr=1e30", "train.epochs=1", "train.max_steps=6")
    assert process.wait() == 3, process.text()
    ce = the_run(tmp_path / "runs").steps()[1]
    assert f"diverged: a decomposition failed after step {len(ce)}, whose cross entropy was " in last_line(process)


def test_a_sweep_goes_on_past_a_diverged_member_and_says_what_became_of_each(command, tmp_path):
    words = ["-m", *DIGITS, "train.epochs=1", "train.max_steps=4", "train.lr=1e30,0.1"]
    for fine in ("done", "done before"):
        sweep = command(*words)
        assert sweep.wait() == 3
        of_lr = {run.config["train"]["lr"]: run for run in load_runs(tmp_path / "runs")}
        diverged, done, total = (" ".join(line.split()) for line in sweep.text().splitlines()[-3:])
        assert diverged.startswith(of_lr[1e30].id) and diverged.endswith("diverged")
        assert done.startswith(of_lr[0.1].id)
        assert f"{fine} test error {of_lr[0.1].final['test_error']:.2f} %" in done
        assert total.startswith("1 of 2 runs done")
        assert [status["attempts"] for status in statuses(tmp_path / "runs")] == [1, 1]


def statuses(store):
    return [files.read_json(path) for path in store.glob("*/status.json")]


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """The words of a run on photographs that processes read."""
    root = save_photographs(tmp_path_factory.mktemp("photographs"))
    return (*HERE, *PHOTOGRAPHS, f"data_dir={root}", "train.epochs=8", "workers=2")


@pytest.mark.parametrize("images", ["in memory", pytest.param("by processes", marks=FAULTS)])
@pytest.mark.parametrize(("number", "to"), [*zip(SIGNALS, ["process", "group"] * 3, strict=False)])
def test_a_signal_in_training_saves_within_the_step(command, undisturbed, photographs, tmp_path, number, to, images):
    words = LONG if images == "in memory" else photographs
    process = command(*words, SAVE_OFTEN)
    wait_until(lambda: status(tmp_path / "runs")["step"] >= 3)
    (os.kill if to == "process" else os.killpg)(process.pid, number)
    assert process.wait() == 75, process.text()
    left = status(tmp_path / "runs")
    assert last_line(process).endswith(f"stopped by {number.name} at step {left['step']}; rerun the command to resume")
    assert left["state"] == "incomplete"
    assert command(*words).wait() == 0
    assert_same_end(the_run(tmp_path / "runs"), undisturbed(words))


@pytest.mark.parametrize(
    ("flags", "words"), [(os.O_RDWR, []), (os.O_RDWR, ["-m", "seed=0"]), (os.O_WRONLY, [])],
    ids=["run", "sweep", "in the background"],
)  # fmt: skip
def test_a_closed_terminal_is_a_reason_to_save(command, undisturbed, tmp_path, flags, words):
    """With SIGHUP; without it, as that of a job in the background, as an output that is closed."""
    ours, theirs = os.openpty()
    words = [*words, *LONG, SAVE_OFTEN, f"store={tmp_path / 'runs'}"]
    process = Command(Path(os.ttyname(theirs)), *words, flags=flags, not_its=[ours, theirs])
    wait_until(lambda: status(tmp_path / "runs")["step"] >= 3)
    os.close(theirs)
    os.close(ours)
    assert (process.wait(), (left := status(tmp_path / "runs"))["state"]) == (75, "incomplete")
    assert ("stopped by SIGHUP at step" in left["error"]) == (flags == os.O_RDWR)
    assert command(*LONG).wait() == 0
    assert_same_end(the_run(tmp_path / "runs"), undisturbed(LONG))


@pytest.mark.parametrize(("trap", "code", "out"), [("trap '' HUP", 0, "False\n"), (":", 75, "")])
def test_under_nohup_the_signal_of_a_closed_terminal_stays_ignored(trap, code, out):
    program = (
        "import os, signal; from normloss import signals; from normloss.cli import start; start.prepare();"
        "os.kill(os.getpid(), signal.SIGHUP)\n"
        "with (stop := signals.StopRequest().listen()).noted(): os.kill(os.getpid(), signal.SIGHUP)\n"
        "print(bool(stop))"
    )
    words = ["sh", "-c", f'{trap}; exec {sys.executable} -c "{program}"']
    ended = subprocess.run(words, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (code, out), ended.stderr


def test_a_stopped_process_goes_on_and_keeps_its_run(command, undisturbed, tmp_path):
    process = command(*LONG, SAVE_OFTEN)
    wait_until(lambda: status(tmp_path / "runs")["step"] >= 3)
    process.send(signal.SIGSTOP)
    assert command(*LONG).wait() == 4
    process.send(signal.SIGCONT)
    assert process.wait() == 0
    assert_same_end(the_run(tmp_path / "runs"), undisturbed(LONG))


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [["seed=0"], ["-m", "seed=0,1"]], ids=["run", "sweep"])
def test_a_run_whose_output_nobody_reads_any_more_can_go_on(tmp_path, command, seeds):
    """python train.py ... | head -1"""
    words = [*seeds, *LONG]
    process = start(*words, f"store={tmp_path / 'runs'}")
    process.stdout.readline()
    process.stdout.close()
    assert process.wait() == 75
    assert process.stderr.read().splitlines()[-1] == "normloss: its output was closed; rerun the command to resume"
    assert command(*words).wait() == 0
    assert {run.state for run in load_runs(tmp_path / "runs")} == {"done"}


def test_a_sweep_outlives_a_killed_member_and_saves_its_members_when_stopped(command, tmp_path):
    words = ["-m", *DIGITS, "train.epochs=3", "train.max_steps=60", "seed=1,2", SAVE_OFTEN]
    sweep = command(*words)
    wait_until(lambda: status(tmp_path / "runs")["step"] > 2)
    (file,) = (tmp_path / "runs").glob("*/status.json")
    killed = files.read_json(file)
    os.kill(killed["pid"], signal.SIGKILL)
    assert sweep.wait() == 1
    first, second = sweep.text().splitlines()[-3:-1]
    assert "killed by SIGKILL" in first
    assert "done" in second and "test error" in second
    assert [run.state for run in by_seed(tmp_path / "runs")] == ["incomplete", "done"]

    sweep = command(*words)
    wait_until(lambda: files.read_json(file)["step"] > killed["step"] + 2)
    sweep.send(signal.SIGTERM)
    assert sweep.wait() == 75
    assert "stopped" in sweep.text().splitlines()[-3]
    assert "done before" in sweep.text().splitlines()[-2]
    assert [run.state for run in by_seed(tmp_path / "runs")] == ["incomplete", "done"]


def test_a_sweep_stopped_while_a_member_is_just_starting_is_only_stopped(command):
    sweep = command("-m", *DIGITS, "train.epochs=4", "seed=1,2")
    wait_until(lambda: forked.members(sweep))
    sweep.send(signal.SIGINT)
    assert sweep.wait() == 75
    assert "stopped" in sweep.text().splitlines()[-3]
    assert "not started" in sweep.text().splitlines()[-2]


@pytest.mark.slow
@pytest.mark.faults
@pytest.mark.parametrize("seeds", [["seed=0"], ["-m", "seed=0,1,2"]], ids=["run", "sweep"])
def test_of_two_commands_that_start_the_same_at_once_one_trains_each_run(command, undisturbed, tmp_path, seeds):
    for time_ in range(5):
        store = tmp_path / f"runs{time_}"
        both = [command(*seeds, *LONG, store=store) for _ in range(2)]
        ended = [process.wait() for process in both]
        assert sorted(ended) == [0, 4] if len(seeds) == 1 else {*ended} <= {0, 4}
        assert {each["attempts"] for each in statuses(store)} == {1}
        assert_same_end(by_seed(store)[0], undisturbed(LONG))


@pytest.fixture
def disk(tmp_path):
    """disk(size) -> an empty file system of that size; or the one there is, made so large."""
    place = tmp_path / "disk"
    place.mkdir()

    def mount(size, *options):
        words = ["mount", *options, "-o", f"size={size},nr_inodes=200", "tmpfs", place]
        if (ended := subprocess.run(words, capture_output=True, text=True)).returncode:
            pytest.skip(f"no small file system: {ended.stderr.strip()}")
        return place

    if os.geteuid():
        pytest.skip("mounting a small file system needs root")
    yield mount
    subprocess.run(["umount", "--lazy", place], check=True)


@pytest.mark.slow
@pytest.mark.faults
@pytest.mark.parametrize("seed", range(10))
def test_a_run_whose_disk_fills_up_goes_on_once_there_is_room(command, undisturbed, disk, seed):
    size = int(2 ** random.Random(seed).uniform(13, 21))  # 8 kB to 2 MB; three checkpoints take as much
    store = disk(size, "-t", "tmpfs") / "runs"
    process = command(*LONG, SAVE_OFTEN, store=store)
    assert process.wait() == 75, process.text()
    assert last_line(process).startswith("normloss: run ")
    assert "No space left on device in " in last_line(process)
    assert str(store) in last_line(process)
    assert not list(store.glob("*/.*.partial"))
    disk("64m", "-o", "remount")
    assert command(*LONG, SAVE_OFTEN, store=store).wait() == 0
    assert_same_end(the_run(store), undisturbed(LONG))


def test_neither_home_nor_git_a_long_path_and_jumping_clocks_change_anything(
    command, undisturbed, tmp_path, monkeypatch
):
    real, jumps = time.time, iter(range(10**9))
    monkeypatch.setattr(time, "time", lambda: real() + 1e6 * (-1) ** next(jumps))
    store = tmp_path / ("a very long name " * 12 + "ü")
    process = command(*LONG, SAVE_OFTEN, store=f'"{store}"', HOME="", PATH="/nowhere", TZ="Pacific/Kiritimati")
    assert process.wait() == 0, process.text()
    assert_same_end(run := the_run(store), undisturbed(LONG))
    assert run.meta["commit"] is None
    assert run.meta["started"].endswith("+00:00")


def without_file_handles(*_):
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    os.dup(0)


@pytest.mark.parametrize(
    ("step", "line"),
    [(without_file_handles, "Too many open files in "), (lambda *_: torch.empty(2**48), "cpu has too little memory")],
    ids=["file handles", "memory"],
)
def test_too_little_of_what_a_run_needs_is_said_in_a_line(command, monkeypatch, tmp_path, step, line):
    with monkeypatch.context() as patched:
        patched.setattr(Eager, "step", step)
        process = command(*LONG)
    assert process.wait() == 75, process.text()
    assert line in last_line(process)
    assert the_run(tmp_path / "runs").state == "incomplete"
    assert command(*LONG).wait() == 0


def test_another_version_of_torch_is_said_and_recorded(command, tmp_path):
    process = command(*LONG, SAVE_OFTEN)
    wait_until(lambda: status(tmp_path / "runs")["step"] >= 3)
    process.send(signal.SIGTERM)
    assert process.wait() == 75
    path = the_run(tmp_path / "runs").path
    meta = files.read_json(path / "meta.json")
    for facts in (meta, meta["sessions"][-1]):
        facts["versions"] |= {"torch": "2.14.0"}
    files.write_json(path / "meta.json", meta)
    process = command(*LONG)
    assert process.wait() == 0
    now = torch.__version__.partition("+")[0]
    assert f"resumes with another torch {now}" in process.text().replace("+cpu", "")
    assert "(2.14.0); its numbers depend on that" in process.text()
    (changed,) = the_run(tmp_path / "runs").meta["sessions"][-1]["changed"]
    assert changed.endswith("(2.14.0)")
