"""Several seeds of one run at once, in one process: python train.py model=resnet110 reg=nl seeds=0,1,2,3,4

A small network leaves most of a GPU idle. Each seed has its own model, random state, run folder and, on CUDA, graph and
stream; the images are there once. The runs take turns step by step, and each is the run that it would be alone.
"""

import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from normloss.config import Config
from normloss.errors import DEFECT, Stop, UserError
from normloss.runs import store
from normloss.signals import StopRequest
from normloss.sweeps import budget
from normloss.sweeps.durations import MOST_SEEDS
from normloss.sweeps.members import OUTCOMES, Member, compositions, launcher_jobs, plan, report, run_members, worst

if TYPE_CHECKING:  # torch is imported where a run trains: what is done answers at once
    import torch

    from normloss.data import Data

Steps = Callable[[Config, store.Run, StopRequest, "SharedData"], Iterator[None]]  # train.steps


class SharedData:
    """The data set of runs that differ in the seed, read once."""

    def __init__(self, runs: int = 1) -> None:
        self.runs = runs  # that train at once
        self.data: Data | None = None

    def of(self, cfg: Config, device: "torch.device") -> "Data":
        """The batches of this config's seed.

        Raises UserError as data.build does, and for several runs on a data set that cannot be shared.
        """
        if self.data is None:
            from normloss import data
            from normloss.training import device as devices

            if self.runs > 1 and cfg.dataset.name not in data.LOADERS:
                raise UserError(
                    f"seeds: needs a data set that stays on the device as tensors, which {cfg.dataset.name} does not;"
                    " train one after the other: -m seed=..."
                )
            self.data = data.build(cfg, device)
            devices.synchronize(device)  # the other runs read it from their own streams
        return self.data if self.runs == 1 else self.data.of_seed(cfg.seed)


class Lane:
    """A run among several: its steps, and what is global in torch but must be its own."""

    def __init__(self, work: Iterator[None], device: "torch.device") -> None:
        import torch

        self.work = work
        self.cpu_state = torch.get_rng_state()
        self.stream: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self.stream = torch.cuda.Stream(device)
            self.generator = torch.Generator(self.stream.device)

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Within this block torch's default generators are this run's, and CUDA's work goes to its stream."""
        import torch

        outside = torch.get_rng_state()
        torch.set_rng_state(self.cpu_state)
        try:
            if self.stream is None:
                yield
            else:
                with torch.cuda.stream(self.stream), self._cuda_generator():
                    yield
        finally:
            self.cpu_state = torch.get_rng_state()
            torch.set_rng_state(outside)

    @contextmanager
    def _cuda_generator(self) -> Iterator[None]:
        """The state itself is swapped, not its numbers: a captured graph keeps the one of its capture and advances it
        at each replay, on this run's stream alone."""
        import torch

        default = torch.cuda.default_generators[self.stream.device.index]
        outside = default.graphsafe_get_state()
        default.graphsafe_set_state(self.generator.graphsafe_get_state())
        try:
            yield
        finally:
            default.graphsafe_set_state(outside)


def run_seeds(words: list[str], steps: Steps) -> int:
    """`python train.py key=value ... seeds=LIST`: the exit status, after a table of what became of each run.

    LIST: as Hydra spells a sweep, 0,1,2 or range(0,5). Other keys may be swept too: then it is a sweep whose members
    are several seeds each.
    """
    composed = compositions(as_sweep(words))
    try:
        members = plan(composed)
    except UserError as error:
        raise UserError(re.sub("^seed:", "seeds:", str(error))) from None
    count = len({member.cfg.seed for member in members})
    if count > MOST_SEEDS:
        raise UserError(f"seeds: must be at most {MOST_SEEDS} at once, got {count}")
    if len({member.cfg.cell for member in members}) > 1:
        return run_members(composed, launcher_jobs(words), together=count)
    alone = "NORMLOSS_SWEEP" not in os.environ  # a sweep tells of its members itself
    if alone:
        print(f"{len(members)} seeds, {sum(member.status == 0 for member in members)} done before", flush=True)
    waiting = [member for member in members if member.status is None]
    if waiting:
        train_together(waiting, steps)
    if alone:
        print(report(members), flush=True)
    return worst(members)


def as_sweep(words: list[str]) -> list[str]:
    """The words with seeds=LIST as Hydra's sweep over seed; raises UserError for what is no key=value, and for seeds
    given twice."""
    for word in words:
        if word.startswith("-") and word not in ("-m", "--multirun"):
            raise UserError(f"seeds: goes with key=value words only, got {word}")
    given = [word for word in words if word.startswith(("seed=", "seeds="))]
    if len(given) > 1:
        raise UserError(f"seeds: must be given once and without seed, got {' '.join(given)}")
    kept = [word for word in words if not word.startswith(("-", "hydra."))]
    return [word.replace("seeds=", "seed=", 1) if word.startswith("seeds=") else word for word in kept]


def train_together(members: list[Member], steps: Steps) -> None:
    """Train the members' runs at once; the status and outcome of each is noted in it.

    A run that fails, diverges or is another process's does not stop the others.
    """
    from normloss.training import device as devices

    cfg = members[0].cfg
    device = devices.choose(cfg.device)
    stop, shared = StopRequest(budget.deadline(cfg.budget_minutes)), SharedData(len(members))
    lanes = [Lane(life(member.cfg, steps, stop, shared), device) for member in members]
    rounds = 0
    with stop.installed():
        while any(member.status is None for member in members):
            for place, (member, lane) in enumerate(zip(members, lanes, strict=True)):
                if member.status is None and rounds >= first_round(place, shared):
                    take_turn(member, lane)
                if member.status == UserError.status and shared.data is None:  # what no other seed can change
                    for other in members:
                        other.status, other.outcome = member.status, member.outcome
                    return
            rounds += 1


def life(cfg: Config, steps: Steps, stop: StopRequest, shared: SharedData) -> Iterator[None]:
    """A run from its folder to its end; only now locked, and refused if another process has it or it diverged."""
    run = store.open_run(cfg)
    if not run.done:
        yield from steps(cfg, run, stop, shared)


def first_round(place: int, shared: SharedData) -> int:
    """In which round a run begins: each a part of an epoch after the one before.

    So they test, log and save at different times, and while the host waits for one, the GPU has the others' steps.
    """
    return place * shared.data.steps_per_epoch // shared.runs if shared.data else place


def take_turn(member: Member, lane: Lane) -> None:
    """A step of the run; how it ends is noted in the member."""
    try:
        with lane.turn():
            next(lane.work)
    except StopIteration:
        member.status, member.outcome = 0, OUTCOMES[0]
    except Stop as stop:
        print(f"normloss: {stop}", file=sys.stderr, flush=True)
        member.status, member.outcome = stop.status, OUTCOMES[stop.status]
    except BrokenPipeError:  # the others' output too
        raise
    except Exception:  # noqa: BLE001  shown whole, exit status 1; the other runs go on
        traceback.print_exc()
        print(f"normloss: {DEFECT}", file=sys.stderr, flush=True)
        member.status, member.outcome = 1, OUTCOMES[1]
