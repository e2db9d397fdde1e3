"""What a job on SLURM does with its runs, without a SLURM: the signal before its time is up, and stores that moved."""

import os
import signal
import subprocess
import sys

import pytest

from normloss.runs import files
from normloss.runs.records import load_runs
from normloss.sweeps import slurm, slurm_job
from normloss.sweeps.composing import plan
from tests.conftest import ROOT

JOB = """
import os, signal, sys, threading, time
from pathlib import Path
from normloss.sweeps import slurm_job
from normloss.sweeps.composing import plan
runs = plan(["-m", "dataset=digits", "model=resnet8", "seed=0,1", "train.milestones=[]", "wandb.mode=disabled",
             "device=cpu", "threads=1", "train.epochs=60", "checkpoint_minutes=60", *sys.argv[1:]])
job = slurm_job.Job(runs, ["train.py", "-m", "seed=0,1"])
def told(*_):
    again = job.checkpoint()
    os.kill(os.getpid(), signal.SIGUSR2)  # SLURM sends it twice
    print("requeued" if again else "left", flush=True)
    os._exit(0)
def tell():
    while len(list(Path(runs[0].cfg.store).glob("*/epochs.jsonl"))) < 2:
        time.sleep(0.05)
    os.kill(os.getpid(), signal.SIGUSR2)
signal.signal(signal.SIGUSR2, told)
if "train.max_steps=2" not in sys.argv:
    threading.Thread(target=tell, daemon=True).start()
print(job())
"""


def run_job(store, *words):
    words = [sys.executable, "-c", JOB, f"store={store}", *words]
    ran = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.splitlines()[-1]


@pytest.mark.slow
def test_a_job_whose_time_is_up_is_requeued_if_its_runs_advanced(tmp_path):
    """The handler interrupts the wait for the runs, as it does in submitit."""
    assert run_job(tmp_path) == "requeued"
    runs = load_runs(tmp_path)
    assert [run.state for run in runs] == ["incomplete"] * 2
    assert all(files.read_json(run.path / "status.json")["saved"] > 0 for run in runs)
    assert {run.meta["command"] for run in runs} == {"train.py -m seed=0,1"}


@pytest.mark.parametrize("advanced", [True, False])
def test_a_job_none_of_whose_runs_advanced_is_not_requeued(tmp_path, advanced):
    (run,) = plan(["dataset=digits", f"store={tmp_path}"])
    job = slurm_job.Job([run], ["train.py"])
    before = signal.getsignal(signal.SIGUSR2)
    (tmp_path / run.cfg.id).mkdir()
    files.write_json(tmp_path / run.cfg.id / "status.json", {"saved": 7 if advanced else 0})
    again = job.checkpoint()
    signal.signal(signal.SIGUSR2, before)
    assert (again is not None) == advanced


@pytest.mark.slow
def test_a_job_trains_what_is_left_of_its_runs(tmp_path):
    assert run_job(tmp_path, "train.epochs=1", "train.max_steps=2").count("done") == 2
    assert run_job(tmp_path, "train.epochs=1", "train.max_steps=2") == "{}"


def test_a_store_that_was_copied_from_a_cluster_has_nothing_queued(tmp_path, monkeypatch):
    (tmp_path / slurm.FOLDER).mkdir()
    files.write_json(tmp_path / slurm.FOLDER / "normloss-0.json", {"tasks": [["0badcafe"]]})
    monkeypatch.setenv("PATH", "")
    assert slurm.queue(tmp_path) == {}


@pytest.fixture
def squeue(tmp_path, monkeypatch):
    """squeue(output, status) -> the one that is found."""
    folder = tmp_path / "bin"
    folder.mkdir()

    def answers(output: str, status: int = 0) -> None:
        script = f"#!{sys.executable}\nimport sys\nsys.stderr.write({output!r}) if {status} else print({output!r})\n"
        (folder / "squeue").write_text(f"{script}sys.exit({status})\n")
        (folder / "squeue").chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")

    return answers


def arrays(store, content: str) -> None:
    (store / slurm.FOLDER).mkdir(exist_ok=True)
    (store / slurm.FOLDER / "normloss-0.json").write_text(content)


def test_tasks_of_an_array_are_the_runs_of_its_file_in_order(tmp_path, squeue):
    squeue("7_0|normloss-0|RUNNING\n7_1|normloss-0|PENDING\n8|another|RUNNING")
    arrays(tmp_path, '{"tasks": [["0badcafe"], ["1badcafe", "2badcafe"]]}')
    running, queued = slurm.Queued("7_0", "running"), slurm.Queued("7_1", "queued")
    assert slurm.queue(tmp_path) == {"0badcafe": running, "1badcafe": queued, "2badcafe": queued}


@pytest.mark.parametrize("content", ["", '{"tasks": [["0badcafe"]]}'])
def test_a_file_that_is_damaged_or_has_no_such_task_tells_nothing(tmp_path, squeue, content):
    squeue("7_9|normloss-0|RUNNING")
    arrays(tmp_path, content)
    assert slurm.queue(tmp_path) == {}


def test_a_plan_says_what_it_can_where_squeue_cannot_be_asked(tmp_path, squeue):
    squeue("slurm_load_jobs error: Unable to contact slurm controller", 1)
    arrays(tmp_path, '{"tasks": [["0badcafe"]]}')
    command = [sys.executable, str(ROOT / "scripts" / "plan.py"), "demo", f"store={tmp_path}"]
    ran = subprocess.run(command, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert "demo: 6 runs: 6 missing" in ran.stdout
    assert "what is queued is not known (squeue: must say which jobs are queued, got slurm_load_jobs" in ran.stdout
