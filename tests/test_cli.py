"""normloss VERB and the scripts: their answers, their imports, the checkout whose code they run."""

import os
import subprocess
import sys

import pytest

from normloss.cli import verbs
from normloss.cli.verbs import VERBS, main
from tests.conftest import ROOT

SCRIPTS = sorted(path.name for path in (ROOT / "scripts").glob("*.py"))


def run(*words: str, cwd=ROOT, **environment: str) -> subprocess.CompletedProcess:
    command = [sys.executable, *words]
    return subprocess.run(command, cwd=cwd, env=os.environ | environment, capture_output=True, text=True)


def test_the_verbs_are_listed_without_torch_or_hydra():
    shown = run("-X", "importtime", "-m", "normloss", "--help")
    assert shown.returncode == 0
    assert [line.split()[0] for line in shown.stdout.splitlines()[1:]] == list(VERBS)
    for module in ("torch", "hydra", "numpy"):
        assert f"| {module}\n" not in shown.stderr


@pytest.mark.slow
@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_says_how_it_is_called(verb):
    shown = run("-m", "normloss", verb, "--help")
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.startswith("usage: ")


@pytest.mark.parametrize("verb", verbs.SCRIPTS)
def test_a_verb_that_became_a_script_is_answered_with_it(verb, capsys):
    assert main([verb]) == 2
    assert capsys.readouterr().err == f"normloss: {verb}: is a script of the repository: python scripts/{verb}.py\n"
    assert (ROOT / "scripts" / f"{verb}.py").exists()


def test_a_verb_that_is_none_is_refused_in_a_line(capsys):
    assert main(["plot"]) == 2
    assert capsys.readouterr().err == f"normloss: plot: no such verb; there are: {' '.join(VERBS)}\n"


def test_a_verb_without_the_suite_says_what_to_install(monkeypatch, capsys):
    def missing(name: str):
        raise ModuleNotFoundError("No module named 'hydra'", name="hydra.errors")

    monkeypatch.setattr(verbs.importlib, "import_module", missing)
    monkeypatch.setattr(sys, "argv", ["normloss"])
    assert main(["evaluate", "1a2b3c4d"]) == 2
    said = capsys.readouterr().err
    assert said == "normloss: evaluate: needs the suite (no module hydra.errors): pip install 'normloss[suite]'\n"


@pytest.mark.parametrize(
    ("script", "words", "line"),
    [
        ("plan", [], "the following arguments are required: experiment; see"),
        ("rank", ["--result"], "--results: expected one argument"),
        ("merge", ["one", "--stoer=x"], "unrecognized arguments: --stoer=x"),
        ("bench", ["owerhead"], "what: invalid choice: 'owerhead'"),
    ],
)
def test_a_wrong_argument_is_one_line(load_script, capsys, monkeypatch, script, words, line):
    monkeypatch.setattr(sys, "argv", [f"{script}.py"])
    with pytest.raises(SystemExit, match="2"):
        load_script(script).main(words)
    said = capsys.readouterr().err
    assert said.startswith(f"normloss: {line}")
    assert said.endswith(f"; see {script}.py --help\n") and said.count("\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_uses_its_own_checkout(script, tmp_path):
    """Started from another folder, where another normloss is installed."""
    (tmp_path / "normloss").mkdir()
    (tmp_path / "normloss" / "__init__.py").write_text("raise ImportError('the normloss of another checkout')")
    shown = run(str(ROOT / "scripts" / script), "--help", cwd=tmp_path, PYTHONPATH=str(tmp_path))
    assert shown.returncode == 0, shown.stderr
