"""SIGKILL at random moments over a run's life: what comes out is an undisturbed run's, bit for bit."""

import contextlib
import os
import random
import signal
import time

import pytest
from forked import Command
from test_faults import assert_same_end

from normloss.config import CONFIGS
from normloss.runs import files
from normloss.runs.records import load_runs

HERE = ["device=cpu", "threads=1", "train.milestones=[]", "wandb.mode=disabled"]
DIGITS = [*HERE, "dataset=digits", "recipe=digits_resnet8"]
SHORT = ["model=resnet8", "train.epochs=2", "train.max_steps=12", "train.batch_size=64", "train.eval_batches=2"]
SAVE_OFTEN = "checkpoint_minutes=0.0001"
METHODS = sorted(path.stem for path in (CONFIGS / "reg").glob("*.yaml"))
KILLS = 3
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
    for attempt in range(kills):
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
    assert hits
    for run in runs:
        assert_same_end(run, expected)
    print(f"kills: {setting} {hits}")


def test_a_run_killed_at_a_random_moment_ends_as_if_undisturbed(tmp_path):
    check("dropout", tmp_path, kills=2, seed=1)


@pytest.mark.slow
@pytest.mark.faults
@pytest.mark.parametrize("setting", [*METHODS, *SETTINGS])
def test_every_setting_outlives_kills(setting, tmp_path):
    check(setting, tmp_path, KILLS, setting)


def members(store):
    """The processes that train runs of this store, by what the runs say."""
    found = (files.read_json(path) for path in store.glob("*/status.json"))
    return [status["pid"] for status in found if status and status["state"] == "running"]


@pytest.mark.slow
@pytest.mark.faults
@pytest.mark.parametrize("way", ["sweep", "queue"])
@pytest.mark.parametrize("victim", ["parent", "child"])
def test_a_sweep_outlives_kills(victim, way, tmp_path):
    draw = random.Random(victim + way)
    words = [*DIGITS, *SHORT]
    expected = {}
    for reg in ("nl", "wd"):
        (tmp_path / reg).mkdir()
        run, seconds = undisturbed([*words, f"reg={reg}"], tmp_path / reg)
        expected[run.id] = run
    store = tmp_path / "runs"
    (tmp_path / "queue.yaml").write_text("[reg=nl, reg=wd]")
    ours = {
        "sweep": ["-m", *words, "reg=nl,wd"],
        "queue": [f"queue={tmp_path / 'queue.yaml'}", *words, "budget_minutes=20"],
    }[way]
    hits, status = 0, None
    for _ in range(20):
        process = Command(tmp_path / "sweep.log", *ours, SAVE_OFTEN, f"store={store}")
        while hits < KILLS and process.poll() is None and not members(store):
            time.sleep(0.01)
        if hits < KILLS and process.poll() is None:
            time.sleep(draw.uniform(0, seconds))
            pids = [process.pid] if victim == "parent" else members(store)[:1]
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):  # it just ended
                    os.kill(pid, signal.SIGKILL)
                    hits += 1
        status = process.wait()
        if status == 0 and hits:
            break
        time.sleep(1)  # members of a sweep that is gone save and leave
    assert status == 0, process.text()
    runs = load_runs(store)
    assert {run.id for run in runs} == set(expected)
    for run in runs:
        assert_same_end(run, expected[run.id])
    print(f"kills: {way} {victim} {hits}")
