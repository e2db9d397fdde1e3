"""Every table, figure and finding of a small store; the notebooks, the report and the pages in git."""

import html
import math
import re
import shlex
import shutil
import textwrap
from pathlib import Path

import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient
from runs_support import write_run

from normloss.analysis import report
from normloss.analysis.render import Table
from normloss.analysis.results import Results
from normloss.analysis.show import SavedFigure
from normloss.runs.records import load_runs
from normloss.sweeps.composing import expand

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SMALL = ("dataset=cifar10", "model=resnet8", "recipe=mini", "train.epochs=8", "train.milestones=[4,6]")
TABLE1 = ("dataset=cifar10", "model=resnet20", "recipe=mini", "train.epochs=16", "train.milestones=[8,12]")


@pytest.fixture(scope="module")
def store(config, tmp_path_factory):
    """Runs of the small studies, not all; one run that is not finished; a trial."""
    store = tmp_path_factory.mktemp("book") / "runs"
    for method, error in (("wd", 14.0), ("nl", 13.0)):
        for seed in range(3):
            apart = seed * (1.2 if method == "wd" else 1)
            write_run(store, config(*TABLE1, f"reg={method}", f"seed={seed}"), error + apart)
            for lam, more in (("1e-4", 2.0), ("1e-3", 0.0), ("1e-2", 3.0 if method == "wd" else 0.5)):
                words = (*SMALL, f"reg={method}", f"reg.lam={lam}", f"seed={seed}")
                write_run(store, config(*words), error + 10 + more + seed * 0.5)
        for size in (32, 64):
            for seed in range(2):
                words = (*SMALL, f"reg={method}", f"train.batch_size={size}", f"seed={seed}")
                write_run(store, config(*words), error + 8 + seed)
    unfinished = store / write_run(store, config(*TABLE1, "reg=nl", "seed=3"), 1.0)
    (unfinished / "DONE").unlink()
    (unfinished / "status.json").write_text('{"state": "incomplete"}')
    write_run(store, config(*TABLE1, "reg=nl", "seed=4", "train.max_steps=3"), 90.0)
    return store


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    shutil.copytree(ROOT / "results" / "bench", folder / "bench")
    return folder


@pytest.fixture(scope="module")
def results(store, folder):
    return Results(store, folder)


# every table and figure --------------------------------------------------------------------------


def entry_of(results, folder, name):
    """The study and its entry that makes a table or figure."""
    found = ((study, entry) for study in results.studies.values() for entry in study.show)
    return next((study, entry) for study, entry in found if (entry.folder, entry.name) == (folder, name))


def table(results, name):
    return results.show(*entry_of(results, "tables", name))


def drawn(results, name):
    return results.show(*entry_of(results, "figures", name))


def test_make_figures_writes_everything(results):
    """Each table in three formats; each figure that has runs, none of them blank; a line for the others."""
    stale = results.folder / "figures" / "fig2.png"
    stale.parent.mkdir(exist_ok=True)
    stale.touch()
    sections, general = report.sections(results), results.general()
    made = [each for section in sections if not section.local for each in section.made] + general
    written = {path.name for path in (results.folder / "tables").iterdir()}
    tables = [each for each in made if isinstance(each, Table)]
    assert written == {f"{one.name}.{suffix}" for one in tables for suffix in ("md", "tex", "csv")}
    assert {"claims", "operations", "table1", "fig2", "small_fig2"} <= {one.name for one in tables}
    pictures = [each for each in made if isinstance(each, SavedFigure)]
    for picture in pictures:
        assert picture._repr_png_()[:4] == b"\x89PNG"
        assert picture.png.with_suffix(".pdf").stat().st_size > 1000
    there = {"fig1", "cost", "small_table1", "small_layers", "small_fig2", "small_fig4", "small_lr", "small_matched"}
    assert {picture.name for picture in pictures} == there
    assert {path.stem for path in (results.folder / "figures").iterdir()} == there
    assert "fig2: no finished run yet; to fill: `python train.py experiment=fig2`" in made


def test_error_over_lambda_shows_the_mean_and_its_interval(results):
    axes = drawn(results, "small_fig2").axes[0]
    wd, nl = (line for line in axes.get_lines() if line.get_label() in ("wd", "nl"))
    np.testing.assert_allclose(wd.get_ydata(), [26.5, 24.5, 27.5])  # seeds add 0, 0.5 and 1
    np.testing.assert_allclose(nl.get_ydata(), [25.5, 23.5, 24.0])
    half = 4.3027 * 0.5 / 3**0.5
    low, high = axes.containers[0].lines[2][0].get_segments()[0][:, 1]
    assert (low, high) == pytest.approx((26.5 - half, 26.5 + half), abs=1e-3)
    assert axes.get_xscale() == "log"
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["0.0001", "0.001", "0.01"]


def test_two_seeds_are_shown_as_points_without_an_interval(results):
    axes = drawn(results, "small_fig4").axes[0]
    points = [collection.get_offsets()[:, 1] for collection in axes.collections if len(collection.get_offsets()) == 2]
    assert sorted(map(tuple, np.round(points, 2))) == [(21.0, 22.0)] * 2 + [(22.0, 23.0)] * 2
    row = next(row for row in table(results, "small_fig4").rows if row["train.batch_size"] == 32)
    assert (row["n"], row["mean"]) == (2, 22.5)
    assert math.isnan(row["low"])
    text = table(results, "small_fig4").markdown()
    assert "| wd λ=0.0001 | 32 | 2 | 22.00, 23.00 | – |" in text


def test_what_diverged_is_told_in_a_studys_tables_figures_and_report(store, folder, config, tmp_path):
    shutil.copytree(store, tmp_path / "runs")
    for words in (("reg=nl", "reg.lam=5e-3"), ("reg=wd", "reg.lam=1e-2", "seed=7")):
        path = tmp_path / "runs" / write_run(tmp_path / "runs", config(*SMALL, *words), 90.0)
        (path / "DONE").unlink()
        (path / "status.json").write_text('{"state": "diverged"}')
    results = Results(tmp_path / "runs", folder)
    lost = "Diverged, not counted: nl λ=0.005, wd λ=0.01."
    assert lost in table(results, "small_fig2").notes
    assert " ".join(drawn(results, "small_fig2").get_suptitle().split()).endswith(lost)
    report.write(results)
    assert f"{path.name} is diverged" in (folder / "report.html").read_text()


def test_what_was_found_has_n_and_interval(results):
    found = {study.name: [each.sentence for each in results.findings(study)] for study in results.with_runs}
    # differences -1 -1.2 -1.4: mean -1.2, sd 0.2; 4.303 * 0.2 / sqrt(3) = 0.497; t = -10.39
    assert found["small_table1"][0] == (
        "nl − wd, test error: −1.20 points (95 % interval −1.70 to −0.70, n = 3 pairs of seeds 0 to 4, p = 0.009);"
        " unfinished, 3 of 5 seeds."
    )
    assert "nl − wd, each seed's range of test error over 3 values of λ: −1.00 points" in found["small_fig2"][0]
    assert "n = 2 pairs of seeds, too few for an interval" in found["small_fig4"][0]


def test_the_effective_learning_rate_is_lr_over_the_norm_squared(results):
    grid = drawn(results, "small_layers").axes
    norms, rates = grid[:5], grid[5:10]
    assert [axes.get_title() for axes in norms] == ["stem", "stage 1", "stage 2", "stage 3", "classifier"]
    assert "norm" in norms[0].get_ylabel() and "lr /" in rates[0].get_ylabel()
    assert len(grid) == 10  # no run has logged how far filters turn
    np.testing.assert_allclose(norms[0].get_lines()[0].get_ydata(), [1.4 / epoch for epoch in range(1, 5)])
    np.testing.assert_allclose(rates[0].get_lines()[0].get_ydata(), [0.1 * (epoch / 1.4) ** 2 for epoch in range(1, 5)])
    np.testing.assert_allclose(rates[1].get_lines()[0].get_ydata(), 0.1 / 1.2**2)


# notebooks and the report ------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.name)
def test_the_notebooks_run_and_show_every_study(notebook, results, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    book = nbformat.read(notebook, as_version=4)
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in book.cells)  # in git
    book.cells[1].source = f"from pathlib import Path\n{book.cells[1].source}".replace(
        "Results()", f"Results(Path({str(results.store)!r}), Path({str(results.folder)!r}))"
    )
    NotebookClient(book, timeout=600, resources={"metadata": {"path": str(ROOT)}}).execute()
    shown = "".join(str(output) for cell in book.cells for output in cell.get("outputs", []))
    named = {"tables": ("experiment=fig2", "4.79 h", "IV-B"), "figures": ("image/png", "fig2: no finished")}
    assert [text for text in named[notebook.stem] if text not in shown] == []


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_figures_and_report_of_a_store(store, tmp_path, load_script, capsys):
    shutil.copytree(ROOT / "results" / "bench", tmp_path / "bench")
    places = [f"--store={store}", f"--results={tmp_path}"]
    assert load_script("figures").main(places) == 0
    out = capsys.readouterr().out
    assert "0 of the paper's 22 cells have runs" in out
    assert "nl − wd, test error: −1.20 points" in out
    assert not (tmp_path / "report.html").exists()
    kept = (tmp_path / "README.md").read_text()
    assert load_script("report").main(places) == 0
    page = (tmp_path / "report.html").read_text()
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert page.count("<img") == page.count("data:image/png;base64,") == 8
    places = [page.index(text) for text in ("What was asked", "What was run", "What was found", "What is missing")]
    assert places == sorted(places)
    assert places[2] < page.index("−1.20 points (95 % interval −1.70 to −0.70, n = 3 pairs of seeds") < places[3]
    assert "truncated to 3 steps" in page
    for run in load_runs(store):
        assert run.id in page
    assert "fig2: no finished run yet; to fill:" in page
    assert (tmp_path / "README.md").read_text() == kept
    for path in [
        tmp_path / "README.md",
        *(tmp_path / "tables").iterdir(),
    ]:  # what git keeps says nothing of this machine
        text = path.read_text().replace("4.79 h", "").replace("4.56 h", "")
        assert "incomplete" not in text and "90.00" not in text, path
        assert not re.search(r"\d (min|h|days)\b(?! /)", text), path


@pytest.mark.slow
def test_a_local_study_stands_in_the_page_and_in_nothing_that_git_keeps(tmp_path, config):
    for method in ("wd", "nl"):
        for seed in range(3):
            cfg = config("dataset=digits", "model=resnet8", f"reg={method}", f"seed={seed}")
            write_run(tmp_path / "runs", cfg, 1.0 + seed)
    report.write(Results(tmp_path / "runs", tmp_path))
    assert "Handwritten digits, ResNet8" in (tmp_path / "report.html").read_text()
    assert "Handwritten digits" not in (tmp_path / "README.md").read_text()
    assert not [path for part in ("tables", "figures") for path in (tmp_path / part).glob("demo.*")]
    assert (tmp_path / "compare" / "figures" / "demo.png").exists()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_pages_in_git_are_made_of_the_archive_and_their_commands_train_its_runs(tmp_path):
    shutil.copytree(ROOT / "results", tmp_path / "results", ignore=shutil.ignore_patterns("runs", "compare"))
    (tmp_path / "none").mkdir()
    made = Results(tmp_path / "none", tmp_path / "results")
    report.write(made, html=False)
    page = (ROOT / "docs" / "findings.md").read_text()
    assert (tmp_path / "results" / "findings.md").read_text() == page
    assert (tmp_path / "results" / "README.md").read_text() == (ROOT / "results" / "README.md").read_text()
    assert textwrap.fill(" ".join(report.headlines(made)), 120) in (ROOT / "README.md").read_text()
    lines = html.unescape(page + (ROOT / "results" / "README.md").read_text())
    commands = dict(re.findall(r"<code>python train\.py ([^<]+)</code> trains ([0-9a-f, ]+)", lines))
    assert len(commands) > 20
    for command, ids in commands.items():
        assert [cfg.id for cfg in expand(shlex.split(command))] == ids.split(", "), command
