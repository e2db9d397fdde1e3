"""Is this CUDA machine fit, and how fast is it: the tests that need a GPU, then what bench.py gpu measures.

python scripts/gpu_check.py [--blocks 5] [--out results/bench]

A few minutes. The tables are printed, and written with device, versions and commit to OUT/gpu_check.json. Exit status:
0 if every test passed, 1 if one failed, 2 without a CUDA device; a figure short of its target is no failure.
"""

import argparse
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from xml.etree import ElementTree

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # this checkout, whichever is installed

if __name__ == "__main__":  # before the slow imports
    from normloss.cli import start

    start.prepare()

from benchmarks import gpu, report
from normloss.cli import entry
from normloss.errors import UserError
from normloss.training import device as devices

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Test:
    name: str
    outcome: str  # passed failed skipped
    seconds: float
    why: str = ""  # the first line of a failure's or skip's reason


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("results/bench"))
    options = parser.parse_args(arguments)
    tests: list[Test] = []
    status = entry.script(lambda: tests.extend(check(options.blocks, options.out)))
    return status or int(any(test.outcome == "failed" for test in tests))


def check(blocks: int, out: Path) -> list[Test]:
    """Run, print and write everything; raises UserError without a CUDA device and where no test ran."""
    if not torch.cuda.is_available():
        raise UserError("gpu_check: needs a CUDA device, got none")
    tests = run_tests("-m", "cuda")
    print(summary(tests), flush=True)
    measured = gpu.measure(blocks)
    print(report.table(measured))
    facts = {"blocks": blocks, "tests": [asdict(test) for test in tests], "rows": report.rows(measured)}
    report.save(out / "gpu_check.json", devices.choose("auto"), **facts)
    return tests


def run_tests(*words: str) -> list[Test]:
    """What pytest made of the tests that `words` choose, in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "tests.xml"
        command = [sys.executable, "-m", "pytest", "-q", *words, f"--junit-xml={file}"]
        ran = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        tests = read_tests(file) if file.exists() else []
    if ran.returncode:
        print(ran.stdout, flush=True)
    if not tests:
        raise UserError(f"gpu_check: pytest must be installed and run the tests, got exit status {ran.returncode}")
    return tests


def read_tests(file: Path) -> list[Test]:
    tests = []
    for case in ElementTree.parse(file).iter("testcase"):
        faults = [child for child in case if child.tag in ("failure", "error", "skipped")]
        tag = faults[0].tag if faults else "passed"
        outcome = {"failure": "failed", "error": "failed"}.get(tag, tag)
        why = faults[0].get("message", "").strip().partition("\n")[0] if faults else ""
        name = f"{case.get('classname', '').rpartition('.')[2]}::{case.get('name')}"
        tests.append(Test(name, outcome, float(case.get("time", 0)), why))
    return tests


def summary(tests: list[Test]) -> str:
    """One line per file, then one for each test that did not pass."""
    lines = ["| CUDA tests of | passed | failed | skipped | s |", "|---|---:|---:|---:|---:|"]
    for file in dict.fromkeys(test.name.partition("::")[0] for test in tests):
        own = [test for test in tests if test.name.startswith(f"{file}::")]
        counts = [sum(test.outcome == outcome for test in own) for outcome in ("passed", "failed", "skipped")]
        lines.append(f"| {file} | {' | '.join(map(str, counts))} | {sum(test.seconds for test in own):.0f} |")
    lines += [f"{test.outcome}: {test.name}: {test.why}" for test in tests if test.outcome != "passed"]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
