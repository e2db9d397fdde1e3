"""Tells Hydra of `hydra/launcher=slurm`: Hydra looks for launchers in this namespace only."""

from typing import Any, NoReturn

from hydra.core.config_store import ConfigStore
from hydra.plugins.launcher import Launcher
from omegaconf import OmegaConf

from normloss.sweeps import slurm
from normloss.sweeps.members import Line


class SlurmLauncher(Launcher):
    """Submits a sweep's missing runs and returns; for a configuration that chooses it, since train.py sees the word."""

    def __init__(self, **given: Any) -> None:
        self.given = slurm.checked(OmegaConf.create(given))

    def setup(self, *, hydra_context: Any, task_function: Any, config: Any) -> None:
        self.hydra_context, self.config = hydra_context, config

    def launch(self, job_overrides: Any, initial_job_idx: int) -> NoReturn:
        compose = self.hydra_context.config_loader.load_sweep_config
        members = [(list(overrides), compose(self.config, list(overrides))) for overrides in job_overrides]
        raise SystemExit(slurm.submit([Line(members)], self.given))


ConfigStore.instance().store(group="hydra/launcher", name="slurm", node=slurm.Settings, provider="normloss")
