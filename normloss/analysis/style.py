"""One look for every figure: colour-blind safe, readable in grey, the same bytes from the same runs."""

import io
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from normloss.runs.files import write_whole

# Okabe and Ito's colours without yellow, which is lost on white; neighbours differ in lightness and in
# dashes, so that they differ in grey too. 7 and 4 share no factor: 28 methods look different.
COLORS = ("#0072B2", "#E69F00", "#000000", "#009E73", "#CC79A7", "#D55E00", "#56B4E9")
DASHES = ("-", (0, (4, 1.2)), (0, (1.2, 1)), (0, (6, 1.2, 1.2, 1.2)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X")


def line(i: int) -> dict[str, Any]:
    """How the i-th method is drawn, in every figure."""
    return {"color": COLORS[i % len(COLORS)], "linestyle": DASHES[i % len(DASHES)], "linewidth": 1.3}


def marked(i: int) -> dict[str, Any]:
    """The same for a few measured points."""
    return line(i) | {"marker": MARKERS[i % len(MARKERS)], "markersize": 5}


def figure(width: float = 6.0, height: float = 4.0) -> Figure:
    """Inches; a column of the paper is 3.5 wide."""
    return Figure(figsize=(width, height), layout="constrained")


def style(axes: Axes, title: str, xlabel: str, ylabel: str) -> None:
    axes.set_title(title, fontsize=9, color="0.35")
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="0.92", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.margins(x=0.02)


def count_steps(axes: Axes) -> None:
    """Whole numbers on the x axis: 20,000."""
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter("{x:,.0f}")


def log_scale(axes: Axes) -> None:
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_locator(NullLocator())


def spans_a_decade(axes: Axes) -> bool:
    values = np.concatenate([drawn.get_ydata() for drawn in axes.get_lines()])
    return values.max() > 10 * values.min() > 0


def say_missing(axes: Axes, command: str) -> None:
    """In the middle of a figure that has no run to draw."""
    text = f"no finished run yet; to fill:\n{command}"
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color="0.35", fontsize=9)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.minorticks_off()


def save(fig: Figure, path_without_suffix: Path) -> None:
    """PATH.png and PATH.pdf, each whole or not at all, without a date in them."""
    path_without_suffix.parent.mkdir(parents=True, exist_ok=True)
    for suffix, metadata in (("png", {"Software": None}), ("pdf", {"CreationDate": None})):
        buffer = io.BytesIO()
        fig.savefig(buffer, format=suffix, dpi=150, metadata=metadata)
        write_whole(path_without_suffix.with_name(f"{path_without_suffix.name}.{suffix}"), buffer.getbuffer())
