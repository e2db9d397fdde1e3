"""A checkout that can only be read, and too little shared memory: real mounts, in a namespace of the test's own."""

import subprocess
import sys
from types import SimpleNamespace

import pytest
from conftest import ROOT
from data_support import save_image
from forked import surroundings
from runs_support import write_run

MOUNTS = ["unshare", "--mount", "--", "sh", "-e", "-c"]
POSSIBLE = subprocess.run([*MOUNTS, "mount -t tmpfs tmpfs /mnt"], capture_output=True).returncode == 0
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not POSSIBLE, reason="mounts need root or a user namespace")]
READ_ONLY = f"mount --bind {ROOT} {ROOT}; mount -o remount,ro,bind {ROOT}; cd {ROOT}"
HERE = ["device=cpu", "threads=1", "train.milestones=[]", "train.epochs=1", "wandb.mode=disabled", "model=resnet8"]


def within(mounts, script, *words, through=()):
    """python SCRIPT WORDS after these mounts: its status, output and error lines. through: a command that starts it."""
    own = {key: value for key, value in surroundings().items() if key != "PYTHONPATH"}
    command = [*MOUNTS, f'{mounts}; exec "$@"', "sh", *through, sys.executable, ROOT / script, *words]
    ended = subprocess.run(command, env=own, capture_output=True, text=True, timeout=280)
    assert "Traceback" not in ended.stderr, ended.stderr
    return SimpleNamespace(status=ended.returncode, out=ended.stdout, lines=ended.stderr.splitlines())


@pytest.fixture(scope="module")
def places(tmp_path_factory, config):
    """A store of finished runs, and a folder for results, elsewhere."""
    folder = tmp_path_factory.mktemp("elsewhere")
    for seed in range(2):
        words = ["dataset=digits", "model=resnet8", "train.epochs=4", "train.milestones=[]", f"seed={seed}"]
        write_run(folder / "runs", config(*words), 5.0 + seed)
    (folder / "results").mkdir()
    return folder


NOBODY = ["unshare", "--user", "--map-user=12345", "--", "env", "-u", "HOME", "-u", "USER", "-u", "LOGNAME"]


ELSEWHERE = ["--store={}/runs", "--results={}/results"]
COMMANDS = {  # words that write elsewhere, and what; words that would write into the checkout, the key and the folder
    "train.py": (
        ["-m", "seed=0,1", "dataset=digits", *HERE, "train.max_steps=4", "store={}/new"], "../new",
        ["dataset=digits", *HERE], "store", "results/runs",
    ),
    "scripts/compare.py": (
        ["dataset=digits", "--store={}/runs", "--out={}/results"], "tables",
        ["dataset=digits", "--store={}/runs"], "out", "results/compare",
    ),
    "scripts/export.py": (["{}/runs", "--results={}/results"], "summary.csv", ["{}/runs"], "results", "results"),
    "scripts/merge.py": (["{}/runs", "--store={}/merged"], "../merged", ["{}/runs"], "store", "results/runs"),
    "scripts/report.py": (ELSEWHERE, "report.html", ["--store={}/runs"], "results", ROOT / "results"),
    "scripts/figures.py": (ELSEWHERE, "README.md", ["--store={}/runs"], "results", ROOT / "results"),
}  # fmt: skip


@pytest.mark.parametrize(("mounts", "through"), [(READ_ONLY, ()), (":", NOBODY)], ids=["read-only", "nobody"])
@pytest.mark.parametrize("script", COMMANDS)
def test_a_read_only_checkout_and_a_user_without_home_or_name_work_elsewhere(places, mounts, through, script):
    """Without home or name: as in a container that was started with --user=12345."""
    words, written, *_ = COMMANDS[script]
    ended = within(mounts, script, *(word.format(places) for word in words), through=through)
    assert (ended.status, [line for line in ended.lines if "Matplotlib created" not in line]) == (0, [])
    assert (places / "results" / written).exists()


@pytest.mark.parametrize("script", COMMANDS)
def test_a_read_only_checkout_that_would_be_written_is_named(places, script):
    _, _, words, thing, folder = COMMANDS[script]
    ended = within(READ_ONLY, script, *(word.format(places) for word in words))
    (line,) = ended.lines
    assert ended.status == 2
    assert line.startswith(f"normloss: {thing}: must be a folder that can be written, got {folder}")  # or a run's in it
    assert line.endswith(" (Read-only file system)")


@pytest.mark.parametrize("size", ["1m", "8k"], ids=["for batches", "for locks"])
def test_too_little_shared_memory_is_told_with_advice_and_the_run_goes_on(tmp_path, size):
    for split in ("train", "val"):
        for i in range(24):
            save_image(tmp_path / split / "ab"[i % 2] / f"{i}.png", (200, 200), seed=i)
    words = [
        *HERE, "dataset=imagenet", "dataset.num_classes=2", "dataset.label=mine", "dataset.size=160",
        "dataset.resize=164", f"data_dir={tmp_path}", "recipe=cifar10_resnet110", "train.batch_size=24",
        f"store={tmp_path / 'runs'}",
    ]  # fmt: skip
    mounts = f"mount -t tmpfs -o size={size} tmpfs /dev/shm"
    ended = within(mounts, "train.py", *words, "workers=2")
    (line,) = ended.lines
    assert ended.status == 75
    assert line.startswith(
        "normloss: too little shared memory (/dev/shm) for the processes that read images; allow more"
    )
    assert line.endswith("or none (workers=0), and rerun the command to resume")
    ended = within(mounts, "train.py", *words, "workers=0")
    assert (ended.status, ended.lines) == (0, [])
