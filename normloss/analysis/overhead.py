"""The cost of a regularizer: the operations that section IV-B counts, and the time of a step that was measured."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from normloss.analysis import style
from normloss.analysis.paper import Paper
from normloss.analysis.render import NOTHING, Column, Row, Table, number, plain
from normloss.sweeps.composing import expand

SETTINGS = (  # of the paper's three networks; batch sizes of its recipes
    ("ResNet110", ("dataset=cifar10", "model=resnet110", "reg=nl")),
    ("WRN-28-10", ("dataset=cifar10", "model=wrn28_10", "reg=nl")),
    ("ResNet50", ("dataset=imagenet", "model=resnet50", "reg=nl")),
)
BARS = ("0.35", "0.7", "0.5", "0.85")  # greys of the networks and devices that were timed: colours are the methods'


def count(C_o: int, C_i: int, F_h: int, F_w: int, m: int, I_h: int, I_w: int) -> tuple[int, int, int]:
    """Return operations per step of one convolution: weight decay's, norm loss's and the convolution's own.

    2 n p; 3 n p + n + 2 n p; 6 m n p I_h I_w, with n = C_o filters of p = C_i F_h F_w weights, m images per step and
    I_h x I_w pixels going in. Section IV-B.
    """
    n, p = C_o, C_i * F_h * F_w
    return 2 * n * p, 5 * n * p + n, 6 * m * n * p * I_h * I_w


def of_network(words: tuple[str, ...]) -> tuple[int, list[int]]:
    """Return images per step, and the sums over the convolutions of the network that these words choose."""
    import torch  # here: only this table needs it

    from normloss import models

    (cfg,) = expand([*words])
    m, counts = cfg.train.batch_size, []

    def add(layer: Any, inputs: Any, output: Any) -> None:
        n, c, h, w = layer.weight.shape
        counts.append(count(n, c, h, w, m, *inputs[0].shape[-2:]))

    with torch.device("meta"):  # shapes alone, no numbers
        model = models.build(cfg.model, cfg.dataset.num_classes, cfg.dataset.channels)
        for layer in model.modules():
            if isinstance(layer, torch.nn.Conv2d):
                layer.register_forward_hook(add)
        model(torch.empty(2, cfg.dataset.channels, cfg.dataset.size, cfg.dataset.size))
    return m, [sum(each) for each in zip(*counts, strict=True)]


def table(bench: Path, paper: Paper) -> Table:
    """Return the counts next to what was measured: results/bench/overhead_*.json."""
    hours = paper.text["hours"]
    rows = []
    for name, words in SETTINGS:
        m, (wd, nl, convolutions) = of_network(words)
        row: dict[str, Any] = {"network": name, "batch_size": m, "wd": wd, "nl": nl, "convolutions": convolutions}
        row |= {"ratio": (nl - wd) / convolutions, **_measured(bench, words[1].partition("=")[2])}
        percent = round(100 * (hours["nl"] / hours["wd"] - 1), 2)  # of a run of the paper's ResNet110
        rows.append(row | {"paper_percent": percent if name == "ResNet110" else None})
    notes = [
        "Weight decay: 2·n·p; norm loss: 5·n·p + n; a convolution: 6·m·n·p·I_h·I_w, summed over the convolutions, of n"
        " filters of p weights on I_h × I_w pixels, m images per step. Ratio: norm loss's operations beyond weight"
        " decay's, to the convolutions'. Measured: a whole step with norm loss to one with weight decay, on the device"
        " and at the batch size named; the ratio of operations does not predict it."
    ]
    return Table("operations", "Section IV-B: operations per step, by the paper's formulas", COLUMNS, rows, notes)


def _measured(bench: Path, model: str) -> dict[str, Any]:
    """Return what was measured of a model, on a GPU rather than a CPU, at the largest batch."""
    timed = [each for each in _timed(bench, f"{model}_*") if {"wd", "nl"} <= set(each["steps"])]
    best = max(timed, key=lambda each: (each["device"] != "cpu", each["batch"]), default=None)
    percent = 100 * (best["steps"]["nl"] / best["steps"]["wd"] - 1) if best else None
    on, batch = (best["device_name"], best["batch"]) if best else (None, None)
    return {"measured_percent": percent, "measured_on": on, "measured_batch_size": batch}


def _timed(bench: Path, which: str) -> list[dict[str, Any]]:
    """Return what `scripts/bench.py overhead` has written; steps: method -> milliseconds of a step."""
    found = [json.loads(file.read_text()) for file in sorted(bench.glob(f"overhead_{which}.json"))]
    return [each | {"steps": {row["method"]: row["step_ms"] for row in each["rows"]}} for each in found]


def _step(row: Row) -> str:
    if row["measured_percent"] is None:
        return NOTHING
    on = f"{row['measured_on']}, batch {row['measured_batch_size']}"
    return f"{number(row['measured_percent'], '+.1f')} % ({on})"


COLUMNS = (
    plain("network"),
    plain("batch_size", "batch size"),
    plain("wd", "weight decay", ".2e"),
    plain("nl", "norm loss", ".2e"),
    plain("convolutions", form=".2e"),
    plain("ratio", form=".2e"),
    Column("measured, a step", _step),
    Column("the paper, a run", lambda row: f"+{row['paper_percent']} %" if row["paper_percent"] else NOTHING),
)


def cost(bench: Path) -> Figure | None:
    """Return a figure of the whole step to that without a regularizer, by method; None where nothing was timed."""
    timed = [each for each in _timed(bench, "*") if "none" in each["steps"]]
    if not timed:
        return None
    methods = list(dict.fromkeys(row["method"] for each in timed for row in each["rows"]))[::-1]
    fig = style.figure(6, 1.4 + 0.28 * len(methods))
    axes = fig.subplots()
    for i, measured in enumerate(timed):
        steps = measured["steps"]
        ratios = {method: step / steps["none"] for method, step in steps.items()}
        place = np.arange(len(methods)) + 0.4 - 0.8 * (i + 0.5) / len(timed)
        values = [ratios.get(method, np.nan) for method in methods]
        name = f"{measured['model']}, batch {measured['batch']}, {measured['device_name']}"
        axes.barh(place, values, height=0.8 / len(timed), color=BARS[i % len(BARS)], label=name)
        for y, value in zip(place, values, strict=True):
            if np.isfinite(value):
                axes.text(value * 1.02, y, f"{value:.2f}", va="center", fontsize=7)
    axes.set_yticks(range(len(methods)), methods)
    axes.set_xscale("log")
    axes.axvline(1, color="0.3", linestyle="--", linewidth=0.8)
    style.style(axes, "medians of interleaved blocks", "time of a training step, to one without regularizer", "")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.margins(x=0.12, y=0.02)
    axes.legend(frameon=False, loc="lower right")
    style.title(fig, "What each method costs per step")
    return fig
