"""The two figures of a ranking: test error by method, and how much a method depends on its settings."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from normloss.analysis import style
from normloss.analysis.ranking import Ranked, Ranking
from normloss.analysis.stats import FEWEST
from normloss.config import labels

ROW, AROUND = 0.3, 1.5  # inches of a method, and of title and axis


def draw(ranking: Ranking) -> dict[str, Figure]:
    """Return both figures by name."""
    name = ranking.comparison.name
    with style.look():
        return {f"{name}_test_error": test_errors(ranking), f"{name}_sensitivity": sensitivity(ranking)}


def test_errors(ranking: Ranking) -> Figure:
    """Draw every seed as a dot, the mean and its 95 % interval under them; the lowest mean on top."""
    fig, axes = _rows(ranking.tested)
    looks = style.lines([ranked.method for ranked in ranking.tested])
    for y, ranked in enumerate(ranking.tested):
        error, colour = ranked.error, looks[ranked.method]["color"]
        values = sorted(ranked.finals.values())
        axes.plot(values, y - 0.12 - 0.17 * repeats(values), "o", color=colour, markersize=4, alpha=0.75)
        axes.plot([error.mean], [y + 0.14], "|", color="black", markersize=9, markeredgewidth=1.6)
        if error.low == error.low:
            axes.plot([max(error.low, 0), error.high], [y + 0.14] * 2, color="black", linewidth=1)
    style.title(fig, f"Test error of each method's chosen setting, {ranking.comparison.title}")
    counts = [ranked.error.n for ranked in ranking.tested]
    ends = ", 95 % interval" if min(counts, default=0) >= FEWEST else ""
    ends = ", 95 % interval from 3 seeds on" if not ends and max(counts, default=0) >= FEWEST else ends
    style.style(axes, _caption(ranking, f"dots: seeds; black: mean{ends}"), "test error (%)", "")
    return fig


def sensitivity(ranking: Ranking) -> Figure:
    """Draw the validation error of every setting that was tried, quartiles and median; the chosen one ringed."""
    methods = ranking.methods
    fig, axes = _rows(methods)
    looks = style.lines([ranked.method for ranked in methods])
    for y, ranked in enumerate(methods):
        colour = looks[ranked.method]["color"]
        errors = sorted(tried.error for tried in ranked.tuned.settings if tried.error is not None)
        best = ranked.tuned.chosen
        if best and best.error is not None:
            axes.boxplot(
                [errors], positions=[y + 0.16], orientation="horizontal", widths=0.24, showfliers=False, whis=(0, 100),
                medianprops={"color": "black", "linewidth": 1.4}, boxprops={"linewidth": 0.8}, manage_ticks=False,
            )  # fmt: skip
            axes.plot(errors, y - 0.12 - 0.17 * repeats(errors), "o", color=colour, markersize=4, alpha=0.75)
            axes.plot([best.error], [y - 0.12], "o", markerfacecolor="none", markeredgecolor="black", markersize=7)
        if ranked.tuned.diverged:
            text = f" {ranked.tuned.diverged} diverged"
            axes.text(1.0, y, text, transform=axes.get_yaxis_transform(), va="center", fontsize=7.5, color=style.GREY)
    style.title(fig, f"How much each method depends on its setting, {ranking.comparison.title}")
    count = max((len(ranked.tuned.settings) for ranked in methods), default=0)
    caption = (
        f"dots: {labels.counted(count, 'setting')} per method, the chosen one ringed, equal ones above each other;"
    )
    caption += " box: quartiles and median, whiskers: all"
    style.style(axes, _caption(ranking, caption), "validation error (%)", "")
    return fig


def repeats(values: list[float]) -> np.ndarray:
    """Return how many values before each are equal to it, of sorted values: equal dots stand above each other."""
    return np.arange(len(values)) - np.searchsorted(values, values)


def _rows(methods: list[Ranked]) -> tuple[Figure, Axes]:
    """Return a figure with one row per method, the first on top."""
    fig = style.figure(6.2, AROUND + ROW * max(3, len(methods)))
    axes = fig.subplots()
    axes.set_yticks(range(len(methods)), [ranked.method for ranked in methods])
    axes.set_ylim(max(2, len(methods) - 0.4), -0.6)
    if not methods:
        axes.text(0.5, 0.5, "no method is done yet", transform=axes.transAxes, ha="center", color=style.GREY)
    return fig, axes


def _caption(ranking: Ranking, text: str) -> str:
    left = len(ranking.unfinished)
    return f"{text}; {left} of {len(ranking.tuned)} methods not done" if left else text
