"""Is this CUDA machine fit, how fast is it, and what to do with a quarter of an hour on it.

python scripts/gpu_check.py [--blocks 5] [--out results/bench]
python scripts/gpu_check.py --window MINUTES [--store results/window] [--pack results/packed] [--data data]

Without --window: the tests that need a CUDA device, what bench.py gpu measures, and the forms of a step of every
network and precision; some twenty minutes. All is written with device, versions and commit to OUT/gpu_check.json.

With it: the tests that matter most, the forms of the networks that come first, then results/queue_gpu.yaml for as long
as the time lasts, then the other forms. In the last minute the store (runs, executors.json, Inductor's cache, the
measurements) is packed into PACK/window.tar.000 and on, 15 MB each; where they are at the start and the store is not,
the window goes on with them. --device cpu rehearses it on the digits.

Exit status: 0 if every test passed, 1 if one failed, 2 without a CUDA device; a figure short of its target is no
failure.
"""

import argparse
import os
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # this checkout, whichever is installed

if __name__ == "__main__":  # before the slow imports
    from normloss.cli import start

    start.prepare()

from benchmarks import gpu, report
from normloss.cli import entry
from normloss.errors import UserError
from normloss.runs.files import read_json
from normloss.training import device as devices
from normloss.training.executors import MEASURED

ROOT = Path(__file__).resolve().parent.parent
TESTS = (  # of a window, in order
    "test_executors.py::test_on_cuda_a_captured_step_is_the_eager_one[compile-nl-tf32]",
    "test_cuda.py::test_every_precision_trains_as_a_cpu_does_in_fp32",
    "test_cuda.py::test_a_run_that_is_killed_ends_as_if_it_had_not_been[graph]",
)
TEST_SECONDS, CELL_SECONDS, PACK_SECONDS = 30, 90, 60
FIRST = 2  # cells, measured before the queue: what it begins with
NETS = ("resnet20", "resnet110", "resnet8", "wrn28_10")
CELLS = [
    ["dataset=cifar10", f"model={net}", f"recipe=cifar10_{net if net == 'wrn28_10' else 'resnet110'}",
     f"train.precision={precision}"]
    for precision in ("tf32", "fp32", "bf16") for net in NETS
]  # fmt: skip
DIGITS = [["dataset=digits", f"model={net}", "recipe=digits_resnet8"] for net in ("resnet8", "resnet20")]
JOBS = 2  # runs at once: one computes while another starts
PART = 15 * 10**6  # bytes


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("results/bench"))
    parser.add_argument("--window", type=float, metavar="MINUTES")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--store", type=Path, default=Path("results/window"))
    parser.add_argument("--pack", type=Path, default=Path("results/packed"))
    parser.add_argument("--data", type=Path, default=Path("data"))
    options = parser.parse_args(arguments)
    tests: list[dict[str, Any]] = []
    work = check if options.window is None else window
    status = entry.script(lambda: work(options, tests))
    return status or int(any(test["outcome"] == "failed" for test in tests))


def check(options: argparse.Namespace, tests: list[dict[str, Any]]) -> None:
    """Run, print and write everything; raises UserError without a CUDA device."""
    device = device_of(options)
    tests += run_tests("-m", "cuda")
    print(summary(tests), flush=True)
    measured = gpu.measure(options.blocks)
    print(report.table(measured))
    for words in CELLS:
        measure([*words, f"store={options.store}"])
    cells = read_json(options.store / MEASURED)
    report.save(options.out / "gpu_check.json", device, tests=tests, rows=report.rows(measured), cells=cells)


def window(options: argparse.Namespace, tests: list[dict[str, Any]]) -> None:
    """Spend the minutes of a window and pack what came of them; raises UserError if the device is not there."""
    ends, began = time.monotonic() + 60 * options.window - PACK_SECONDS, datetime.now(UTC)
    device, store = device_of(options), options.store.absolute()

    def left() -> float:
        seconds = ends - time.monotonic()
        print(f"--- {seconds:.0f} s left, and {PACK_SECONDS} to pack", flush=True)
        return seconds

    if not store.exists():
        unpack(options.pack, store)
    store.mkdir(parents=True, exist_ok=True)
    where = [f"store={store}", f"device={options.device}", f"data_dir={options.data}"]
    cells, asked = (DIGITS, "experiment=demo") if options.device == "cpu" else (CELLS, f"queue={queue()}")
    for name in TESTS:
        tests += run_tests(f"tests/{name}", seconds=TEST_SECONDS)
    print(summary(tests), flush=True)
    for words in cells[:FIRST]:
        measure([*words, *where], min(CELL_SECONDS, left()))
    budget = [f"budget_minutes={max(left(), 1) / 60:.2f}", f"hydra.launcher.jobs={JOBS}"]
    subprocess.run([sys.executable, "train.py", asked, *budget, *where], cwd=ROOT)
    for words in cells[FIRST:]:
        if left() > CELL_SECONDS / 2:
            measure([*words, *where], min(CELL_SECONDS, left()))
    facts = {"minutes": options.window, "tests": tests, "cells": read_json(store / MEASURED)}
    report.save(store / f"window-{began:%Y%m%d-%H%M%S}.json", device, **facts)
    pack(store, options.pack)


def device_of(options: argparse.Namespace) -> torch.device:
    if options.device != "cpu" and not torch.cuda.is_available():
        raise UserError("gpu_check: needs a CUDA device, got none")
    return devices.choose(options.device)


def queue() -> Path:
    return ROOT / "results" / "queue_gpu.yaml"


# tests and measurements, each in a process of its own -----------------------------------------------


def run_tests(*words: str, seconds: float | None = None) -> list[dict[str, Any]]:
    """Return what became of the tests that pytest finds by `words`: test, outcome, seconds, and why if not passed."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "tests.xml"
        status, output = bounded(["-m", "pytest", "-q", *words, f"--junit-xml={file}"], seconds)
        tests = read_tests(file) if file.exists() else []
    if status:
        print(output, flush=True)
    why = f"not done in {seconds:.0f} s" if status is None and seconds else f"pytest ended with status {status}"
    return tests or [{"test": words[-1], "outcome": "failed", "seconds": seconds or 0.0, "why": why}]


def bounded(words: list[str], seconds: float | None) -> tuple[int | None, str]:
    """Return the exit status of Python with these words, None if it was killed at the end of its time; and its output.

    seconds: how many it has.
    """
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


def read_tests(file: Path) -> list[dict[str, Any]]:
    tests = []
    for case in ElementTree.parse(file).iter("testcase"):
        faults = [child for child in case if child.tag in ("failure", "error", "skipped")]
        outcome = "passed" if not faults else "skipped" if faults[0].tag == "skipped" else "failed"
        why = faults[0].get("message", "").strip().partition("\n")[0] if faults else ""
        name = f"{case.get('classname', '').rpartition('.')[2]}::{case.get('name')}"
        tests.append({"test": name, "outcome": outcome, "seconds": float(case.get("time", 0)), "why": why})
    return tests


def summary(tests: list[dict[str, Any]]) -> str:
    """Return a line of counts, then one for each test that did not pass."""
    counts = Counter(test["outcome"] for test in tests)
    lines = [f"CUDA tests: {', '.join(f'{counts[outcome]} {outcome}' for outcome in ('passed', 'failed', 'skipped'))}"]
    return "\n".join(lines + [f"{t['outcome']}: {t['test']}: {t['why']}" for t in tests if t["outcome"] != "passed"])


def measure(words: list[str], seconds: float | None = None) -> None:
    """Let benchmarks/forms.py measure a cell, for at most so many seconds; print what it says."""
    status, output = bounded(["-m", "benchmarks.forms", *words], None if seconds is None else max(1, seconds))
    print(output if status == 0 else f"not measured ({status=}): {' '.join(words)}\n{output[-500:]}", flush=True)


# what travels -----------------------------------------------------------------------------------------


def pack(store: Path, folder: Path) -> None:
    """Write a store as window.tar.000, window.tar.001, ... into a folder, in place of those there."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile() as whole:
        with tarfile.open(fileobj=whole, mode="w") as tar:
            tar.add(store, arcname=".")
        size = whole.tell()
        whole.seek(0)
        for old in folder.glob("window.tar.*"):
            old.unlink()
        for number, part in enumerate(iter(lambda: whole.read(PART), b"")):
            (folder / f"window.tar.{number:03d}").write_bytes(part)
    print(f"packed: {size / 1e6:.1f} MB into {folder}", flush=True)


def unpack(folder: Path, store: Path) -> None:
    """Make a store of the parts that a folder holds, if it holds any."""
    with tempfile.TemporaryFile() as whole:
        for part in sorted(folder.glob("window.tar.*")):
            whole.write(part.read_bytes())
        if whole.tell():
            whole.seek(0)
            with tarfile.open(fileobj=whole) as tar:
                tar.extractall(store, filter="data")
            print(f"going on with {folder}", flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
