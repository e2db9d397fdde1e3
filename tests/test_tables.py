"""Tables of methods, their formats, and the command of each row."""

import shlex
from dataclasses import replace

import pytest
from digits_support import METHODS, NL, runs_of_two_methods, write_run

from normloss.analysis import tables
from normloss.analysis.commands import command_of
from normloss.analysis.render import Column, Table, number, plain
from normloss.analysis.select import frame, series, where
from normloss.runs.records import load_runs
from normloss.sweeps.composing import expand


@pytest.fixture
def store(tmp_path):
    return runs_of_two_methods(tmp_path / "runs")


def test_table_shows_every_statistic(store):
    lines = tables.methods(frame(load_runs(store)), METHODS).markdown().splitlines()
    assert lines[0] == "digits resnet8, 3 epochs, batch size 64"
    assert lines[4:7] == [
        "| wd λ=0.0001 | 3 | 2.00 (3.00 ± 1.00) | 0.52 to 5.48 | – | 0.3000 | 1.040 (0.900–1.200) |",
        # differences -1 -1.9 -2.8: mean -1.9, sd 0.9; t = -3.657 and p = 1 - t / sqrt(t^2 + 2)
        "| nl λ=0.01 | 3 | 1.00 (1.10 ± 0.10) | 0.85 to 1.35 | 0.067 | 0.1100 | 1.040 (0.900–1.200) |",
        "| nl λ=100 | 0 | – | – | – | – | – |",
    ]
    assert lines[8].startswith("Errors at the last epoch; best is the lowest over seeds, never over epochs. ±:")
    assert lines[10] == "p: against wd λ=0.0001, paired by seed."
    assert lines[12] == "Diverged, not counted: nl λ=100."


def test_table_of_one_seed_shows_no_spread(store):
    table = tables.methods(where(frame(load_runs(store)), {"reg.name": "wd", "seed": 2}), METHODS).markdown()
    assert "| wd λ=0.0001 | 1 | 4.00 | – | – | 0.4000 | 1.040 (0.900–1.200) |" in table
    assert "| method | n | test error %, each seed |" in table
    assert "±" not in table
    assert "nan" not in table


def test_the_command_of_a_row_composes_to_its_runs(store):
    write_run(store, NL | {"layers": "first", "lam": 0.5}, 7, lr=0.2)
    for runs in series(frame(load_runs(store)), by=["train.lr"]).values():
        words = shlex.split(command_of(runs["record"]))
        assert words[:2] == ["python", "train.py"]
        assert sorted(cfg.id for cfg in expand(words[2:])) == sorted(runs["id"])
    assert command_of(runs["record"].map(lambda run: replace(run, config=run.config | {"reg": {"name": "gone"}}))) == ""


def test_cells_survive_every_format():
    columns = [plain("a_b"), Column("x", lambda row: f"{number(row['x'], '+.1f')} % ± 1 | <2>")]
    table = Table("t", "T & λ", columns, [{"a_b": "`python x.py a_b`", "x": -5.0}], ["see `y_z`"], ["run `z`"])
    assert table.markdown().splitlines()[4] == r"| `python x.py a_b` | −5.0 % ± 1 \| <2> |"
    assert r"\texttt{python x.py a\_b} & $-$5.0 \% $\pm$ 1 | $<$2$>$ \\" in table.latex()
    assert r"\caption{T \& $\lambda$}" in table.latex()
    assert "texttt{z}" not in table.latex()
    assert table.csv() == "a_b,x\n`python x.py a_b`,-5\n"
    assert "<td><code>python x.py a_b</code></td><td>−5.0 % ± 1 | &lt;2&gt;</td>" in table.html()
    assert "<code>z</code>" in table.html()
