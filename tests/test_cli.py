"""normloss VERB and the scripts: their answers, their imports, and wrong arguments."""

import sys

import pytest

from normloss.cli import verbs
from normloss.cli.verbs import VERBS, main
from tests.conftest import ROOT, ran


def test_the_verbs_are_listed_without_torch_or_hydra():
    shown = ran("-X", "importtime", "-m", "normloss", "--help")
    assert [line.split()[0] for line in shown.stdout.splitlines()[1:]] == list(VERBS)
    for module in ("torch", "hydra", "numpy"):
        assert f"| {module}\n" not in shown.stderr


@pytest.mark.parametrize("verb", verbs.SCRIPTS)
def test_a_verb_that_became_a_script_is_answered_with_it(verb, capsys):
    assert main([verb]) == 2
    assert capsys.readouterr().err == f"normloss: {verb}: is a script of the repository: python scripts/{verb}.py\n"
    assert (ROOT / "scripts" / f"{verb}.py").exists()


def test_a_verb_that_is_none_is_refused_in_a_line(capsys):
    assert main(["plot"]) == 2
    assert capsys.readouterr().err == f"normloss: plot: no such verb; there are: {' '.join(VERBS)}\n"


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
