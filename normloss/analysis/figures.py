"""Figures 1 to 6 of the paper, and the training curves of any methods. Each function returns a Figure."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from normloss.analysis import style
from normloss.analysis.archive import ArchivedRun, curve
from normloss.analysis.curves import SMOOTH
from normloss.analysis.studies import METHODS, Study
from normloss.runs.records import RunRecord

Runs = list[RunRecord | ArchivedRun]
CE = "cross entropy of a training batch (nats)"


# the paper's -------------------------------------------------------------------------------------


def fig1() -> Figure:
    """Two 3x3 kernels, the second the first turned by 180 degrees: their inner product is -1."""
    a = np.array([[1.0, 1.0, 1.0], [0.0, 0.0, 0.0], [-1.0, -1.0, -1.0]]) / np.sqrt(6)  # upper edges, unit norm
    b = np.rot90(a, 2)
    fig = style.figure(5, 2.9)
    for axes, kernel, name in zip(fig.subplots(1, 2), (a, b), "ab", strict=True):
        axes.imshow(kernel, cmap="gray", vmin=-0.5, vmax=0.5)
        for (i, j), value in np.ndenumerate(kernel):
            axes.text(
                j,
                i,
                f"{value:+.2f}" if value else "0",
                ha="center",
                va="center",
                color="black" if value > -0.1 else "white",
            )
        axes.set(xticks=[], yticks=[], title=f"({name})  norm {np.linalg.norm(kernel):.0f}")
    fig.suptitle(f"Figure 1: two kernels, inner product {np.vdot(a, b):+.0f}")
    return fig


def fig2(df: pd.DataFrame, study: Study) -> Figure:
    """Test error over lambda."""
    title = "Figure 2: test error over the regularization factor"
    return _over(df, study, "reg.lam", title, "λ", study.command("fig2"))


def fig3(df: pd.DataFrame, study: Study, lam: float = 5e-4) -> Figure:
    """Cross entropy of each batch at lambda = 5e-4."""
    runs = {}
    for method in METHODS:
        swept = study.sweep(df, method, ("reg.lam",))
        runs[method] = swept[swept["reg.lam"] == lam]
    title = f"Figure 3: cross entropy during training, λ = {lam:g}"
    return _cross_entropy(runs, study, title, study.command("fig2"))


def fig4(df: pd.DataFrame, study: Study) -> Figure:
    """Test error over batch size."""
    title = "Figure 4: test error over batch size"
    return _over(df, study, "train.batch_size", title, "batch size (images)", study.command("fig4"))


def fig5(df: pd.DataFrame, study: Study) -> Figure:
    """Cross entropy of each batch on CIFAR-10."""
    runs = {method: study.trained(df, f"reg={method}") for method in METHODS}
    return _cross_entropy(runs, study, "Figure 5: cross entropy during training", study.command("table1"))


def fig6(df: pd.DataFrame, study: Study) -> Figure:
    """Test accuracy over training on CIFAR-10."""
    fig = style.figure()
    axes = fig.subplots()
    runs = {method: list(study.trained(df, f"reg={method}")["record"]) for method in METHODS}
    for i, (method, records) in enumerate(runs.items()):
        if records:
            epoch, accuracy = per_epoch(records, "epoch")[0], 100 - per_epoch(records, "test_error")
            _band(axes, epoch, accuracy, style.marked(i) if len(epoch) < 20 else style.line(i), label(method, records))
    _finish(fig, axes, study, "Figure 6: test accuracy during training", any(runs.values()), study.command("table1"))
    style.style(axes, _spread(runs), "epoch", "test accuracy (%)")
    style.count_steps(axes)
    return fig


def _over(df: pd.DataFrame, study: Study, key: str, title: str, xlabel: str, command: str) -> Figure:
    """Test error at the last epoch, mean over seeds, over one key of the config."""
    fig = style.figure()
    axes = fig.subplots()
    ticks: set[float] = set()
    for i, method in enumerate(METHODS):
        swept = study.sweep(df, method, (key,))
        points = swept.groupby(swept[key].astype(float))["test_error"].agg(["mean", "min", "max", "count"])
        if points.empty:
            continue
        ticks |= set(points.index)
        low, high = points["mean"] - points["min"], points["max"] - points["mean"]
        counts = f"{points['count'].min()}" + ("" if points["count"].nunique() == 1 else f" to {points['count'].max()}")
        drawn = {"capsize": 3, "label": f"{method}  (n = {counts} a point)"}
        axes.errorbar(points.index, points["mean"], yerr=[low, high], **style.marked(i), **drawn)
    axes.set_xscale("log", base=2 if key == "train.batch_size" else 10)
    _finish(fig, axes, study, title, bool(ticks), command)
    style.style(axes, "last epoch; bars: range over seeds", xlabel, "test error (%)")
    if ticks:
        axes.set_xticks(sorted(ticks), [f"{tick:g}" for tick in sorted(ticks)])
        axes.minorticks_off()
        axes.margins(x=0.05)
    return fig


def _cross_entropy(runs: Mapping[str, pd.DataFrame], study: Study, title: str, command: str) -> Figure:
    fig = style.figure()
    axes = fig.subplots()
    records = {method: list(chosen["record"]) for method, chosen in runs.items()}
    one_seed = all(len(some) <= 1 for some in records.values())
    for i, (method, some) in enumerate(records.items()):
        if some:
            _draw_ce(axes, some, style.line(i) | {"label": label(method, some)}, _shade(i, 2), one_seed)
    drawn = any(records.values())
    _finish(fig, axes, study, title, drawn, command)
    if drawn:
        style.log_scale(axes)
    shaded = "each step" if one_seed else "range over seeds"
    style.style(axes, f"mean over {SMOOTH} steps; shaded: {shaded}", "step", CE)
    if drawn:
        style.count_steps(axes)
    return fig


def _finish(fig: Figure, axes: Axes, study: Study, title: str, drawn: bool, command: str) -> None:
    fig.suptitle("\n".join(filter(None, [title, study.title])), fontsize=11)
    if drawn:
        axes.legend(frameon=False)
    else:
        style.say_missing(axes, command)


# any methods -------------------------------------------------------------------------------------


def training(groups: Mapping[str, pd.DataFrame], title: str) -> Figure:
    """Cross entropy over steps, test error and filter norm over epochs; one line a method, over its finished runs."""
    finished = {method: list(runs.loc[runs["state"] == "done", "record"]) for method, runs in groups.items()}
    finished = {method: records for method, records in finished.items() if records}
    one_seed = all(len(records) == 1 for records in finished.values())
    fig = style.figure(12, 4.3 + 0.2 * (len(finished) // 5))
    ce, error, norm = fig.subplots(1, 3)
    for i, (method, records) in enumerate(finished.items()):
        line, shade = style.line(i), _shade(i, len(finished))
        _draw_ce(ce, records, line | {"label": label(method, records)}, shade, one_seed)
        few = {"marker": style.MARKERS[i % 7], "markersize": 4} if len(records[0].epochs) < 20 else {}
        _draw_error(error, records, line | few, shade)
        _draw_norm(norm, records, line | few, shade)
    norm.axhline(1, color="0.3", linestyle="--", linewidth=0.8)
    norm.set_ylim(bottom=0)
    style.log_scale(ce)
    if style.spans_a_decade(error):  # where its last epochs, which are what is compared, would be one flat line
        style.log_scale(error)
    shaded = "each step" if one_seed else "range over seeds"
    style.style(ce, f"mean over {SMOOTH} steps; shaded: {shaded}", "step", CE)
    style.style(error, _spread(finished), "epoch", "test error (%)")
    style.style(norm, "mean over filters; shaded: smallest to largest", "epoch", "filter norm")
    for axes in (ce, error, norm):
        style.count_steps(axes)
    fig.suptitle(title)
    fig.legend(loc="outside lower center", ncols=5, frameon=False)
    return fig


def label(method: str, records: Runs) -> str:
    return f"{method}  (n = {len(records)})"


def per_epoch(records: Runs, key: str) -> np.ndarray:
    return np.array([[epoch[key] for epoch in record.epochs] for record in records], dtype=float)  # (seeds, epochs)


def _spread(runs: Mapping[str, Runs]) -> str:
    return "one seed" if all(len(some) <= 1 for some in runs.values()) else "mean over seeds; shaded: range over seeds"


def _shade(i: int, methods: int) -> dict:
    # a shade is pixels in the PDF too: 300 epochs of CIFAR are 117,000 steps a seed
    return {"color": style.line(i)["color"], "alpha": 0.4 / max(methods, 2), "zorder": 1, "rasterized": True}


def _draw_ce(axes: Axes, records: Runs, line: dict, shade: dict, every_step: bool) -> None:
    curves = [curve(record) for record in records]
    smooth = np.stack([one.mean for one in curves])  # (seeds, points)
    whole = ~np.isnan(smooth[0])
    step, smooth = curves[0].step[whole], smooth[:, whole]
    if every_step:
        axes.fill_between(curves[0].step, curves[0].low, curves[0].high, linewidth=0.6, **shade)
    else:
        axes.fill_between(step, smooth.min(axis=0), smooth.max(axis=0), linewidth=0, **shade)
    axes.plot(step, smooth.mean(axis=0), **line)


def _band(axes: Axes, x: np.ndarray, y: np.ndarray, line: dict, name: str) -> None:
    """Mean over seeds, y (seeds, points), and their range."""
    axes.fill_between(x, y.min(axis=0), y.max(axis=0), linewidth=0, color=line["color"], alpha=0.2, zorder=1)
    axes.plot(x, y.mean(axis=0), label=name, **line)


def _draw_error(axes: Axes, records: Runs, line: dict, shade: dict) -> None:
    epoch, error = per_epoch(records, "epoch")[0], per_epoch(records, "test_error")
    axes.fill_between(epoch, error.min(axis=0), error.max(axis=0), linewidth=0, **shade)
    axes.plot(epoch, error.mean(axis=0), **line)


def _draw_norm(axes: Axes, records: Runs, line: dict, shade: dict) -> None:
    epoch = per_epoch(records, "epoch")[0]
    low, mean, high = (per_epoch(records, f"norm_{key}").mean(axis=0) for key in ("min", "mean", "max"))
    axes.fill_between(epoch, low, high, linewidth=0, **shade)
    axes.plot(epoch, mean, **line)
