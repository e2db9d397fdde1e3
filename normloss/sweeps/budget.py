"""A budget of time on some machine: which runs come first in it, what to expect of it, when to stop."""

import time
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from normloss.config import Config
from normloss.training.durations import Estimate, StepTimes, kind, known_work, share_done, spell

SAVE_SECONDS = 10.0  # before the end of the budget: a checkpoint is written in these
LEAST_SECONDS = 20.0  # a run is not started for less: it would read its data and leave


@dataclass(frozen=True)
class Budget:
    """When it began, and when runs have to leave (seconds since the epoch)."""

    minutes: float
    began: float

    @property
    def deadline(self) -> float:
        return self.began + 60 * self.minutes - SAVE_SECONDS

    @property
    def left(self) -> float:
        """Seconds until the deadline."""
        return self.deadline - time.time()

    @property
    def open(self) -> bool:
        """Whether there is time to start another run."""
        return self.left > LEAST_SECONDS


def deadline(minutes: float | None) -> float | None:
    """Of a run of its own that starts now."""
    return None if minutes is None else Budget(minutes, time.time()).deadline


def arrange(configs: list[Config]) -> list[Config]:
    """What is nearly finished first; then one seed of every cell, both methods of a pair, before the next seed."""
    seeds: Counter[str] = Counter()
    rank = {}
    for cfg in configs:  # the first seed of a cell, the second, ...
        rank[cfg.id] = seeds[cfg.cell]
        seeds[cfg.cell] += 1
    done = {cfg.id: share_done(cfg) for cfg in configs}
    return sorted(configs, key=lambda cfg: (-done[cfg.id], rank[cfg.id]))  # stable: else in the order they came


def time_steps(configs: list[Config], seconds: float | None, jobs: int = 1) -> StepTimes:
    """The steps of each kind of run, timed on this device in `jobs` processes at once, as they will train.

    seconds: what there is to fill; kinds that come after so much work, in the order of the configs, are left out.
    """
    from normloss.sweeps import processes, step_timing

    work: dict[tuple[str, str], float] = defaultdict(float)  # steps
    firsts: dict[tuple[str, str], Config] = {}
    for cfg in configs:
        if whole := known_work(cfg):
            work[kind(cfg)] += whole.total * (1 - share_done(cfg))
            firsts.setdefault(kind(cfg), cfg)
    if not firsts:
        return StepTimes({})
    processes.preload()
    asked = [(cfg, work[key] / jobs) for key, cfg in firsts.items()]
    answers = processes.ask(step_timing.time_in_turn, asked, seconds, time.time(), times=jobs)
    steps = [max(together) for together in zip(*(answer.steps for answer in answers), strict=False)]
    return StepTimes(dict(zip(firsts, steps, strict=False)), max(answer.start for answer in answers))


def outlook(configs: Iterable[Config], times: StepTimes, jobs: int, seconds: float = 0.0) -> str:
    """What is left, and what `seconds` are expected to bring, `jobs` runs at a time in the order given."""
    estimates = {cfg.id: (times.estimate(cfg), share_done(cfg)) for cfg in configs}
    known = [estimate.left(done) for estimate, done in estimates.values() if estimate]
    unknown = len(estimates) - len(known)
    finished, begun = _expect(list(estimates.values()), jobs, seconds)
    text = f"expects to finish {finished} of {len(estimates)} runs and to take {begun} on; " if seconds else ""
    text += f"{spell(sum(known) / jobs)} of work left on this machine" if sum(known) else "nothing left that is known"
    told = ((cfg, estimates[cfg.id][0]) for cfg in configs)
    borrowed = [f"{cfg.model.name} reg={cfg.reg.name}, {by.source}" for cfg, by in told if by and by.borrowed]
    if borrowed := list(dict.fromkeys(borrowed)):
        more = f" and {len(borrowed) - 3} more" if len(borrowed) > 3 else ""
        text += f" (not timed: {'; '.join(borrowed[:3])}{more})"
    return text + (f", and {unknown} runs that cannot be told" if unknown else "")


def _expect(runs: list[tuple[Estimate | None, float]], jobs: int, seconds: float) -> tuple[int, int]:
    """How many runs end in `seconds`, and how many more are begun; one that cannot be told is taken not to end."""
    free = [0.0] * jobs  # when each of the processes can take the next run
    finished = begun = 0
    for estimate, done in runs:
        first = min(range(jobs), key=free.__getitem__)
        if free[first] > seconds - LEAST_SECONDS:
            break
        free[first] += estimate.left(done) if estimate else seconds + 1
        finished += free[first] <= seconds
        begun += free[first] > seconds
    return finished, begun
