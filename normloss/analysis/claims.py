"""What the paper's text claims, beside what our runs say to it, at the paper's setting and at smaller scale."""

import math
from collections.abc import Mapping

from normloss.analysis.findings import Finding
from normloss.analysis.paper import Paper
from normloss.analysis.render import Column, Table, between, plain, probability

COLUMNS = (
    plain("claim", "the paper says"),
    plain("section"),
    plain("paper", "the paper's number"),
    plain("where", "our study"),
    plain("ours"),
    plain("n"),
    Column("95 % interval", lambda row: between(row["low"], row["high"], "+.2f")),
    Column("p", lambda row: probability(row["p"])),
    plain("verdict"),
)


def claims(found: Mapping[str, list[tuple[str, Finding]]], paper: Paper) -> Table:
    """found: claim -> (title of the study, finding). One row per finding, or one that says "missing"."""
    rows = []
    for claim in paper.claims.values():
        of = {"claim": claim.says, "section": claim.section, "paper": claim.number}
        told = found.get(claim.name, [])
        if not told:
            nothing = dict.fromkeys(("value", "low", "high", "p"), math.nan)
            rows.append({**of, "where": None, "ours": "missing", "n": 0, **nothing, "verdict": "cannot be told"})
        for title, each in told:
            numbers = {"n": each.n, "value": each.value, "low": each.low, "high": each.high, "p": each.p}
            said = {"where": title, "ours": f"{each.what}: {each.result}"}
            rows.append({**of, **said, **numbers, "verdict": each.against(claim.expected, claim.sign)})
    notes = [
        "Holds, does not: the 95 % interval lies on the claimed side of what is claimed, or on the other."
        " Cannot be told: it holds both, or n is below 3. A study at small scale tests the claim there, not in the"
        " paper's setting."
    ]
    return Table("claims", "The paper's claims", COLUMNS, rows, notes, left=5)
