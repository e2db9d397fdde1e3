"""scripts/compare.py: a table and a figure of any runs."""

import pytest
from digits_support import NL, WD, id_of, runs_of_two_methods, write_run

from normloss.analysis import style


@pytest.fixture
def store(tmp_path):
    return runs_of_two_methods(tmp_path / "runs")


@pytest.fixture
def script(load_script):
    return load_script("compare")


def test_compare_writes_the_table_and_the_figure(store, tmp_path, script, capsys):
    status = script.main(["dataset=digits", f"store={store}", "model.name=resnet8", "--out", str(tmp_path)])
    out, err = capsys.readouterr()
    assert (status, err) == (0, "")
    assert (tmp_path / "tables" / "digits_resnet8.md").read_text() in out
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {"digits_resnet8.png", "digits_resnet8.pdf"}
    assert {path.suffix for path in (tmp_path / "tables").iterdir()} == {".md", ".tex", ".csv"}
    last = out.splitlines()[-1]
    assert f"{tmp_path}/tables/digits_resnet8.md" in last
    assert "python train.py model=resnet110 reg=nl" in last


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["dataset=digits", "seed=7"], "to make some: python train.py -m dataset=digits seed=7 reg=wd,nl"),
        (["dataset=digits", "reg=nl", "seed=7"], "python train.py dataset=digits reg=nl seed=7"),
        (["reg.lam=100"], "no run is done (DIVERGED diverged)"),
        (["dataset=digits", "reg=wn", "seed=7,8"], "python train.py -m dataset=digits reg=wn seed=7,8"),
        (["reg=foo"], "reg: no such file in configs/reg, got foo"),
        (["dataset=cifra10"], "did you mean cifar10?"),
        (["digits"], "digits: must be key=value"),
        (["seed=[1"], "seed=[1: must be key=value"),
        (["dataset.nmae=digits"], "did you mean dataset.name"),
    ],
)
def test_compare_refuses_in_one_line(store, tmp_path, script, capsys, words, line):
    assert script.main([*words, f"--store={store}", f"--out={tmp_path / 'out'}"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("normloss: ")
    assert err.count("\n") == 1
    assert line.replace("DIVERGED", id_of("diverged0")) in err
    assert not (tmp_path / "out").exists()


def test_compare_says_where_all_that_match_are_truncated(tmp_path, script, capsys):
    write_run(tmp_path / "runs", "short", NL, 0, max_steps=2)
    words = ["dataset=digits", f"--store={tmp_path / 'runs'}", f"--results={tmp_path}", f"--out={tmp_path}"]
    assert script.main(words) == 2
    assert "every run that matches is truncated (1): only a condition on train.max_steps or" in capsys.readouterr().err
    assert script.main([*words, "train.max_steps=2"]) == 0


def test_one_run_is_plotted_by_its_id(store, tmp_path, script, capsys):
    assert script.main([id_of("wd2"), f"store={store}", f"--out={tmp_path}"]) == 0
    assert "| wd λ=0.0001 | 1 | 4.00 |" in capsys.readouterr().out
    assert (tmp_path / "figures" / f"{id_of('wd2')}.png").exists()


@pytest.mark.parametrize("words", [[], ["--x", "train.lr"]])
def test_what_diverged_is_in_the_table_and_in_the_figure(tmp_path, script, capsys, monkeypatch, words):
    """Three of four runs at a learning rate of 9, and the one run of another method."""
    store, titles = tmp_path / "runs", []
    write_run(store, "low", NL, 0, 3.0, lr=0.1)
    write_run(store, "high", NL, 3, 2.0, lr=9.0)
    for seed in range(3):
        write_run(store, f"lost{seed}", NL, seed, state="diverged", lr=9.0)
    write_run(store, "wd", WD, 0, state="diverged", lr=9.0)
    monkeypatch.setattr(style, "save", lambda fig, path: titles.append(" ".join(fig.get_suptitle().split())))
    conditions = ["dataset=digits", *([] if words else ["train.lr=9"])]
    assert script.main([*conditions, *words, f"--store={store}", f"--out={tmp_path}", "--name=made"]) == 0
    lr = " lr=9" if words else ""
    note = f"Diverged, not counted: nl λ=0.01{lr} (3), wd λ=0.0001{lr}."
    table = (tmp_path / "tables" / "made.md").read_text()
    assert note in table
    assert "2.00" in table
    assert titles[0].endswith(note)
    assert f"diverged {id_of('lost1')}" in capsys.readouterr().out


def test_compare_says_that_it_cannot_write(store, tmp_path, script, capsys):
    (tmp_path / "file").touch()
    assert script.main(["dataset=digits", f"store={store}", f"out={tmp_path / 'file'}"]) == 2
    assert capsys.readouterr().err.startswith("normloss: out: must be a folder that can be written")
