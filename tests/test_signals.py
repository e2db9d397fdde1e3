"""A signal ends a command at once with one line, but in its loops, which note it; Python's callers get no handler."""

import itertools
import os
import random
import signal
import subprocess
import sys
import time

import pytest
from forked import Command, alive, assert_same_end, the_run, wait_until, wait_until_it_listens
from runs_support import write_run

from normloss.errors import Interrupted
from normloss.runs.records import load_runs
from normloss.signals import SIGNALS, StopRequest
from normloss.sweeps.composing import expand
from normloss.training.run import train
from tests.conftest import ROOT

TIMES = int(os.environ.get("NORMLOSS_SIGNALS", 20))  # moments for each signal
COMMANDS = int(os.environ.get("NORMLOSS_KILLS", 5))  # of each signal to a command
LENGTH = ["train.epochs=2", "train.milestones=[]", "train.max_steps=30", "train.eval_batches=2"]
WORDS = ["dataset=digits", "model=resnet8", "device=cpu", "threads=1", *LENGTH]
ADVICE = "rerun the command to resume"


def python(code: str, **environment: str) -> subprocess.CompletedProcess:
    words = [sys.executable, "-c", "import os, signal, sys, time; from normloss.signals import StopRequest\n" + code]
    return subprocess.run(words, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True)


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_outside_the_loops_a_signal_is_a_line_and_the_end(number):
    """Whatever the code that it meets makes of exceptions."""
    ended = python(
        "import multiprocessing; StopRequest().listen()\n"
        "worker = multiprocessing.get_context('fork').Process(target=time.sleep, args=(60,)); worker.start()\n"
        "print('printed', worker.pid)\n"
        f"try: os.kill(os.getpid(), {number:d})\nexcept BaseException: pass\nfinally: print('never')"
    )
    assert (ended.returncode, ended.stderr) == (75, f"normloss: stopped by {number.name}; {ADVICE}\n")
    printed, worker = ended.stdout.split()
    assert printed == "printed"
    wait_until(lambda: not alive(int(worker)))


SAVING = "saving, then leaving (again to leave at once)"


@pytest.mark.parametrize(
    ("signals", "job", "status", "out"),
    [
        (["SIGTERM"], "", 0, [f"SIGTERM: {SAVING}", "SIGTERM"]),
        (["SIGUSR2", "SIGTERM"], "", 75, [f"SIGUSR2: {SAVING}"]),
        (["SIGUSR2", "SIGTERM"], "7", 0, [f"SIGUSR2: {SAVING}", "SIGUSR2"]),
    ],
)
def test_a_loop_notes_a_signal_and_a_second_one_ends_it_but_in_a_job(signals, job, status, out):
    kills = "".join(f"    os.kill(os.getpid(), signal.{name})\n" for name in signals)
    code = f"with (stop := StopRequest().listen()).noted():\n{kills}print(stop.name)"
    ended = python(code, **({"SLURM_JOB_ID": job} if job else {}))
    assert (ended.returncode, ended.stdout.split("\n")[1:-1]) == (status, out)


def test_once_all_is_written_a_signal_ends_with_0():
    ended = python("stop = StopRequest().listen(); stop.finished(); os.kill(os.getpid(), signal.SIGTERM)")
    assert (ended.returncode, ended.stderr) == (0, "")


def test_training_from_python_installs_no_handler_and_leaves_by_its_deadline(tmp_path, capsys, load_script):
    (cfg,) = expand([*WORDS, "wandb.mode=disabled", f"store={tmp_path}"])
    handlers = [signal.getsignal(number) for number in SIGNALS]
    with pytest.raises(Interrupted, match=f"stopped by the end of its budget at step 0; {ADVICE}"):
        train(cfg, StopRequest(time.time() - 1))
    train(cfg)
    assert [signal.getsignal(number) for number in SIGNALS] == handlers
    assert [run.state for run in load_runs(tmp_path)] == ["done"]
    command = capsys.readouterr().out.splitlines()[-1].partition("; its curves: ")[2].split()
    assert load_script("compare").main([*command[2:], f"out={tmp_path / 'out'}"]) == 0
    assert list((tmp_path / "out").rglob("*.png"))


@pytest.mark.slow
@pytest.mark.faults
@pytest.mark.timeout(300 + 60 * TIMES)
@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_a_signal_at_any_moment_of_a_run_ends_it_within_two_seconds(tmp_path, number):
    """W&B's start and end included: a key and no network, so that its client runs offline."""
    wandb = {"HOME": str(tmp_path), "WANDB_API_KEY": "0123456789" * 4, "WANDB_BASE_URL": "http://127.0.0.1:9"}

    def start(store: str, mode: str = "auto") -> Command:
        return Command(tmp_path / "log", *WORDS, f"wandb.mode={mode}", f"store={tmp_path / store}", **wandb)

    began, process = time.monotonic(), start("undisturbed")
    assert process.wait() == 0, process.text()
    seconds, expected = time.monotonic() - began, the_run(tmp_path / "undisturbed")
    draw, statuses = random.Random(number.name), []
    for moment in range(TIMES):
        process = start(store := f"runs{moment}")
        wait_until_it_listens(process)
        time.sleep(seconds * draw.uniform(moment, moment + 1) / TIMES)
        began = time.monotonic()
        process.send(number)
        statuses.append(process.wait())
        assert time.monotonic() - began < 2, process.text()
        assert statuses[-1] == (0 if list((tmp_path / store).glob("*/DONE")) else 75), process.text()
        assert not statuses[-1] or f"stopped by {number.name}" in process.text().splitlines()[-1]
        assert start(store, "disabled").wait() == 0
        assert_same_end(the_run(tmp_path / store), expected)
    assert 75 in statuses
    print(f"signals: {number.name} {len(statuses)}, {statuses.count(75)} of them before DONE")


def files_of(folder):
    """Return what a command wrote by its path, but for locks, and files and folders that it had begun."""
    files = {str(file.relative_to(folder)): file for file in folder.rglob("*") if file.is_file()}
    return {name: file.read_bytes() for name, file in files.items() if "/." not in f"/{name}"}


@pytest.mark.slow
@pytest.mark.faults
@pytest.mark.timeout(300 + 60 * COMMANDS)
@pytest.mark.parametrize("name", ["export", "merge"])
def test_a_signal_at_any_moment_of_a_command(config, tmp_path, name):
    for seed in range(60):
        write_run(tmp_path / "runs", config(*WORDS[:2], *LENGTH[:2], f"seed={seed}"), 5.0 + seed / 60)
    option = "--results" if name == "export" else "--store"

    def start(folder):
        return Command(tmp_path / "log", str(tmp_path / "runs"), f"{option}={folder}", script=f"scripts/{name}.py")

    began, process = time.monotonic(), start(tmp_path / "undisturbed")
    assert process.wait() == 0, process.text()
    seconds, expected = time.monotonic() - began, files_of(tmp_path / "undisturbed")
    draw = random.Random(name)
    for number, time_ in itertools.product(SIGNALS, range(COMMANDS)):
        process = start(folder := tmp_path / f"{number.name}{time_}")
        wait_until_it_listens(process)
        time.sleep(draw.uniform(0, seconds))
        process.send(number)
        ended = process.wait()
        assert ended in (0, 75), process.text()
        lines = [line for line in process.text().splitlines() if "stopped" in line]
        assert lines == ([f"normloss: stopped by {number.name}; {ADVICE}"] if ended == 75 else [])
        assert files_of(folder).items() <= expected.items()
        assert start(folder).wait() == 0
        assert files_of(folder) == expected
    print(f"signals: {name} {COMMANDS * len(SIGNALS)}")
