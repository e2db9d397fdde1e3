"""Measures this package on this machine: python scripts/bench.py overhead | gpu | cpu | data | imagenet | start | ...

overhead   a training step with each method, relative to a step without
gpu        a CUDA device: steps with norm loss, executors, the data path
cpu        data, imagenet and start, one after the other
data       batches of CIFAR against PIL and torchvision's transforms; steps of ResNet20 against a plain loop
imagenet   photographs from file to batch, against PIL and torchvision's transforms
start      start-up time of a run against importing torch; time and accuracy of one run of the demo
precision  distance from float32 training if operands are rounded as a GPU's tensor cores round them; not timed

Each prints a table and writes it, device and versions to results/bench/. All but gpu and overhead use one CPU thread.
"""

import argparse
import importlib
import sys
from pathlib import Path
from typing import Any

import checkout  # noqa: F401  before the slow imports
import torch

from benchmarks import overhead
from benchmarks.timing import save, table
from normloss import regularizers
from normloss.cli import entry, start
from normloss.errors import UserError
from normloss.training import device as devices

CPU = ("data", "imagenet", "start")


def main(arguments: list[str]) -> int:
    parser = start.Parser(__doc__)
    parser.add_argument("what", choices=["overhead", "gpu", "cpu", *CPU, "precision"])
    parser.add_argument("--blocks", type=int, default=5, help="(default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("results/bench"), help="(default: %(default)s)")
    group = parser.add_argument_group("overhead")
    group.add_argument("--model", default="resnet110", help="(default: %(default)s)")
    group.add_argument("--batch", type=int, default=128, help="images per step (default: %(default)s)")
    group.add_argument("--steps", type=int, default=1, help="per block (default: %(default)s)")
    group.add_argument("--device", default="auto", help="(default: %(default)s)")
    group.add_argument("--methods", default=",".join(regularizers.REGULARIZERS), help="(default: all)")
    options = parser.parse_args(arguments)
    return entry.script(lambda: (run_overhead if options.what == "overhead" else run_rows)(options))


def run_overhead(options: argparse.Namespace) -> None:
    methods = options.methods.split(",")
    configs = {method: overhead.config_of(method, options.model, options.batch, options.device) for method in methods}
    rows = overhead.overhead(configs, options.blocks, options.steps)
    print(overhead.table(rows))
    device = devices.choose(options.device)
    facts = {"batch": options.batch, "blocks": options.blocks, "model": options.model, "rows": rows}
    save(options.out / f"overhead_{options.model}_{device.type}.json", device, **facts)


def run_rows(options: argparse.Namespace) -> None:
    """Measure, print and write the subjects of one file of benchmarks/, or those of all of CPU."""
    if options.what == "gpu" and not torch.cuda.is_available():
        raise UserError("bench gpu: needs a CUDA device, got none")
    if options.what != "gpu":
        torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    for name in CPU if options.what == "cpu" else [options.what]:
        rows += importlib.import_module(f"benchmarks.{name}").measure(options.blocks)
    print(table(rows))
    device = devices.choose("auto" if options.what == "gpu" else "cpu")
    save(options.out / f"{options.what}.json", device, blocks=options.blocks, rows=rows)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
