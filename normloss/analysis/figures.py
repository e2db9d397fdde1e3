"""The plots that an experiment's file can name, and Figure 1. Each function returns a Figure of finished runs.

From three seeds on the mean and its 95 % interval are drawn, below that the runs themselves.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from normloss.analysis import layers, style
from normloss.analysis.entries import Curves, Heatmap, Layers, Over, Training
from normloss.analysis.select import by_number, series, value_of
from normloss.analysis.stats import FEWEST, bands, summarize
from normloss.errors import UserError
from normloss.runs.curves import SMOOTH
from normloss.runs.records import RunRecord

CE = "cross entropy of a training batch (nats)"
NAMES = {  # of logged quantities and swept keys, and their units
    "test_error": ("test error", "%"),
    "test_accuracy": ("test accuracy", "%"),
    "train_error": ("training error", "%"),
    "val_error": ("validation error", "%"),
    "test_error_top5": ("top-5 test error", "%"),
    "train_ce": ("training cross entropy", "nats"),
    "test_ce": ("test cross entropy", "nats"),
    "norm_mean": ("mean filter norm", ""),
    "turn_mean": ("turn of a filter per epoch", "degrees"),
    "reg.lam": ("regularization factor λ", ""),
    "train.batch_size": ("batch size", "images"),
    "train.lr": ("learning rate", ""),
    "hours": ("hours of training", ""),
}
Groups = Mapping[str, list[RunRecord]]


def named(key: str) -> str:
    """Return what an axis says: test error (%)."""
    name, unit = NAMES.get(key, (key, ""))
    return f"{name} ({unit})" if unit else name


def fig1() -> Figure:
    """Draw two 3x3 kernels, the second the first turned by 180 degrees: their inner product is -1."""
    a = np.array([[1.0, 1.0, 1.0], [0.0, 0.0, 0.0], [-1.0, -1.0, -1.0]]) / np.sqrt(6)  # upper edges, unit norm
    b = np.rot90(a, 2)
    fig = style.figure(5, 2.9)
    for axes, kernel, name in zip(fig.subplots(1, 2), (a, b), "ab", strict=True):
        axes.imshow(kernel, cmap="gray", vmin=-0.5, vmax=0.5)
        for (i, j), value in np.ndenumerate(kernel):
            text = f"{value:+.2f}".replace("-", "−") if value else "0"
            colour = "black" if value > -0.1 else "white"
            axes.text(j, i, text, ha="center", va="center", color=colour)
        axes.set(xticks=[], yticks=[], title=f"({name})  norm {np.linalg.norm(kernel):.0f}")
    fig.suptitle(f"Figure 1: two kernels, inner product {np.vdot(a, b):+.0f}".replace("-", "−"))
    return fig


# over a config key -------------------------------------------------------------------------------


def over(runs: pd.DataFrame, entry: Over) -> Figure:
    """Draw the end of training over a key: a point is a value's mean over seeds."""
    groups = series(runs, [entry.x], entry.by)
    values = {}  # label -> value of x -> y of each seed
    for label, some in groups.items():
        y = value_of(some, entry.y)
        values[label] = {x: [*y[places]] for x, places in by_number(some, entry.x).items()}
    swept = sorted(set().union(*values.values()))
    log = entry.xscale == "log" or (entry.xscale == "auto" and 0 < 5 * swept[0] < swept[-1])
    if log and swept[0] <= 0:
        raise UserError(f"{entry.x}: must be greater than 0 on a logarithmic axis, got {swept[0]:g}; xscale: linear")
    counts = [len(seeds) for points in values.values() for seeds in points.values()]
    looks = style.lines(list(values))
    fig, panels = _panels(list(values))
    for axes, labels in panels:
        for i, label in enumerate(labels):
            _draw_points(axes, values[label], looks[label], label, _apart(i, len(labels), swept, log))
        style.style(axes, _spread(counts, "last epoch"), entry.xlabel or named(entry.x), "")
        style.swept_x(axes, swept, log)
        _scale_y(axes, entry.yscale)
    fig.axes[0].set_ylabel(entry.ylabel or named(entry.y))
    return _finished(fig, entry.title)


def _panels(labels: list[str]) -> tuple[Figure, list[tuple[Axes, list[str]]]]:
    """Return a figure of as many panels next to each other as the lines need, and the lines of each."""
    parts = style.panels(labels)
    fig = style.figure(5.2 if len(parts) == 1 else 4.6 * len(parts))
    grid = np.ravel(fig.subplots(1, len(parts), sharex=True, sharey=True))
    return fig, list(zip(grid, parts, strict=True))


def _draw_points(axes: Axes, points: dict, line: dict, label: str, shift: Callable[[float], float]) -> None:
    summaries = {shift(x): summarize(seeds) for x, seeds in points.items()}
    means = [s.mean for s in summaries.values()]
    axes.plot(list(summaries), means, label=label, zorder=3, **line, markersize=5, clip_on=False)
    for x, s in summaries.items():
        if s.n >= FEWEST:
            ends = [[s.mean - s.low], [s.high - s.mean]]
            axes.errorbar([x], [s.mean], yerr=ends, color=line["color"], capsize=3, linewidth=1.2, zorder=2)
        elif s.n > 1:
            small = {"marker": line["marker"], "s": 14, "facecolors": "white", "edgecolors": line["color"]}
            axes.scatter([x] * s.n, s.values, zorder=4, clip_on=False, linewidths=0.9, **small)


def _apart(i: int, lines: int, swept: list[float], log: bool) -> Callable[[float], float]:
    """Return what moves line i of `lines` sideways, so that one's interval does not hide another's."""
    step = (i - (lines - 1) / 2) * 0.012
    if log:
        return lambda x: x * max(swept[-1] / swept[0], 2) ** step
    return lambda x: x + step * (swept[-1] - swept[0] or abs(x) or 1)


# during training ---------------------------------------------------------------------------------


def curves(runs: pd.DataFrame, entry: Curves) -> Figure:
    """Draw one quantity during training, one line per method."""
    groups = _records(series(runs, [], entry.by))
    every_step = entry.smooth is not None
    if every_step and entry.y != "train_ce":
        raise UserError(f"{entry.name}: only train_ce is logged at every step, got y={entry.y}")
    looks = style.lines(list(groups))
    fig, panels = _panels(list(groups))
    for axes, labels in panels:
        some = {label: groups[label] for label in labels}
        _draw(axes, some, looks, entry.y, "step" if every_step else entry.x, entry.yscale)
    fig.axes[0].set_ylabel(entry.ylabel or (CE if every_step else named(entry.y)))
    return _finished(fig, entry.title)


def training(runs: pd.DataFrame, entry: Training) -> Figure:
    """Draw cross entropy over steps, test error and filter norm over epochs; one line per method."""
    groups = _records(series(runs, [], entry.by))
    parts = style.panels(list(groups))
    looks = style.lines(list(groups))
    fig = style.figure(12, 0.7 + 3.6 * len(parts))
    grid = fig.subplots(len(parts), 3, sharex="col", sharey="col", squeeze=False)
    for row, labels in zip(grid, parts, strict=True):
        some = {label: groups[label] for label in labels}
        drawn = (("train_ce", "step", CE), ("test_error", "epoch", "test error (%)"), ("norms", "epoch", "filter norm"))
        for axes, (y, x, name) in zip(row, drawn, strict=True):
            _draw(axes, some, looks, y, x)
            axes.set(ylabel=name, xlabel=x if labels is parts[-1] else "")
    return _finished(fig, entry.title)


def _draw(axes: Axes, groups: Groups, looks: Mapping, y: str, x: str, scale: str = "auto") -> None:
    """Draw a quantity over x, one line per method. Over steps: the cross entropy; norms: means and extremes."""
    if y == "norms":
        note = _draw_norm(axes, groups, looks)
    elif x == "step":
        note = _draw_ce(axes, groups, looks)
        style.log_y(axes)
    else:
        note = _draw_epochs(axes, groups, looks, y, x)
        _scale_y(axes, scale)
    style.style(axes, note, named(x), "")
    if x != "hours":
        style.count_steps(axes)
    axes.margins(x=0.02)


def _records(groups: Mapping[str, pd.DataFrame]) -> dict[str, list[RunRecord]]:
    return {label: list(runs.sort_values("seed")["record"]) for label, runs in groups.items()}


def per_epoch(runs: list[RunRecord], key: str) -> np.ndarray:
    """Return a logged quantity, (seeds, epochs)."""
    if key == "test_accuracy":
        return 100 - per_epoch(runs, "test_error")
    missing = [run.id for run in runs if any(epoch.get(key) is None for epoch in run.epochs)]
    if missing:
        raise UserError(f"{key}: run {missing[0]} has not logged it")
    return np.array([[epoch[key] for epoch in run.epochs] for run in runs], dtype=float)


def _draw_epochs(axes: Axes, groups: Groups, looks: Mapping, y: str, x: str) -> str:
    for label, runs in groups.items():
        values = per_epoch(runs, y)
        at = per_epoch(runs, "seconds").cumsum(axis=1).mean(axis=0) / 3600 if x == "hours" else per_epoch(runs, x)[0]
        _seeds(axes, at, values, style.for_points(looks[label], len(at)), _n(label, runs))
    return _spread([len(runs) for runs in groups.values()])


def _draw_ce(axes: Axes, groups: Groups, looks: Mapping) -> str:
    counts = [len(runs) for runs in groups.values()]
    for label, runs in groups.items():
        thinned = [run.curve() for run in runs]
        smooth = np.stack([one.mean for one in thinned])  # (seeds, points)
        whole = ~np.isnan(smooth[0])
        if max(counts) == 1:
            shade = {"color": looks[label]["color"], "alpha": 0.4 / max(len(groups), 2), "zorder": 1}
            # a shade is pixels in the PDF too: 300 epochs of CIFAR are 117,000 steps per seed
            low, high = thinned[0].low, thinned[0].high
            axes.fill_between(thinned[0].step, low, high, linewidth=0.6, rasterized=True, **shade)
        line = style.for_points(looks[label], whole.sum())
        _seeds(axes, thinned[0].step[whole], smooth[:, whole], line, _n(label, runs))
    shaded = "; shaded: each step" if max(counts) == 1 else ""
    return f"{_spread(counts, f'mean over {SMOOTH} steps')}{shaded}"


def _draw_norm(axes: Axes, groups: Groups, looks: Mapping) -> str:
    for label, runs in groups.items():
        low, mean, high = (per_epoch(runs, f"norm_{key}").mean(axis=0) for key in ("min", "mean", "max"))
        epoch = per_epoch(runs, "epoch")[0]
        axes.fill_between(epoch, low, high, color=looks[label]["color"], alpha=0.4 / max(len(groups), 2), linewidth=0)
        axes.plot(epoch, mean, label=_n(label, runs), **style.for_points(looks[label], len(epoch)))
    _around_one(axes)
    return "mean over filters; shaded: smallest to largest"


def _around_one(axes: Axes) -> None:
    """Mark norm one, above an axis that begins at zero."""
    axes.axhline(1, color="0.3", linestyle="--", linewidth=0.8)
    axes.set_ylim(bottom=0)


def _seeds(axes: Axes, x: np.ndarray, values: np.ndarray, line: dict, label: str) -> None:
    """Draw the mean of values (seeds, points), and its interval or, of two seeds, each of them."""
    if len(values) >= FEWEST:
        low, high = bands(values)
        floor = 0 if (values >= 0).all() else -np.inf
        axes.fill_between(x, np.maximum(low, floor), high, color=line["color"], alpha=0.2, linewidth=0, zorder=1)
    elif len(values) == 2:
        axes.plot(x, values.T, color=line["color"], linewidth=0.7, alpha=0.6, zorder=1)
    axes.plot(x, values.mean(axis=0), label=label, zorder=3, **line)


# by layer ----------------------------------------------------------------------------------------


def by_layer(runs: pd.DataFrame, entry: Layers) -> Figure:
    """Draw one row per quantity, one column per layer group, one line per method. Axes of a row are equal."""
    groups = _records(series(runs, [], entry.by))
    groups = {label: groups[label] for label in style.panels(list(groups))[0]}
    looks = style.lines(list(groups))
    parts = layers.groups(next(iter(groups.values()))[0].config["model"])
    logged = [each for each in entry.y if any(layers.has_logged(run, each) for some in groups.values() for run in some)]
    if not logged:
        raise UserError(f"{entry.name}: no run has logged {', '.join(layers.KEYS[each] for each in entry.y)}")
    fig = style.figure(2.3 * len(parts) + 1.2, 0.9 + 2.3 * len(logged))
    grid = fig.subplots(len(logged), len(parts), sharex=True, sharey="row", squeeze=False)
    for i, (row, quantity) in enumerate(zip(grid, logged, strict=True)):
        for axes, (part, places) in zip(row, parts.items(), strict=True):
            for label, some in groups.items():
                values = [layers.over_epochs(run, quantity, places) for run in some if layers.has_logged(run, quantity)]
                if values:
                    epoch = np.arange(1, len(values[0]) + 1)
                    line = style.for_points(looks[label], len(epoch)) | {"markersize": 3}
                    _seeds(axes, epoch, np.array(values), line, _n(label, some))
            style.style(axes, "" if i else part, "epoch" if i == len(logged) - 1 else "", "")
            if quantity == "effective_lr":
                style.log_y(axes)
            style.count_steps(axes)
        for axes in row if quantity == "norm" else []:
            _around_one(axes)
        row[0].set_ylabel(layers.NAMES[quantity].replace(" lr /", "\nlr /").replace(" (deg", "\n(deg"))
    spread = _spread([len(some) for some in groups.values()], "Mean over the layers of a group")
    return _finished(fig, f"{entry.title}. {spread}")


# two keys at once --------------------------------------------------------------------------------


def heatmap(runs: pd.DataFrame, entry: Heatmap) -> Figure:
    """Draw the mean over seeds over two keys, one panel per method, one scale of colours; a dash: no finished run."""
    groups = series(runs, [entry.x, entry.y], entry.by)
    rows, columns = ([*by_number(runs, key)] for key in (entry.y, entry.x))
    grids = np.full((len(groups), len(rows), len(columns)), np.nan)
    for grid, some in zip(grids, groups.values(), strict=True):
        values = value_of(some, entry.z)
        for i, j in np.ndindex(grid.shape):
            grid[i, j] = values[(some[entry.y] == rows[i]) & (some[entry.x] == columns[j])].mean()
    low, high = np.nanmin(grids), np.nanmax(grids)
    fig = style.figure(1.6 + len(grids) * (0.7 + 0.62 * len(columns)), 1.5 + 0.5 * len(rows))
    for axes, method, grid in zip(np.ravel(fig.subplots(1, len(grids), sharey=True)), groups, grids, strict=True):
        image = axes.imshow(grid, cmap="cividis_r", vmin=low, vmax=high, aspect="auto", origin="lower")
        for (i, j), value in np.ndenumerate(grid):
            text = "–" if np.isnan(value) else f"{value:.1f}"
            dark = not np.isnan(value) and value > (low + high) / 2
            axes.text(j, i, text, ha="center", va="center", color="white" if dark else "black")
        axes.set_xticks(range(len(columns)), [f"{column:g}" for column in columns])
        axes.set_yticks(range(len(rows)), [f"{row:g}" for row in rows])
        axes.set(title=method, xlabel=named(entry.x))
    fig.axes[0].set_ylabel(named(entry.y))
    fig.colorbar(image, ax=fig.axes, label=named(entry.z))
    style.title(fig, entry.title)
    return fig


# shared ------------------------------------------------------------------------------------------


def _finished(fig: Figure, title: str) -> Figure:
    style.legend(fig)
    style.title(fig, title)
    return fig


def _n(label: str, runs: list[RunRecord]) -> str:
    return f"{label} (n = {len(runs)})"


def _spread(counts: Sequence[int], what: str = "") -> str:
    """Return what a point or a line is made of, from the numbers of seeds."""
    fewest, most = min(counts), max(counts)
    if most == 1:
        return "; ".join(filter(None, [what, "one seed"]))
    text = f"mean of {fewest if fewest == most else f'{fewest} to {most}'} seeds"
    text += ", 95 % interval" if fewest >= FEWEST else ", each shown" if most < FEWEST else ", interval from 3 seeds on"
    return "; ".join(filter(None, [what, text]))


def _scale_y(axes: Axes, scale: str) -> None:
    """Make the axis logarithmic where the values span a decade and none is zero: else the last epochs are flat."""
    drawn = [np.asarray(line.get_ydata(), float) for line in axes.get_lines()]
    values = np.concatenate(drawn) if drawn else np.ones(1)
    values = values[np.isfinite(values)]
    if scale == "log" or (scale == "auto" and values.min() > 0 and values.max() > 10 * values.min()):
        style.log_y(axes)
    elif values.min() == 0:
        axes.set_ylim(bottom=-0.02 * axes.get_ylim()[1])  # a little below: the line is seen whole
