"""A job of sweeps/slurm.py: trains its runs at once, each in a process; requeued as long as they advance."""

import json
import os
import signal
import sys
from contextlib import suppress
from functools import partial
from pathlib import Path

from normloss.config import Config, read_stored
from normloss.runs.files import read_json
from normloss.sweeps import processes
from normloss.sweeps.members import Member, train_member
from normloss.sweeps.processes import Process


class Job:
    """A callable for submitit, which calls `checkpoint` before a job's time is up and requeues what that returns.

    It holds its configs as JSON, which the code that the job finds on its disk checks again.
    """

    def __init__(self, runs: list[tuple[Config, list[str]]], command: list[str]) -> None:
        self.runs = json.dumps([[cfg.stored(), words] for cfg, words in runs])
        self.command = command  # of the sweep, for meta.json
        self.cwd = str(Path.cwd())
        self.saved = self.steps()  # when it was submitted, or requeued
        self.running: list[Process] = []

    def members(self) -> list[Member]:
        return [Member(read_stored(stored), words) for stored, words in json.loads(self.runs)]

    def __call__(self) -> dict[str, str]:
        """Return what became of each run, by its id; raises RuntimeError if one failed or was rejected."""
        os.chdir(self.cwd)
        sys.argv = self.command
        members = [member for member in self.members() if member.status is None]
        processes.preload()
        for member in members:
            work = partial(train_member, member.cfg, member.words, len(members), os.getpid())
            self.running.append(processes.start(work, {}))
        for member, process in zip(members, self.running, strict=True):
            process.join()
            member.end(process.exitcode or 0)
            print(f"{member.cfg.id}: {member.outcome}", flush=True)
        if failed := [member.cfg.id for member in members if member.status in (1, 2)]:
            raise RuntimeError(f"for {' '.join(failed)} see the lines above")
        return {member.cfg.id: member.outcome for member in members}

    def checkpoint(self) -> "object | None":
        """Return the job to be requeued once its runs have saved and left; None if none of them advanced."""
        from submitit.helpers import DelayedSubmission

        signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # it comes more than once: a second call would see no advance
        for process in self.running:
            with suppress(ProcessLookupError):  # it has ended
                os.kill(process.ident or 0, signal.SIGTERM)  # SLURM may have sent it one too
        for process in self.running:
            with suppress(ChildProcessError):  # waited for before: this handler may have interrupted that
                os.waitid(os.P_PID, process.ident or 0, os.WEXITED | os.WNOWAIT)
        saved = self.steps()
        if saved <= self.saved:
            return None
        self.saved, self.running = saved, []  # processes cannot be pickled
        return DelayedSubmission(self)

    def steps(self) -> int:
        """Return the steps saved so far, over the job's runs."""
        return sum((read_json(member.folder / "status.json") or {}).get("saved", 0) for member in self.members())
