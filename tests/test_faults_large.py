"""A store of 10,000 runs: how long readers take, what they name, and that nothing changes unseen.

Times are of the processor, since a machine that tests is a busy one.
"""

import json
import os
import subprocess
import sys
import time
import warnings

import pytest
import yaml
from conftest import ROOT
from runs_support import write_run

from normloss.config import run_id
from normloss.runs import cache
from normloss.runs.records import RunWarning, load_runs

pytestmark = [pytest.mark.slow, pytest.mark.faults, pytest.mark.timeout(1800)]
RUNS = 10_000
BARS = {"first reading": 60, "plan": 3, "compare": 5, "figures": 5}  # seconds, with the start of Python and imports
SLACK = 1.5  # for a processor that others share
LAMS = (1e-4, 1e-3, 1e-2, 1e-1)
DAMAGED = {"DONE": b"{", "config.yaml": b"", "epochs.jsonl": b"<html>\n", "meta.json": b"[]", "status.json": b"\xff"}


@pytest.fixture(scope="module")
def store(tmp_path_factory, config):
    """wd and nl, four lambdas, 1250 seeds."""
    folder = tmp_path_factory.mktemp("large")
    first = config("dataset=digits", "model=resnet8", "train.epochs=4", "train.milestones=[]")
    model = folder / "model" / write_run(folder / "model", first, 5.0)
    content = {file.name: file.read_bytes() for file in model.iterdir()}
    stored, done = first.stored(), json.loads(content["DONE"])
    methods = {name: config("dataset=digits", "model=resnet8", f"reg={name}").stored()["reg"] for name in ("wd", "nl")}
    for number in range(RUNS):
        seed, rest = divmod(number, 8)
        reg = methods["wd" if rest % 2 else "nl"] | {"lam": LAMS[rest // 2]}
        values = stored | {"seed": seed, "reg": reg}
        id = run_id(values)
        path = folder / "runs" / id
        path.mkdir(parents=True)
        own = {
            "config.yaml": yaml.dump(values, Dumper=yaml.CSafeDumper).encode(),
            "DONE": json.dumps(done | {"id": id}).encode(),
        }
        for name, text in (content | own).items():
            (path / name).write_bytes(text)
    return folder / "runs"


def spent(*words):
    """Seconds of the processor that `python WORDS` takes, from its start to its end; and what it prints."""
    process = subprocess.Popen(
        [sys.executable, *map(str, words)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )
    out = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, out
    return usage.ru_utime + usage.ru_stime, out


def test_ten_thousand_runs_are_read_once_and_then_in_seconds(store, tmp_path):
    read = "import sys; from normloss.runs.records import load_runs; print(len(load_runs(sys.argv[1])))"
    load = (
        "import sys; from pathlib import Path; from normloss.analysis.results import Results;"
        "print(len(Results(*map(Path, sys.argv[1:])).df))"
    )
    (tmp_path / "results").mkdir()
    compared = ["dataset=digits", "reg=wd,nl", "reg.lam=0.01", "seed=0,1,2"]
    commands = {
        "first reading": ["-c", read, store],
        "plan": [ROOT / "scripts" / "plan.py", "demo", f"store={store}"],
        "compare": [ROOT / "scripts" / "compare.py", *compared, f"--store={store}", f"--out={tmp_path}"],
        "figures": ["-c", load, store, tmp_path / "results"],
    }
    time.sleep(2 * cache.SETTLED_SECONDS)
    seconds, out = {}, {}
    for name, words in commands.items():
        seconds[name], out[name] = spent(*words)
    print("seconds:", {name: round(value, 1) for name, value in seconds.items()})
    assert out["first reading"].strip() == out["figures"].strip() == str(RUNS)
    assert "| wd λ=0.01 | 3 |" in out["compare"]
    over = {name: value for name, value in seconds.items() if value > SLACK * BARS[name]}
    assert not over


def test_unreadable_runs_among_ten_thousand_are_named(store):
    load_runs(store)
    damaged = dict(zip(sorted(store.glob("[0-9a-f]*"))[:: RUNS // len(DAMAGED)], DAMAGED.items(), strict=False))
    whole = {path: (path / name).read_bytes() for path, (name, _) in damaged.items()}
    for path, (name, content) in damaged.items():
        (path / name).write_bytes(content)
    for _ in range(2):
        with pytest.warns(RunWarning) as told:
            assert len(load_runs(store)) == RUNS - len(DAMAGED)
        lines = [str(warning.message) for warning in told]
        assert len(lines) == len(DAMAGED)
        for path, (name, _) in damaged.items():
            assert any(line.startswith(f"{path} is left out: {name} ") for line in lines)
    for path, (name, _) in damaged.items():
        (path / name).write_bytes(whole[path])
    with warnings.catch_warnings():
        warnings.simplefilter("error", RunWarning)
        assert len(load_runs(store)) == RUNS


@pytest.mark.parametrize("name", DAMAGED)
def test_a_change_of_the_same_size_and_time_among_ten_thousand_is_noticed(store, name):
    """What is promised: a file is read again when its size, inode, or one of its times changed, of which nobody can
    set back the one of the change itself."""
    load_runs(store)
    file = sorted(store.glob(f"[0-9a-f]*/{name}"))[RUNS // 2]
    whole, facts = file.read_bytes(), file.stat()
    file.write_bytes(whole[: len(whole) // 2] + b"\xff" + whole[len(whole) // 2 + 1 :])
    os.utime(file, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    assert (file.stat().st_size, file.stat().st_mtime_ns) == (facts.st_size, facts.st_mtime_ns)
    with pytest.warns(RunWarning, match=f"{file.parent.name} is left out: {name}"):
        assert len(load_runs(store)) == RUNS - 1
    file.write_bytes(whole)
    assert len(load_runs(store)) == RUNS
