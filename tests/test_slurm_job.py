"""What a job on SLURM does with its runs, without a SLURM: the signal before its time is up, and stores that moved."""

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
