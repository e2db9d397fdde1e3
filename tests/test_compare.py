"""scripts/compare.py: a table and a figure of any runs."""

import pytest
from digits_support import NL, WD, runs_of_two_methods, write_run

from normloss.analysis import style


@pytest.fixture
def store(tmp_path):
    return runs_of_two_methods(tmp_path / "runs")


def test_compare_writes_the_table_and_the_figure(store, tmp_path, load_script, capsys):
    status = load_script("compare").main(
        ["dataset=digits", f"store={store}", "model.name=resnet8", "--out", str(tmp_path)]
    )
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
        (["dataset=digits", "seed=7,8"], "to make some: python train.py -m dataset=digits seed=7,8 store=/"),
        (["reg.lam=100"], " diverged); to train them: "),
        (["digits"], "digits: must be key=value"),
        (["seed=[1"], "seed=[1: must be key=value"),
        (["dataset.nmae=digits"], "did you mean dataset.name"),
    ],
)
def test_compare_refuses_in_one_line(store, tmp_path, load_script, capsys, words, line):
    assert load_script("compare").main([*words, f"--store={store}", f"--out={tmp_path / 'out'}"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("normloss: ")
    assert err.count("\n") == 1
    assert line in err
    assert not (tmp_path / "out").exists()


def test_compare_says_where_all_that_match_are_truncated(tmp_path, load_script, capsys):
    write_run(tmp_path / "runs", NL, 0, max_steps=2)
    words = ["dataset=digits", f"--store={tmp_path / 'runs'}", f"--results={tmp_path}", f"--out={tmp_path}"]
    assert load_script("compare").main(words) == 2
    assert "every run that matches is truncated (1): only a condition on train.max_steps or" in capsys.readouterr().err
    assert load_script("compare").main([*words, "train.max_steps=2"]) == 0


def test_one_run_is_plotted_by_its_id(store, tmp_path, load_script, capsys):
    id = write_run(store, WD, 3, 7.0)
    assert load_script("compare").main([id, f"store={store}", f"--out={tmp_path}"]) == 0
    assert "| wd λ=0.0001 | 1 | 7.00 |" in capsys.readouterr().out
    assert (tmp_path / "figures" / f"{id}.png").exists()
    lost = write_run(store, WD, 3, state="diverged", lr=9.0)
    assert load_script("compare").main([lost, f"store={store}", f"--out={tmp_path}"]) == 2
    advice = capsys.readouterr().err
    assert all(word in advice for word in ("dataset=digits", "train.lr=9", f"store={store} restart=true"))


def test_what_diverged_is_in_the_table_and_in_the_figure(tmp_path, load_script, capsys, monkeypatch):
    """Three of four runs at a learning rate of 9, and the one run of another method."""
    store, titles = tmp_path / "runs", []
    write_run(store, NL, 0, 3.0, lr=0.1)
    write_run(store, NL, 3, 2.0, lr=9.0)
    lost = [write_run(store, NL, seed, state="diverged", lr=9.0) for seed in range(3)]
    write_run(store, WD, 0, state="diverged", lr=9.0)
    monkeypatch.setattr(style, "save", lambda fig, path: titles.append(" ".join(fig.get_suptitle().split())))
    words = ["dataset=digits", "--x=train.lr", "--name=made"]
    assert load_script("compare").main([*words, f"--store={store}", f"--out={tmp_path}"]) == 0
    note = "Diverged, not counted: nl λ=0.01 lr=9 (3), wd λ=0.0001 lr=9."
    table = (tmp_path / "tables" / "made.md").read_text()
    assert note in table and "2.00" in table
    assert titles[0].endswith(note)
    assert f"diverged {lost[1]}" in capsys.readouterr().out
