"""Measurements as a table to print, and as JSON with device, versions and commit."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from benchmarks.timing import Measurement
from normloss.runs import provenance
from normloss.training import device as devices


def table(measured: Iterable[Measurement]) -> str:
    lines = ["| subject | value | target | |", "|---|---:|---|---|"]
    lines += [f"| {row.subject} | {row.value:.4g} {row.unit} | {row.target} | {row.verdict} |" for row in measured]
    return "\n".join(lines)


def rows(measured: Iterable[Measurement]) -> list[dict[str, Any]]:
    return [
        {"subject": row.subject, "value": row.value, "unit": row.unit, "target": row.target, "verdict": row.verdict}
        for row in measured
    ]


def save(file: Path, device: torch.device, **facts: Any) -> None:
    """Write `facts` with those of code and device."""
    file.parent.mkdir(parents=True, exist_ok=True)
    everything = {**provenance.facts(), **devices.describe(device), **facts}
    file.write_text(json.dumps(everything, indent=1) + "\n")
    print(f"written: {file}")
