"""A store of 10,000 runs: how long readers take, and what they name.

Times are of the processor, since a machine that tests is a busy one.
"""

import json
import os
import resource
import subprocess
import sys

import pytest
import yaml
from conftest import ROOT
from runs_support import write_run

from normloss.config import run_id, trained_config
from normloss.runs.records import RunWarning, load_runs

pytestmark = [pytest.mark.slow, pytest.mark.faults, pytest.mark.timeout(1800)]
RUNS = 10_000
# seconds, with the start of Python and imports; reading takes 2 where DONE holds the config, 10 where it does not
BARS = {"read": 3, "read older": 11, "plan": 4, "compare": 6, "figures": 6}
SLACK = 1.5  # for a processor that others share
LAMS = (1e-4, 1e-3, 1e-2, 1e-1)


@pytest.fixture(scope="module")
def stores(tmp_path_factory, config):
    """Two stores of wd and nl, four lambdas, 1250 seeds: as this version writes them, and without config in DONE."""
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
        for store, more in (("new", {"config": trained_config(values)}), ("older", {})):
            path = folder / store / id
            path.mkdir(parents=True)
            own = {
                "config.yaml": yaml.dump(values, Dumper=yaml.CSafeDumper).encode(),
                "DONE": json.dumps(done | {"id": id} | more).encode(),
            }
            for name, text in (content | own).items():
                (path / name).write_bytes(text)
    return folder


def spent(*words):
    """Seconds of the processor that `python WORDS` takes, from its start to its end; and what it prints."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    own = os.environ | {"PYTHONPATH": str(ROOT)}
    out = subprocess.run([sys.executable, *map(str, words)], env=own, capture_output=True, text=True, check=True).stdout
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, out


def test_ten_thousand_runs_are_read_in_seconds(stores, tmp_path):
    read = "import sys; from normloss.runs.records import load_runs; print(len(load_runs(sys.argv[1])))"
    load = (
        "import sys; from pathlib import Path; from normloss.analysis.results import Results;"
        "print(len(Results(*map(Path, sys.argv[1:])).df))"
    )
    (tmp_path / "results").mkdir()
    compared = ["dataset=digits", "reg=wd,nl", "reg.lam=0.01", "seed=0,1,2"]
    new, older = stores / "new", stores / "older"
    commands = {
        "read": ["-c", read, new],
        "read older": ["-c", read, older],
        "plan": [ROOT / "scripts" / "plan.py", "demo", f"store={new}"],
        "compare": [ROOT / "scripts" / "compare.py", *compared, f"--store={new}", f"--out={tmp_path}"],
        "figures": ["-c", load, new, tmp_path / "results"],
    }
    took = {name: spent(*words) for name, words in commands.items()}
    print("seconds:", {name: round(seconds, 1) for name, (seconds, _) in took.items()})
    assert {took[name][1].strip() for name in ("read", "read older", "figures")} == {str(RUNS)}
    assert "| wd λ=0.01 | 3 |" in took["compare"][1]
    assert not {name: seconds for name, (seconds, _) in took.items() if seconds > SLACK * BARS[name]}


def test_unreadable_runs_among_ten_thousand_are_named(stores):
    store = stores / "older"
    (no_end, no_config), left = sorted(store.iterdir())[:2], RUNS - 2
    (no_end / "DONE").write_bytes(b"{")
    (no_config / "config.yaml").write_bytes(b"")
    with pytest.warns(RunWarning) as warned:
        assert len(load_runs(store)) == left
    lines = sorted(str(warning.message) for warning in warned)
    assert [line.partition(" ")[0] for line in lines] == sorted([f"{no_end}/DONE", f"{no_config}/config.yaml"])
