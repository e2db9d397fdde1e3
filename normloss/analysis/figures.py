"""Training curves as figures: colour-blind safe, readable in grey, the same bytes from the same runs."""

import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from normloss.store import write_whole

# Okabe and Ito's colours without yellow, which is lost on white. 7 colours and 4 dashes share no
# factor: 28 methods look different, and neighbours do so in grey too.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
DASHES = ("-", (0, (4, 1.5)), (0, (1, 1)), (0, (6, 1.5, 1, 1.5)))
SMOOTH = 19  # steps, as in the paper's Figs. 3 and 5


def training(groups: Mapping[str, pd.DataFrame], title: str) -> Figure:
    """Cross entropy over steps, test error and filter norm over epochs; one line a method, over its finished runs."""
    fig = Figure(figsize=(12, 4.2), layout="constrained")
    ce, error, norm = fig.subplots(1, 3)
    for i, (label, runs) in enumerate(groups.items()):
        records = list(runs.loc[runs["state"] == "done", "record"])
        if records:
            look = {"color": COLORS[i % len(COLORS)], "linestyle": DASHES[i % len(DASHES)]}
            _draw_ce(ce, records, look, f"{label}  (n = {len(records)})")
            _draw_error(error, records, look)
            _draw_norm(norm, records, look)
    _style(ce, f"running mean over {SMOOTH} steps", "step", "training cross entropy (nats)")
    _style(error, "mean and range over seeds", "epoch", "test error (%)")
    _style(norm, "mean, smallest and largest filter", "epoch", "filter norm")
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


def _draw_ce(axes: Axes, records: list, look: dict, label: str) -> None:
    step, ce = zip(*(record.steps() for record in records), strict=True)
    smooth = np.stack([running_mean(seed) for seed in ce])
    middle = running_mean(step[0])
    # shades are pixels in the PDF too: 300 epochs of CIFAR are 117,000 steps a seed
    if len(records) == 1:
        axes.plot(step[0], ce[0], color=look["color"], alpha=0.2, linewidth=0.6, rasterized=True)
    else:
        _shade(axes, middle, smooth.min(axis=0), smooth.max(axis=0), look)
    axes.plot(middle, smooth.mean(axis=0), label=label, **look)
    axes.set_yscale("log")


def _draw_error(axes: Axes, records: list, look: dict) -> None:
    epoch, error = _per_epoch(records, "epoch")[0], _per_epoch(records, "test_error")
    _shade(axes, epoch, error.min(axis=0), error.max(axis=0), look)
    axes.plot(epoch, error.mean(axis=0), **look)


def _draw_norm(axes: Axes, records: list, look: dict) -> None:
    epoch = _per_epoch(records, "epoch")[0]
    low, mean, high = (_per_epoch(records, f"norm_{key}").mean(axis=0) for key in ("min", "mean", "max"))
    _shade(axes, epoch, low, high, look)
    axes.plot(epoch, mean, **look)


def _per_epoch(records: list, key: str) -> np.ndarray:
    return np.array([[epoch[key] for epoch in record.epochs] for record in records], dtype=float)  # (seeds, epochs)


def _shade(axes: Axes, x: np.ndarray, low: np.ndarray, high: np.ndarray, look: dict) -> None:
    axes.fill_between(x, low, high, color=look["color"], alpha=0.18, linewidth=0, rasterized=True)


def _style(axes: Axes, title: str, xlabel: str, ylabel: str) -> None:
    axes.set_title(title, fontsize=9, color="0.35")
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="0.9", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.margins(x=0.02)
