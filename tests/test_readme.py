"""Every command and snippet of README, CONTRIBUTING and docs works: training on two tiny batches (debug=smoke).

Commands that need a GPU or a cluster are composed and checked; the page says so above them in a comment.
"""

import os
import pkgutil
import re
import shutil
import subprocess
import sys
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from normloss.sweeps.composing import expand, read_queue
from tests.conftest import ROOT
from tests.docs_support import BLOCKS, PAGES

CI = (ROOT / ".ci" / "run").read_text()
HERE = [block for block in BLOCKS if not block.needs and not block.runner]
COMMANDS = {command: block.page for block in reversed(HERE) if block.kind == "sh" for command in block.commands}
TRAIN = [command for command in COMMANDS if command.startswith("python train.py")]
SCRIPTS = [command for command in COMMANDS if command.startswith(("python scripts/", "python -m "))]
MAKE = [command for command in COMMANDS if command.startswith("make ")]
ELSEWHERE = [command for block in BLOCKS if block.needs and block.kind == "sh" for command in block.commands]
# The same command at the size of a test: fewer members of a sweep, smaller networks.
SMALLER = {
    "python train.py experiment=table1": ["model=resnet20", "recipe=cifar10_resnet110", "seed=0"],
    "python train.py experiment=fig2 hydra.launcher.jobs=2": [
        *["reg.lam=5e-4", "model=wrn16_4", "recipe=cifar10_resnet110"]
    ],
    "python train.py experiment=nl_anneal": [
        *["model=resnet20", "recipe=cifar10_resnet110", "seed=0", "reg.lam_milestones=[1,1]"]
    ],
    "python train.py reg=nl reg.lam_milestones=[100,150] reg.lam_gamma=0.1": ["reg.lam_milestones=[1]"],
    "python train.py reg=nl reg.lam_milestones=[100,150] reg.lam_values=[1e-2,1e-3,0]": ["reg.lam_milestones=[1,1]"],
    "python train.py -m reg=wd,nl seed=0,1,2": ["seed=0"],
    "python train.py -m model=resnet110 seed=0,1,2 hydra.launcher.jobs=3": ["seed=0,1"],
}
SHOWS = ("--help", "--cfg")  # these train nothing
CLONE = "git clone REPOSITORY normloss && cd normloss"
INSTALL = 'pip install -e ".[suite]"'  # make env installs more
TESTED = {"make figures": "test_results.py", "make report": "test_results.py"}  # by these with their scripts


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> dict[str, str]:
    """data_dir of every data set: the CIFARs at full size as files, trees of links to one image."""
    root = tmp_path_factory.mktemp("data")
    for name, classes in (("cifar10", 10), ("cifar100", 100)):
        arrays = {}
        for part, count in (("train", 50_000), ("test", 10_000)):
            arrays[f"{part}_images"] = np.zeros((count, 32, 32, 3), np.uint8)
            arrays[f"{part}_labels"] = np.arange(count) % classes
        np.savez(root / f"{name}.npz", **arrays)
    photo = root / "photo.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)).save(photo)
    for name, classes, parts in (("imagenet", 1000, ("train", "val")), ("two", 2, ("train", "val", "test"))):
        for part in parts:
            for label in range(classes):
                folder = root / name / part / f"c{label:04d}"
                folder.mkdir(parents=True)
                for i in range(1 if name == "imagenet" else 4):
                    os.link(photo, folder / f"{i}.jpg")
    files = {name: f"{root}/{name}.npz" for name in ("cifar10", "cifar100")}
    return files | {"imagenet": f"{root}/imagenet", "two": f"{root}/two", "folder": f"{root}/two", "digits": "unused"}


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("store")


def sooner(commands: list[str]) -> list:
    """README's commands are tried by make test, those of other pages and the wide network by make test-slow."""
    slow = [COMMANDS[each] != "README.md" or "wrn28_10" in each for each in commands]
    return [pytest.param(each, marks=[pytest.mark.slow] * later) for each, later in zip(commands, slow, strict=True)]


def start(words: list[str], cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess:
    own = os.environ | environment
    return subprocess.run([sys.executable, *words], cwd=cwd, env=own, capture_output=True, text=True)


def data_dir_of(words: list[str], data: dict[str, str]) -> str:
    """Where the images of a command lie; its own data_dir is DIR, FILE.npz or the default."""
    if "dataset.num_classes=2" in words:
        return data["two"]
    named = [word.partition("=")[2] for word in words if word.startswith("dataset=")]
    if named:
        return data[named[0]]
    return data[expand([word for word in words if word != "debug=smoke"])[0].dataset.name]


# what the pages hold -----------------------------------------------------------------------------


def test_every_command_is_tried_or_marked():
    assert set(SMALLER) <= set(TRAIN)
    assert set(COMMANDS) == {*TRAIN, *SCRIPTS, *MAKE}
    assert {block.needs for block in BLOCKS} <= {"", "a GPU", "a cluster"}
    for runner in {block.runner for block in BLOCKS if block.runner}:
        assert (ROOT / runner).exists(), runner
    assert {block.kind for block in BLOCKS} <= {"sh", "python", "yaml", "text"}
    texts = [block.text for block in BLOCKS if block.kind == "text" and block.page != "docs/commands.md"]  # their help
    assert not [text for text in texts if re.search("^(python|make|normloss) ", text, re.M)]


def test_readme_and_the_findings_are_short():
    readme = (ROOT / "README.md").read_text()
    assert len(readme.splitlines()) <= 120
    assert Counter(re.findall(r"<!-- /?headline -->", readme)) == {"<!-- headline -->": 1, "<!-- /headline -->": 1}
    assert len((ROOT / "docs" / "findings.md").read_text().splitlines()) <= 80


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_files_that_pages_link_to_or_name_are_there(page):
    """Links within docs/, and to headings, are checked by make docs too."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.S)
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text):
        assert target.startswith("https://") or (page.parent / target).exists(), f"{page.name}: {target}"
    named = re.findall(r"`((?:normloss|configs|tests|scripts|docs|results|notebooks)/[\w/.]*\w)`", page.read_text())
    made = {"results/runs", "results/report.html", "configs/reg/group_lasso.yaml"}
    there = lambda name: name in made or re.search("NAME|MODEL|ID", name) or (ROOT / name).exists()  # noqa: E731
    assert [name for name in named if not there(name)] == []


def test_tests_that_pages_name_are_there():
    text = "\n".join(page.read_text() for page in PAGES)
    for line in text.splitlines():
        for file, first, *rest in re.findall(r"(test_\w+\.py)::(\w+)((?:`, `::\w+)*)", line):
            source = (ROOT / "tests" / file).read_text()
            for name in [first, *re.findall(r"::(\w+)", *rest)]:
                assert f"def {name}(" in source, f"{file}::{name}"


def test_keys_that_pages_name_exist():
    text = "\n".join(page.read_text() for page in PAGES)
    for option in set(re.findall(r"`((?:reg|model|train(?!\.py)|dataset)\.\w+)(?=[=`])", text)):
        section, key = option.split(".")
        files = (
            [ROOT / "configs" / "config.yaml"] if section == "train" else (ROOT / "configs" / section).glob("*.yaml")
        )
        assert any(re.search(rf"^\s*{key}:", file.read_text(), flags=re.M) for file in files), option


def test_what_pages_name_of_the_package_exists():
    """normloss.NormLoss, normloss.training.run.train: modules and what is in them."""
    text = "\n".join(page.read_text() for page in PAGES)
    names = {name for name in re.findall(r"\bnormloss(?:\.\w+)+", text) if not (ROOT / name).exists()}
    names -= {"normloss.GroupLasso"}  # which CONTRIBUTING.md adds
    for name in sorted(names):
        pkgutil.resolve_name(name)  # raises for what is not there


# commands ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", sooner(TRAIN))
def test_train_commands_run(command, data, store):
    words = [*command.split()[1:], *SMALLER.get(command, [])]
    if not any(word in SHOWS for word in words):
        words = [word for word in words if not word.startswith("data_dir=")]
        words += ["debug=smoke"] * ("debug=smoke" not in words)
        words += [f"store={store}", f"data_dir={data_dir_of(words[1:], data)}", "threads=1", "workers=0"]
    ran = start(words)
    assert ran.returncode == 0, ran.stderr + ran.stdout
    assert any(word in SHOWS for word in words) or re.search(r"\) is done: |(\d+) of \1 runs done", ran.stdout)


@pytest.mark.parametrize("command", MAKE)
def test_make_targets_are_there_and_run_by_ci_or_a_test(command):
    subprocess.run(["make", "-n", command.split()[1]], cwd=ROOT, capture_output=True, check=True)
    targets = re.findall(r"^make (\S+)", CI, flags=re.M)
    assert command.split()[1] in {*targets, "env"} or (ROOT / "tests" / TESTED[command]).exists()


@pytest.mark.parametrize("command", sooner(SCRIPTS))
def test_script_commands_run(command, data, tmp_path, store):
    words = command.split()[1:]
    name = words[1] if words[0] == "-m" else Path(words[0]).stem
    more, status, says = {
        "plan": ([f"store={tmp_path}", f"--results={tmp_path}"], 0, "table1: 20 runs: 20 missing"),
        "export": ([str(tmp_path), f"--results={tmp_path}"], 0, f"{tmp_path}: 0 runs added"),
        "compare": ([f"store={tmp_path}", f"out={tmp_path}"], 2, f"no run in {tmp_path} or results has "),
        "merge": ([f"--store={tmp_path / 'new'}"], 0, "0 new, "),
        "npz": ([f"data_dir={data['folder']}"], 0, "8 + 8"),
        "bench": (["--model", "resnet8", "--batch=2", "--blocks=1", "--methods=nl", f"--out={tmp_path}"], 0, "nl"),
        "normloss.diagnostics": ([], 0, "norm"),
    }[name]
    places = {"STORE": str(tmp_path), "FILE.npz": str(tmp_path / "images.npz")}
    if name == "normloss.diagnostics":
        with tarfile.open(ROOT / "tests" / "data" / "runs_0.1.0.tar.xz") as archive:
            archive.extractall(tmp_path, filter="data")
        places["results/runs/ID/last.pt"] = str(next(tmp_path.rglob("last.pt")))
    words = [places.get(word, word) for word in words if not word.startswith("data_dir=")] + more
    ran = start(words)
    assert ran.returncode == status, ran.stderr
    assert says in ran.stdout + ran.stderr


@pytest.mark.parametrize("command", ELSEWHERE)
def test_commands_for_other_machines_are_composed(command, tmp_path):
    if command in (CLONE, INSTALL):
        return  # below
    if command.startswith("make "):
        subprocess.run(["make", "-n", command.split()[1]], cwd=ROOT, capture_output=True, check=True)
        return
    if command.startswith("python scripts/gpu_check.py "):
        known = (ROOT / "scripts" / "gpu_check.py").read_text()
        assert all(f'"{word}"' in known for word in command.split() if word.startswith("--"))
        return
    assert command.startswith("python train.py ")
    words = command.split()[2:]
    queues = [word.partition("=")[2] for word in words if word.startswith("queue=")]
    rest = [word for word in words if not word.startswith("queue=")]
    lines = [[*line, *rest] for queue in queues for line in read_queue(ROOT / queue)[:2]] or [rest]
    assert all(expand(line) for line in lines)


@pytest.mark.slow
def test_the_queue_is_worked_in_a_clone(tmp_path):
    """With a queue of one entry in place of the paper's."""
    assert {CLONE, INSTALL} <= set(ELSEWHERE)
    (queue,) = {command for command in ELSEWHERE if "queue=" in command}
    clone = CLONE.replace("REPOSITORY", str(ROOT)).replace("cd normloss", "ls normloss/train.py")
    subprocess.run(clone, shell=True, cwd=tmp_path, check=True, capture_output=True)
    (tmp_path / "normloss" / "results" / "queue_gpu.yaml").write_text("- dataset=digits model=resnet8 reg=nl\n")
    words = [word.replace("DRIVE", str(tmp_path)) for word in queue.split()[1:]]
    ran = start([*words, "debug=smoke"], cwd=tmp_path / "normloss")
    assert ran.returncode == 0, ran.stderr
    assert "of 50 minutes; left: 0 s" in ran.stdout
    assert list((tmp_path / "runs").glob("*/DONE"))


@pytest.mark.slow
def test_the_commands_page_is_what_the_commands_say(load_script, monkeypatch, tmp_path):
    script = load_script("commands")
    page = script.PAGE.read_text()
    monkeypatch.setattr(script, "PAGE", tmp_path / "commands.md")
    script.PAGE.write_text(page)
    assert script.main([]) == 0
    assert script.PAGE.read_text() == page


def test_completion_installs_in_bash():
    shown = start(["train.py", "-sc", "install=bash"])
    assert shown.returncode == 0
    assert "complete" in shown.stdout
    assert shutil.which("bash") is None or subprocess.run(["bash", "-n"], input=shown.stdout, text=True).returncode == 0


# snippets ----------------------------------------------------------------------------------------

GIVEN = """
import torch, torch.nn.functional as F, normloss
model = torch.nn.Sequential(torch.nn.Conv2d(3, 16, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(576, 10))
loader = [(torch.randn(8, 3, 8, 8), torch.randint(10, (8,)))]
"""
SNIPPETS = {block.page: [each for each in HERE if each.kind == "python" and each.page == block.page] for block in HERE}


@pytest.mark.parametrize("page", [page for page, snippets in SNIPPETS.items() if snippets])
def test_python_snippets_run(page, tmp_path):
    """Those of a page one after another, given a model and a loader."""
    text = "\n".join([GIVEN, *(snippet.text for snippet in SNIPPETS[page])])
    (tmp_path / "snippets.py").write_text(text)
    ran = start([str(tmp_path / "snippets.py")], tmp_path, PYTHONPATH=str(ROOT))
    assert ran.returncode == 0, ran.stderr
