"""Training curves as figures: colour-blind safe, readable in grey, the same bytes from the same runs."""

import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from normloss.files import write_whole
from normloss.records import RunRecord

# Okabe and Ito's colours without yellow, which is lost on white; neighbours differ in lightness and in
# dashes, so that they differ in grey too. 7 and 4 share no factor: 28 methods look different.
COLORS = ("#0072B2", "#E69F00", "#000000", "#009E73", "#CC79A7", "#D55E00", "#56B4E9")
DASHES = ("-", (0, (4, 1.2)), (0, (1.2, 1)), (0, (6, 1.2, 1.2, 1.2)))
SMOOTH = 19  # steps, as in the paper's Figs. 3 and 5


def training(groups: Mapping[str, pd.DataFrame], title: str) -> Figure:
    """Cross entropy over steps, test error and filter norm over epochs; one line a method, over its finished runs."""
    finished = {label: list(runs.loc[runs["state"] == "done", "record"]) for label, runs in groups.items()}
    finished = {label: records for label, records in finished.items() if records}
    one_seed = all(len(records) == 1 for records in finished.values())
    fig = Figure(figsize=(12, 4.3), layout="constrained")
    ce, error, norm = fig.subplots(1, 3)
    for i, (label, records) in enumerate(finished.items()):
        line = {"color": COLORS[i % len(COLORS)], "linestyle": DASHES[i % len(DASHES)], "linewidth": 1.3}
        # a shade is pixels in the PDF too: 300 epochs of CIFAR are 117,000 steps a seed
        shade = {"color": line["color"], "alpha": 0.4 / max(len(finished), 2), "zorder": 1, "rasterized": True}
        _draw_ce(ce, records, line | {"label": f"{label}  (n = {len(records)})"}, shade, every_step=one_seed)
        _draw_error(error, records, line, shade)
        _draw_norm(norm, records, line, shade)
    norm.axhline(1, color="0.3", linestyle="--", linewidth=0.8)
    norm.set_ylim(bottom=0)
    _log_scale(ce)
    if _spans_a_decade(error):  # where its last epochs, which are what is compared, would be one flat line
        _log_scale(error)
    shaded = "each step" if one_seed else "range over seeds"
    _style(ce, f"mean over {SMOOTH} steps; shaded: {shaded}", "step", "cross entropy of a training batch (nats)")
    _style(error, "one seed" if one_seed else f"mean over seeds; shaded: {shaded}", "epoch", "test error (%)")
    _style(norm, "mean over filters; shaded: smallest to largest", "epoch", "filter norm")
    fig.suptitle(title)
    fig.legend(loc="outside lower center", ncols=4, frameon=False)
    return fig


def save(fig: Figure, path_without_suffix: Path) -> None:
    """PATH.png and PATH.pdf, each whole or not at all, without a date in them."""
    path_without_suffix.parent.mkdir(parents=True, exist_ok=True)
    for suffix, metadata in (("png", {"Software": None}), ("pdf", {"CreationDate": None})):
        buffer = io.BytesIO()
        fig.savefig(buffer, format=suffix, dpi=150, metadata=metadata)
        write_whole(path_without_suffix.with_name(f"{path_without_suffix.name}.{suffix}"), buffer.getbuffer())


def running_mean(x: np.ndarray, window: int = SMOOTH) -> np.ndarray:
    """Mean of each `window` neighbours, or of all where there are fewer; window - 1 values shorter than x."""
    window = min(window, len(x))
    return np.convolve(x, np.full(window, 1 / window), mode="valid")


def _draw_ce(axes: Axes, records: list[RunRecord], line: dict, shade: dict, every_step: bool) -> None:
    step, ce = zip(*(record.steps() for record in records), strict=True)
    smooth = np.stack([running_mean(seed) for seed in ce])  # (seeds, steps)
    middle = running_mean(step[0])
    if every_step:
        axes.plot(step[0], ce[0], linewidth=0.6, **shade)
    else:
        axes.fill_between(middle, smooth.min(axis=0), smooth.max(axis=0), linewidth=0, **shade)
    axes.plot(middle, smooth.mean(axis=0), **line)


def _draw_error(axes: Axes, records: list[RunRecord], line: dict, shade: dict) -> None:
    epoch, error = _per_epoch(records, "epoch")[0], _per_epoch(records, "test_error")
    axes.fill_between(epoch, error.min(axis=0), error.max(axis=0), linewidth=0, **shade)
    axes.plot(epoch, error.mean(axis=0), **line)


def _draw_norm(axes: Axes, records: list[RunRecord], line: dict, shade: dict) -> None:
    epoch = _per_epoch(records, "epoch")[0]
    low, mean, high = (_per_epoch(records, f"norm_{key}").mean(axis=0) for key in ("min", "mean", "max"))
    axes.fill_between(epoch, low, high, linewidth=0, **shade)
    axes.plot(epoch, mean, **line)


def _per_epoch(records: list[RunRecord], key: str) -> np.ndarray:
    return np.array([[epoch[key] for epoch in record.epochs] for record in records], dtype=float)  # (seeds, epochs)


def _spans_a_decade(axes: Axes) -> bool:
    values = np.concatenate([line.get_ydata() for line in axes.get_lines()])
    return values.max() > 10 * values.min() > 0


def _log_scale(axes: Axes) -> None:
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_locator(NullLocator())


def _style(axes: Axes, title: str, xlabel: str, ylabel: str) -> None:
    axes.set_title(title, fontsize=9, color="0.35")
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="0.92", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.margins(x=0.02)
