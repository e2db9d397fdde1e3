"""What runs share: a store that several processes use at once, locks that nobody holds, a disk that is full."""

import os
import random
import subprocess

import pytest
from forked import Command
from test_faults import assert_same_end

from normloss.runs import files
from normloss.runs.records import load_runs

pytestmark = [pytest.mark.slow, pytest.mark.faults]
DIGITS = [
    "device=cpu", "threads=1", "train.milestones=[]", "wandb.mode=disabled", "dataset=digits", "model=resnet8",
    "train.batch_size=64", "train.eval_batches=2", "train.epochs=2", "train.max_steps=30",
]  # fmt: skip
SAVE_OFTEN = "checkpoint_minutes=0.0001"
TIMES = 10


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    process = Command(folder / "log", *DIGITS, f"store={folder / 'runs'}")
    assert process.wait() == 0, process.text()
    (run,) = load_runs(folder / "runs")
    return run


def attempts(store):
    return [files.read_json(path)["attempts"] for path in store.glob("*/status.json")]


# processes ---------------------------------------------------------------------------------------


def test_of_two_processes_that_start_a_run_at_once_one_trains(undisturbed, tmp_path):
    for time in range(TIMES):
        store = tmp_path / f"runs{time}"
        both = [Command(tmp_path / f"log{time}{i}", *DIGITS, f"store={store}") for i in range(2)]
        ended = sorted(process.wait() for process in both)
        assert ended == [0, 4], [process.text() for process in both]
        assert attempts(store) == [1]
        (run,) = load_runs(store)
        assert_same_end(run, undisturbed)


def test_two_sweeps_share_a_store(tmp_path):
    words = ["-m", *DIGITS, "seed=0,1,2", f"store={tmp_path / 'runs'}"]
    for time in range(3):
        both = [Command(tmp_path / f"log{time}{i}", *words) for i in range(2)]
        ended = [process.wait() for process in both]
        assert set(ended) <= {0, 4}, [process.text() for process in both]
        assert {run.state for run in load_runs(tmp_path / "runs")} == {"done"}
        assert attempts(tmp_path / "runs") == [1, 1, 1]


# a full disk -------------------------------------------------------------------------------------


@pytest.fixture
def disk(tmp_path):
    """disk(size) -> an empty file system of that size; or the one there is, made so large."""
    place = tmp_path / "disk"
    place.mkdir()

    def mount(size, *options):
        ended = subprocess.run(
            ["mount", *options, "-o", f"size={size},nr_inodes=200", "tmpfs", place], capture_output=True
        )
        if ended.returncode:
            pytest.skip(f"no small file system: {ended.stderr.decode().strip()}")
        return place

    if os.geteuid():
        pytest.skip("mounting a small file system needs root")
    yield mount
    subprocess.run(["umount", "--lazy", place], check=True)


@pytest.mark.parametrize("seed", range(TIMES))
def test_a_run_whose_disk_fills_up_goes_on_once_there_is_room(undisturbed, disk, tmp_path, seed):
    size = int(2 ** random.Random(seed).uniform(13, 21))  # 8 kB to 2 MB; three checkpoints take as much
    place = disk(size, "-t", "tmpfs")
    process = Command(tmp_path / "log", *DIGITS, SAVE_OFTEN, f"store={place / 'runs'}")
    assert process.wait() == 75, process.text()
    line = process.text().splitlines()[-1]
    assert line.startswith("normloss: run ")
    assert line.endswith(" is full; free some space and start it again to go on")
    assert str(place) in line
    assert not list(place.glob("runs/*/.*.partial"))
    disk("64m", "-o", "remount")
    process = Command(tmp_path / "log", *DIGITS, SAVE_OFTEN, f"store={place / 'runs'}")
    assert process.wait() == 0, process.text()
    (run,) = load_runs(place / "runs")
    assert_same_end(run, undisturbed)
