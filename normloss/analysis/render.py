"""A table as Markdown, LaTeX (booktabs), CSV and HTML, from the same cells."""

import csv
import html
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from normloss.runs.files import write_whole

TEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
TEX |= {char: f"\\{char}" for char in "&%$#_{}"}
TEX |= {"λ": r"$\lambda$", "±": r"$\pm$", "−": "$-$", "–": "--", "≈": r"$\approx$", "Δ": r"$\Delta$", "×": r"$\times$"}


@dataclass(frozen=True)
class Table:
    """Cells as text; `code` in backticks. The first `left` columns are words, the others numbers."""

    name: str
    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = field(default_factory=list)
    left: int = 1

    def markdown(self) -> str:
        rule = ["---"] * self.left + ["---:"] * (len(self.columns) - self.left)
        lines = [_line(cells) for cells in (self.columns, rule, *self.rows)]
        return "\n".join([self.title, "", *lines, *(text for note in self.notes for text in ("", note))]) + "\n"

    def latex(self) -> str:
        r"""A table environment that needs \usepackage{booktabs}."""
        body = [" & ".join(map(_tex, row)) + r" \\" for row in self.rows]
        return "\n".join(
            [
                r"\begin{table}",
                rf"\caption{{{_tex(self.title)}}}",
                rf"\begin{{tabular}}{{{'l' * self.left}{'r' * (len(self.columns) - self.left)}}}",
                r"\toprule",
                " & ".join(map(_tex, self.columns)) + r" \\",
                r"\midrule",
                *body,
                r"\bottomrule",
                r"\end{tabular}",
                *(rf"\par\smallskip\footnotesize {_tex(note)}" for note in self.notes),
                r"\end{table}",
                "",
            ]
        )

    def csv(self) -> str:
        out = io.StringIO()
        csv.writer(out, lineterminator="\n").writerows([self.columns, *self.rows])
        return out.getvalue()

    def html(self) -> str:
        head = "".join(f"<th>{_html(cell)}</th>" for cell in self.columns)
        rows = "".join("<tr>" + "".join(f"<td>{_html(cell)}</td>" for cell in row) + "</tr>" for row in self.rows)
        notes = "".join(f"<p class=note>{_html(note)}</p>" for note in self.notes)
        table = f"<table data-left={self.left}><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
        return f"<div class=scroll>{table}</div>{notes}"

    def save(self, folder: Path) -> None:
        """folder/name.md, .tex and .csv, each whole or not at all."""
        folder.mkdir(parents=True, exist_ok=True)
        for suffix, text in (("md", self.markdown()), ("tex", self.latex()), ("csv", self.csv())):
            write_whole(folder / f"{self.name}.{suffix}", text.encode())

    def _repr_markdown_(self) -> str:
        return f"**{self.title}**\n\n" + self.markdown().partition("\n\n")[2]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _tex(text: str) -> str:
    parts = re.split(r"`([^`]*)`", text)  # every second one is code
    escaped = ["".join(TEX.get(char, char) for char in part) for part in parts]
    return "".join(rf"\texttt{{{part}}}" if i % 2 else part for i, part in enumerate(escaped))


def _html(text: str) -> str:
    return re.sub(r"`([^`]*)`", r"<code>\1</code>", html.escape(text))
