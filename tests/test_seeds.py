"""Several seeds in one process: each is the run that it would be alone, whatever becomes of the others."""

import json
import signal
import subprocess
import sys
from functools import partial

import pytest
import torch

import train as script
from normloss import bundles, seeds
from normloss.data.digits import load
from normloss.data.tensors import TensorData
from normloss.errors import Diverged, Interrupted
from normloss.runs import files, records, store
from normloss.seeds import Lane, SharedData, train_together
from normloss.sweeps import members
from normloss.sweeps.durations import Pace, kind
from normloss.sweeps.members import Member
from normloss.training import executors
from normloss.training.executors import Compiled
from tests.conftest import ROOT
from tests.test_executors import Tape, assert_same, results
from tests.test_faults import end, start, wait_until

HERE = ("dataset=digits", "model=resnet8", "device=cpu", "threads=1", "wandb.mode=disabled")
# each draws from torch's global generators as it trains: dropout, and SRIP's starts
DRAWING = {
    "dropout": ("model=wrn16_4", "model.width=1", "model.dropout=0.3", "recipe=digits_resnet8"),
    "srip": ("model=resnet8", "reg=srip"),
}
TWO_EPOCHS = ("train.batch_size=256", "train.epochs=2", "train.milestones=[1]", "train.eval_batches=1")


def members_of(config, path, *overrides: str, count: int = 3) -> list[Member]:
    return [Member([], config(*HERE, *overrides, f"store={path}", f"seed={seed}")) for seed in range(count)]


def alone(config, path, *overrides: str, seed: int) -> records.RunRecord:
    cfg = config(*HERE, *overrides, f"store={path}", f"seed={seed}")
    script.train(cfg, store.open_run(cfg))
    return records.load_run(path / cfg.id)


@pytest.mark.parametrize("what", DRAWING)
def test_each_seed_is_the_run_that_it_is_alone(config, tmp_path, what):
    overrides = (*TWO_EPOCHS, *DRAWING[what])
    members = members_of(config, tmp_path / "together", *overrides, count=2)
    train_together(members, script.steps)
    assert [member.status for member in members] == [0, 0]
    found = [records.load_run(tmp_path / "together" / member.cfg.id) for member in members]
    assert [run.meta["together"] for run in found] == [2, 2]
    for seed, run in enumerate(found):
        other = alone(config, tmp_path / "alone", *overrides, seed=seed)
        assert other.meta["together"] == 1
        assert_same(results(run), results(other))
    assert len({run.final["test_ce"] for run in found}) == 2


@pytest.mark.parametrize("executor", ["graph", "compile"])
def test_each_seed_has_an_executor_of_its_own(config, tmp_path, monkeypatch, executor):
    monkeypatch.setattr(executors, "CudaCapture", Tape)
    monkeypatch.setattr(executors, "Compiled", partial(Compiled, backend="eager"))
    monkeypatch.setattr(executors, "obstacle", lambda *_: None)
    torch._dynamo.reset()
    members = members_of(config, tmp_path / "together", *TWO_EPOCHS, f"train.executor={executor}", count=2)
    train_together(members, script.steps)
    for seed, member in enumerate(members):
        run = records.load_run(tmp_path / "together" / member.cfg.id)
        assert run.meta["executor"] == executor
        assert_same(results(run), results(alone(config, tmp_path / "alone", *TWO_EPOCHS, seed=seed)))


def test_the_images_are_there_once(config):
    cfgs = [config(*HERE, f"seed={seed}") for seed in (0, 1)]
    shared, cpu = SharedData(runs=2), torch.device("cpu")
    first, second = (shared.of(cfg, cpu) for cfg in cfgs)
    assert first.windows.data_ptr() == second.windows.data_ptr()
    assert first.test_images is second.test_images
    own = TensorData(cfgs[1].dataset, *load(cfgs[1].dataset, None), seed=1, batch_size=64, device=cpu)
    for (x, y), (own_x, own_y) in zip(second.train(3), own.train(3), strict=True):
        assert_same((x, y), (own_x, own_y))
    assert not torch.equal(next(first.train(3))[0], next(own.train(3))[0])


def test_a_turn_leaves_torchs_generator_as_it_was():
    lane, drawn = Lane(iter(()), torch.device("cpu")), []
    for _ in range(2):
        before = torch.get_rng_state()
        with lane.turn():
            drawn.append(torch.rand(3))
        assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(torch.cat(drawn), torch.cat([torch.rand(3), torch.rand(3)]))  # the lane began from this state


# turns ---------------------------------------------------------------------------------------------


class Epochs:
    steps_per_epoch = 6


class Steps:
    """Stands in for train.steps: runs of five steps that note their turns; `ends` says how some end early."""

    def __init__(self, **ends) -> None:
        self.ends = {int(seed.removeprefix("seed")): error for seed, error in ends.items()}
        self.turns: list[int] = []

    def __call__(self, cfg, run, stop, shared):
        with run.session():
            shared.data = Epochs()
            for step in range(5):
                self.turns.append(cfg.seed)
                if step == 2 and cfg.seed in self.ends:
                    raise self.ends[cfg.seed]
                yield
            run.finish({"epochs": 1, "steps": 5, "test_error": 1.0})


def test_runs_begin_a_part_of_an_epoch_apart_and_then_alternate(config, tmp_path):
    steps = Steps()
    train_together(members_of(config, tmp_path), steps)
    assert steps.turns == [0, 0, 0, 1, 0, 1, 0, 1, 2, 1, 2, 1, 2, 2, 2]


def test_how_one_run_ends_does_not_stop_the_others(config, tmp_path, capfd):
    steps = Steps(seed0=Diverged("run x diverged"), seed1=ZeroDivisionError("oops"), seed2=Interrupted("stopped"))
    members = members_of(config, tmp_path, count=4)
    train_together(members, steps)
    assert [member.status for member in members] == [3, 1, 75, 0]
    assert [records.load_run(tmp_path / member.cfg.id).state for member in members] == [
        "diverged", "failed", "incomplete", "done",
    ]  # fmt: skip
    assert members.worst(members) == 1
    said = capfd.readouterr().err
    assert "normloss: run x diverged\n" in said
    assert "ZeroDivisionError: oops" in said


def test_a_run_of_another_process_is_left_to_it(config, tmp_path, capfd):
    members = members_of(config, tmp_path)
    held = store.open_run(members[1].cfg)
    with held.session():
        train_together(members, Steps())
    assert [member.status for member in members] == [0, 4, 0]
    assert "is being trained by another process" in capfd.readouterr().err


def test_data_that_are_missing_are_said_once_and_nothing_is_started(config, tmp_path, capfd):
    missing = ("dataset=folder", "dataset.num_classes=3", "model=resnet8", "recipe=cifar10_resnet110")
    members = members_of(config, tmp_path / "runs", *missing, f"data_dir={tmp_path}")
    train_together(members, script.steps)
    assert [member.status for member in members] == [2, 2, 2]
    assert capfd.readouterr().err.count("no folder") == 1
    assert list((tmp_path / "runs").iterdir()) == []


def test_a_seed_that_has_no_room_leaves_its_own_to_the_others(config, tmp_path, monkeypatch, capfd):
    take = executors.Eager.step

    def step(executor, x, y):
        if executor.cfg is members[1].cfg.train:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.\nmore")
        return take(executor, x, y)

    monkeypatch.setattr(executors.Eager, "step", step)
    members = members_of(config, tmp_path, *TWO_EPOCHS, count=2)
    train_together(members, script.steps)
    assert [member.status for member in members] == [0, 75]
    assert records.load_run(tmp_path / members[1].cfg.id).state == "incomplete"
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith(
        "normloss: cpu has too little memory (CUDA out of memory. Tried to allocate 20.00 MiB.); with"
    )


def test_a_data_set_that_cannot_be_shared_is_refused_once(config, tmp_path, capfd):
    words = ("dataset=imagenet", "model=resnet18", "recipe=imagenet_resnet50", f"data_dir={tmp_path}")
    members = members_of(config, tmp_path / "runs", *words)
    train_together(members, script.steps)
    assert [member.status for member in members] == [2, 2, 2]
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("normloss: seeds: needs a data set that stays on the device as tensors, which imagenet does")
    assert list((tmp_path / "runs").iterdir()) == []


# the command line ------------------------------------------------------------------------------------

SMALL = [*HERE, "train.epochs=2", "train.milestones=[]"]


def test_seeds_that_are_stopped_go_on_and_end_as_if_they_had_not_been(config, tmp_path):
    words = [*SMALL, "seeds=0,1", f"store={tmp_path / 'together'}"]
    process = start(*words, "checkpoint_minutes=0.001")
    ids = [config(*SMALL, f"seed={seed}").id for seed in (0, 1)]
    status = tmp_path / "together" / ids[1] / "status.json"
    wait_until(lambda: (files.read_json(status) or {}).get("saved", 0) > 2, process)
    process.send_signal(signal.SIGTERM)
    stopped = end(process)
    assert stopped.status == 75
    assert sorted(line.split(" at step")[0] for line in stopped.lines) == [
        f"normloss: run {id} stopped by SIGTERM" for id in sorted(ids)
    ]
    assert [records.load_run(status.parent.parent / id).state for id in ids] == ["incomplete", "incomplete"]
    again = end(start(*words))
    assert again.status == 0, again.err
    assert "2 of 2 runs done" in again.out
    for seed, id in enumerate(ids):
        whole = alone(config, tmp_path / "alone", *SMALL[5:], seed=seed)
        assert_same(results(records.load_run(status.parent.parent / id)), results(whole))
    nothing = end(start(*words))
    assert (nothing.status, nothing.out.splitlines()[0]) == (0, "2 seeds, 2 done before")


def test_a_sweep_with_seeds_trains_each_cell_in_a_process(tmp_path):
    words = ["-m", *HERE, "debug=smoke", "reg=wd,nl", "seeds=range(0,2)", f"store={tmp_path}"]
    ran = end(start(*words))
    assert ran.status == 0, ran.err
    assert ran.out.startswith("sweep of 4 runs, 0 done before")
    assert "4 of 4 runs done" in ran.out
    runs = records.load_runs(tmp_path)
    assert [run.meta["together"] for run in runs] == [2] * 4
    commands = {run.meta["command"] for run in runs}
    assert len(commands) == 2
    assert all("seeds=0,1" in command for command in commands)


def test_a_crew_that_is_killed_is_told_run_by_run(config, tmp_path):
    members = members_of(config, tmp_path)
    (tmp_path / members[0].cfg.id).mkdir()
    (tmp_path / members[0].cfg.id / "status.json").write_text(json.dumps({"state": "done"}))
    process = subprocess.Popen([sys.executable, "-c", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"])
    process.wait()
    members._finish(members.Crew(members, process))
    assert [member.status for member in members[1:]] == [1, 1]
    assert members[1].outcome == "killed by SIGKILL: start again to go on"
    assert members[0].status == 0


def test_a_crew_is_one_command(config, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py"])
    cfgs = [config(*HERE, f"seed={seed}") for seed in (3, 1)]
    assert cfgs[0].cell == cfgs[1].cell != config(*HERE, "reg=wd").cell
    members = [Member(["reg=nl", f"seed={cfg.seed}"], cfg) for cfg in cfgs]
    assert members.command(members)[2:] == ["reg=nl", "seeds=3,1", "hydra.mode=RUN"]
    assert members.command(members[:1])[2:] == ["reg=nl", "seed=3", "hydra.mode=RUN"]
    assert seeds.as_sweep(["-m", "reg=nl", "seeds=0,1", "hydra.mode=RUN"]) == ["reg=nl", "seed=0,1"]


def test_a_budget_trains_seeds_together_where_that_is_measured_to_be_faster(tmp_path, monkeypatch, capfd):
    """The measurement is stood in for, as no CPU is faster so; the processes are real."""
    words = [*HERE, "debug=smoke", "reg=wd,nl", "seed=0,1,2", f"store={tmp_path}", "budget_minutes=9"]
    monkeypatch.setattr(members, "measure_paces", lambda cfgs, seconds: {kind(cfg): Pace(0.5, 3, 0.6) for cfg in cfgs})
    monkeypatch.setattr(sys, "argv", [str(ROOT / "train.py")])
    assert members.run_members(members.compositions(words), jobs=1) == 0
    said = capfd.readouterr().out
    assert "budget of 9 minutes: expects to finish 6 of 6 runs" in said
    assert "up to 3 seeds at once" in said
    assert "6 of 6 runs done" in said
    runs = records.load_runs(tmp_path)
    assert [run.meta["together"] for run in runs] == [3] * 6
    assert len({run.meta["command"] for run in runs}) == 2


def test_seeds_stopped_by_a_budget_go_on_on_another_machine(config, tmp_path):
    words = [*HERE, "seeds=0,1", "train.epochs=6", "train.milestones=[4]"]
    stopped = end(start(*words, f"store={tmp_path / 'here'}", "budget_minutes=0.25"))
    assert stopped.status == 75, stopped.out
    bundles.export(tmp_path / "here", tmp_path / "travels", files=8, file_bytes=10**6)
    assert len(bundles.bring([tmp_path / "travels"], tmp_path / "there").brought) == 2
    assert end(start(*words, f"store={tmp_path / 'there'}")).status == 0
    assert end(start(*words, f"store={tmp_path / 'whole'}")).status == 0
    for run in records.load_runs(tmp_path / "whole"):
        other = records.load_run(tmp_path / "there" / run.id)
        assert len(other.meta["sessions"]) == 2
        assert_same(results(other), results(run))
