"""What a job on SLURM does with its runs, without a SLURM: the signal before its time is up, and stores that moved."""

import os
import subprocess
import sys

import pytest

from normloss.runs import files
from normloss.sweeps import slurm
from tests.conftest import ROOT

SCRIPT = """
import json, pathlib, signal, sys, time
def leave(*_):
    pathlib.Path(sys.argv[1], "status.json").write_text(json.dumps({"saved": int(sys.argv[2])}))
    sys.exit(75)
signal.signal(signal.SIGTERM, leave)
pathlib.Path(sys.argv[1], "begun").touch()
time.sleep(60)
"""
JOB = """
import os, pathlib, signal, sys, threading, time
from normloss.sweeps.slurm_job import Job
store = pathlib.Path(sys.argv[1])
job = Job(store / "script.py", {"run": [str(store / "run"), sys.argv[2]]}, store)
def told(*_):
    again = job.checkpoint()
    os.kill(os.getpid(), signal.SIGUSR2)  # SLURM says it twice
    print("requeued" if again else "left", flush=True)
    os._exit(0)
def tell():
    while not (store / "run" / "begun").exists():
        time.sleep(0.05)
    time.sleep(0.3)
    os.kill(os.getpid(), signal.SIGUSR2)
signal.signal(signal.SIGUSR2, told)
threading.Thread(target=tell, daemon=True).start()
job()
"""


@pytest.mark.parametrize(("saved", "then"), [("8", "requeued"), ("7", "left")])
def test_a_job_whose_time_is_up_is_requeued_if_its_runs_advanced(tmp_path, saved, then):
    """The handler interrupts the wait for the run's process, as it does in submitit."""
    (tmp_path / "run").mkdir()
    (tmp_path / "script.py").write_text(SCRIPT)
    files.write_json(tmp_path / "run" / "status.json", {"saved": 7})
    words = [sys.executable, "-c", JOB, str(tmp_path), saved]
    ran = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert ran.stdout.split() == [then], ran.stderr


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


@pytest.mark.parametrize("content", ["", "[]", "7", '{"tasks": 5}', '{"tasks": [5]}', '{"tasks": [[5, null]]}', "{}"])
def test_a_damaged_file_of_an_array_tells_nothing(tmp_path, squeue, content):
    squeue("7_0|normloss-0|RUNNING\n7_9|normloss-0|RUNNING")
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
