"""A table of numbers, formatted last: Markdown, LaTeX (booktabs) and HTML for people, CSV for programs."""

import html
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from normloss.runs.files import write_whole

TEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "§": r"\S"}
TEX |= {char: f"\\{char}" for char in "&%$#_{}"}
TEX |= {"λ": r"$\lambda$", "±": r"$\pm$", "−": "$-$", "–": "--", "≈": r"$\approx$", "Δ": r"$\Delta$", "×": r"$\times$"}
TEX |= {"<": "$<$", ">": "$>$", "²": "$^2$", "η": r"$\eta$", "°": r"$^\circ$", "‖": r"$\|$", "·": r"$\cdot$"}
NOTHING = "–"
TRAINED = "Command and runs of each row"
SUMMARY = ("best", "mean", "sd", "low", "high")  # keys of a summary over seeds

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Column:
    """A column's head, and the function that makes a row's text from its numbers."""

    head: str
    show: Callable[[Row], str]


def plain(key: str, head: str | None = None, form: str = "") -> Column:
    """Return a column of a key's value as it is, a number by `form`; a dash where there is none."""
    return Column(head or key, lambda row: number(row.get(key), form))


@dataclass(frozen=True)
class Table:
    """Rows of numbers and words by key; the columns say how they are read. `code` in backticks.

    The first `left` columns are words, the others numbers. notes stand below it everywhere, commands in Markdown and
    HTML only; trained, the command and the ids of the runs in each row, on the report's pages.
    """

    name: str
    title: str
    columns: Sequence[Column]
    rows: Sequence[Row]
    notes: Sequence[str] = field(default_factory=list)
    commands: Sequence[str] = field(default_factory=list)
    trained: Sequence[str] = field(default_factory=list)
    left: int = 1
    of: str = ""  # the quantity whose statistics SUMMARY names

    @property
    def heads(self) -> list[str]:
        return [column.head for column in self.columns]

    @property
    def cells(self) -> list[list[str]]:
        """The texts of every row, as people read them."""
        return [[column.show(row) for column in self.columns] for row in self.rows]

    def markdown(self) -> str:
        return f"{self.title}\n\n{self.body()}"

    def body(self) -> str:
        """Return the table in Markdown without its title."""
        rule = ["---"] * self.left + ["---:"] * (len(self.columns) - self.left)
        rows = ([cell.replace("|", r"\|") for cell in cells] for cells in (self.heads, rule, *self.cells))
        lines = [f"| {' | '.join(row)} |" for row in rows] if self.rows else ["Nothing yet."]
        return "\n".join([*lines, *(text for note in (*self.notes, *self.commands) for text in ("", note))]) + "\n"

    def latex(self) -> str:
        r"""Return a table environment that needs \usepackage{booktabs}: the table and its notes alone."""
        heads, *rows = (" & ".join(map(_tex, row)) + r" \\" for row in (self.heads, *self.cells))
        return "\n".join(
            [
                r"\begin{table}",
                r"\centering",
                rf"\caption{{{_tex(self.title)}}}",
                rf"\begin{{tabular}}{{{'l' * self.left}{'r' * (len(self.columns) - self.left)}}}",
                r"\toprule",
                heads,
                r"\midrule",
                *rows,
                r"\bottomrule",
                r"\end{tabular}",
                *(rf"\par\smallskip\footnotesize {_tex(note)}" for note in self.notes),
                r"\end{table}",
                "",
            ]
        )

    def csv(self) -> str:
        """Return one column per key, numbers as numbers, empty where there is none; a statistic says of what it is."""
        frame = pd.DataFrame(self.rows, columns=None if self.rows else self.heads)
        statistics = {key: f"{self.of}_{key}" for key in SUMMARY if self.of}
        return frame.rename(columns=statistics).to_csv(index=False, float_format="%.6g", lineterminator="\n")

    def html(self) -> str:
        head = "".join(f"<th>{_html(cell)}</th>" for cell in self.heads)
        rows = "".join("<tr>" + "".join(f"<td>{_html(cell)}</td>" for cell in row) + "</tr>" for row in self.cells)
        notes = "".join(f"<p class=note>{_html(note)}</p>" for note in self.notes)
        table = f"<table data-left={self.left}><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
        folds = folded("What would fill it", self.commands) + folded(TRAINED, self.trained)
        return (f"<div class=scroll>{table}</div>" if rows else "<p class=note>Nothing yet.</p>") + notes + folds

    def save(self, folder: Path) -> None:
        """Write folder/name.md, .tex and .csv, each whole or not at all."""
        folder.mkdir(parents=True, exist_ok=True)
        for suffix, text in (("md", self.markdown()), ("tex", self.latex()), ("csv", self.csv())):
            write_whole(folder / f"{self.name}.{suffix}", text.encode())

    def _repr_markdown_(self) -> str:
        return f"**{self.title}**\n\n{self.body()}"


def folded(summary: str, lines: Sequence[str]) -> str:
    """Return lines as a list that unfolds, in HTML that Markdown may hold; "" without lines."""
    items = "".join(f"<li>{_html(line)}</li>" for line in lines)
    return f"<details><summary>{summary}</summary><ul>{items}</ul></details>" if lines else ""


# cells -------------------------------------------------------------------------------------------


def number(value: Any, form: str = "") -> str:
    """Return a number with a true minus sign: number(-0.5, "+.2f") is −0.50; a dash for None and NaN."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return NOTHING
    return value if isinstance(value, str) else format(value, form).replace("-", "−")


def between(low: float, high: float, form: str = ".2f") -> str:
    """Return the two ends of an interval: −1.32 to +0.00."""
    return NOTHING if math.isnan(low) else f"{number(low, form)} to {number(high, form)}"


def probability(p: float | None) -> str:
    """Return 0.034 or < 0.001; a dash for none."""
    return "< 0.001" if p is not None and p < 0.001 else number(p, ".3f")


def _tex(text: str) -> str:
    parts = re.split(r"`([^`]*)`", text)  # every second one is code
    escaped = ("".join(TEX.get(char, char) for char in part) for part in parts)
    return "".join(rf"\texttt{{{part}}}" if i % 2 else part for i, part in enumerate(escaped))


def _html(text: str) -> str:
    return re.sub(r"`([^`]*)`", r"<code>\1</code>", html.escape(text))
