"""SIGKILL at random moments over a run's life: what comes out is an undisturbed run's, bit for bit.

NORMLOSS_KILLS=50 python -m pytest -m faults tests/test_faults_kills.py kills each as often.
"""

import contextlib
import itertools
import os
import random
import signal
import time

import pytest
from forked import Command, children
from test_faults import assert_same_end, wait_until

from normloss.config import CONFIGS
from normloss.runs.records import is_locked, load_runs
from normloss.sweeps import processes

HERE = ["device=cpu", "threads=1", "train.milestones=[]", "wandb.mode=disabled"]
DIGITS = [*HERE, "dataset=digits", "recipe=digits_resnet8"]
SHORT = ["model=resnet8", "train.epochs=2", "train.max_steps=12", "train.batch_size=64", "train.eval_batches=2"]
SAVE_OFTEN = "checkpoint_minutes=0.0001"
METHODS = sorted(path.stem for path in (CONFIGS / "reg").glob("*.yaml"))
KILLS = int(os.environ.get("NORMLOSS_KILLS", 3))  # of each kind
SETTINGS = {  # beside the methods
    "dropout": ["reg=nl", "model=wrn16_4", "model.width=1", "model.dropout=0.3"],
    "micro-batches": ["reg=nl", "train.micro_batch=32"],
    "annealed": ["reg=so", "reg.lam=1e-3", "reg.lam_milestones=[1]", "reg.lam_gamma=0.1"],
}


def words_of(setting):
    return [*DIGITS, *SHORT, *SETTINGS.get(setting, [f"reg={setting}"])]


def undisturbed(words, folder):
    process = Command(folder / "undisturbed.log", *words, f"store={folder / 'undisturbed'}")
    began = time.monotonic()
    assert process.wait() == 0, process.text()
    (run,) = load_runs(folder / "undisturbed")
    return run, time.monotonic() - began


def killed_again_and_again(words, folder, kills, seconds, draw):
    """Runs that are started and killed until `kills` of them hit, and then let go on to their end."""
    hits, runs = 0, []
    for attempt in itertools.count():
        store = folder / f"runs{attempt}"
        command = [*words, SAVE_OFTEN, f"store={store}"]
        status = None
        while status != 0:
            process = Command(folder / "killed.log", *command)
            if hits < kills:
                # a run that goes on is shorter: most kills shall hit early enough to leave something for the next
                time.sleep(draw.uniform(0.05, seconds * 0.8))
                process.send(signal.SIGKILL)
            status = process.wait()
            assert status in (0, -signal.SIGKILL), process.text()
            hits += status == -signal.SIGKILL
        runs += load_runs(store)
        if hits >= kills:
            break
    return runs, hits


def check(setting, folder, kills, seed):
    words = words_of(setting)
    expected, seconds = undisturbed(words, folder)
    runs, hits = killed_again_and_again(words, folder, kills, seconds, random.Random(seed))
    assert hits == kills
    for run in runs:
        assert_same_end(run, expected)
    print(f"kills: {setting} {hits}")


def test_a_run_killed_at_a_random_moment_ends_as_if_undisturbed(tmp_path):
    check("dropout", tmp_path, kills=2, seed=1)


@pytest.mark.slow
@pytest.mark.faults
@pytest.mark.timeout(300 + 60 * KILLS)
@pytest.mark.parametrize("setting", [*METHODS, *SETTINGS])
def test_every_setting_outlives_kills(setting, tmp_path):
    check(setting, tmp_path, KILLS, setting)


def victims(sweep, kind):
    """The sweep; or its children that train, which lead a session of their own."""
    if kind == "parent":
        return [sweep.pid]
    try:
        return [pid for pid in children(sweep.pid) if os.getsid(pid) == pid]
    except (FileNotFoundError, ProcessLookupError):  # it, or one of them, just ended
        return []


def hit(sweep, kind, seconds, draw):
    """Kill a victim of this kind at a random moment; how many that hit."""
    until = time.monotonic() + draw.uniform(0, seconds)
    while sweep.poll() is None and time.monotonic() < until:
        time.sleep(0.01)
    while sweep.poll() is None and not victims(sweep, kind):
        time.sleep(0.01)
    pids = victims(sweep, kind)
    if sweep.poll() is not None or not pids:
        return 0
    with contextlib.suppress(ProcessLookupError):  # it just ended
        os.kill(draw.choice(pids), signal.SIGKILL)
        return 1
    return 0


@pytest.mark.slow
@pytest.mark.faults
@pytest.mark.timeout(300 + 60 * KILLS)
@pytest.mark.parametrize("victim", ["parent", "child"])
@pytest.mark.parametrize("way", ["sweep", "queue"])
def test_a_sweep_outlives_kills(way, victim, tmp_path):
    processes.preload()  # here, so that every sweep has it
    draw = random.Random(victim + way)
    words = [*DIGITS, *SHORT]
    expected = {}
    for reg in ("nl", "wd"):
        (tmp_path / reg).mkdir()
        run, _ = undisturbed([*words, f"reg={reg}"], tmp_path / reg)
        expected[run.id] = run
    (tmp_path / "queue.yaml").write_text("[reg=nl, reg=wd]")
    ours = {
        "sweep": ["-m", *words, "reg=nl,wd"],
        "queue": [f"queue={tmp_path / 'queue.yaml'}", *words, "budget_minutes=20"],
    }[way]
    hits, seconds = 0, None
    for attempt in itertools.count():
        store, status = tmp_path / f"runs{attempt}", None
        while status != 0:
            began = time.monotonic()
            sweep = Command(tmp_path / "sweep.log", *ours, SAVE_OFTEN, f"store={store}")
            if seconds and hits < KILLS:
                hits += hit(sweep, victim, seconds, draw)
            status = sweep.wait()
            assert status in (0, 1, 4, 75, -signal.SIGKILL), sweep.text()
            wait_until(lambda store=store: not any(map(is_locked, store.glob("*"))))  # members of a dead sweep leave
        seconds = seconds or time.monotonic() - began  # of the first, which is let alone
        runs = load_runs(store)
        assert {run.id for run in runs} == set(expected)
        for run in runs:
            assert_same_end(run, expected[run.id])
        if hits >= KILLS:
            break
    print(f"kills: {way} {victim} {hits} in {attempt} stores")
