"""What was measured, as a table to print and as JSON with device, versions and commit."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from normloss.benchmarks.timing import Bar
from normloss.runs import provenance
from normloss.training import device as devices


def table(bars: Iterable[Bar]) -> str:
    lines = ["| subject | value | bar | |", "|---|---:|---|---|"]
    lines += [f"| {bar.subject} | {bar.value:.4g} {bar.unit} | {bar.bar} | {bar.verdict} |" for bar in bars]
    return "\n".join(lines)


def rows(bars: Iterable[Bar]) -> list[dict[str, Any]]:
    return [
        {"subject": bar.subject, "value": bar.value, "unit": bar.unit, "bar": bar.bar, "verdict": bar.verdict}
        for bar in bars
    ]


def save(file: Path, device: torch.device, **facts: Any) -> None:
    """Write `facts` with those of code and device."""
    file.parent.mkdir(parents=True, exist_ok=True)
    everything = {**provenance.facts(), **devices.describe(device), **facts}
    file.write_text(json.dumps(everything, indent=1) + "\n")
    print(f"written: {file}")
