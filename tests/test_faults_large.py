"""A store of 10,000 runs: how long reading takes, and what it names."""

import json
import time

import pytest
import yaml
from runs_support import write_run

from normloss.config import run_id, trained_config
from normloss.runs.records import RunWarning, load_runs

pytestmark = [pytest.mark.slow, pytest.mark.faults, pytest.mark.timeout(1800)]
RUNS = 10_000
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


@pytest.mark.parametrize(("version", "share"), [("new", 0.7), ("older", 2.0)])
def test_ten_thousand_runs_are_read_in_about_the_time_of_their_files(stores, version, share):
    """Of the processor, next to the older store's YAML and JSON alone: the machine's speed and load cancel out."""

    def seconds(read):
        began = time.process_time()
        assert len(read()) == RUNS
        return time.process_time() - began

    def files():
        both = [(path / "DONE", path / "config.yaml") for path in (stores / "older").iterdir()]
        return [(json.loads(a.read_bytes()), yaml.load(b.read_bytes(), Loader=yaml.CSafeLoader)) for a, b in both]

    assert seconds(lambda: load_runs(stores / version)) < share * seconds(files)


def test_unreadable_runs_among_ten_thousand_are_named(stores):
    store = stores / "older"
    (no_end, no_config), left = sorted(store.iterdir())[:2], RUNS - 2
    (no_end / "DONE").write_bytes(b"{")
    (no_config / "config.yaml").write_bytes(b"")
    with pytest.warns(RunWarning) as warned:
        assert len(load_runs(store)) == left
    lines = sorted(str(warning.message) for warning in warned)
    assert [line.partition(" ")[0] for line in lines] == sorted([f"{no_end}/DONE", f"{no_config}/config.yaml"])
