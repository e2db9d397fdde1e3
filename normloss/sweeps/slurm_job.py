"""What a job of sweeps/slurm.py does: train its runs side by side; requeued as often as they advance."""

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from normloss.runs.files import read_json
from normloss.sweeps.members import OUTCOMES

BAD = (1, 2)  # statuses of a job that has failed


class Job:
    """A callable for submitit, which calls `checkpoint` before a job's time is up and requeues what that returns."""

    def __init__(self, script: Path, commands: dict[str, list[str]], store: Path) -> None:
        self.script, self.commands, self.store = script, commands, store.resolve()
        self.cwd = Path.cwd()
        self.saved = self.steps()  # when it was submitted, or requeued
        self.running: dict[str, subprocess.Popen] = {}

    def __call__(self) -> dict[str, int]:
        """The exit status of each run, by its id; raises RuntimeError where one is a defect or was refused."""
        for id in self.commands:
            self.start(id)
        statuses = {id: self.wait(id) for id in self.commands}
        for id, status in statuses.items():
            print(f"{id}: {OUTCOMES.get(status, f'killed by signal {-status}')}", flush=True)
        if failed := [id for id, status in statuses.items() if status in BAD or status < 0]:
            raise RuntimeError(f"for {' '.join(failed)} see the lines above")
        return statuses

    def start(self, id: str) -> None:
        words = [sys.executable, str(self.script), *self.commands[id]]
        self.running[id] = subprocess.Popen(words, cwd=self.cwd)

    def wait(self, id: str) -> int:
        return self.running[id].wait()

    def checkpoint(self) -> "object | None":
        """The job to be requeued once its runs have saved and left; None where none of them got any further."""
        from submitit.helpers import DelayedSubmission

        signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # it comes more than once: a second call would see no advance
        for process in self.running.values():
            process.send_signal(signal.SIGTERM)  # SLURM has told it too
        for process in self.running.values():
            ended(process.pid)
        saved = self.steps()
        if saved <= self.saved:
            return None
        self.saved = saved
        return DelayedSubmission(self)

    def steps(self) -> int:
        """Saved so far, over the job's runs."""
        return sum((read_json(self.store / id / "status.json") or {}).get("saved", 0) for id in self.commands)

    def __getstate__(self) -> dict:
        return self.__dict__ | {"running": {}}


def ended(pid: int) -> None:
    """Wait for a process from within a signal's handler, which may have interrupted Popen.wait and its lock."""
    with suppress(ChildProcessError):  # waited for before
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
