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
from conftest import PRESETS
from forked import DIGITS, SAVE_OFTEN, Command, assert_same_end, members, the_run, undisturbed, wait_until

from normloss.runs.records import is_locked, load_runs

SHORT = [*DIGITS, "recipe=digits_resnet8", "train.epochs=2", "train.max_steps=12"]
KILLS = int(os.environ.get("NORMLOSS_KILLS", 3))  # of each kind
SETTINGS = {  # beside the methods
    "dropout": ["reg=nl", "model=wrn16_4", "model.width=1", "model.dropout=0.3"],
    "micro-batches": ["reg=nl", "train.micro_batch=32"],
    "annealed": ["reg=so", "reg.lam=1e-3", "reg.lam_milestones=[1]", "reg.lam_gamma=0.1"],
}


def check(setting, folder, kills):
    """Start and kill runs until `kills` of them hit, and let each then go on to its end."""
    words = [*SHORT, *SETTINGS.get(setting, [f"reg={setting}"])]
    began = time.monotonic()
    expected = undisturbed(words, folder)
    seconds = time.monotonic() - began
    hits, draw = 0, random.Random(setting)
    for attempt in itertools.count():
        store, ended = folder / f"runs{attempt}", None
        while ended != 0:
            process = Command(folder / "killed.log", *words, SAVE_OFTEN, f"store={store}")
            if hits < kills:
                # a run that goes on is shorter: most kills shall hit early enough to leave something for the next
                time.sleep(draw.uniform(0.05, seconds * 0.8))
                process.send(signal.SIGKILL)
            ended = process.wait()
            assert ended in (0, -signal.SIGKILL), process.text()
            hits += ended == -signal.SIGKILL
        assert_same_end(the_run(store), expected)
        if hits >= kills:
            break
    print(f"kills: {setting} {hits}")


def test_a_run_killed_at_a_random_moment_ends_as_if_undisturbed(tmp_path):
    check("dropout", tmp_path, kills=2)


@pytest.mark.slow
@pytest.mark.faults
@pytest.mark.timeout(300 + 60 * KILLS)
@pytest.mark.parametrize("setting", [*PRESETS, *SETTINGS])
def test_every_setting_outlives_kills(setting, tmp_path):
    check(setting, tmp_path, KILLS)


def hit(sweep, kind, seconds, draw):
    """Kill the sweep or a member of it at a random moment; how many that hit."""
    time.sleep(draw.uniform(0, seconds))
    while sweep.poll() is None:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it, or one of them, just ended
            if pids := [sweep.pid] if kind == "parent" else members(sweep):
                os.kill(draw.choice(pids), signal.SIGKILL)
                return 1
        time.sleep(0.01)
    return 0


@pytest.mark.slow
@pytest.mark.faults
@pytest.mark.timeout(300 + 60 * KILLS)
@pytest.mark.parametrize("victim", ["parent", "child"])
@pytest.mark.parametrize("way", ["sweep", "queue"])
def test_a_sweep_outlives_kills(way, victim, tmp_path):
    draw = random.Random(victim + way)
    expected = {}
    for reg in ("nl", "wd"):
        (tmp_path / reg).mkdir()
        run = undisturbed([*SHORT, f"reg={reg}"], tmp_path / reg)
        expected[run.id] = run
    (tmp_path / "queue.yaml").write_text("[reg=nl, reg=wd]")
    ours = {
        "sweep": ["-m", *SHORT, "reg=nl,wd"],
        "queue": [f"queue={tmp_path / 'queue.yaml'}", *SHORT, "budget_minutes=20"],
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
