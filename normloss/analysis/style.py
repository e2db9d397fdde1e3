"""One look for every figure: one colour per method, readable in grey, the same bytes from the same runs anywhere."""

import io
import textwrap
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, LogLocator, MaxNLocator, NullLocator

from normloss.runs.files import write_whole

# Okabe and Ito's colours without yellow, which is lost on white: a colour per family of methods. Within a family the
# dashes differ; no two methods share both dash and marker, so that they differ in grey too.
BLACK, BLUE, ORANGE, GREEN = "#000000", "#0072B2", "#E69F00", "#009E73"
PINK, RED, SKY = "#CC79A7", "#D55E00", "#56B4E9"
DASHES = ("-", (0, (5, 1.2)), (0, (1.4, 1)), (0, (6, 1.2, 1.2, 1.2)), (0, (2.6, 1)), (0, (6, 1.2, 1.2, 1.2, 1.2, 1.2)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "*", "p")
LOOKS: dict[str, tuple[str, int, int]] = {  # a file of configs/reg: colour, dash, marker
    "none": (BLACK, 2, 2),
    "wd": (BLUE, 0, 0),
    "nl": (ORANGE, 1, 1),
    "wn": (GREEN, 0, 2),  # reparametrizations
    "wn_19": (GREEN, 1, 3),
    "oni": (GREEN, 2, 4),
    "oni_imagenet": (GREEN, 3, 5),
    "olm": (GREEN, 4, 6),
    "olm_l1": (GREEN, 5, 7),
    "pbwn": (RED, 0, 3),  # projections
    "pbwn_epoch": (RED, 1, 4),
    "oblique": (RED, 2, 5),
    "stiefel": (RED, 3, 6),
    "so": (PINK, 0, 4),  # penalties on the Gram matrix
    "dso": (PINK, 1, 5),
    "mc": (PINK, 2, 6),
    "srip": (PINK, 3, 7),
    "srip_paper": (PINK, 4, 8),
    "srip_converged": (PINK, 5, 9),
    "sn": (SKY, 0, 5),  # penalties on the largest singular value and the Jacobian
    "jac": (SKY, 1, 6),
}
OTHERS = ("#7F7F7F", 0, 10)  # of a method that is not in the suite
MOST = 6  # lines in a panel; beyond, small multiples
GREY = "0.35"
OURS = {
    "font.size": 9.0,
    "axes.titlesize": 9.0,
    "axes.labelsize": 9.0,
    "legend.fontsize": 8.5,
    "figure.titlesize": 11.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "pdf.fonttype": 42,
}


# within such a block figures are drawn and written by our settings, whatever the user's matplotlibrc says
look = partial(matplotlib.style.context, ["default", OURS])


def lines(labels: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Return how each label of a figure is drawn: its method's look, further ones for the variants of a method."""
    taken: set[tuple[int, int]] = set()
    looks = {}
    for label in labels:
        colour, dash, marker = LOOKS.get(label.split()[0], OTHERS)
        while (dash, marker) in taken:
            dash, marker = (dash + 1) % len(DASHES), (marker + 2) % len(MARKERS)
        taken.add((dash, marker))
        looks[label] = {"color": colour, "linestyle": DASHES[dash], "linewidth": 1.4, "marker": MARKERS[marker]}
    return looks


def for_points(line: dict[str, Any], points: int) -> dict[str, Any]:
    """Return how a line of so many points is drawn: without markers where there are too many to tell apart."""
    if points <= 20:
        return line | {"markersize": 4.5, "clip_on": False}
    return {key: value for key, value in line.items() if key != "marker"}


def panels(labels: Sequence[str]) -> list[list[str]]:
    """Return the lines of each panel, at most MOST: the baselines stand in every panel."""
    if len(labels) <= MOST:
        return [list(labels)]
    first = [label for label in labels if label.split()[0] in ("wd", "nl")][:2]
    rest = [label for label in labels if label not in first]
    size = MOST - len(first)
    return [[*first, *rest[i : i + size]] for i in range(0, len(rest), size)]


def figure(width: float = 5.2, height: float = 3.7) -> Figure:
    """Return an empty figure, in inches; a column of the paper is 3.5 wide."""
    return Figure(figsize=(width, height), layout="constrained")


def style(axes: Axes, title: str, xlabel: str, ylabel: str) -> None:
    place = axes.get_subplotspec()
    columns = place.get_gridspec().ncols if place else 1
    fig = axes.get_figure(root=True)
    width = max(24, int(13 * fig.get_figwidth() / columns)) if fig else 80
    axes.set_title(textwrap.fill(title, width), fontsize=8.5, color=GREY)
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.grid(color="0.92", linewidth=0.6)
    axes.set_axisbelow(True)


def title(fig: Figure, text: str) -> None:
    """Set the figure's title, broken into lines that fit its width."""
    fig.suptitle(textwrap.fill(" ".join(text.split()), int(fig.get_figwidth() * 11)))


def count_steps(axes: Axes) -> None:
    """Put whole numbers on the x axis, each once: 20,000."""
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, steps=[1, 2, 5, 10], min_n_ticks=1))
    axes.xaxis.set_major_formatter("{x:,.0f}")


def log_y(axes: Axes) -> None:
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 1000 * low else (1,)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_locator(NullLocator())


def swept_x(axes: Axes, ticks: Sequence[float], log: bool) -> None:
    """Put a tick at each value that was swept, ascending."""
    if log:
        axes.set_xscale("log", base=10)
        room = max((ticks[-1] / ticks[0]) ** 0.06, 1.08)
        axes.set_xlim(ticks[0] / room, ticks[-1] * room)
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_major_formatter(lambda value, place: f"{value:g}")
    axes.xaxis.set_minor_locator(NullLocator())


def legend(fig: Figure) -> None:
    """Name the lines of every panel once, below the figure."""
    named = {text: line for axes in fig.axes for line, text in zip(*axes.get_legend_handles_labels(), strict=True)}
    width = max(map(len, named))
    columns = max(1, min(len(named), int(fig.get_figwidth() * 11 / (width + 8))))
    fig.legend(named.values(), named, loc="outside lower center", ncols=columns, frameon=False)


def save(fig: Figure, path_without_suffix: Path) -> None:
    """Write PATH.png and PATH.pdf, each whole or not at all, without a date in them."""
    path_without_suffix.parent.mkdir(parents=True, exist_ok=True)
    for suffix, metadata in (("png", {"Software": None}), ("pdf", {"CreationDate": None})):
        buffer = io.BytesIO()
        fig.savefig(buffer, format=suffix, dpi=150, metadata=metadata)
        write_whole(path_without_suffix.with_name(f"{path_without_suffix.name}.{suffix}"), buffer.getbuffer())
