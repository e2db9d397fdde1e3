"""Processes of a sweep: forked once torch is there, each of its own all the same, none in the way of another."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from normloss.errors import Interrupted
from normloss.runs import files, records
from normloss.sweeps import processes
from tests.conftest import ROOT
from tests.test_faults import DROPOUT, end, start, timeless, wait_until

TELL = """
import json, os, signal, sys, torch
torch.set_num_threads(3)
facts = {
    "argv": sys.argv, "name": __name__, "mark": os.environ.get("MARK"), "gpus": os.environ.get("CUDA_VISIBLE_DEVICES"),
    "leads": os.getsid(0) == os.getpid(), "parent": os.getppid(), "threads": torch.get_num_threads(),
    "blocked": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, [])),
}
json.dump(facts, open(sys.argv[1], "w"))
sys.exit(int(sys.argv[2]))
"""


@pytest.fixture
def run_script(tmp_path):
    """run_script(code, *words, MARK="one") -> its process, under way"""

    def run(code: str, *words: str, **environment: str) -> processes.Process:
        script = tmp_path / f"script{len(list(tmp_path.iterdir()))}.py"
        script.write_text(code)
        return processes.start_script(str(script), list(words), environment)

    return run


def test_a_process_has_its_own_words_environment_session_and_threads(run_script, tmp_path):
    before = dict(os.environ)
    running = [
        run_script(TELL, str(tmp_path / f"{k}.json"), str(k), MARK=f"mark {k}", CUDA_VISIBLE_DEVICES=str(k))
        for k in (0, 75)
    ]
    for process in running:
        process.join()
    assert [process.exitcode for process in running] == [0, 75]
    for k in (0, 75):
        facts = json.loads((tmp_path / f"{k}.json").read_text())
        assert facts["argv"][1:] == [str(tmp_path / f"{k}.json"), str(k)]
        assert (facts["mark"], facts["gpus"], facts["name"]) == (f"mark {k}", str(k), "__main__")
        assert (facts["leads"], facts["parent"], facts["threads"]) == (True, os.getpid(), 3)
        assert set(facts["blocked"]) >= {signal.SIGINT, signal.SIGTERM, signal.SIGUSR1}  # until it listens
    assert dict(os.environ) == before
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, [])


@pytest.mark.skipif(not processes.AUTOGROUP.exists(), reason="no autogroups: Linux's alone, where they are switched on")
def test_a_process_is_as_nice_to_other_sessions_as_its_sweep(run_script, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "nice", lambda increment: 7)
    run_script(f"open({str(tmp_path / 'told')!r}, 'w').write(open('/proc/self/autogroup').read())").join()
    assert (tmp_path / "told").read_text().endswith("nice 7\n")


def test_a_signal_that_comes_while_a_process_starts_waits_until_it_listens(run_script):
    code = """
import signal, sys, time
time.sleep(0.3)
signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
time.sleep(60)
"""
    process = run_script(code)
    os.kill(process.pid, signal.SIGTERM)
    process.join()
    assert process.exitcode == 75


def test_how_a_process_ends_is_its_own(run_script, capfd):
    ends = ["raise ZeroDivisionError('oops')", "import os; os.kill(os.getpid(), 9)", "import time; time.sleep(0.5)"]
    running = [run_script(code) for code in ends]
    for process in running:
        process.join()
    assert [process.exitcode for process in running] == [1, -9, 0]
    assert "ZeroDivisionError: oops" in capfd.readouterr().err


def test_an_answer_comes_from_each_process_that_is_asked():
    assert processes.ask(os.path.join, "a", "b", times=2) == ["a/b", "a/b"]
    first, second = processes.ask(os.getpid, times=2)
    assert len({first, second, os.getpid()}) == 3
    with pytest.raises(RuntimeError, match="_exit ended with status 3 in its process"):
        processes.ask(os._exit, 3)
    with pytest.raises(Interrupted, match="was killed by SIGKILL; start it again to go on"):
        processes.ask(signal.raise_signal, signal.SIGKILL)


def test_what_is_imported_beforehand_touches_no_device_and_starts_no_thread():
    code = """
import os, sys, torch
def refuse(*_): raise AssertionError("a device was asked for")
torch._C._cuda_init = torch._C._cuda_getDeviceCount = torch.cuda._lazy_init = torch.cuda.is_available = refuse
from normloss.sweeps import processes
processes.preload()
assert "normloss.training.trainer" in sys.modules and "torch._dynamo" in sys.modules
print(len(os.listdir("/proc/self/task")) if os.path.exists("/proc/self/task") else 1)
"""
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, env=one_thread())
    assert ran.returncode == 0, ran.stderr
    assert int(ran.stdout) == 1


def one_thread() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


# sweeps ----------------------------------------------------------------------------------------------

LENGTH = ["train.epochs=1", "train.max_steps=6", "train.eval_batches=1"]


@pytest.mark.slow
def test_a_member_is_the_run_that_it_is_alone_and_starts_sooner(tmp_path):
    """Dropout draws from torch's generator as it trains."""
    sweep = end(start("-m", *DROPOUT, *LENGTH, "seed=0,1", f"store={tmp_path / 'sweep'}", "hydra.launcher.jobs=2"))
    assert sweep.status == 0, sweep.err
    assert end(start(*DROPOUT, *LENGTH, "seed=1", f"store={tmp_path / 'alone'}")).status == 0
    (alone,) = records.load_runs(tmp_path / "alone")
    member = records.load_run(tmp_path / "sweep" / alone.id)
    assert [timeless(epoch) for epoch in member.epochs] == [timeless(epoch) for epoch in alone.epochs]
    assert (member.steps()[1] == alone.steps()[1]).all()
    assert member.meta["start_seconds"] < alone.meta["start_seconds"] / 2  # CPU seconds to the first step


def alive(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


@pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="looks into /proc")
def test_members_outlive_each_other_and_save_when_their_sweep_is_killed(tmp_path):
    words = [*DROPOUT, "train.epochs=9", "checkpoint_minutes=99", f"store={tmp_path}"]
    sweep = start("-m", *words, "seed=0,1,2", "hydra.launcher.jobs=3")

    def statuses() -> list[dict]:
        return [files.read_json(path) for path in sorted(tmp_path.glob("*/status.json"))]

    def training() -> bool:
        there = list(tmp_path.glob("*/meta.json"))
        return len(there) == 3 and all("start_seconds" in (files.read_json(path) or {}) for path in there)

    wait_until(training, sweep)
    first, *others = (status["pid"] for status in statuses())
    assert len({first, *others, sweep.pid}) == 4
    os.kill(first, signal.SIGKILL)
    time.sleep(0.5)
    assert all(alive(pid) for pid in (*others, sweep.pid))
    sweep.kill()
    sweep.communicate()  # the members' output ends too
    left = statuses()
    assert [status["state"] for status in left] == ["running", "incomplete", "incomplete"]  # the first could not say
    assert all("end of its sweep" in status["error"] and status["saved"] for status in left[1:])
