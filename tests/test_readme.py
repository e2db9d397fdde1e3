"""Every command and snippet of the README works: the commands on two tiny batches (debug=smoke)."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import ROOT

README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, flags=re.S)
COMMANDS = [
    re.split(r"\s{2,}#", line)[0].strip()
    for kind, block in BLOCKS
    if kind == "sh"
    for line in block.strip().splitlines()
]
# The same command at the size of a test: fewer members of a sweep, and what else is given on its line.
SMALLER = {
    "python train.py -m model=resnet110,wrn28_10 reg=wd,nl seed=0,1,2,3,4": [
        "seed=0",
        "model=resnet110,wrn16_4",
        "recipe=cifar10_resnet110",
    ],
    "python train.py experiment=table1": ["model=resnet110", "seed=0"],
    "python train.py experiment=fig2 hydra.launcher.jobs=2": ["reg.lam=5e-4"],
    "python train.py experiment=table1 budget_minutes=25": ["model=resnet20", "recipe=mini", "seed=0"],
}
CI = {"make demo", "make test"}  # .ci/run starts these
CLONE = "git clone REPOSITORY normloss && cd normloss"
INSTALL = 'pip install -e ".[suite]"'  # make env installs more
QUEUE = "python train.py queue=results/queue.yaml budget_minutes=50 store=DRIVE/runs data_dir=DRIVE/data"
SCRIPTS = {"make figures": "figures", "make report": "report"}  # tests/test_book.py runs these


def linked_tree(root: Path, classes: int, counts: dict[str, int], suffix: str) -> None:
    """A class-folder tree of full size whose files are links to one image a class."""
    rng = np.random.default_rng(0)
    for split, count in counts.items():
        for label in range(classes):
            folder = root / split / f"c{label:04d}"
            folder.mkdir(parents=True)
            first = folder / f"00000{suffix}"
            Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)).save(first)
            for i in range(1, count):
                os.link(first, folder / f"{i:05d}{suffix}")


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("data")
    linked_tree(root / "cifar10", 10, {"train": 5000, "test": 1000}, ".png")
    linked_tree(root / "cifar100", 100, {"train": 500, "test": 100}, ".png")
    return root


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("store")


def test_every_command_is_tried():
    assert set(SMALLER) <= set(COMMANDS)
    assert set(COMMANDS) >= CI
    ci = (ROOT / ".ci" / "run").read_text()
    assert all(command in ci for command in CI)
    others = {command for command in COMMANDS if not command.startswith("python train.py")}
    scripts = {command for command in others if command.startswith("python scripts/")}
    assert others == {*CI, *SCRIPTS, CLONE, INSTALL, *scripts}
    assert QUEUE in COMMANDS


@pytest.mark.parametrize("command", SCRIPTS)
def test_make_targets_start_their_scripts(command):
    assert command in COMMANDS
    shown = subprocess.run(["make", "-n", command.split()[1]], cwd=ROOT, capture_output=True, text=True, check=True)
    assert f"scripts/{SCRIPTS[command]}.py" in shown.stdout


@pytest.mark.parametrize("script", ["plan", "export"])
def test_script_commands_run(script, tmp_path):
    (command, *_) = [command for command in COMMANDS if command.startswith(f"python scripts/{script}.py")]
    more = {"plan": [f"store={tmp_path}"], "export": [str(tmp_path)]}[script]
    words = [*command.split()[1:], *more, f"--results={tmp_path}"]
    ran = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.startswith({"plan": "table1: 20 runs: 20 missing", "export": f"{tmp_path}: 0 runs added"}[script])


def test_the_queue_is_worked_in_a_clone(tmp_path):
    """With a queue of one line in the place of the paper's, whose steps take minutes to time here."""
    clone = CLONE.replace("REPOSITORY", str(ROOT)).replace("cd normloss", "ls normloss/train.py")
    subprocess.run(clone, shell=True, cwd=tmp_path, check=True, capture_output=True)
    (tmp_path / "normloss" / "results" / "queue.yaml").write_text("- dataset=digits model=resnet8 reg=nl\n")
    words = [word.replace("DRIVE", str(tmp_path)) for word in QUEUE.split()[1:]]
    ran = subprocess.run(
        [sys.executable, *words, "debug=smoke"], cwd=tmp_path / "normloss", capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
    assert "budget of 50 minutes: expects to finish 1 of 1 runs" in ran.stdout
    assert list((tmp_path / "runs").glob("*/DONE"))


@pytest.mark.parametrize(
    "command", [command for command in COMMANDS if command.startswith("python train.py") and command != QUEUE]
)
def test_train_commands_run(command, data_dir, store):
    words = command.split()[1:] + SMALLER.get(command, [])
    if "--help" not in words and "debug=smoke" not in words:
        words.append("debug=smoke")
    if "--help" not in words:
        words += [f"store={store}", f"data_dir={data_dir}", "threads=1"]
    ran = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr + ran.stdout
    assert "--help" in words or re.search(r"is done: test error|(\d+) of \1 runs done", ran.stdout)


def test_the_merge_command_takes_the_runs_of_another_machine(tmp_path, load_script, capsys):
    (command,) = [command for command in COMMANDS if command.startswith("python scripts/merge.py")]
    (tmp_path / "runs").mkdir()
    words = command.replace("DRIVE", str(tmp_path)).split()[2:]
    assert load_script("merge").main([*words, f"--store={tmp_path / 'new'}"]) == 0
    assert "0 runs are new" in capsys.readouterr().out


def test_compare_command_without_runs_says_how_to_make_them(tmp_path):
    """With runs it is tests/test_analysis.py's subject."""
    (command,) = [command for command in COMMANDS if command.startswith("python scripts/compare.py")]
    words = [*command.split()[1:], f"store={tmp_path}", f"out={tmp_path}"]
    ran = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 2
    assert ran.stderr.endswith("to make some: python train.py experiment=table1 model=resnet110\n")


def test_python_snippet_runs(tmp_path):
    (snippet,) = [block for kind, block in BLOCKS if kind == "python"]
    (tmp_path / "snippet.py").write_text(snippet)
    ran = subprocess.run([sys.executable, tmp_path / "snippet.py"], cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr


def test_inline_commands_name_what_exists():
    for option in re.findall(r"`((?:reg|model|train|dataset)\.\w+)", README):
        section, key = option.split(".")
        texts = (
            "".join(path.read_text() for path in (ROOT / "configs" / section).glob("*.yaml"))
            if section != "train"
            else (ROOT / "configs" / "config.yaml").read_text()
        )
        assert re.search(rf"^\s*{key}:", texts, flags=re.M), option


def test_completion_installs_in_bash():
    shown = subprocess.run(
        [sys.executable, "train.py", "-sc", "install=bash"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "complete" in shown.stdout
    assert shutil.which("bash") is None or subprocess.run(["bash", "-n"], input=shown.stdout, text=True).returncode == 0
