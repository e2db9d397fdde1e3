"""Figures beyond the paper: filter norms, cost, wall time, lambda x batch size, annealed norm loss."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from normloss.analysis import style
from normloss.analysis.cost import comparable_times
from normloss.analysis.figures import label, per_epoch, training
from normloss.analysis.paper import Cell
from normloss.analysis.render import Table
from normloss.analysis.select import matching
from normloss.analysis.stats import summarize
from normloss.analysis.studies import METHODS, Study, annealed
from normloss.analysis.tables import best_and_spread, interval, paired_by_seed

FIRST = ("none", "wd", "nl")  # the methods that a figure begins with


def every_method(df: pd.DataFrame, study: Study) -> dict[str, pd.DataFrame]:
    """method -> its finished runs where all methods were run: with its default keys, else with whatever it was run."""
    free = [key for key in df if key.startswith("reg.")]
    runs = matching(df, Cell((*study.all_methods, "reg=none")).config, ("seed", *free))
    runs = runs[runs["state"] == "done"]
    names = sorted(set(runs["reg.name"]) if len(runs) else (), key=lambda name: (*(name != b for b in FIRST), name))
    default = {name: Cell((*study.all_methods, f"reg={name}")).done(runs) for name in names}
    return {name: chosen if len(chosen) else runs[runs["reg.name"] == name] for name, chosen in default.items()}


def layer_norms(df: pd.DataFrame, study: Study) -> Figure:
    """How fast each method brings the filters' norms to one: |mean norm - 1| of every layer, over epochs."""
    runs = every_method(df, study)
    title = "\n".join(filter(None, ["Filter norms by layer: mean norm of each layer after each epoch", study.title]))
    if not runs:
        return _empty(title, study.command("methods" if study.prefix else "table1_quoted"))
    columns = min(4, len(runs))
    rows = -(-len(runs) // columns)
    fig = style.figure(3 * columns, 2.1 * rows + 0.9)
    panels = fig.subplots(rows, columns, squeeze=False).flat
    for k, (axes, (name, chosen)) in enumerate(zip(panels, runs.items(), strict=False)):
        record = chosen["record"].iloc[0]
        norms = np.array([epoch["layer_norms"] for epoch in record.epochs])  # (epochs, layers)
        shown = np.linspace(0, len(norms) - 1, min(len(norms), 4)).round().astype(int)
        for i, epoch in enumerate(shown):
            look = style.marked(i) if norms.shape[1] < 25 else style.line(i)
            axes.plot(range(1, norms.shape[1] + 1), norms[epoch], label=f"epoch {epoch + 1}", **look)
        axes.axhline(1, color="0.3", linestyle="--", linewidth=0.8)
        axes.set_ylim(0, max(1.6, norms.max() * 1.05))
        style.style(axes, name, "layer" if k >= len(runs) - columns else "", "norm" if k % columns == 0 else "")
        style.count_steps(axes)
    for axes in fig.axes[len(runs) :]:
        axes.set_visible(False)
    fig.legend(*fig.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    fig.suptitle(title, fontsize=11)
    return fig


def methods(df: pd.DataFrame, study: Study) -> Figure:
    """Cross entropy, test error and filter norm of every method that was run where all were."""
    runs = every_method(df, study)
    title = "\n".join(filter(None, ["Every method", study.title]))
    if not runs:
        return _empty(title, study.command("methods" if study.prefix else "table1_quoted"))
    return training(runs, title)


def cost(bench: Path) -> Figure:
    """Milliseconds of regularizer and optimizer, and the whole step to that without a regularizer, by method."""
    files = sorted(bench.glob("overhead_*.json"))
    if not files:
        return _empty("Cost of each method", "python scripts/bench.py overhead")
    fig = style.figure(6, 1.2 + 0.28 * 16)
    axes = fig.subplots()
    for i, file in enumerate(files):
        measured = json.loads(file.read_text())
        rows = measured["rows"][::-1]
        ratio = [row["ratio_to_none"] for row in rows]
        place = np.arange(len(rows)) + 0.4 * (0.5 - (i + 0.5) / len(files)) * 2
        name = f"{measured['model']}, batch {measured['batch']}, {measured['device']}"
        axes.barh(place, ratio, height=0.8 / len(files), color=style.COLORS[i], label=name)
        for y, value in zip(place, ratio, strict=True):
            axes.text(value * 1.02, y, f"{value:.2f}", va="center", fontsize=7)
    axes.set_yticks(range(len(rows)), [row["method"] for row in rows])
    axes.set_xscale("log")
    axes.axvline(1, color="0.3", linestyle="--", linewidth=0.8)
    style.style(axes, "medians of interleaved blocks", "time of a training step, to one without regularizer", "")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.margins(x=0.12, y=0.02)
    axes.legend(frameon=False, loc="lower right", fontsize=8)
    fig.suptitle("What each method costs a step", fontsize=11)
    return fig


def wall_time(df: pd.DataFrame, study: Study) -> Figure:
    """Test error over the seconds trained so far, wd against nl."""
    fig = style.figure()
    axes = fig.subplots()
    *found, at_once = comparable_times(*(study.trained(df, f"reg={method}") for method in METHODS))
    runs = {method: list(one["record"]) for method, one in zip(METHODS, found, strict=True)}
    devices = {record.meta.get("device_name", "?") for records in runs.values() for record in records}
    for i, (method, records) in enumerate(runs.items()):
        if records:
            hours = per_epoch(records, "seconds").cumsum(axis=1).mean(axis=0) / 3600
            look = style.marked(i) if len(hours) < 20 else style.line(i)
            axes.plot(hours, per_epoch(records, "test_error").mean(axis=0), label=label(method, records), **look)
    fig.suptitle("\n".join(filter(None, ["Test error over wall time", study.title])), fontsize=11)
    style.style(axes, f"mean over seeds; {', '.join(sorted(devices))}{at_once}", "hours of training", "test error (%)")
    if axes.get_lines():
        axes.legend(frameon=False)
    else:
        style.say_missing(axes, study.command("table1"))
    return fig


def heatmap(df: pd.DataFrame, study: Study) -> Figure:
    """Test error over lambda x batch size, a panel a method; white: no finished run."""
    free = ("reg.lam", "train.batch_size")
    grids = {method: _grid(study.sweep(df, method, free), free) for method in METHODS}
    title = "\n".join(filter(None, ["Test error (%) over λ and batch size", study.title]))
    if all(grid.empty for grid in grids.values()):
        return _empty(title, study.command("heatmap"))
    lams = sorted(set().union(*(grid.index for grid in grids.values())))
    sizes = sorted(set().union(*(grid.columns for grid in grids.values())))
    grids = {method: grid.reindex(index=lams, columns=sizes) for method, grid in grids.items()}
    values = np.concatenate([grid.to_numpy(float).ravel() for grid in grids.values()])
    low, high = np.nanmin(values), np.nanmax(values)
    fig = style.figure(2 + 0.95 * 2 * len(sizes), 1.6 + 0.55 * len(lams))
    for axes, (method, grid) in zip(fig.subplots(1, 2, sharey=True), grids.items(), strict=True):
        image = axes.imshow(grid.to_numpy(float), cmap="cividis_r", vmin=low, vmax=high, aspect="auto", origin="lower")
        for (i, j), value in np.ndenumerate(grid.to_numpy(float)):
            text = "–" if np.isnan(value) else f"{value:.1f}"
            dark = not np.isnan(value) and value > (low + high) / 2
            axes.text(j, i, text, ha="center", va="center", color="white" if dark else "black", fontsize=9)
        axes.set_xticks(range(len(sizes)), [f"{size:g}" for size in sizes])
        axes.set_yticks(range(len(lams)), [f"{lam:g}" for lam in lams])
        axes.set(title=method, xlabel="batch size (images)", ylabel="λ" if method == METHODS[0] else "")
    fig.colorbar(image, ax=fig.axes, label="test error (%)")
    fig.suptitle(title, fontsize=11)
    return fig


def _grid(runs: pd.DataFrame, free: tuple[str, str]) -> pd.DataFrame:
    """Mean test error over seeds, (lambda, batch size)."""
    lam, size = (runs[key].astype(float) for key in free)
    return runs["test_error"].groupby([lam, size]).mean().unstack()


def anneal(df: pd.DataFrame, study: Study) -> Figure:
    """Test error over training of wd, nl and nl with less or no pull late in training."""
    fig = style.figure()
    axes = fig.subplots()
    runs = {name: list(study.trained(df, *overrides)["record"]) for name, overrides in annealed(study).items()}
    for i, (name, records) in enumerate(runs.items()):
        if records:
            look = style.marked(i) if len(records[0].epochs) < 20 else style.line(i)
            error = per_epoch(records, "test_error").mean(axis=0)
            axes.plot(per_epoch(records, "epoch")[0], error, label=label(name, records), **look)
    fig.suptitle("\n".join(filter(None, ["Does annealing λ rescue norm loss?", study.title])), fontsize=11)
    style.style(axes, "mean over seeds", "epoch", "test error (%)")
    if axes.get_lines():
        style.count_steps(axes)
        axes.legend(frameon=False)
    else:
        style.say_missing(axes, study.command("nl_anneal"))
    return fig


def anneal_table(df: pd.DataFrame, study: Study) -> Table:
    """The final errors of what `anneal` draws, each against constant lambda and against weight decay, by seed."""
    runs = {name: study.trained(df, *overrides) for name, overrides in annealed(study).items()}
    wd, constant = runs["wd"], runs["nl, λ constant"]
    rows = []
    for name, chosen in runs.items():
        error = summarize(chosen["test_error"])
        cells = [best_and_spread(error) if error.n else "missing", str(error.n), interval(error)]
        against = [paired_by_seed(wd, chosen) if name != "wd" else "–"]
        against += [paired_by_seed(constant, chosen) if "λ constant" not in name and name != "wd" else "–"]
        rows.append([name, *cells, *against])
    title = "; ".join(filter(None, ["Annealed norm loss, test error (%)", study.title]))
    columns = ("method", "best (mean ± sd)", "n", "95 % interval of the mean", "minus wd", "minus constant λ")
    missing = [f"To fill: `{study.command('nl_anneal')}`."] if any(len(chosen) == 0 for chosen in runs.values()) else []
    return Table(f"{study.prefix}nl_anneal", title, columns, rows, missing)


def _empty(title: str, command: str) -> Figure:
    fig = style.figure()
    axes: Axes = fig.subplots()
    style.say_missing(axes, command)
    fig.suptitle(title, fontsize=11)
    return fig
