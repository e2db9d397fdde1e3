"""Processes that train at once on one device: images/s of all of them together.

python -m benchmarks.sharing is such a process: a config and a number of steps on its first line of input; it warms up,
says so, waits for another line, takes the steps, and says when it ended.
"""

import json
import subprocess
import sys
import time
from pathlib import Path

from normloss.config import Config, read_stored

ROOT = Path(__file__).resolve().parent.parent


def images_per_second(cfg: Config, processes: int, steps: int) -> float:
    """Of `processes` that take so many steps each, from the moment when all are warm to the last one's end.

    Raises RuntimeError where one of them fails.
    """
    command = [sys.executable, "-m", "benchmarks.sharing"]
    running = [
        subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(processes)
    ]
    try:
        for process in running:
            _say(process, json.dumps({"config": cfg.model_dump(mode="json"), "steps": steps}))
        for process in running:
            _answer(process)
        began = time.time()
        for process in running:
            _say(process, "go")
        ended = max(float(_answer(process)) for process in running)
    finally:
        for process in running:
            process.kill()
            process.communicate()
    return processes * steps * cfg.train.batch_size / (ended - began)


def _say(process: subprocess.Popen, line: str) -> None:
    assert process.stdin  # a pipe
    process.stdin.write(line + "\n")
    process.stdin.flush()


def _answer(process: subprocess.Popen) -> str:
    assert process.stdout  # a pipe
    line = process.stdout.readline()
    if not line:
        raise RuntimeError(f"a process that shares the device ended with status {process.wait()}")
    return line


def main() -> None:
    from benchmarks.steps import StepLoop
    from normloss.training import device as devices

    asked = json.loads(input())
    cfg = read_stored(asked["config"])
    loop = StepLoop(cfg, devices.setup(cfg))
    loop.warm_up()
    print("warm", flush=True)
    input()
    loop.steps(asked["steps"])
    print(time.time(), flush=True)


if __name__ == "__main__":
    main()
