"""Real processes that are killed, stopped, doubled, diverged and cut off; what they leave and how they go on."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from conftest import ROOT
from PIL import Image

from normloss.runs import files, records
from normloss.training import tracking

pytestmark = pytest.mark.slow
WAIT = 120  # seconds, for anything that should come much sooner
HERE = ["device=cpu", "threads=1", "train.milestones=[]", "wandb.mode=disabled"]
DIGITS = [*HERE, "dataset=digits", "model=resnet8"]
# dropout, so that a run that goes on needs torch's random numbers where it left them
DROPOUT = [*HERE, "dataset=digits", "model=wrn16_4", "model.width=1", "model.dropout=0.3", "recipe=digits_resnet8"]
LENGTH = ["train.epochs=2", "train.max_steps=34"]  # an epoch has 23 steps
SAVE_OFTEN = "checkpoint_minutes=0.0005"


def start(*arguments, **environment):
    """python train.py ARGUMENTS, under way."""
    own = {key: value for key, value in os.environ.items() if not key.startswith(("WANDB_", "NORMLOSS_"))}
    return subprocess.Popen(
        [sys.executable, ROOT / "train.py", *arguments],
        env=own | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def end(process):
    """How it ended: status, out, err, lines (of err). Nothing a user does or meets may show a traceback."""
    try:
        out, err = process.communicate(timeout=WAIT)
    finally:
        process.kill()
    assert "Traceback" not in err, err
    return SimpleNamespace(status=process.returncode, out=out, err=err, lines=err.splitlines())


def train(*arguments, **environment):
    return end(start(*arguments, **environment))


def wait_until(condition, process=None):
    """Poll until `condition`; `process` is to live that long."""
    until = time.monotonic() + WAIT
    while time.monotonic() < until:
        try:
            if condition():
                return
        except (TypeError, FileNotFoundError):  # no status yet, or a process that is gone
            pass
        if process is not None and process.poll() is not None:
            raise AssertionError(f"ended too early, status {process.returncode}: {process.communicate()}")
        time.sleep(0.005)
    raise AssertionError("waited in vain")


def run_in(folder):
    """The one run of a store."""
    (run,) = records.load_runs(folder)
    return run


def members(sweep):
    """The members of a sweep that are there: those of its children that lead a session of their own."""
    children = Path(f"/proc/{sweep.pid}/task/{sweep.pid}/children").read_text().split()
    return [pid for pid in children if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[3] == pid]


def by_seed(folder):
    return sorted(records.load_runs(folder), key=lambda run: run.config["seed"])


def status(folder, seed=0):
    """status.json of the run with a seed; a file read and nothing else, so that it may be asked at any time."""
    for path in folder.glob("*/config.yaml"):
        if yaml.safe_load(path.read_text())["seed"] == seed:
            return files.read_json(path.parent / "status.json")
    return None


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A run from start to end, with a second process that wanted it meanwhile and one that came after."""
    folder = tmp_path_factory.mktemp("undisturbed")
    command = [*DROPOUT, *LENGTH, f"store={folder}"]
    first = start(*command)
    wait_until(lambda: status(folder)["state"] == "running", first)
    second = train(*command)
    assert end(first).status == 0
    began = time.monotonic()
    third = train(*command)
    return SimpleNamespace(run=run_in(folder), pid=first.pid, second=second, third=third, took=time.monotonic() - began)


def assert_same_end(run, undisturbed):
    """Everything but durations: records, cross entropies of every step, the whole checkpoint bit by bit."""
    assert run.state == undisturbed.state == "done"
    assert [timeless(epoch) for epoch in run.epochs] == [timeless(epoch) for epoch in undisturbed.epochs]
    assert timeless(run.final) == timeless(undisturbed.final)
    for own, other in zip(run.steps(), undisturbed.steps(), strict=True):
        assert np.array_equal(own, other)
    own, other = (torch.load(folder / "last.pt") for folder in (run.path, undisturbed.path))
    assert equal(own, other)


def timeless(record):
    return {key: value for key, value in record.items() if key not in ("seconds", "epochs_bytes")}


def equal(one, other):
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        one, other = timeless(one), timeless(other)
        return list(one) == list(other) and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(equal, one, other))
    return one == other


# W&B: these processes mostly wait, so they start first and are read last ----------------------------


@pytest.fixture(scope="module", autouse=True)
def mirrored(tmp_path_factory):
    """Two runs that tracker to W&B as it comes: to a server that never answers, and without a key."""
    folder = tmp_path_factory.mktemp("mirrored")
    server = socket.create_server(("127.0.0.1", 0))
    held = []

    def accept():
        while True:
            try:
                held.append(server.accept())
            except OSError:  # closed
                return

    threading.Thread(target=accept, daemon=True).start()
    stalled = {"WANDB_BASE_URL": f"http://127.0.0.1:{server.getsockname()[1]}", "WANDB_API_KEY": "0123456789" * 4}
    home = {"HOME": str(folder)}  # neither keys nor settings of whoever tests
    command = [*DIGITS, "train.epochs=1", "train.max_steps=3", f"store={folder / 'runs'}"]
    processes = {
        "stalled": start(*command, "seed=1", "wandb.mode=auto", **home, **stalled),
        "keyless": start(*command, "seed=2", "wandb.mode=auto", **home),
    }
    yield SimpleNamespace(processes=processes, folder=folder / "runs", held=held)
    for process in processes.values():
        process.kill()
    server.close()


# two processes -----------------------------------------------------------------------------------


def test_a_second_process_leaves_and_names_the_first(undisturbed):
    assert undisturbed.second.status == 4
    assert len(undisturbed.second.lines) == 1
    assert f"run {undisturbed.run.id}" in undisturbed.second.lines[0]
    assert f"pid {undisturbed.pid}" in undisturbed.second.lines[0]
    assert socket.gethostname() in undisturbed.second.lines[0]
    assert status(undisturbed.run.path.parent)["attempts"] == 1


def test_a_done_run_says_so_at_once(undisturbed):
    assert undisturbed.third.status == 0
    assert undisturbed.third.err == ""
    (line,) = undisturbed.third.out.splitlines()
    assert f"run {undisturbed.run.id}" in line
    assert "is done" in line
    assert undisturbed.took < 5  # about 1 s on a free machine: torch is not imported


# divergence, alone and in a sweep ----------------------------------------------------------------

DIVERGING = [*DIGITS, "train.epochs=1", "train.max_steps=4"]


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """A sweep of two members, of which the second diverges: how it ended, and its runs by learning rate."""
    folder = tmp_path_factory.mktemp("swept")
    command = ["-m", *DIVERGING, f"store={folder}", "train.lr=0.1,1e30", "hydra.launcher.jobs=2"]
    ended = train(*command)
    runs = {run.config["train"]["lr"]: run for run in records.load_runs(folder)}
    return SimpleNamespace(command=command, folder=folder, ended=ended, fine=runs[0.1], diverged=runs[1e30])


def test_a_sweep_goes_on_past_a_diverged_member_and_says_what_became_of_each(swept):
    assert swept.ended.status == 3
    assert swept.fine.state == "done"
    assert swept.diverged.state == "diverged"
    *_, fine, diverged, total = swept.ended.out.splitlines()
    assert fine.startswith(swept.fine.id)
    assert f"done test error {swept.fine.final['test_error']:.2f} %" in " ".join(fine.split())
    assert diverged.startswith(swept.diverged.id)
    assert diverged.endswith("diverged")
    assert total.startswith("1 of 2 runs done")


def test_the_steps_of_a_diverged_run_end_with_the_one_that_is_not_finite(swept):
    steps, ce = swept.diverged.steps()
    assert steps.tolist() == list(range(1, len(ce) + 1))
    assert np.isfinite(ce[:-1]).all()
    assert not np.isfinite(ce[-1])
    assert f"step {steps[-1]} " in files.read_json(swept.diverged.path / "status.json")["error"]
    assert swept.diverged.epochs == []
    assert swept.diverged.final is None


def test_a_sweep_run_again_trains_nothing(swept):
    before = [status.read_text() for status in sorted(swept.folder.glob("*/*.json"))]
    ended = train(*swept.command)
    assert ended.status == 3
    assert "sweep of 2 runs, 1 done before" in ended.out
    assert "done before" in ended.out.splitlines()[-3]
    assert ended.out.splitlines()[-2].endswith("diverged")
    assert [status.read_text() for status in sorted(swept.folder.glob("*/*.json"))] == before


def test_a_diverged_run_is_trained_again_only_with_restart(swept, tmp_path):
    shutil.copytree(swept.diverged.path, tmp_path / swept.diverged.id)
    command = [*DIVERGING, f"store={tmp_path}", "train.lr=1e30"]
    began = time.monotonic()
    ended = train(*command)
    assert ended.status == 3
    assert len(ended.lines) == 1
    assert "restart=true" in ended.lines[0]
    assert time.monotonic() - began < 5
    assert run_in(tmp_path).meta == swept.diverged.meta

    ended = train(*command, "restart=true")
    assert ended.status == 3
    assert len(ended.lines) == 1
    assert "diverged: the cross entropy of step" in ended.lines[0]
    assert run_in(tmp_path).meta != swept.diverged.meta
    assert status(tmp_path)["attempts"] == 1


# sweeps that are hit -----------------------------------------------------------------------------


def test_a_sweep_outlives_a_killed_member_and_saves_its_members_when_stopped(tmp_path):
    command = ["-m", *DIGITS, "train.epochs=3", "seed=1,2", SAVE_OFTEN, f"store={tmp_path}"]
    sweep = start(*command)
    wait_until(lambda: status(tmp_path, seed=1)["step"] > 2, sweep)
    killed = status(tmp_path, seed=1)
    os.kill(killed["pid"], signal.SIGKILL)
    ended = end(sweep)
    assert ended.status == 1
    first, second = ended.out.splitlines()[-3:-1]
    assert "killed by SIGKILL" in first
    assert "done" in second
    assert "test error" in second
    assert [run.state for run in by_seed(tmp_path)] == ["incomplete", "done"]

    sweep = start(*command)
    wait_until(lambda: status(tmp_path, seed=1)["step"] > killed["step"] + 2, sweep)
    sweep.send_signal(signal.SIGTERM)
    ended = end(sweep)
    assert ended.status == 75
    assert "stopped" in ended.out.splitlines()[-3]
    assert "done before" in ended.out.splitlines()[-2]
    assert [run.state for run in by_seed(tmp_path)] == ["incomplete", "done"]
    stopped = status(tmp_path, seed=1)
    assert stopped["state"] == "incomplete"  # it said so itself
    assert stopped["step"] > killed["step"]

    sweep = start(*command)
    wait_until(lambda: members(sweep), sweep)  # the member is there but has not yet looked around
    sweep.kill()
    began = time.monotonic()
    sweep.communicate(timeout=WAIT)  # the member's output ends too
    assert time.monotonic() - began < 60
    orphan = status(tmp_path, seed=1)
    assert orphan["state"] == "incomplete"
    assert "end of its sweep" in orphan["error"]
    assert stopped["step"] <= orphan["step"] < 3 * 23
    assert orphan["attempts"] == stopped["attempts"] + 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_a_sweep_stopped_while_a_member_is_just_starting_is_only_stopped(tmp_path, number):
    sweep = start("-m", *DIGITS, "train.epochs=4", "seed=1,2", f"store={tmp_path}")
    wait_until(lambda: members(sweep), sweep)
    sweep.send_signal(number)
    ended = end(sweep)
    assert ended.status == 75
    assert "stopped" in ended.out.splitlines()[-3]
    assert "not started" in ended.out.splitlines()[-2]


# a store that cannot be written, data that changed -----------------------------------------------


@pytest.mark.parametrize("sweep", [[], ["-m", "seed=0,1"]], ids=["run", "sweep"])
def test_a_store_that_cannot_be_is_refused_in_a_line(tmp_path, sweep):
    (tmp_path / "file").write_text("in the way")
    ended = train(*sweep, *DIGITS, f"store={tmp_path / 'file'}")
    assert ended.status == 2
    assert len(ended.lines) == 1
    assert str(tmp_path / "file") in ended.lines[0]
    assert "run " not in ended.out  # nothing was started


def test_a_run_does_not_go_on_with_other_images(tmp_path):
    data = tmp_path / "pets"
    draw = np.random.default_rng(0)
    for split in ("train", "test"):
        for kind in ("cats", "dogs"):
            (data / split / kind).mkdir(parents=True)
            for i in range(4):
                pixels = draw.integers(256, size=(8, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(data / split / kind / f"{i}.png")
    runs = tmp_path / "runs"
    command = [
        *HERE, "dataset=folder", f"data_dir={data}", "model=resnet8", "recipe=digits_resnet8", "dataset.channels=3",
        "dataset.size=8", "train.epochs=10000", "train.batch_size=4", SAVE_OFTEN, f"store={runs}",
    ]  # fmt: skip
    process = start(*command)
    wait_until(lambda: status(runs)["step"] > 0, process)
    process.send_signal(signal.SIGUSR1)
    ended = end(process)
    assert ended.status == 75
    assert "stopped by SIGUSR1" in ended.lines[0]

    left = status(runs)
    image = Image.open(data / "train" / "dogs" / "3.png")
    image.putpixel((5, 5), (1, 2, 3))
    image.save(data / "train" / "dogs" / "3.png")
    ended = train(*command)
    assert ended.status == 2
    assert len(ended.lines) == 1
    assert "its data changed since it began" in ended.lines[0]
    assert status(runs)["step"] == left["step"]

    command += ["train.max_steps=2"]
    assert train(*command).status == 0
    assert "is done: /" in train(*command).out
    image.putpixel((5, 5), (3, 2, 1))
    image.save(data / "train" / "dogs" / "3.png")
    ended = train(*command)  # not the run of these images
    assert ended.status == 2
    assert ended.lines[0].endswith("restart=true trains anew, dataset.label=NAME makes a run of its own")


# W&B ---------------------------------------------------------------------------------------------


def test_without_a_key_the_files_go_quietly_into_the_run_folder(mirrored):
    ended = end(mirrored.processes["keyless"])
    assert ended.status == 0
    assert "W&B" not in ended.out
    assert ended.err == ""
    run = by_seed(mirrored.folder)[1]
    assert list(run.path.glob(f"wandb/offline-run-*/run-{run.id}.wandb"))


def test_a_server_that_never_answers_costs_a_bounded_wait_and_a_line(mirrored):
    ended = end(mirrored.processes["stalled"])
    assert ended.status == 0
    assert mirrored.held  # it was asked
    (line,) = [line for line in ended.out.splitlines() if "W&B" in line]
    assert "cannot start online" in line
    run = by_seed(mirrored.folder)[0]
    began, ended = (datetime.fromisoformat(run.meta[key]) for key in ("started", "ended"))
    assert (ended - began).seconds < 90  # 40 on a free machine: the client takes longer than INIT_SECONDS to give up
    assert list(run.path.glob("wandb/offline-run-*"))


class Service:
    """A W&B run; `failing` names the methods that raise."""

    def __init__(self, *failing, url=None):
        self.failing, self.calls, self.url = failing, [], url
        self.summary = self

    def __getattr__(self, name):
        def method(*arguments, **options):
            self.calls.append(name)
            if name in self.failing:
                raise ConnectionError(f"{name} failed\nand here is why")

        return method


def test_a_mirror_gets_every_epoch_and_the_end():
    service = Service()
    tracker = tracking.WandBTracker(service)
    tracker.log({"step": 100, "epoch": 1}, np.zeros(100))
    tracker.finish({"test_error": 5.0})
    assert service.calls == ["define_metric", *["log"] * 21, "update", "finish"]


@pytest.mark.parametrize("failing", ["log", "update", "finish"])
def test_a_mirror_that_fails_is_left_out_with_one_line(capsys, failing):
    service = Service(failing)
    tracker = tracking.WandBTracker(service)
    tracker.log({"step": 100, "epoch": 1}, np.zeros(100))
    tracker.log({"step": 200, "epoch": 2}, np.zeros(100))
    tracker.finish({"test_error": 5.0})
    (line,) = capsys.readouterr().out.splitlines()
    assert line == f"W&B failed and is left out from here ({failing} failed); the store has everything"
    assert service.calls.count(failing) == 1
    assert service.calls[-1] == failing


class Client:
    """The wandb module, as much as a tracker uses of it; `failing` names the modes that cannot start."""

    Settings = dict

    def __init__(self, *failing, key=True, address="http://127.0.0.1:1"):
        self.failing, self.key, self.address = failing, key, address
        self.started, self.teardowns = [], 0

    def setup(self):
        return SimpleNamespace(settings=SimpleNamespace(base_url=self.address, mode="online"))

    def login(self, **options):
        if self.key == "torn":
            raise ValueError("API key must have 40+ characters\nhas 5")
        return self.key

    def init(self, mode, **options):
        if mode in self.failing:
            raise RuntimeError(f"no {mode}\nreally")
        self.started.append(mode)
        return Service(url="https://wandb.example/run" if mode == "online" else None)

    def teardown(self):
        self.teardowns += 1


@pytest.fixture
def opened(config, tmp_path, monkeypatch):
    """opened(client, mode) -> the tracker that a run gets."""

    def make(client, mode):
        monkeypatch.setitem(sys.modules, "wandb", client)
        cfg = config("dataset=digits", "model=resnet8", f"store={tmp_path}", f"wandb.mode={mode}")
        run = SimpleNamespace(id=cfg.id, path=tmp_path, note=make.noted.update)
        return tracking.open_tracker(cfg, run)

    make.noted = {}  # for meta.json
    return make


def test_a_mirror_that_cannot_start_online_starts_offline(opened, capsys):
    client = Client("online")
    assert isinstance(opened(client, "online"), tracking.WandBTracker)
    assert client.started == ["offline"]
    assert client.teardowns == 1  # or the client would refuse the same id
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("W&B cannot start online (no online)")


@pytest.mark.parametrize(("key", "mode"), [(True, "online"), (False, "offline")])
def test_auto_is_online_with_a_key_and_an_answering_host(opened, capsys, key, mode):
    with socket.create_server(("127.0.0.1", 0)) as server:
        client = Client(key=key, address=f"http://127.0.0.1:{server.getsockname()[1]}")
        opened(client, "auto")
    assert client.started == [mode]
    assert capsys.readouterr().out == ""
    assert opened.noted == ({"wandb": "https://wandb.example/run"} if mode == "online" else {})


def test_a_wrong_address_or_key_costs_auto_a_line_and_the_network(opened, capsys):
    with socket.create_server(("127.0.0.1", 0)) as server:
        torn = Client(key="torn", address=f"http://127.0.0.1:{server.getsockname()[1]}")
        opened(torn, "auto")
    nonsense = Client(address="http://127.0.0.1:port")
    opened(nonsense, "auto")
    assert torn.started == nonsense.started == ["offline"]
    assert len(capsys.readouterr().out.splitlines()) == 2


@pytest.mark.parametrize("seeds", [["seed=0"], ["-m", "seed=0,1"]])
def test_a_run_whose_output_nobody_reads_any_more_can_go_on(tmp_path, seeds):
    """python train.py ... | head -1"""
    command = [*seeds, *DIGITS, *LENGTH, f"store={tmp_path}"]
    process = start(*command)
    process.stdout.readline()
    process.stdout.close()
    process.stdout = None
    stopped = end(process)
    assert stopped.status == 75, stopped.err
    assert stopped.lines[-1] == "normloss: its output was closed; start it again to go on"
    assert {run.state for run in records.load_runs(tmp_path)} <= {"incomplete", "done"}
    assert train(*command).status == 0
    assert {run.state for run in records.load_runs(tmp_path)} == {"done"}
