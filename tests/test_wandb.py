"""The W&B tracker against a stand-in server: whole runs with our steps, whatever stopped them; W&B's variables win."""

import os
import signal
import sys
import time
from datetime import datetime
from types import SimpleNamespace

import pytest
import wandb_server
from conftest import ran
from forked import DIGITS, SAVE_OFTEN, Command, status, the_run, wait_until
from runs_support import write_run

from normloss.runs.records import load_run
from normloss.training import tracking

AUTO = [*DIGITS, "wandb.mode=auto"]


@pytest.fixture
def server():
    with wandb_server.Server() as server:
        yield server


def sync(*words, home, status=0, **variables):
    """scripts/wandb_sync.py WORDS"""
    return ran("scripts/wandb_sync.py", *words, status=status, HOME=str(home), **variables)


def assert_whole(rows, record):
    """Every epoch once, at its step."""
    assert [row["_step"] for row in rows] == [row["step"] for row in rows]
    for key in ("epoch", "step", "train_ce", "test_error"):
        assert [row[key] for row in rows] == [epoch[key] for epoch in record.epochs]


def test_a_run_is_written_whole_and_once(config, server, tmp_path):
    cfg = config("dataset=digits", "model=resnet8", "train.epochs=4", "train.milestones=[]", "wandb.group=table")
    store = tmp_path / "runs"
    write_run(store, cfg, 5.0)
    # at first it had two of its four epochs
    whole = {name: (store / cfg.id / name).read_bytes() for name in ("epochs.jsonl", "DONE")}
    (store / cfg.id / "epochs.jsonl").write_bytes(b"".join(whole["epochs.jsonl"].splitlines(keepends=True)[:2]))
    (store / cfg.id / "DONE").unlink()
    (store / cfg.id / "status.json").write_text('{"state": "incomplete"}')
    ended = sync(f"--store={store}", home=tmp_path, **server.environment)
    assert f"{cfg.id}: 2 epochs uploaded to http" in ended.stdout
    for name, content in whole.items():
        (store / cfg.id / name).write_bytes(content)
    ended = sync(cfg.id, f"--store={store}", home=tmp_path, **server.environment)
    assert "1 of 1 runs uploaded" in ended.stdout
    assert_whole(server.runs[cfg.id], load_run(store / cfg.id))
    assert server.summary[cfg.id]["test_error"] == 5.0
    assert server.config[cfg.id]["reg"]["value"]["name"] == "nl"
    asked = len(server.asked)
    ended = sync(f"--store={store}", home=tmp_path, **server.environment)
    assert ended.stdout == "0 of 1 runs uploaded; the others had nothing new\n"
    assert len(server.asked) == asked


def test_without_a_key_an_answer_or_such_a_run_nothing_is_written(config, server, tmp_path):
    cfg = config("dataset=digits", "model=resnet8", "train.epochs=4", "train.milestones=[]")
    write_run(tmp_path, cfg, 5.0)
    store = f"--store={tmp_path}"
    ended = sync(store, status=2, home=tmp_path, WANDB_BASE_URL=server.environment["WANDB_BASE_URL"])
    assert "needs a key" in ended.stderr and ended.stderr.count("\n") == 1
    ended = sync(store, status=2, home=tmp_path, **server.environment | {"WANDB_BASE_URL": "http://127.0.0.1:9"})
    assert ended.stderr.count("\n") == 1
    ended = sync("12345678", store, status=2, home=tmp_path, **server.environment)
    assert ended.stderr == f"normloss: 12345678: no such run in {tmp_path}\n"


@pytest.mark.slow
def test_a_run_stopped_twice_offline_is_written_as_one_whole_run(server, tmp_path):
    """The client's own files are three, each with what one session logged."""
    store = tmp_path / "runs"
    words = [*DIGITS, "wandb.mode=offline", "train.epochs=6", SAVE_OFTEN, f"store={store}"]
    for epochs in (2, 4):
        process = Command(tmp_path / "log", *words, HOME=str(tmp_path))
        wait_until(lambda epochs=epochs: status(store)["epoch"] >= epochs, process)
        process.send(signal.SIGTERM)
        assert process.wait() == 75
    ran("train.py", *words, HOME=str(tmp_path))
    record = the_run(store)
    assert len(list(record.path.glob(f"wandb/offline-run-*/run-{record.id}.wandb"))) == 3
    sync(f"--store={store}", home=tmp_path, **server.environment)
    assert [*server.runs] == [record.id]
    assert_whole(server.runs[record.id], record)
    assert server.summary[record.id]["test_error"] == record.final["test_error"]


@pytest.mark.slow
@pytest.mark.parametrize(("said", "files", "sent"), [(None, 0, True), ("disabled", 0, False), ("offline", 1, False)])
def test_wandbs_own_client_does_what_wandb_mode_says(server, tmp_path, said, files, sent):
    """With a key and a server that answers, which auto alone would take."""
    variables = server.environment | ({"WANDB_MODE": said} if said else {})
    words = [*AUTO, "train.epochs=1", "train.max_steps=4", f"store={tmp_path / 'runs'}"]
    ended = ran("train.py", *words, HOME=str(tmp_path), **variables)
    assert sent or ended.stderr == ""
    record = the_run(tmp_path / "runs")
    assert len(list(record.path.glob("wandb/offline-run-*"))) == files
    assert ("wandb" in record.meta) == bool(server.asked) == sent
    if sent:
        assert_whole(server.runs[record.id], record)
        assert server.summary[record.id]["test_error"] == record.final["test_error"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variables", "line"),
    [({"WANDB_API_KEY": wandb_server.KEY}, "cannot start online"), ({"WANDB_API_KEY": "short"}, "cannot start auto"),
     ({}, None)],
    ids=["no answer", "no such key", "no key"],
)  # fmt: skip
def test_auto_without_an_answer_or_a_key_is_offline_after_a_bounded_wait(server, tmp_path, variables, line):
    server.mode = "hang"
    words = [*AUTO, "train.epochs=1", "train.max_steps=3", f"store={tmp_path / 'runs'}"]
    address = {"WANDB_BASE_URL": server.environment["WANDB_BASE_URL"]}
    ended = ran("train.py", *words, HOME=str(tmp_path), **address, **variables)
    assert [line in said for said in ended.stdout.splitlines() if "W&B" in said] == ([True] if line else [])
    record = the_run(tmp_path / "runs")
    assert list(record.path.glob(f"wandb/offline-run-*/run-{record.id}.wandb"))
    began, finished = (datetime.fromisoformat(record.meta[key]) for key in ("started", "ended"))
    assert (finished - began).seconds < 90  # 40 on a free machine: the client takes longer than INIT_SECONDS to give up


class Client:
    """As much of the wandb module as choosing needs."""

    Settings = dict

    def __init__(self, mode):
        self.settings = SimpleNamespace(mode=mode, base_url="http://127.0.0.1:9")  # where nobody answers
        self.inits = []

    def setup(self):
        return self

    def init(self, **options):
        self.inits.append(options)
        return SimpleNamespace(define_metric=lambda *names, **options: None, url="http://w")


@pytest.fixture
def opened(config, tmp_path, monkeypatch):
    """opened(client, *words) -> what W&B is asked for, with its variables as the test sets them."""
    for key in [*os.environ]:
        if key.startswith("WANDB_"):
            monkeypatch.delenv(key)

    def make(client, *words):
        monkeypatch.setitem(sys.modules, "wandb", client)
        cfg = config("dataset=digits", "model=resnet8", f"store={tmp_path}", *words)
        tracking.open_tracker(cfg, SimpleNamespace(id=cfg.id, path=tmp_path, note=lambda **facts: None))
        return client.inits[-1]

    return make


@pytest.mark.parametrize(
    ("said", "variable", "mode"),
    [("online", True, "online"), ("dryrun", True, "offline"), ("offline", False, "offline"),
     ("online", False, "offline")],
)  # fmt: skip
def test_what_wandb_mode_or_its_settings_say_wins_over_auto(opened, monkeypatch, said, variable, mode):
    if variable:
        monkeypatch.setenv("WANDB_MODE", said)
    assert opened(Client(said))["mode"] == mode
    assert opened(Client("disabled"), "wandb.mode=offline")["mode"] == "offline"  # what was asked for wins over both


def test_wandbs_variables_name_project_and_group_under_auto(opened, monkeypatch):
    variables = {"PROJECT": "theirs", "ENTITY": "team", "RUN_GROUP": "g", "TAGS": "a,b", "NAME": "n", "DIR": "/tmp"}
    for key, value in variables.items():
        monkeypatch.setenv(f"WANDB_{key}", value)
    ours = {"project", "entity", "group", "tags", "name", "dir"}
    assert not ours & opened(Client("offline"), "wandb.group=ours").keys()
    asked = opened(Client("offline"), "wandb.group=ours", "wandb.mode=offline")
    assert ours <= asked.keys()
    assert asked["group"] == "ours"


@pytest.mark.parametrize("failing", ["log", "finish"])
def test_a_tracker_that_fails_is_left_out_with_one_line(capsys, failing):
    def fail(*arguments, **options):
        calls.append(failing)
        raise ConnectionError(f"{failing} failed\nand here is why")

    calls = []
    nothing = dict.fromkeys(("define_metric", "log", "finish"), lambda *values, **options: None)
    run = SimpleNamespace(**nothing, summary={})
    setattr(run, failing, fail)
    tracker = tracking.Tracker(run)
    for epoch in (1, 2):
        tracker.log({"step": 100 * epoch, "epoch": epoch})
    tracker.close({"test_error": 5.0})
    line = f"W&B failed and is off from here (ConnectionError: {failing} failed); the store has everything\n"
    assert capsys.readouterr().out == line
    assert calls == [failing]


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["none", "slow", "error", "hang", "closed"])
def test_a_failing_server_neither_stops_nor_slows_training(config, server, tmp_path, monkeypatch, fault):
    import wandb

    for name, value in (server.environment | {"HOME": str(tmp_path)}).items():
        monkeypatch.setenv(name, value)
    cfg = config("dataset=digits", "model=resnet8", "train.epochs=4", "train.milestones=[]")
    waited = []
    try:
        tracker = tracking.Tracker(tracking.start(wandb, cfg, tmp_path, "online", 5))
        for epoch in range(1, 41):
            time.sleep(0.1)  # an epoch of training
            before = time.monotonic()
            tracker.log({"epoch": epoch, "step": 100 * epoch, "test_error": 1.0})
            waited.append(time.monotonic() - before)
            if epoch == 10:
                if fault == "closed":
                    server.close()
                elif fault != "none":
                    server.mode = fault
        before = time.monotonic()
        tracker.close({"test_error": 1.0})
        assert sum(waited) < 1  # a call that waited for the server would take seconds each time
        assert time.monotonic() - before < 60
    finally:
        wandb.teardown()
