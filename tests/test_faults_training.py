"""Faults of numbers, signals and surroundings in real runs, forked from this process: documented status, one line."""

import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT
from forked import Command
from test_faults import assert_same_end, status, wait_until

from normloss.runs import files
from normloss.runs.records import load_runs

HERE = ["device=cpu", "threads=1", "train.milestones=[]", "wandb.mode=disabled"]
DIGITS = [*HERE, "dataset=digits", "model=resnet8", "train.batch_size=64", "train.eval_batches=2"]
SAVE_OFTEN = "checkpoint_minutes=0.0001"


@pytest.fixture
def command(tmp_path):
    """command(*words, **environment) -> the process under way, with store=tmp_path/runs."""
    processes = []

    def start(*words, store=tmp_path / "runs", **environment):
        log = tmp_path / f"log{len(processes)}"
        processes.append(Command(log, *words, f"store={store}", **environment))
        return processes[-1]

    yield start
    for process in processes:
        process.kill()


def the_run(folder):
    (run,) = load_runs(folder)
    return run


def last_line(process):
    return process.text().splitlines()[-1]


# numbers -----------------------------------------------------------------------------------------


def test_a_decomposition_that_fails_is_a_divergence(command, tmp_path):
    process = command(*DIGITS, "reg=olm", "train.lr=1e30", "train.epochs=1", "train.max_steps=6")
    assert process.wait() == 3, process.text()
    assert " diverged: " in last_line(process)
    run = the_run(tmp_path / "runs")
    assert run.state == "diverged"
    steps, ce = run.steps()
    assert len(steps) >= 1
    assert np.isfinite(ce[0])
    assert "step " in files.read_json(run.path / "status.json")["error"]


def test_a_divergence_names_the_last_good_value(command, tmp_path):
    process = command(*DIGITS, "train.lr=1e30", "train.epochs=1", "train.max_steps=6")
    assert process.wait() == 3
    run = the_run(tmp_path / "runs")
    ce = run.steps()[1]
    assert f"of step {len(ce)} is {ce[-1]}, after {ce[-2]:.4g} at step {len(ce) - 1}" in last_line(process)


def test_a_solver_that_does_not_converge_is_a_divergence_with_its_step(command, tmp_path, monkeypatch):
    """As LAPACK reports it, after two good steps."""
    from normloss.training import executors

    step, taken = executors.Eager.step, []

    def fails(self, x, y):
        if len(taken) == 2:
            raise torch.linalg.LinAlgError("linalg.eigh: failed to converge\nbecause of what it got")
        taken.append(x)
        return step(self, x, y)

    monkeypatch.setattr(executors.Eager, "step", fails)
    process = command(*DIGITS, "train.epochs=1", "train.max_steps=6")
    assert process.wait() == 3
    run = the_run(tmp_path / "runs")
    ce = run.steps()[1]
    assert len(ce) == 2
    assert f"diverged: a decomposition failed after step 2, whose cross entropy was {ce[-1]:.4g}" in last_line(process)
    assert run.state == "diverged"


# signals -----------------------------------------------------------------------------------------

LONG = ["train.epochs=2", "train.max_steps=40"]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    process = Command(folder / "log", *DIGITS, *LONG, f"store={folder / 'runs'}")
    assert process.wait() == 0, process.text()
    return the_run(folder / "runs")


@pytest.mark.parametrize("to", ["process", "group"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP])
def test_a_signal_in_training_saves_within_the_step(command, undisturbed, tmp_path, number, to):
    process = command(*DIGITS, *LONG, SAVE_OFTEN)
    wait_until(lambda: status(tmp_path / "runs")["step"] >= 3)
    (os.kill if to == "process" else os.killpg)(process.pid, number)
    assert process.wait() == 75, process.text()
    left = status(tmp_path / "runs")
    assert last_line(process).endswith(f"stopped by {number.name} at step {left['step']}; start it again to go on")
    assert left["state"] == "incomplete"
    assert command(*DIGITS, *LONG).wait() == 0
    assert_same_end(the_run(tmp_path / "runs"), undisturbed)


def on_a_terminal(folder, flags, words):
    """A run's status and what its folder says where its terminal is closed after some steps."""
    ours, theirs = os.openpty()
    words = [*words, *DIGITS, *LONG, SAVE_OFTEN, f"store={folder}"]
    process = Command(Path(os.ttyname(theirs)), *words, flags=flags, not_its=[ours, theirs])
    wait_until(lambda: status(folder)["step"] >= 3)
    os.close(theirs)
    os.close(ours)
    return process.wait(), status(folder)


@pytest.mark.parametrize("words", [[], ["-m", "seed=0"]], ids=["run", "sweep"])
def test_a_closed_terminal_is_a_signal_to_save(command, undisturbed, tmp_path, words):
    ended, left = on_a_terminal(tmp_path / "runs", os.O_RDWR, words)
    assert (ended, left["state"]) == (75, "incomplete")
    assert "stopped by SIGHUP at step" in left["error"]
    assert command(*DIGITS, *LONG).wait() == 0
    assert_same_end(the_run(tmp_path / "runs"), undisturbed)


def test_a_terminal_that_closes_without_a_signal_is_a_closed_output(command, undisturbed, tmp_path):
    """As that of a job in the background."""
    ended, left = on_a_terminal(tmp_path / "runs", os.O_WRONLY, [])
    assert (ended, left["state"]) == (75, "incomplete")
    assert command(*DIGITS, *LONG).wait() == 0
    assert_same_end(the_run(tmp_path / "runs"), undisturbed)


def test_under_nohup_the_signal_of_a_closed_terminal_stays_ignored():
    code = (
        "import os, signal; from normloss import signals; from normloss.cli import start; start.prepare();"
        "os.kill(os.getpid(), signal.SIGHUP)\n"
        "with (stop := signals.StopRequest().listen()).noted(): os.kill(os.getpid(), signal.SIGHUP)\n"
        "print(bool(stop))"
    )
    for trap, code_of_end, out in (("trap '' HUP", 0, "False\n"), (":", 75, "")):
        line = f'{trap}; exec {sys.executable} -c "{code}"'
        ended = subprocess.run(
            ["sh", "-c", line],
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),
        )
        assert (ended.returncode, ended.stdout) == (code_of_end, out), ended.stderr


def test_a_stopped_process_goes_on_and_keeps_its_run(command, undisturbed, tmp_path):
    process = command(*DIGITS, *LONG, SAVE_OFTEN)
    wait_until(lambda: status(tmp_path / "runs")["step"] >= 3)
    process.send(signal.SIGSTOP)
    second = command(*DIGITS, *LONG)
    assert second.wait() == 4
    process.send(signal.SIGCONT)
    assert process.wait() == 0
    assert_same_end(the_run(tmp_path / "runs"), undisturbed)


# surroundings ------------------------------------------------------------------------------------


def test_no_home_no_git_a_long_path_and_another_time_zone_change_nothing(command, undisturbed, tmp_path):
    store = tmp_path / ("a very long name " * 12 + "ü")
    process = command(*DIGITS, *LONG, store=f'"{store}"', HOME="", PATH="/nowhere", TZ="Pacific/Kiritimati")
    assert process.wait() == 0, process.text()
    run = the_run(store)
    assert_same_end(run, undisturbed)
    assert run.meta["commit"] is None
    assert run.meta["started"].endswith("+00:00")


def test_a_clock_that_jumps_changes_nothing(command, undisturbed, tmp_path, monkeypatch):
    real, jumps = time.time, iter(range(10**9))
    monkeypatch.setattr(time, "time", lambda: real() + 1e6 * (-1) ** next(jumps))
    assert command(*DIGITS, *LONG, SAVE_OFTEN).wait() == 0
    assert_same_end(the_run(tmp_path / "runs"), undisturbed)


def test_too_few_file_handles_are_told_in_a_line(command, tmp_path, monkeypatch):
    from normloss.training import executors

    step = executors.Eager.step

    def held(self, x, y):
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
        return step(self, x, y)

    with monkeypatch.context() as patched:
        patched.setattr(executors.Eager, "step", held)
        process = command(*DIGITS, *LONG, SAVE_OFTEN)
    assert process.wait() == 75, process.text()
    assert "too few file handles (Too many open files); allow more (ulimit -n)" in last_line(process)
    assert command(*DIGITS, *LONG).wait() == 0


def test_too_little_memory_is_told_in_a_line(command, monkeypatch):
    def hungry(self, x, y):
        return torch.empty(2**48)

    from normloss.training import executors

    monkeypatch.setattr(executors.Eager, "step", hungry)
    process = command(*DIGITS, *LONG)
    assert process.wait() == 75, process.text()
    assert "cpu has too little memory" in last_line(process)


def test_another_version_of_torch_is_told_and_recorded(command, tmp_path):
    process = command(*DIGITS, *LONG, SAVE_OFTEN)
    wait_until(lambda: status(tmp_path / "runs")["step"] >= 3)
    process.send(signal.SIGTERM)
    assert process.wait() == 75
    run = the_run(tmp_path / "runs")
    meta = files.read_json(run.path / "meta.json")
    for facts in (meta, meta["sessions"][-1]):
        facts["versions"] |= {"torch": "2.14.0"}
    files.write_json(run.path / "meta.json", meta)
    process = command(*DIGITS, *LONG)
    assert process.wait() == 0
    now = torch.__version__.partition("+")[0]
    assert f"goes on with another torch {now}" in process.text().replace("+cpu", "")
    assert "(2.14.0); its numbers depend on that" in process.text()
    (changed,) = the_run(tmp_path / "runs").meta["sessions"][-1]["changed"]
    assert changed.endswith("(2.14.0)")
