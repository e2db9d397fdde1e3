"""Budgets and queues: which runs come first, what is expected of the time there is, when runs leave."""

import re
import time

import pytest

from normloss.errors import UserError
from normloss.regularizers import REGULARIZERS
from normloss.runs.files import write_json
from normloss.runs.records import load_runs
from normloss.sweeps.composing import entries_of, expand, read_queue
from normloss.sweeps.members import in_order, members_of, outlook, train_here
from tests.conftest import ROOT
from tests.forked import Command
from tests.runs_support import write_run

DIGITS = ["dataset=digits", "model=resnet8", "wandb.mode=disabled", "threads=1", "device=cpu"]


def begin(member, epoch):
    member.folder.mkdir(parents=True)
    write_json(member.folder / "status.json", {"state": "incomplete", "epoch": epoch, "saved": 391 * epoch})


def order(members):
    return [f"{member.cfg.reg.name} {member.cfg.seed}" for member in in_order(members)]


def test_nearly_finished_runs_then_pairs_seed_by_seed(tmp_path):
    members = members_of(entries_of(["experiment=table1", "model=resnet110", f"store={tmp_path}"]))
    for member in members:
        if (epoch := {("nl", 3): 82, ("wd", 4): 163}.get((member.cfg.reg.name, member.cfg.seed))) is not None:
            begin(member, epoch)
    assert order(members) == ["wd 4", "nl 3", "wd 0", "nl 0", "wd 1", "nl 1", "wd 2", "nl 2", "wd 3", "nl 4"]


def test_entries_and_seeds_keep_their_order_and_what_is_nearly_finished_comes_first_within_its_entry(tmp_path):
    (tmp_path / "q.yaml").write_text('["reg=wd,so seed=7,2", "reg=nl,wd seed=7,0,1"]')
    members = members_of(entries_of([f"queue={tmp_path / 'q.yaml'}", *DIGITS, f"store={tmp_path / 'runs'}"]))
    begin(members[6], epoch=20)
    # wd 7 once, with the entry that it stands in first
    assert order(members) == ["wd 7", "so 7", "wd 2", "so 2", "nl 1", "nl 7", "wd 0", "nl 0", "wd 1"]


def test_the_outlook_follows_from_finished_runs_like_those_that_are_left(tmp_path):
    """Ten runs of 75 minutes, two at a time, of which one is finished."""
    runs = expand(["experiment=table1", "model=resnet110", f"store={tmp_path}"])
    assert outlook(runs, 2, []) == "unknown"
    write_run(tmp_path, runs[0], 6.0, epochs=164, seconds=75 * 60 / 164)
    finished, left = load_runs(tmp_path), runs[1:]
    assert [outlook(left, jobs, finished) for jobs in (2, 1)] == ["5.6 h", "11.2 h"]
    wide = expand(["experiment=table1", "model=wrn28_10", "seed=0", f"store={tmp_path}"])  # not like any of them
    assert outlook([*wide, *left], 1, finished) == (
        "11.2 h, and 2 runs without an estimate (no similar run has finished)"
    )


def test_no_run_is_started_for_the_last_twenty_seconds_and_the_ten_to_save_in(tmp_path, capsys):
    words = ["-m", *DIGITS, "seed=0,1", f"store={tmp_path}", "budget_minutes=0.49"]  # 29.4 s
    assert train_here(entries_of(words), None) == 75
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[-1] for line in lines[1:3]] == ["not started"] * 2
    assert lines[3:] == ["0 of 2 runs done; rerun the command to resume", "after 0.0 of 0.49 minutes; left: unknown"]


@pytest.mark.slow
def test_a_sweep_with_a_budget_stops_by_itself_and_says_what_is_left(tmp_path):
    began = time.monotonic()
    words = ["-m", *DIGITS, "reg=wd,nl", "train.epochs=400", "train.milestones=[]"]
    sweep = Command(tmp_path / "log", *words, f"store={tmp_path / 'runs'}", "budget_minutes=0.75")
    assert sweep.wait() == 75
    assert time.monotonic() - began < 60 * 0.75 + 15
    last = sweep.text().splitlines()[-1]
    assert last.startswith("after 0.")
    assert re.search(r"; left: \d", last)  # by the epochs of the run that was begun
    assert {run.state for run in load_runs(tmp_path / "runs")} <= {"incomplete"}


@pytest.mark.slow
def test_the_queue_of_the_paper_is_whole(tmp_path):
    lines = read_queue(ROOT / "results" / "queue_gpu.yaml")
    methods = next(i for i, line in enumerate(lines) if line[0] == "experiment=methods")
    configs = [cfg for line in lines[: methods + 1] for cfg in expand([*line, f"store={tmp_path}"])]
    first = {cfg.reg.name for cfg in configs if (cfg.model.name, cfg.train.precision) == ("resnet110", "tf32")}
    assert first == set(REGULARIZERS)  # each once on ResNet110, all in one precision
    there = {f"experiment={path.stem}" for path in (ROOT / "configs" / "experiment").glob("*.yaml")}
    small = {name for name in there if "=small_" in name}
    # ImageNet's needs data that nobody fetches by the way
    named = {line[0] for line in lines if line[0].startswith("experiment=")}
    assert named >= there - small - {"experiment=demo", "experiment=table3"}
    assert {line[0] for line in read_queue(ROOT / "results" / "queue_cpu.yaml")} <= small


@pytest.mark.parametrize("text", [None, "experiment: table1", "- 3", "[", "[]", '- "reg=\'nl"', "- --help"])
def test_a_queue_that_is_none_is_refused_in_a_line(tmp_path, text):
    if text is not None:
        (tmp_path / "q.yaml").write_text(text)
    with pytest.raises(UserError, match=r"^queue: must [^\n]*$"):
        expand([f"queue={tmp_path / 'q.yaml'}"])
