"""Measures this package: python scripts/bench.py overhead | gpu | cpu | transformers | data | ...

overhead   a training step with each method against one without; options: overhead --help
gpu        a CUDA device: steps with norm loss, executors, the data path
cpu        everything below; each a file of benchmarks/ that gives figures and their targets
transformers  norm loss in steps of a ViT and a GPT with AdamW
data       CIFAR's batches against PIL and torchvision's transforms; steps of ResNet20 against a plain loop
imagenet   a photograph from file to batch against the same
start      what a run costs before its first step against importing torch; a run of the demo, its time and accuracy
precision  how far rounding as a GPU's tensor cores do takes training from float32; nothing is timed

The table is printed, and written with device and versions to results/bench/. All but gpu is measured on one CPU thread.
"""

import argparse
import importlib
import sys
from pathlib import Path

import checkout  # noqa: F401  before the slow imports
import torch

from benchmarks import overhead
from benchmarks.timing import Measurement, save, table
from normloss import regularizers
from normloss.cli import entry
from normloss.errors import UserError
from normloss.training import device as devices

CPU = ("transformers", "data", "imagenet", "start")


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_subparsers(dest="what", required=True)
    for name in ("overhead", "gpu", "cpu", *CPU, "precision"):
        bench = what.add_parser(name)
        bench.add_argument("--blocks", type=int, default=5)
        bench.add_argument("--out", type=Path, default=Path("results/bench"))
        if name == "overhead":
            bench.add_argument("--model", default="resnet110")
            bench.add_argument("--batch", type=int, default=128)
            bench.add_argument("--steps", type=int, default=1, help="a block")
            bench.add_argument("--device", default="auto")
            bench.add_argument("--methods", default=",".join(regularizers.REGULARIZERS))
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
    measured: list[Measurement] = []
    for name in CPU if options.what == "cpu" else [options.what]:
        measured += importlib.import_module(f"benchmarks.{name}").measure(options.blocks)
    print(table(measured))
    device = devices.choose("auto" if options.what == "gpu" else "cpu")
    save(options.out / f"{options.what}.json", device, blocks=options.blocks, rows=[each.row() for each in measured])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
