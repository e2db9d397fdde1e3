"""The comparison of methods as a Markdown table, in the paper's cell format: best (mean)."""

import pandas as pd

from normloss.analysis.select import describe_setting, methods
from normloss.analysis.stats import Summary, summarize

COLUMNS = (
    "method",
    "n",
    "test error %, best (mean ± sd)",
    "95 % interval of the mean",
    "test cross entropy",
    "filter norm, mean (min–max)",
    "s a run",
)


def comparison(df: pd.DataFrame) -> str:
    """Markdown: one row a method over its finished runs, all of one setting; below it, what is not done."""
    groups = {label: runs[runs["state"] == "done"] for label, runs in methods(df).items()}
    lines = [describe_setting(df), "", _row(COLUMNS), _row(["---"] + ["---:"] * (len(COLUMNS) - 1))]
    lines += [_row([label, *_cells(runs)]) for label, runs in groups.items()]
    lines += ["", _caption([len(runs) for runs in groups.values()])]
    missing = df[df["state"] != "done"]
    if len(missing):
        labels = {row: label for label, runs in methods(df).items() for row in runs.index}
        listed = (f"{run.state} {run.id} ({labels[row]} seed={run.seed})" for row, run in missing.iterrows())
        lines += ["", f"Not done, not counted: {', '.join(listed)}."]
    return "\n".join(lines) + "\n"


def _cells(runs: pd.DataFrame) -> list[str]:
    if runs.empty:
        return ["0"] + ["–"] * (len(COLUMNS) - 2)
    error, ce = summarize(runs["test_error"]), summarize(runs["test_ce"])
    norms = f"{runs['norm_mean'].mean():.3f} ({runs['norm_min'].min():.3f}–{runs['norm_max'].max():.3f})"
    return [str(error.n), _best(error), _interval(error), _spread(ce), norms, f"{runs['seconds'].mean():.0f}"]


def _best(error: Summary) -> str:
    return f"{error.best:.2f} ({error.mean:.2f} ± {error.sd:.2f})" if error.n > 1 else f"{error.best:.2f}"


def _interval(error: Summary) -> str:
    # an error below 0 is impossible: the interval loses nothing by ending there
    return f"{max(error.low, 0):.2f} to {error.high:.2f}" if error.n > 1 else "–"


def _spread(ce: Summary) -> str:
    return f"{ce.mean:.4f} ± {ce.sd:.4f}" if ce.n > 1 else f"{ce.mean:.4f}"


def _caption(counts: list[int]) -> str:
    n = str(counts[0]) if len(set(counts)) == 1 else f"{min(counts)} to {max(counts)}"
    spread = "; ± is the sample standard deviation over seeds" if max(counts) > 1 else ""
    return f"Last epoch; best means the best seed. n = {n} finished runs a method{spread}."


def _row(cells) -> str:
    return f"| {' | '.join(cells)} |"
