"""The two figures of a ranking: test error by method, and how much a method depends on its settings."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from normloss.analysis import style
from normloss.analysis.ranking import Ranking, error
from normloss.analysis.stats import FEWEST
from normloss.config import labels
from normloss.sweeps.trials import MethodResult

ROW, AROUND = 0.3, 1.5  # inches of a method, and of title and axis


def draw(ranking: Ranking) -> dict[str, Figure]:
    """Return both figures by name."""
    name = ranking.tuning.name
    with style.look():
        return {f"{name}_test_error": test_errors(ranking), f"{name}_sensitivity": sensitivity(ranking)}


def test_errors(ranking: Ranking) -> Figure:
    """Draw every seed as a dot, the mean and its 95 % interval under them; the lowest mean on top."""
    fig, axes = _rows(ranking.tested)
    looks = style.lines([result.method for result in ranking.tested])
    for y, result in enumerate(ranking.tested):
        spread, values = error(result), sorted(result.errors.values())
        _dots(axes, values, y, looks[result.method]["color"])
        axes.plot([spread.mean], [y + 0.14], "|", color="black", markersize=9, markeredgewidth=1.6)
        if spread.low == spread.low:
            axes.plot([max(spread.low, 0), spread.high], [y + 0.14] * 2, color="black", linewidth=1)
    style.title(fig, f"Test error of each method's chosen setting, {ranking.tuning.title}")
    ends = f"dots: seeds; black: mean, 95 % interval from {FEWEST} seeds on"
    style.style(axes, _caption(ranking, ends), "test error (%)", "")
    return fig


def sensitivity(ranking: Ranking) -> Figure:
    """Draw the validation error of every setting that was tried, quartiles and median; the chosen one ringed."""
    methods = ranking.methods
    fig, axes = _rows(methods)
    looks = style.lines([result.method for result in methods])
    for y, result in enumerate(methods):
        errors = sorted(trial.error for trial in result.trials if trial.error is not None)
        if result.best and result.best.error is not None:
            axes.boxplot(
                [errors], positions=[y + 0.16], orientation="horizontal", widths=0.24, showfliers=False, whis=(0, 100),
                medianprops={"color": "black", "linewidth": 1.4}, boxprops={"linewidth": 0.8}, manage_ticks=False,
            )  # fmt: skip
            _dots(axes, errors, y, looks[result.method]["color"])
            axes.plot([result.best.error], [y - 0.12], "o", mfc="none", mec="black", markersize=7)  # the ring
        if result.diverged:
            text = f" {result.diverged} diverged"
            axes.text(1.0, y, text, transform=axes.get_yaxis_transform(), va="center", fontsize=7.5, color=style.GREY)
    style.title(fig, f"How much each method depends on its setting, {ranking.tuning.title}")
    count = max((len(result.trials) for result in methods), default=0)
    caption = f"dots: {labels.counted(count, 'setting')} per method, the chosen one ringed, equal ones above each other"
    caption += "; box: quartiles and median, whiskers: all"
    style.style(axes, _caption(ranking, caption), "validation error (%)", "")
    return fig


def _dots(axes: Axes, values: list[float], y: float, colour: str) -> None:
    """Draw sorted values as a row of dots; equal ones stand above each other."""
    repeats = np.arange(len(values)) - np.searchsorted(values, values)
    axes.plot(values, y - 0.12 - 0.17 * repeats, "o", color=colour, markersize=4, alpha=0.75)


def _rows(methods: list[MethodResult]) -> tuple[Figure, Axes]:
    """Return a figure with one row per method, the first on top."""
    fig = style.figure(6.2, AROUND + ROW * max(3, len(methods)))
    axes = fig.subplots()
    axes.set_yticks(range(len(methods)), [result.method for result in methods])
    axes.set_ylim(max(2, len(methods) - 0.4), -0.6)
    return fig, axes


def _caption(ranking: Ranking, text: str) -> str:
    left = len(ranking.unfinished)
    return f"{text}; {left} of {len(ranking.tuning.methods)} methods not done" if left else text
