"""What a job on SLURM does with its runs, without a SLURM: the signal before its time is up, and stores that moved."""

import os
import pickle
import signal

import pytest

from normloss.errors import UserError
from normloss.runs import files
from normloss.runs.records import load_runs
from normloss.signals import SIGNALS
from normloss.sweeps import processes, slurm, slurm_job
from normloss.sweeps.composing import plan
from tests.forked import HERE, wait_until

REQUEUED = 75
WORDS = ["-m", "dataset=digits", "model=resnet8", "seed=0,1", *HERE]


def start_job(store, *words):
    """Start a job's process, as submitit has it; its status: the number of runs that it had to train, or REQUEUED."""

    def work():
        job = slurm_job.Job(plan([*WORDS, *words, f"store={store}"]), ["train.py", "-m", "seed=0,1"])

        def told(*_):
            again = job.checkpoint()
            os.kill(os.getpid(), signal.SIGUSR2)  # SLURM sends it twice
            os._exit(REQUEUED if again and pickle.dumps(job) else 1)

        signal.signal(signal.SIGUSR2, told)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        return len(job())

    return processes.start(work, {})


@pytest.mark.slow
def test_a_job_whose_time_is_up_is_requeued_if_its_runs_advanced(tmp_path):
    """The handler interrupts the wait for the runs, as it does in submitit."""
    job = start_job(tmp_path, "train.epochs=60", "checkpoint_minutes=60")
    wait_until(lambda: len([*tmp_path.glob("*/epochs.jsonl")]) == 2)
    os.kill(job.ident, signal.SIGUSR2)
    job.join()
    assert job.exitcode == REQUEUED
    runs = load_runs(tmp_path)
    assert [run.state for run in runs] == ["incomplete"] * 2
    assert all(files.read_json(run.path / "status.json")["saved"] > 0 for run in runs)
    assert {run.meta["command"] for run in runs} == {"train.py -m seed=0,1"}


@pytest.mark.slow
def test_a_job_trains_what_is_left_of_its_runs(tmp_path):
    for left in (2, 0):
        job = start_job(tmp_path, "train.epochs=1", "train.max_steps=2")
        job.join()
        assert job.exitcode == left
    assert [run.state for run in load_runs(tmp_path)] == ["done"] * 2


@pytest.mark.parametrize(("saved", "again"), [(7, True), (0, False)])
def test_a_job_none_of_whose_runs_advanced_is_not_requeued(tmp_path, saved, again):
    (run,) = plan(["dataset=digits", f"store={tmp_path}"])
    job, before = slurm_job.Job([run], ["train.py"]), signal.getsignal(signal.SIGUSR2)
    (tmp_path / run.cfg.id).mkdir()
    files.write_json(tmp_path / run.cfg.id / "status.json", {"saved": saved})
    assert (job.checkpoint() is not None) == again
    signal.signal(signal.SIGUSR2, before)


@pytest.fixture
def queue(tmp_path, monkeypatch):
    """queue(content, output, status) -> a store's queue, by an array's file and squeue's output; None: no squeue."""

    def ask(content: str, output: str | None, status: int = 0) -> dict[str, slurm.Queued]:
        (tmp_path / slurm.FOLDER).mkdir()
        (tmp_path / slurm.FOLDER / "normloss-0.json").write_text(content)
        monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}" if output is not None else "")
        (tmp_path / "squeue").write_text(f"#!/bin/sh\nprintf '{output}' >&{2 if status else 1}\nexit {status}\n")
        (tmp_path / "squeue").chmod(0o755)
        return slurm.queue(tmp_path)

    return ask


def test_tasks_of_an_array_are_the_runs_of_its_file_in_order(queue):
    said = "7_0|normloss-0|RUNNING\\n7_1|normloss-0|PENDING\\n8|another|RUNNING\\n"
    running, queued = slurm.Queued("7_0", "running"), slurm.Queued("7_1", "queued")
    found = queue('{"tasks": [["0badcafe"], ["1badcafe", "2badcafe"]]}', said)
    assert found == {"0badcafe": running, "1badcafe": queued, "2badcafe": queued}


@pytest.mark.parametrize(
    ("content", "said"),
    [("", "7_0|normloss-0|RUNNING\\n"), ('{"tasks": [["0badcafe"]]}', "7_9|normloss-0|RUNNING\\n"),
     ('{"tasks": [["0badcafe"]]}', None)],
    ids=["a damaged file", "no such task", "a store that was copied from a cluster"],
)  # fmt: skip
def test_nothing_is_queued(queue, content, said):
    assert queue(content, said) == {}


def test_a_squeue_that_fails_is_a_line(queue):
    with pytest.raises(UserError, match="squeue: must list the queued jobs, got slurm_load_jobs error"):
        queue('{"tasks": [["0badcafe"]]}', "slurm_load_jobs error: Unable to contact slurm controller", 1)


def test_a_runs_folder_says_how_it_ended_whatever_the_queue_says():
    queued = slurm.Queued("7_0", "queued")
    states = ("new", "incomplete", "failed", "running", "done", "diverged")
    assert [slurm.state_with(state, queued) for state in states] == ["queued"] * 3 + ["running", "done", "diverged"]
