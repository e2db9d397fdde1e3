"""Tells Hydra of `hydra/launcher=local`: Hydra looks for launchers in this namespace only."""

from dataclasses import dataclass
from typing import Any, NoReturn

from hydra.core.config_store import ConfigStore
from hydra.plugins.launcher import Launcher

from normloss.sweeps.members import Line, run_members


@dataclass
class LocalLauncherConf:
    _target_: str = "hydra_plugins.normloss_local.LocalLauncher"
    jobs: int | None = None  # members that train at once: one for each GPU where it is not given, one without


class LocalLauncher(Launcher):
    """Each member of a sweep in a process of its own, `jobs` at a time; members that are done are skipped."""

    def __init__(self, jobs: int | None) -> None:
        self.jobs = jobs

    def setup(self, *, hydra_context: Any, task_function: Any, config: Any) -> None:
        self.hydra_context, self.config = hydra_context, config

    def launch(self, job_overrides: Any, initial_job_idx: int) -> NoReturn:
        compose = self.hydra_context.config_loader.load_sweep_config
        members = [(list(overrides), compose(self.config, list(overrides))) for overrides in job_overrides]
        raise SystemExit(run_members([Line(members)], self.jobs))


ConfigStore.instance().store(group="hydra/launcher", name="local", node=LocalLauncherConf, provider="normloss")
