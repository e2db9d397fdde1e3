"""What a regularizer costs: the operations that section IV-B counts, and the time of a step that was measured."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from normloss.analysis import style
from normloss.analysis.render import NOTHING, Column, Row, Table, number, plain
from normloss.sweeps.composing import expand

SETTINGS = (  # of the paper's three networks; batch sizes of its recipes
    ("ResNet110", ("dataset=cifar10", "model=resnet110", "reg=nl")),
    ("WRN-28-10", ("dataset=cifar10", "model=wrn28_10", "reg=nl")),
    ("ResNet50", ("dataset=imagenet", "model=resnet50", "reg=nl")),
)
HOURS = 5.04  # percent by which a run of the paper's ResNet110 took longer with norm loss: 4.79 h to 4.56 h

BARS = ("0.35", "0.7", "0.5", "0.85")  # of the networks and devices that were timed: colours are the methods'


def count(C_o: int, C_i: int, F_h: int, F_w: int, m: int, I_h: int, I_w: int) -> tuple[int, int, int]:
    """Operations per step of one convolution: weight decay's, norm loss's and the convolution's own.

    2 n p; 3 n p + n + 2 n p; 6 m n p I_h I_w, with n = C_o filters of p = C_i F_h F_w weights, m images per step and
    I_h x I_w pixels going in. Section IV-B.
    """
    n, p = C_o, C_i * F_h * F_w
    return 2 * n * p, 5 * n * p + n, 6 * m * n * p * I_h * I_w


def of_network(words: tuple[str, ...]) -> tuple[int, tuple[int, int, int]]:
    """Images per step, and the sums over the convolutions of the network that these words choose."""
    import torch  # here: only this table needs it

    from normloss import models

    (cfg,) = expand([*words])
    m, total = cfg.train.batch_size, [0, 0, 0]

    def add(layer: Any, inputs: Any, output: Any) -> None:
        (n, c, h, w), pixels = layer.weight.shape, inputs[0].shape[-2:]
        for i, each in enumerate(count(n, c, h, w, m, *pixels)):
            total[i] += each

    with torch.device("meta"):  # shapes alone, no numbers
        model = models.build(cfg.model, cfg.dataset.num_classes, cfg.dataset.channels)
        for layer in model.modules():
            if isinstance(layer, torch.nn.Conv2d):
                layer.register_forward_hook(add)
        model(torch.empty(2, cfg.dataset.channels, cfg.dataset.size, cfg.dataset.size))
    return m, (total[0], total[1], total[2])


def table(bench: Path) -> Table:
    """The counts beside what was measured: results/bench/overhead_*.json."""
    rows = []
    for name, words in SETTINGS:
        m, (wd, nl, convolutions) = of_network(words)
        row: dict[str, Any] = {"network": name, "batch_size": m, "wd": wd, "nl": nl, "convolutions": convolutions}
        row |= {"ratio": (nl - wd) / convolutions, **_measured(bench, words[1].partition("=")[2])}
        rows.append(row | {"paper_percent": HOURS if name == "ResNet110" else None})
    notes = [
        "Weight decay: 2·n·p; norm loss: 5·n·p + n; a convolution: 6·m·n·p·I_h·I_w, summed over the convolutions, of n"
        " filters of p weights on I_h × I_w pixels, m images per step. Ratio: norm loss's operations beyond weight"
        " decay's, to the convolutions'. Measured: a whole step with norm loss to one with weight decay, on the device"
        " and at the batch size named. The arithmetic is not what costs."
    ]
    return Table("operations", "Section IV-B: operations per step, by the paper's formulas", COLUMNS, rows, notes)


def _measured(bench: Path, model: str) -> dict[str, Any]:
    """The largest batch that was timed."""
    files = [each for each in _timed(bench, f"{model}_*") if {"wd", "nl"} <= set(_steps(each))]
    if not files:
        return {"measured_percent": None, "measured_on": None, "measured_batch_size": None}
    timed = max(files, key=lambda file: (file["device"] != "cpu", file["batch"]))
    steps = _steps(timed)
    percent = 100 * (steps["nl"] / steps["wd"] - 1)
    on = timed["device_name"]
    return {"measured_percent": percent, "measured_on": on, "measured_batch_size": timed["batch"]}


def _timed(bench: Path, which: str) -> list[dict[str, Any]]:
    """What scripts/bench.py overhead has written, of all methods or of some."""
    return [json.loads(file.read_text()) for file in sorted(bench.glob(f"overhead_{which}.json"))]


def _steps(timed: dict[str, Any]) -> dict[str, float]:
    """method -> milliseconds of a step."""
    return {row["method"]: row["step_ms"] for row in timed["rows"]}


def _power(key: str) -> Column:
    return Column(HEADS[key], lambda row: number(row[key], ".2e"))


def _step(row: Row) -> str:
    if row["measured_percent"] is None:
        return NOTHING
    on = f"{row['measured_on']}, batch {row['measured_batch_size']}"
    return f"{number(row['measured_percent'], '+.1f')} % ({on})"


HEADS = {"wd": "weight decay", "nl": "norm loss", "convolutions": "convolutions", "ratio": "ratio"}
COLUMNS = (
    plain("network"),
    plain("batch_size", "batch size"),
    _power("wd"),
    _power("nl"),
    _power("convolutions"),
    _power("ratio"),
    Column("measured, a step", _step),
    Column("the paper, a run", lambda row: f"+{HOURS} %" if row["paper_percent"] else NOTHING),
)


def cost(bench: Path) -> Figure | None:
    """A figure: the whole step to that without a regularizer, by method; None where nothing was timed."""
    timed = [each for each in _timed(bench, "*") if "none" in _steps(each)]
    if not timed:
        return None
    methods = list(dict.fromkeys(row["method"] for each in timed for row in each["rows"]))[::-1]
    fig = style.figure(6, 1.4 + 0.28 * len(methods))
    axes = fig.subplots()
    for i, measured in enumerate(timed):
        steps = _steps(measured)
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
