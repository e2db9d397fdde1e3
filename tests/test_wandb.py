"""The W&B tracker against a stand-in server: whole runs with our steps, whatever stopped them; W&B's variables win."""

import os
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest
import wandb_server
from conftest import ROOT
from runs_support import write_run
from test_faults import status, wait_until

from normloss.runs.records import load_run, load_runs
from normloss.training import tracking

COMMAND = ["dataset=digits", "device=cpu", "threads=1", "train.milestones=[]"]


@pytest.fixture
def server():
    with wandb_server.Server() as server:
        yield server


def environment(home, **variables):
    """Neither keys nor settings of whoever tests."""
    own = {key: value for key, value in os.environ.items() if not key.startswith(("WANDB_", "NORMLOSS_"))}
    return own | {"HOME": str(home), "PYTHONPATH": str(ROOT)} | variables


def run(*words, home, **variables):
    ended = subprocess.run(
        [sys.executable, *map(str, words)], env=environment(home, **variables), capture_output=True, text=True,
        timeout=300,
    )  # fmt: skip
    assert "Traceback" not in ended.stderr, ended.stderr
    return ended


# runs from their own records ---------------------------------------------------------------------


def script(*words, home, **variables):
    return run(ROOT / "scripts" / "wandb_sync.py", *words, home=home, **variables)


def assert_whole(rows, record):
    """Every epoch at its step, with 20 cross entropies of each; no step twice, none out of order."""
    steps = [row["_step"] for row in rows]
    assert steps == sorted(set(steps))
    assert [row["step"] for row in rows] == steps
    epochs = [row for row in rows if "epoch" in row]
    assert [row["epoch"] for row in epochs] == [epoch["epoch"] for epoch in record.epochs]
    assert [row["_step"] for row in epochs] == [epoch["step"] for epoch in record.epochs]
    assert [row["test_error"] for row in epochs] == [epoch["test_error"] for epoch in record.epochs]
    all_steps, ce = record.steps()
    of_step = dict(zip(all_steps.tolist(), ce.tolist(), strict=True))
    points = {row["_step"]: row["ce"] for row in rows if "ce" in row}
    assert len(points) >= min(20 * len(record.epochs), len(ce))
    assert all(of_step[step] == pytest.approx(value, abs=0) for step, value in points.items())


def test_a_run_is_written_whole_and_once(config, server, tmp_path):
    cfg = config("dataset=digits", "model=resnet8", "train.epochs=4", "train.milestones=[]", "wandb.group=table")
    store = tmp_path / "runs"
    write_run(store, cfg, 5.0)
    # at first it had two of its four epochs
    whole = {name: (store / cfg.id / name).read_bytes() for name in ("epochs.jsonl", "DONE")}
    (store / cfg.id / "epochs.jsonl").write_bytes(b"".join(whole["epochs.jsonl"].splitlines(keepends=True)[:2]))
    (store / cfg.id / "DONE").unlink()
    (store / cfg.id / "status.json").write_text('{"state": "incomplete"}')
    ended = script(f"--store={store}", home=tmp_path, **server.environment)
    assert ended.returncode == 0, ended.stderr
    assert f"{cfg.id}: 2 epochs written to http" in ended.stdout
    for name, content in whole.items():
        (store / cfg.id / name).write_bytes(content)
    ended = script(cfg.id, f"--store={store}", home=tmp_path, **server.environment)
    assert ended.returncode == 0, ended.stderr
    assert "1 runs written, 0 had nothing new" in ended.stdout
    assert_whole(server.runs[cfg.id], load_run(store / cfg.id))
    assert server.summary[cfg.id]["test_error"] == 5.0
    assert server.config[cfg.id]["reg"]["value"]["name"] == "nl"
    asked = len(server.asked)
    ended = script(f"--store={store}", home=tmp_path, **server.environment)
    assert ended.stdout == "0 runs written, 1 had nothing new\n"
    assert len(server.asked) == asked


def test_without_a_key_an_answer_or_such_a_run_nothing_is_written(config, server, tmp_path):
    cfg = config("dataset=digits", "model=resnet8", "train.epochs=4", "train.milestones=[]")
    write_run(tmp_path, cfg, 5.0)
    store = f"--store={tmp_path}"
    ended = script(store, home=tmp_path, WANDB_BASE_URL=server.environment["WANDB_BASE_URL"])
    assert (ended.returncode, ended.stderr.count("\n")) == (2, 1)
    assert "needs a key" in ended.stderr
    ended = script(store, home=tmp_path, **server.environment | {"WANDB_BASE_URL": "http://127.0.0.1:9"})
    assert (ended.returncode, ended.stderr.count("\n")) == (2, 1)
    ended = script("12345678", store, home=tmp_path, **server.environment)
    assert ended.stderr == f"normloss: 12345678: no such run in {tmp_path}\n"


@pytest.mark.slow
def test_a_run_stopped_twice_offline_is_written_as_one_whole_run(server, tmp_path):
    """The client's own files are three, each with what one session logged."""
    store = tmp_path / "runs"
    words = [
        ROOT / "train.py", *COMMAND, "model=resnet8", "train.epochs=6", "train.batch_size=64", "train.eval_batches=2",
        "checkpoint_minutes=0.0001", "wandb.mode=offline", f"store={store}",
    ]  # fmt: skip
    for epochs in (2, 4):
        process = subprocess.Popen(
            [sys.executable, *words],
            env=environment(tmp_path),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        wait_until(lambda epochs=epochs: status(store)["epoch"] >= epochs)
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=120)
        assert process.returncode == 75, out + err
        assert "Traceback" not in err, err
    assert run(*words, home=tmp_path).returncode == 0
    (record,) = load_runs(store)
    assert record.state == "done"
    assert len(list(record.path.glob(f"wandb/offline-run-*/run-{record.id}.wandb"))) == 3
    ended = script(f"--store={store}", home=tmp_path, **server.environment)
    assert ended.returncode == 0, ended.stderr
    assert [*server.runs] == [record.id]
    assert_whole(server.runs[record.id], record)
    assert server.summary[record.id]["test_error"] == record.final["test_error"]


# W&B's own variables -----------------------------------------------------------------------------


class Client:
    """As much of the wandb module as choosing needs."""

    Settings = dict

    def __init__(self, mode="online"):
        self.settings = SimpleNamespace(mode=mode, base_url="http://127.0.0.1:9")
        self.inits = []

    def setup(self):
        return self

    def init(self, **options):
        self.inits.append(options)
        return SimpleNamespace(define_metric=lambda *names, **options: None, url="http://w")

    def teardown(self):
        raise AssertionError("nothing failed")


@pytest.fixture
def opened(config, tmp_path, monkeypatch):
    """opened(client, *words) -> the tracker of a run, with W&B's variables as the test sets them."""
    for key in [*os.environ]:
        if key.startswith("WANDB_"):
            monkeypatch.delenv(key)

    def make(client, *words):
        monkeypatch.setitem(sys.modules, "wandb", client)
        cfg = config("dataset=digits", "model=resnet8", f"store={tmp_path}", *words)
        return tracking.open_tracker(cfg, SimpleNamespace(id=cfg.id, path=tmp_path, note=lambda **facts: None))

    return make


def test_wandb_mode_disabled_wins_over_auto_and_not_over_what_was_asked_for(opened, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    client = Client("disabled")
    assert type(opened(client)) is tracking.Tracker
    assert client.inits == []
    assert type(opened(client, "wandb.mode=offline")) is tracking.WandBTracker
    assert client.inits[0]["mode"] == "offline"


@pytest.mark.slow
@pytest.mark.parametrize("said", ["disabled", "offline"])
def test_wandbs_own_client_does_what_wandb_mode_says(server, tmp_path, said):
    """With a key and a server that answers, which auto alone would take."""
    words = [*COMMAND, "model=resnet8", "train.epochs=1", "train.max_steps=4", f"store={tmp_path / 'runs'}"]
    ended = run(ROOT / "train.py", *words, home=tmp_path, WANDB_MODE=said, **server.environment)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert server.asked == []
    (record,) = load_runs(tmp_path / "runs")
    assert len(list(record.path.glob("wandb/offline-run-*"))) == (said == "offline")
    assert "wandb" not in record.meta


@pytest.mark.parametrize(
    ("said", "variable", "mode"),
    [("offline", True, "offline"), ("online", True, "online"), ("dryrun", True, "offline"), ("run", True, "online"),
     ("offline", False, "offline"), ("online", False, "offline")],
)  # fmt: skip
def test_what_wandb_mode_or_its_settings_say_wins_over_auto(opened, monkeypatch, said, variable, mode):
    if variable:
        monkeypatch.setenv("WANDB_MODE", said)
    client = Client(said)  # its host does not answer: auto alone would be offline
    opened(client)
    assert [options["mode"] for options in client.inits] == [mode]


def test_wandbs_variables_name_project_and_group_under_auto(opened, monkeypatch):
    variables = {"PROJECT": "theirs", "ENTITY": "team", "RUN_GROUP": "g", "TAGS": "a,b", "NAME": "n", "DIR": "/tmp"}
    for key, value in variables.items():
        monkeypatch.setenv(f"WANDB_{key}", value)
    client = Client("offline")
    opened(client, "wandb.group=ours")
    opened(client, "wandb.group=ours", "wandb.mode=offline")
    ours = {"project", "entity", "group", "tags", "name", "dir"}
    assert not ours & client.inits[0].keys()
    assert ours <= client.inits[1].keys()
    assert client.inits[1]["group"] == "ours"


# a server that is slow, fails, hangs or goes away ------------------------------------------------

TRAINING = """
import sys, time
from pathlib import Path
import numpy as np
import wandb
from normloss.config import read_stored
from normloss.runs.records import load_run
from normloss.training import tracking

record = load_run(Path(sys.argv[1]))
tracker = tracking.WandBTracker(tracking.start(wandb, read_stored(record.config), record.id, sys.argv[2], "online", 5))
print("ready", flush=True)
sys.stdin.readline()
ce, began, waited = np.ones(100), time.monotonic(), []
for epoch in range(1, 41):
    time.sleep(0.2)  # an epoch of training
    before = time.monotonic()
    tracker.log({"epoch": epoch, "step": 100 * epoch, "test_error": 1.0}, ce)
    waited.append(time.monotonic() - before)
    if epoch == 10:
        print("half", flush=True)
        first = tracker.spent  # what is imported on first use
trained = time.monotonic() - began
tracker.finish({"test_error": 1.0})
print(sum(waited) / trained, (tracker.spent - first) / trained, max(waited), time.monotonic() - began - trained)
"""


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["none", "slow", "error", "hang", "closed"])
def test_a_failing_server_neither_stops_nor_slows_training(config, tmp_path, fault):
    cfg = config("dataset=digits", "model=resnet8", "train.epochs=4", "train.milestones=[]")
    write_run(tmp_path / "runs", cfg, 5.0)
    with wandb_server.Server() as server:
        process = subprocess.Popen(
            [sys.executable, "-c", TRAINING, tmp_path / "runs" / cfg.id, tmp_path],
            env=environment(tmp_path, **server.environment), stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert process.stdout.readline() == "ready\n", process.communicate()
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.stdout.readline() == "half\n"
        if fault == "closed":
            server.close()
        elif fault != "none":
            server.mode = fault
        out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert "Traceback" not in err
    waited, spent, _, finish = map(float, out.splitlines()[-1].split())
    assert waited + spent < 0.01  # of the time that training took
    assert finish < 30
