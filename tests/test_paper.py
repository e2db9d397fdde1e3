"""results/paper.yaml against the paper's own text, and the tables that set our runs beside it."""

import os
import re
from pathlib import Path

import pytest
from runs_support import write_run

from normloss.analysis import tables
from normloss.analysis.claims import claims
from normloss.analysis.cost import estimate
from normloss.analysis.paper import Cell, Paper
from normloss.analysis.select import load
from normloss.analysis.studies import PAPER

ROOT = Path(__file__).resolve().parent.parent
TEXT = Path(os.environ.get("NORMLOSS_PAPER", ROOT.parent / "shared" / "paper.md"))
NAMES = {"table1": "TABLE I\n", "table2": "TABLE II\n", "table3": "TABLE III\n"}


@pytest.fixture(scope="module")
def paper():
    return Paper()


@pytest.fixture(scope="module")
def text():
    if not TEXT.exists():
        pytest.skip(f"the paper's text is not at {TEXT} (NORMLOSS_PAPER=FILE names it)")
    return TEXT.read_text()


# the numbers -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_every_row_is_the_papers(paper, text, name):
    printed = re.search(rf"{NAMES[name]}.*?<tbody>(.*?)</tbody>", text, re.S)[1]
    theirs = [re.findall(r"<td>(.*?)</td>", row) for row in re.findall(r"<tr>(.*?)</tr>", printed, re.S)]
    ours = []
    for row in paper.tables[name].rows:
        model = f"{row.model} [{row.quoted}]*" if row.quoted else row.model + (" (Ours)" if row.method == "nl" else "")
        ours.append([model, row.method, *cells(row.values)])
    as_numbers = [[*row[:2], *(re.findall(r"[\d.]+", cell) for cell in row[2:])] for row in theirs]
    assert [[*row[:2], *([float(x) for x in cell] for cell in row[2:])] for row in as_numbers] == ours


def cells(values):
    keys = (("top1",), ("top5",)) if "top1" in values else (("best", "mean"),)
    return [[values[key] for key in pair if key in values] for pair in keys]


def test_every_number_of_the_text_is_the_papers(paper, text):
    short = {row.method: row.values for row in paper.tables["table2_short"].rows}
    flat = " ".join(text.split())
    assert (
        f"Average error for the weight decay is {short['wd']['mean']} with a best run of {short['wd']['best']} whilst"
        f" for the norm loss the average error is {short['nl']['mean']} with a best run of {short['nl']['best']}."
        in flat
    )
    hours = paper.text["hours"]
    assert f"with weight decay takes, on average, {hours['wd']} hours" in flat
    assert f"with norm loss takes, on average, {hours['nl']} hours" in flat
    theirs = paper.text["srip_baselines"]
    assert f"({theirs['theirs']}% vs {theirs['paper']}% accuracy for the baseline ResNet110)" in flat
    assert r"\lambda = 5 \cdot 10^{-4}" in flat and paper.text["lam"] == 5e-4
    assert f"averaged over {paper.text['smooth']} steps" in flat
    sizes = paper.text["batch_size"]
    assert rf"batch sizes $\{{{', '.join(map(str, sizes['sizes']))}\}}$" in flat
    assert f"only for batch size {sizes['wd_ahead'][0]} the opposite is true" in flat
    assert f"is achieved by the networks trained with batch size {sizes['best']}" in flat


def test_the_abstracts_of_the_tables_hold(paper):
    """Without the text at hand: the claims that the paper draws from these numbers."""
    assert [len(table.rows) for table in paper.tables.values()] == [11, 9, 2, 4]
    for table in paper.tables.values():
        for row in table.rows:
            assert row.values.get("best", 0) <= row.values.get("mean", 100)
            assert row.values.get("top5", 0) < row.values.get("top1", 100)
        for model in {row.model for row in table.rows}:
            wd, nl = (table.row(model, method).values for method in ("wd", "nl"))
            key = "mean" if "mean" in wd else "top1"
            # "only for one setup our method is under performing, i.e. WRN-28-10 on CIFAR-10"
            assert (nl[key] > wd[key]) == (table.name == "table1" and model == "WRN-28-10")
    hours = paper.text["hours"]
    assert hours["nl"] / hours["wd"] == pytest.approx(1.0504, abs=1e-4)


# the runs beside them ----------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path, config):
    """Table I's ResNet110: wd with all five seeds, nl with three."""
    for method, errors in {"wd": (6.5, 6.6, 6.7, 6.4, 6.8), "nl": (6.0, 5.9, 6.1)}.items():
        for seed, error in enumerate(errors):
            cfg = config("dataset=cifar10", "model=resnet110", f"reg={method}", f"seed={seed}")
            write_run(tmp_path / "runs", cfg, error, seconds=100.0 if method == "wd" else 105.0)
    return tmp_path / "runs"


@pytest.fixture
def df(store, tmp_path):
    return load(store, tmp_path)


def test_a_row_shows_the_papers_value_ours_and_the_difference(paper, df):
    table = tables.paper_table(paper.tables["table1"], df)
    rows = {tuple(row[:2]): row[2:] for row in table.rows}
    # mean 6.6, sd sqrt(0.1 / 4) = 0.158, 2.776 * 0.158 / sqrt(5) = 0.196
    assert rows["ResNet110", "wd"] == ["6.32 (6.568)", "6.40 (6.60 ± 0.16)", "5", "+0.03", "6.40 to 6.80"]
    assert rows["ResNet110", "nl"] == ["5.9 (5.996)", "5.90 (6.00 ± 0.10), 3 of 5 seeds", "3", "+0.00", "5.75 to 6.25"]
    assert rows["WRN-28-10", "nl"] == ["4.47 (4.662)", "missing", "0", "–", "–"]
    assert rows["ResNet110", "PBWN [19]*"][0] == "– (6.27)"


def test_what_is_missing_comes_with_its_command_and_time(paper, df):
    notes = tables.paper_table(paper.tables["table1"], df).notes
    # 105 s an epoch, 164 epochs
    assert "ResNet110 nl, 2 missing: `python train.py -m dataset=cifar10 model=resnet110 reg=nl seed=3,4`" in "\n".join(
        notes
    )
    note = next(note for note in notes if note.startswith("ResNet110 nl, 2 missing"))
    assert re.search(r"about 4\.8 h a run, as [0-9a-f]{8} took on GTX 1080 Ti", note)
    assert not any(note.startswith("ResNet110 wd, ") for note in notes)
    assert any("no such run yet" in note for note in notes if note.startswith("WRN-28-10 wd"))


def test_nl_against_wd_is_paired_by_seed(paper, df):
    notes = "\n".join(tables.paper_table(paper.tables["table1"], df).notes)
    # differences -0.5 -0.7 -0.6: mean -0.6, sd 0.1; t = -0.6 / (0.1 / sqrt(3)) = -10.39
    assert (
        "ResNet110, nl − wd: the paper -0.572; ours -0.60 over 3 pairs of seeds (95 % interval -0.85 to -0.35;"
        " paired t(2) = -10.39, p = 0.0091, effect size d = -6.00)." in notes
    )
    assert "WRN-28-10, nl − wd: the paper +0.696; ours missing." in notes


def test_an_unfinished_run_is_named_and_not_counted(paper, store, tmp_path, config):
    cfg = config("dataset=cifar10", "model=resnet110", "reg=nl", "seed=3")
    write_run(store, cfg, 1.0)
    (store / cfg.id / "DONE").unlink()
    (store / cfg.id / "status.json").write_text('{"state": "diverged"}')
    table = tables.paper_table(paper.tables["table1"], load(store, tmp_path))
    assert next(row for row in table.rows if row[:2] == ["ResNet110", "nl"])[4] == "3"
    assert any(f"{cfg.id} is diverged" in note for note in table.notes)


def test_runs_are_found_by_what_was_trained_not_by_name(df, config, store, tmp_path):
    assert len(Cell(("dataset=cifar10", "model=resnet110", "reg=nl")).done(df)) == 3
    assert Cell(("dataset=cifar10", "model=resnet110", "reg=nl", "reg.lam=1e-3")).done(df).empty
    assert Cell(("dataset=cifar10", "model=resnet110", "reg=nl", "train.batch_size=64")).done(df).empty
    # a trial of a few steps is another run, and stands in no table
    write_run(store, config("dataset=cifar10", "model=resnet110", "reg=nl", "seed=4", "train.max_steps=9"), 50.0)
    assert len(Cell(("dataset=cifar10", "model=resnet110", "reg=nl")).done(load(store, tmp_path))) == 3


def test_claims_say_what_our_runs_say(paper, df):
    rows = {row[0]: row[2:] for row in claims(df, PAPER, paper).rows}
    assert rows["Table I: CIFAR-10, ResNet110: nl − wd"][0] == "-0.572"
    assert rows["Table I: CIFAR-10, ResNet110: nl − wd"][1].startswith("-0.60 over 3 pairs of seeds")
    assert rows["time of a ResNet110 run on CIFAR-10, nl / wd"] == [
        "4.79 h / 4.56 h = 1.0504",
        "0.12 h / 0.11 h = 1.0500 on GTX 1080 Ti",
    ]
    assert rows["λ moves nl's test error less than wd's"][1] == "missing"


def test_only_times_of_runs_that_shared_their_device_alike_are_compared(paper, tmp_path, config):
    def told(*runs: tuple[str, int, float, int]) -> str:
        folder = tmp_path / str(len(runs))
        for method, seed, seconds, together in runs:
            cfg = config("dataset=cifar10", "model=resnet110", f"reg={method}", f"seed={seed}")
            write_run(folder, cfg, 6.0, seconds=seconds, together=together)
        rows = {row[0]: row[3] for row in claims(load(folder, tmp_path), PAPER, paper).rows}
        return rows["time of a ResNet110 run on CIFAR-10, nl / wd"]

    shared = [("wd", 0, 360.0, 5), ("nl", 0, 369.0, 5)]
    assert told(*shared) == "0.41 h / 0.40 h = 1.0250 on GTX 1080 Ti, 5 seeds at once"
    assert told(*shared, ("wd", 1, 90.0, 1)) == "0.41 h / 0.40 h = 1.0250 on GTX 1080 Ti, 5 seeds at once"
    alone = [("wd", 1, 90.0, 1), ("nl", 1, 99.0, 1)]
    assert told(*shared, *alone) == "0.11 h / 0.10 h = 1.1000 on GTX 1080 Ti"
    assert told(("wd", 0, 360.0, 5), *[("nl", seed, 99.0, 1) for seed in range(4)]) == "missing"


def test_a_run_that_shared_its_device_took_its_share_of_the_time(tmp_path, config):
    cfg = config("dataset=cifar10", "model=resnet110", "reg=nl")
    write_run(tmp_path / "runs", cfg, 6.0, seconds=360.0, together=5)
    known = estimate(load(tmp_path / "runs", tmp_path), cfg)
    assert known.hours == pytest.approx(164 * 360 / 3600 / 5)
    assert str(known) == f"about 3.3 h a run, as {cfg.id} took on GTX 1080 Ti, 5 seeds at once"


def test_sensitivity_is_the_range_over_what_both_methods_have(paper, tmp_path, config):
    for method, errors in {"wd": (20.0, 19.0, 22.0), "nl": (18.5, 18.6, 18.9)}.items():
        for lam, error in zip(("1e-4", "5e-4", "1e-3"), errors, strict=True):
            cfg = config("dataset=cifar100", "model=wrn28_10", f"reg={method}", f"reg.lam={lam}")
            write_run(tmp_path / "runs", cfg, error)
    write_run(tmp_path / "runs", config("dataset=cifar100", "model=wrn28_10", "reg=wd", "reg.lam=1e-1"), 90.0)
    rows = {row[0]: row[3] for row in claims(load(tmp_path / "runs", tmp_path), PAPER, paper).rows}
    assert rows["λ moves nl's test error less than wd's"] == "range over 3 λ: wd 3.00, nl 0.40 points"
