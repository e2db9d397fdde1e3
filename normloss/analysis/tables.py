"""The comparison of methods as a Markdown table, in the paper's cell format: best (mean)."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from normloss.analysis.select import describe_setting, methods
from normloss.analysis.stats import Summary, summarize
from normloss.files import write_whole

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
    groups = methods(df)
    finished = {label: runs[runs["state"] == "done"] for label, runs in groups.items()}
    lines = [describe_setting(df), "", _row(COLUMNS), _row(["---"] + ["---:"] * (len(COLUMNS) - 1))]
    lines += [_row([label, *_cells(runs)]) for label, runs in finished.items()]
    lines += ["", _caption([len(runs) for runs in finished.values()])]
    missing = [
        f"{run.state} {run.id} ({label} seed={run.seed})"
        for label, runs in groups.items()
        for run in runs[runs["state"] != "done"].itertuples()
    ]
    if missing:
        lines += ["", f"Not done, not counted: {', '.join(missing)}."]
    return "\n".join(lines) + "\n"


def save(table: str, path_without_suffix: Path) -> None:
    """PATH.md, whole or not at all."""
    path_without_suffix.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path_without_suffix.with_name(f"{path_without_suffix.name}.md"), table.encode())


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
    n = f"{counts[0]}" if len(set(counts)) == 1 else f"{min(counts)} to {max(counts)}"
    spread = "; ± is the sample standard deviation over seeds, the interval Student's t" if max(counts) > 1 else ""
    return f"Last epoch; best means the best seed. Finished runs a method: n = {n}{spread}."


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
