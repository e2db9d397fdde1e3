"""Every table and figure from a small store; the archive in git, the notebooks, the report and the plan."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
from runs_support import write_run

from normloss.analysis import archive, figures
from normloss.analysis.book import Book
from normloss.analysis.curves import POINTS, SMOOTH, running_mean, thin
from normloss.analysis.render import Table
from normloss.analysis.select import load
from normloss.analysis.studies import MINI, PAPER
from normloss.runs.records import load_runs

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SMALL = ("dataset=cifar10", "model=resnet8", "recipe=mini")


@pytest.fixture(scope="module")
def store(config, tmp_path_factory):
    """Runs of the mini studies; one run that is not finished, in its second epoch."""
    store = tmp_path_factory.mktemp("book") / "runs"
    for method, error in (("wd", 40.0), ("nl", 38.0)):
        for seed in range(2):
            write_run(store, config(*SMALL, f"reg={method}", f"seed={seed}"), error + seed)
        for lam in ("5e-4", "1e-3"):
            write_run(store, config(*SMALL, f"reg={method}", f"reg.lam={lam}"), error + 2)
        for size in (32, 64):
            write_run(store, config(*SMALL, f"reg={method}", f"train.batch_size={size}"), error - 1)
    for method in ("wn", "sn"):
        write_run(store, config(*SMALL, f"reg={method}"), 37.0)
    for gamma in (0.1, 0):
        write_run(store, config(*SMALL, "reg=nl", "reg.lam_milestones=[1]", f"reg.lam_gamma={gamma}"), 36.0)
    unfinished = store / write_run(store, config(*SMALL, "reg=nl", "seed=2"), 1.0)
    (unfinished / "DONE").unlink()
    (unfinished / "status.json").write_text('{"state": "incomplete"}')
    log = unfinished / "epochs.jsonl"
    log.write_text(log.read_text().splitlines(keepends=True)[0])
    return store


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    results = tmp_path_factory.mktemp("results")
    shutil.copytree(ROOT / "results" / "bench", results / "bench")
    return results


@pytest.fixture(scope="module")
def book(store, results):
    return Book(store, results)


# curves ------------------------------------------------------------------------------------------


def test_a_short_curve_is_kept_exactly():
    ce = np.random.default_rng(0).random(100).astype(np.float32)
    curve = thin(ce)
    np.testing.assert_array_equal(curve.step, np.arange(1, 101))
    np.testing.assert_array_equal(curve.low, ce)
    np.testing.assert_array_equal(curve.high, ce)
    assert np.isnan(curve.mean[:9]).all() and np.isnan(curve.mean[91:]).all()
    for i in (9, 50, 90):  # the window of 19 around it
        assert curve.mean[i] == pytest.approx(np.mean(ce[i - 9 : i + 10].astype(float)), rel=1e-6)


def test_a_long_curve_keeps_its_extremes_and_its_smooth_values():
    ce = np.random.default_rng(0).random(3 * POINTS + 7)
    ce[5000], ce[6000] = 9.0, -9.0
    curve = thin(ce)
    assert len(curve.step) <= POINTS
    assert (curve.step[-1], curve.high.max(), curve.low.min()) == (len(ce), 9.0, -9.0)
    smooth = running_mean(ce)
    whole = ~np.isnan(curve.mean)
    np.testing.assert_allclose(curve.mean[whole], smooth[curve.step[whole] - 1 - SMOOTH // 2], rtol=1e-6)


def test_no_steps_no_curve():
    assert len(thin(np.empty(0)).step) == 0


# the archive -------------------------------------------------------------------------------------


def test_the_archive_stands_in_for_the_store(store, tmp_path):
    added, differing = archive.add(load_runs(store), tmp_path)
    assert (len(added), differing) == (16, [])
    ours, theirs = load(store, tmp_path / "none"), load(tmp_path / "none", tmp_path)
    ours = ours[ours["state"] == "done"].set_index("id").sort_index()
    theirs = theirs.set_index("id").sort_index()
    columns = [column for column in ours if column != "record"]
    pd.testing.assert_frame_equal(ours[columns], theirs[columns], check_like=True)
    for one, other in zip(ours["record"], theirs["record"], strict=True):
        np.testing.assert_array_equal(archive.curve(one).mean, archive.curve(other).mean)
        assert other.meta["wandb"] == one.meta["wandb"]
        for mine, kept in zip(one.epochs, other.epochs, strict=True):
            assert mine.keys() == kept.keys()
            assert kept["test_error"] == pytest.approx(mine["test_error"], rel=1e-6)
            assert kept["layer_norms"] == pytest.approx(mine["layer_norms"], rel=1e-3)  # half precision


def test_the_same_figure_from_store_and_archive(store, tmp_path):
    archive.add(load_runs(store), tmp_path)
    one, other = (figures.fig3(load(*places), MINI) for places in ((store, tmp_path / "x"), (tmp_path / "x", tmp_path)))
    for mine, theirs in zip(one.axes[0].get_lines(), other.axes[0].get_lines(), strict=True):
        np.testing.assert_array_equal(mine.get_xydata(), theirs.get_xydata())


def test_exporting_again_changes_nothing_and_stores_merge(store, tmp_path, config):
    archive.add(load_runs(store), tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert archive.add(load_runs(store), tmp_path) == ([], [])
    assert {path: path.read_bytes() for path in before} == before
    other = tmp_path / "other"
    new = write_run(other, config(*SMALL, "reg=wd", "seed=7"), 41.0)
    again = write_run(other, config(*SMALL, "reg=wd", "seed=0"), 45.0)  # the same run, from another machine
    assert archive.add(load_runs(other), tmp_path) == ([new], [again])
    kept = {run.id: run.final["test_error"] for run in archive.read(tmp_path)}
    assert (len(kept), kept[new], kept[again]) == (17, 41.0, 40.0)


def test_a_run_of_the_store_goes_before_the_archives(store, tmp_path, config):
    archive.add(load_runs(store), tmp_path)
    cfg = config(*SMALL, "reg=wd", "seed=0")
    write_run(tmp_path / "runs", cfg, 44.0)
    df = load(tmp_path / "runs", tmp_path).set_index("id")
    assert df.loc[cfg.id, "test_error"] == 44.0
    assert len(df) == 16


def test_export_says_what_it_did(store, tmp_path, load_script, capsys):
    script = load_script("export")
    assert script.main([str(store), "--results", str(tmp_path)]) == 0
    assert "16 runs added" in capsys.readouterr().out
    assert script.main([str(store), "--results", str(tmp_path)]) == 0
    assert "0 runs added" in capsys.readouterr().out
    assert script.main([str(tmp_path / "nowhere")]) == 2
    assert capsys.readouterr().err.startswith(f"normloss: {tmp_path / 'nowhere'}: no such store")


# every table and figure --------------------------------------------------------------------------


def test_every_table_is_written_in_three_formats(book):
    for name in book.tables:
        book.table(name)
    written = {path.name for path in (book.results / "tables").iterdir()}
    assert written == {f"{name}.{suffix}" for name in book.tables for suffix in ("md", "tex", "csv")}


def test_every_figure_is_written_and_none_is_blank(book):
    for name in book.figures:
        picture = book.figure(name)
        assert picture._repr_png_()[:4] == b"\x89PNG"
        assert picture.png.with_suffix(".pdf").stat().st_size > 1000
    assert {path.stem for path in (book.results / "figures").iterdir()} == set(book.figures)


@pytest.mark.parametrize("name", ["fig2", "fig4", "fig5", "fig6", "heatmap", "nl_anneal", "wall_time", "layer_norms"])
def test_a_figure_without_runs_says_what_fills_it(book, name):
    said = " ".join(text.get_text() for axes in book.figures[name]().axes for text in axes.texts)
    assert "no finished run yet; to fill:\npython train.py experiment=" in said
    mini = " ".join(text.get_text() for axes in book.figures[f"mini_{name}"]().axes for text in axes.texts)
    assert "no finished run" not in mini


def test_scaled_down_runs_never_stand_in_the_papers_figures(book):
    for name in ("fig2", "fig3", "fig4", "fig5", "fig6", "heatmap", "nl_anneal", "layer_norms"):
        title = book.figures[f"mini_{name}"]()._suptitle.get_text()
        assert "Scaled down, not the paper's" in title
        said = [text.get_text() for axes in book.figures[name]().axes for text in axes.texts]
        assert any(text.startswith("no finished run") for text in said)


def test_fig2_shows_the_mean_and_range_over_seeds(book):
    axes = book.figures["mini_fig2"]().axes[0]
    wd, nl = axes.containers
    assert (wd.get_label(), nl.get_label()) == ("wd  (n = 1 to 2 a point)", "nl  (n = 1 to 2 a point)")
    np.testing.assert_allclose(wd.lines[0].get_xydata(), [[1e-4, 40.5], [5e-4, 42.0], [1e-3, 42.0]])
    low, high = wd.lines[2][0].get_segments()[0][:, 1]
    assert (low, high) == (40.0, 41.0)


def test_fig6_is_accuracy_of_the_last_epoch_too(book):
    (wd, nl) = book.figures["mini_fig6"]().axes[0].get_lines()
    assert wd.get_ydata()[-1] == 100 - 40.5
    assert nl.get_ydata()[-1] == 100 - 38.5


def test_heatmap_holds_each_cell_once(book):
    panels = book.figures["mini_heatmap"]().axes[:2]
    shown = [[text.get_text() for text in axes.texts] for axes in panels]
    assert [len(texts) for texts in shown] == [4 * 3, 4 * 3]  # lambda: 1e-4 5e-4 1e-3 1e-2, batch: 32 64 128
    assert shown[0].count("–") == 12 - 5  # wd: three lambdas at 128, 32 and 64 at 1e-4


def test_annealing_is_told_against_both(book):
    rows = {row[0]: row[1:] for row in book.tables["mini_nl_anneal"]().rows}
    assert rows["nl, dropped"][3:] == ["-4.00 (one seed)", "-2.00 (one seed)"]
    assert rows["nl, λ constant"][3] == "-2.00 over 2 pairs of seeds (95 % interval -2.00 to -2.00)"


def test_all_methods_are_in_the_mini_comparison_with_their_defaults_only(book):
    table = book.tables["mini_methods"]()
    assert [row[0] for row in table.rows] == ["wd λ=0.0001", "nl λ=0.01", "sn λ=0.01", "wn"]


# formats -----------------------------------------------------------------------------------------


def test_cells_survive_every_format():
    table = Table("t", "T & λ", ["a_b", "x"], [["`python x.py a_b`", "5 % ± 1 | <2>"]], ["see `y_z`"])
    assert table.markdown().splitlines()[4] == r"| `python x.py a_b` | 5 % ± 1 \| <2> |"
    assert r"\texttt{python x.py a\_b} & 5 \% $\pm$ 1 | <2> \\" in table.latex()
    assert r"\caption{T \& $\lambda$}" in table.latex()
    assert table.csv() == "a_b,x\n`python x.py a_b`,5 % ± 1 | <2>\n"
    assert "<td><code>python x.py a_b</code></td><td>5 % ± 1 | &lt;2&gt;</td>" in table.html()


# notebooks and the report ------------------------------------------------------------------------


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.name)
def test_notebooks_have_no_outputs_in_git(notebook):
    cells = nbformat.read(notebook, as_version=4).cells
    assert all(not cell.outputs and cell.execution_count is None for cell in cells if cell.cell_type == "code")
    text = "".join(cell.source for cell in cells if cell.cell_type == "code")
    assert "normloss.analysis" in text


def test_between_them_the_notebooks_show_everything(book):
    text = "".join(path.read_text() for path in NOTEBOOKS)
    for name in (*book.tables, *book.figures):
        assert f'\\"{name}\\"' in text, f"{name} is in no notebook"


def test_the_notebooks_run_headless(store, tmp_path):
    shutil.copytree(ROOT / "results" / "bench", tmp_path / "bench")
    before = [path.read_bytes() for path in NOTEBOOKS]
    command = [sys.executable, ROOT / "scripts" / "figures.py", f"--store={store}", f"--results={tmp_path}"]
    ran = subprocess.run(command, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert "16 finished runs; 0 of the paper's 22 cells have runs" in ran.stdout
    assert {"table1.md", "mini_claims.tex"} <= {path.name for path in (tmp_path / "tables").iterdir()}
    assert {"fig1.pdf", "mini_fig6.png"} <= {path.name for path in (tmp_path / "figures").iterdir()}
    assert [path.read_bytes() for path in NOTEBOOKS] == before


def test_a_failing_cell_is_one_line(tmp_path, load_script, capsys, monkeypatch):
    broken = tmp_path / "broken.ipynb"
    cell = nbformat.v4.new_code_cell("raise ValueError('no such thing')")
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), broken)
    monkeypatch.setenv("NORMLOSS_STORE", "")
    monkeypatch.setenv("NORMLOSS_RESULTS", "")
    script = load_script("figures")
    assert script.main([str(broken), f"--store={tmp_path}", f"--results={tmp_path}"]) == 2
    assert capsys.readouterr().err == "normloss: broken.ipynb: a cell failed (ValueError: no such thing)\n"


def test_the_report_is_one_page_with_everything(store, results, load_script, capsys):
    assert load_script("report").main([f"--store={store}", f"--results={results}"]) == 0
    page = (results / "report.html").read_text()
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert page.count("<img") == page.count("data:image/png;base64,") == 22
    for run in load_runs(store):
        assert (run.id in page) == (run.state == "done")
        assert (f"https://wandb.example/{run.id}" in page) == (run.state == "done")
    assert page.count("0123456789") == 16  # each run's commit
    assert "5 missing: <code>python train.py -m dataset=cifar10 model=resnet110 reg=wd seed=0,1,2,3,4</code>" in page


# the plan ----------------------------------------------------------------------------------------


def test_the_plan_says_what_is_left_and_how_long(store, tmp_path, load_script, capsys):
    script = load_script("plan")
    assert script.main(["mini_table1", f"store={store}", f"--results={tmp_path}"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "mini_table1: 6 runs: 4 done, 1 incomplete, 1 missing"
    # 100 s an epoch, two epochs: one whole run, and half of the one that is not finished
    assert next(line for line in out if line.startswith("left: ")) == "left: 5 min"
    assert out[-1] == f"to go on: python train.py experiment=mini_table1 store={store}"


def test_a_reader_that_has_enough_is_no_error(store):
    command = f"{sys.executable} scripts/plan.py table1 --dry | head -1"
    ran = subprocess.run(command, shell=True, cwd=ROOT, capture_output=True, text=True)
    assert (ran.stdout.count("\n"), ran.stderr) == (1, "")


def test_the_plan_shows_the_configs(load_script, capsys):
    import yaml

    assert load_script("plan").main(["demo", "--dry"]) == 0
    configs = yaml.safe_load(capsys.readouterr().out)
    assert len(configs) == 6
    assert {config["reg"]["name"] for config in configs.values()} == {"wd", "nl"}


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["tabel1"], "experiment: must be one of demo"),
        (["demo", "modl=x"], "modl: no such key; did you mean model?"),
        (["demo", "train.batch_size=0"], "train.batch_size: must be at least 1, got 0"),
    ],
)
def test_the_plan_refuses_in_one_line(load_script, capsys, words, line):
    assert load_script("plan").main(words) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"normloss: {line}")
    assert err.count("\n") == 1


def test_the_plan_can_measure_this_device(load_script, capsys, tmp_path):
    words = ["mini_table1", "seed=0", "reg=nl", "device=cpu", f"store={tmp_path}", f"--results={tmp_path}"]
    assert load_script("plan").main([*words, "--measure"]) == 0
    assert "cifar10 resnet8 nl 128 fp32: " in capsys.readouterr().out


def test_the_papers_studies_are_the_papers_settings(config):
    assert config(*PAPER.sweeps, "reg=nl", "reg.lam=5e-4").train.epochs == 448
    assert config(*PAPER.curves, "reg=wd").train.epochs == 300
    assert json.loads(config(*PAPER.curves, "reg=nl", f"reg.lam_milestones={PAPER.anneal}").model_dump_json())
