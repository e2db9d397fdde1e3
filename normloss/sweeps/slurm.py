"""A sweep on a SLURM cluster: what is missing is submitted as a job array, and the command returns.

submitit writes the batch file and requeues; sweeps/slurm_job.py runs there. squeue and a file per array,
<store>/.slurm/<name>.json, say which runs are queued: the array's job name is the file's, its tasks are the runs of the
file in their order. The file is written before sbatch, so that a submission that was killed is known too. A run's own
folder says how far it is: neither accounting nor a process that waits is needed.
"""

import shlex
import shutil
import subprocess
import sys
import uuid
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock

from normloss.config.schema import Count, Natural, Section
from normloss.errors import UserError
from normloss.runs.files import not_writable, read_json, write_json
from normloss.runs.records import load_runs
from normloss.sweeps.command_line import Entry
from normloss.sweeps.members import Member, aligned, in_order, labels_of, members_of, with_threads

ROOT = Path(__file__).resolve().parent.parent.parent
FOLDER = ".slurm"  # of a store
SETTLED = ("done", "running", "diverged")  # states that a folder tells better than the queue
WAITS = {"PENDING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "SPECIAL_EXIT"}  # squeue's states without a node
FOREVER = 10**6  # submitit counts time limits; ours requeues as long as its runs advance


class Settings(Section):
    """The keys of hydra/launcher=slurm, which configs/hydra/launcher/slurm.yaml documents."""

    partition: str | int | None
    account: str | int | None
    qos: str | int | None
    constraint: str | int | None
    minutes: Count
    gpus: Natural
    cpus: Count
    mem_gb: float | None
    jobs: Count
    runs_per_job: Count
    signal_seconds: Count
    sbatch: dict[str, Any] | None


class Queued(NamedTuple):
    """The job and state of a run in SLURM's queue."""

    job: str  # 123 or 123_4
    state: str  # queued or running


def submit(entries: list[Entry], given: Settings) -> int:
    """Submit what is missing and neither queued nor running, print each run's state, return the exit status 0."""
    if find_spec("submitit") is None:
        raise UserError("hydra/launcher=slurm: needs submitit: pip install 'normloss[slurm]'")
    if shutil.which("sbatch") is None:
        raise UserError("hydra/launcher=slurm: needs SLURM's sbatch on this machine, got none")
    members = in_order(members_of(entries))
    if any(member.cfg.budget_minutes for member in members):
        raise UserError("budget_minutes: is no key of a job on SLURM; its time is hydra.launcher.minutes")
    if any(member.cfg.restart for member in members):
        raise UserError("restart: must be false on SLURM, since a job that is requeued would start anew each time")
    if not members:  # every trial of a tuning comparison diverged
        return 0
    store = Path(members[0].cfg.store)
    folder = store / FOLDER
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".lock", timeout=120):  # two commands at once would submit a run twice
            states = {run.id: run.state for run in load_runs(store)}
            before, there = {}, queue(store)
            for member in members:
                state = state_with(states.get(member.cfg.id, "missing"), there.get(member.cfg.id))
                before[member.cfg.id] = state if state in (*SETTLED, "queued") else "missing"
            missing = [member for member in members if before[member.cfg.id] == "missing"]
            if missing:
                _submit(folder, missing, given)
            now = queue(store)
    except OSError as error:
        raise not_writable("store", folder, error) from None
    names, rows = labels_of(members), []
    for id, state in before.items():
        job = f"job {now[id].job}" if id in now else ""
        rows.append((id, names[id], "submitted" if state == "missing" else state, job))
    print(aligned(rows), flush=True)
    print(f"{len(missing)} of {len(members)} runs submitted; rerun the command to submit missing runs")
    return 0


def state_with(state: str, queued: Queued | None) -> str:
    """Return a run's state by its folder and the queue."""
    return queued.state if queued and state not in SETTLED else state


# the queue -----------------------------------------------------------------------------------------


def queue(store: Path) -> dict[str, Queued]:
    """Return the runs of a store that this user has in SLURM's queue, by id; none on a machine without SLURM."""
    if not (store / FOLDER).is_dir() or shutil.which("squeue") is None:
        return {}
    words = ["squeue", "--me", "--noheader", "--array", "--format=%i|%j|%T"]  # array tasks one by one
    try:
        listed = subprocess.run(words, capture_output=True, text=True, timeout=60, check=True).stdout
    except subprocess.SubprocessError as error:
        reason = getattr(error, "stderr", None) or str(error)
        raise UserError(f"squeue: must list the queued jobs, got {reason.strip()}") from None
    found: dict[str, Queued] = {}
    for job, name, state in (line.split("|") for line in listed.splitlines()):
        array, place = read_json(store / FOLDER / f"{name}.json") or {}, int(job.partition("_")[2] or 0)
        tasks = array.get("tasks", [])
        queued = Queued(job, "queued" if state in WAITS else "running")
        found |= dict.fromkeys(tasks[place] if place < len(tasks) else [], queued)  # none of somebody else's
    return found


# submitting ----------------------------------------------------------------------------------------


def _submit(folder: Path, members: list[Member], given: Settings) -> None:
    import submitit

    from normloss.sweeps.slurm_job import Job

    size = given.runs_per_job
    tasks = [members[start : start + size] for start in range(0, len(members), size)]
    name = f"normloss-{uuid.uuid4().hex[:12]}"
    jobs = [Job([(with_threads(m.cfg, size, given.cpus), m.words) for m in task], sys.argv) for task in tasks]
    write_json(folder / f"{name}.json", {"tasks": [[member.cfg.id for member in task] for task in tasks]})
    executor = submitit.SlurmExecutor(folder / name, max_num_timeout=FOREVER)
    executor.update_parameters(
        job_name=name,
        time=given.minutes,
        cpus_per_task=given.cpus,
        array_parallelism=given.jobs,
        signal_delay_s=given.signal_seconds,
        setup=[f"export PYTHONPATH={shlex.quote(str(ROOT))}${{PYTHONPATH:+:$PYTHONPATH}}"],
        stderr_to_stdout=True,
        additional_parameters={"requeue": True, **(given.sbatch or {})},
        **given.model_dump(include={"partition", "account", "qos", "constraint"}, exclude_none=True),
        **({"gpus_per_node": given.gpus} if given.gpus else {}),
        **({"mem": f"{int(given.mem_gb * 1024)}MB"} if given.mem_gb else {}),
    )
    try:
        with executor.batch():
            for job in jobs:
                executor.submit(job)
    except (submitit.core.utils.FailedJobError, submitit.core.utils.FailedSubmissionError) as error:
        (folder / f"{name}.json").unlink()
        lines = [line for line in str(error).splitlines() if "error" in line.lower()] or str(error).splitlines()
        raise UserError(f"sbatch: {lines[-1].strip().removeprefix('sbatch: error: ')}") from None
