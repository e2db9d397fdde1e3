"""Tests a CUDA device and measures which form of a training step is fastest on it; with --window, also trains a queue.

python scripts/gpu_check.py [--store results/runs]
python scripts/gpu_check.py --window MINUTES [--store results/window] [--pack results/packed] [--data data]

Without --window: runs the tests that need a CUDA device, measures the forms of a step of every network and precision,
and writes the fastest to STORE/executors.json, which train.executor=auto reads. Takes some twenty minutes.

With --window: runs the most important tests and measures the networks that the queue trains first, in some three
minutes; trains results/queue_gpu.yaml while time is left; then measures the other networks. The last minute packs the
store (runs, executors.json, Inductor's cache, measurements) into PACK/window.tar.000 and on, 15 MB each. If PACK has
such parts and there is no store, the window first unpacks them and resumes. --device cpu rehearses a window on digits.

Results, device, versions and commit are written to STORE/gpu_check.json. Exit status: 0 if every test passed, 1 if one
failed, 2 without a CUDA device.
"""

import argparse
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import checkout  # noqa: F401  before the slow imports
import torch

from benchmarks.timing import save
from normloss.cli import entry, start
from normloss.errors import Stop, UserError
from normloss.runs.files import read_json
from normloss.training import device as devices
from normloss.training.executors import MEASURED

ROOT = Path(__file__).resolve().parent.parent
TESTS = (  # of a window, in order
    "tests/test_executors.py::test_on_cuda_a_captured_step_is_the_eager_one[compile-nl-tf32]",
    "tests/test_cuda.py::test_every_precision_trains_as_a_cpu_does_in_fp32",
    "tests/test_cuda.py::test_a_run_that_is_killed_ends_as_if_it_had_not_been[graph]",
)
CELLS = [  # in order: what the queue begins with comes first
    ["dataset=cifar10", f"model={net}", f"recipe=cifar10_{recipe}", f"train.precision={precision}"]
    for precision in ("tf32", "fp32", "bf16")
    for net, recipe in (("resnet20", "resnet110"), ("resnet110",) * 2, ("resnet8", "resnet110"), ("wrn28_10",) * 2)
]
DIGITS = [["dataset=digits", f"model={net}", "recipe=digits_resnet8"] for net in ("resnet8", "resnet20")]
TEST_SECONDS, CELL_SECONDS, PACK_SECONDS = 30, 120, 60
JOBS = 2  # runs at once: one computes while another starts


def main(arguments: list[str]) -> int:
    parser = start.Parser(__doc__)
    parser.add_argument("--window", type=float, metavar="MINUTES", help="all of it in this time")
    parser.add_argument("--device", default="cuda", help="(default: %(default)s)")
    parser.add_argument("--store", type=Path, help="(default: results/runs, of a window results/window)")
    parser.add_argument("--pack", type=Path, default=Path("results/packed"), help="(default: %(default)s)")
    parser.add_argument("--data", type=Path, default=Path("data"), help="data_dir of the queue (default: %(default)s)")
    options = parser.parse_args(arguments)
    return entry.script(lambda: spend(options))


def spend(options: argparse.Namespace) -> None:
    """Do all of it; raises UserError if the device is not there, and in the end Stop if a test failed."""
    window, cpu, began = options.window is not None, options.device == "cpu", time.monotonic()
    if not (cpu or torch.cuda.is_available()):
        raise UserError("gpu_check: needs a CUDA device, got none")

    def left() -> float:
        return 60 * options.window - PACK_SECONDS - (time.monotonic() - began) if window else float("inf")

    store = (options.store or Path("results") / ("window" if window else "runs")).absolute()
    pack = options.pack.absolute()
    if window and not store.exists() and (parts := sorted(pack.glob("window.tar.*"))):
        store.mkdir(parents=True)
        bash('cat "${@:2}" | tar -x -C "$1"', store, *parts)
        print(f"resuming from {pack}", flush=True)
    store.mkdir(parents=True, exist_ok=True)
    where = [f"store={store}", f"device={options.device}", f"data_dir={options.data}"]
    tests = [run_tests(words, TEST_SECONDS if window else None) for words in (TESTS if window else ["-mcuda"])]
    cells, first = (DIGITS, 1) if cpu else (CELLS, 2)
    for cell in cells[:first]:
        measure([*cell, *where], min(CELL_SECONDS, 2 / 3 * left()) if window else None)
    if window:
        asked = "experiment=demo" if cpu else f"queue={ROOT}/results/queue_gpu.yaml"
        budget = [f"budget_minutes={max(left(), 1) / 60:.2f}", f"hydra.launcher.jobs={JOBS}"]
        subprocess.run([sys.executable, "train.py", asked, *budget, *where], cwd=ROOT)
    for cell in cells[first:]:
        if left() > CELL_SECONDS / 2:
            measure([*cell, *where], min(CELL_SECONDS, left()) if window else None)
    facts = {"minutes": options.window, "tests": tests, "cells": read_json(store / MEASURED)}
    save(store / "gpu_check.json", devices.choose(options.device), **facts)
    if window:
        pack.mkdir(parents=True, exist_ok=True)
        bash('rm -f "$2"/window.tar.*; tar -c -C "$1" . | split -b 15MB -d -a 3 - "$2/window.tar."', store, pack)
        print(f"packed into {pack}, {left() + PACK_SECONDS:.0f} s before the end", flush=True)
    if failed := [test["tests"] for test in tests if test["status"] != 0]:
        raise Stop(f"gpu_check: failed: {' '.join(failed)}")


def bash(command: str, *arguments: Path) -> None:
    subprocess.run(["bash", "-o", "pipefail", "-c", command, "bash", *arguments], check=True)


def bounded(words: list[str], seconds: float | None) -> tuple[int | None, str]:
    """Return exit status and output of Python with these words; it is killed after so many seconds, status None."""
    process = subprocess.Popen(
        [sys.executable, *words], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=seconds is not None,
    )  # fmt: skip
    try:
        output, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        return None, process.communicate()[0]
    return process.returncode, output


def run_tests(words: str, seconds: float | None) -> dict[str, Any]:
    """Run the tests that pytest finds by `words`, and print what it says; return its status and last line."""
    status, output = bounded(["-m", "pytest", "-q", "-rs", words], seconds)
    print(output, flush=True)
    return {"tests": words, "status": status, "summary": "".join(output.strip().splitlines()[-1:])}


def measure(words: list[str], seconds: float | None) -> None:
    """Let benchmarks/forms.py measure a cell, for at most so many seconds; print what it says."""
    status, output = bounded(["-m", "benchmarks.forms", *words], seconds)
    print("" if status == 0 else f"status {status} in {seconds} s: ", *words, f"\n{output}", flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
