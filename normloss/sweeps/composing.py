"""The runs that a command line stands for, as Hydra composes them, without starting Hydra's own sweep."""

import shlex
from collections.abc import Sequence
from pathlib import Path

import yaml
from omegaconf import DictConfig

from normloss.config import CONFIGS, Config, check
from normloss.errors import UserError
from normloss.sweeps import hydra_internals

Composed = tuple[list[str], DictConfig]  # a run's own overrides, and its config
FLAGS = {"config_path": "--config-path", "config_name": "--config-name", "config_dir": "--config-dir"}
OF_SWEEPS = ("hydra.launcher", "hydra/launcher", "hydra.sweep", "hydra/sweep", "hydra.mode")


def compositions(words: list[str]) -> list[Composed]:
    """Each run of `python train.py WORDS`, swept or not."""
    from hydra import compose, initialize_config_dir
    from hydra.core.override_parser.overrides_parser import OverridesParser

    flags, overrides = _flags(words)
    name = flags.get("config_name") or "config"
    folder = Path(flags["config_path"]).resolve() if "config_path" in flags else CONFIGS
    if "config_dir" in flags:
        overrides = [f"hydra.searchpath=[file://{Path(flags['config_dir']).resolve()}]", *overrides]
    kept = [word for word in overrides if word.startswith("hydra.searchpath=")]
    overrides = [word for word in overrides if not word.startswith(("hydra.", "hydra/"))]
    with initialize_config_dir(str(folder), version_base="1.3"):
        # what the experiment sweeps comes first, so that the command line wins
        experiment = [override for override in overrides if override.startswith("experiment=")]
        hydra = compose(name, [*experiment, *kept], return_hydra_config=True).hydra if experiment else None
        params = (hydra and hydra.sweeper.params) or {}
        parser = OverridesParser.create()
        parsed = parser.parse_overrides([*(f"{key}={values}" for key, values in params.items()), *overrides])
        cells: dict[tuple[str, ...], DictConfig] = {}  # seeds share a composition: it takes Hydra 0.1 s and more
        composed = []
        for member in hydra_internals.split_sweep(parsed):
            seeds = [word for word in member if word.startswith("seed=")]
            cell = tuple(word for word in member if word not in seeds)
            if cell not in cells:
                cells[cell] = compose(name, [*cell, *kept])
            raw = cells[cell].copy()
            if seeds:
                raw.seed = parser.parse_overrides(seeds[-1:])[0].value()
            composed.append((member, raw))
        return composed


def expand(words: list[str]) -> list[Config]:
    """The configs of the runs that `python train.py WORDS` trains, swept or not."""
    return [check(raw) for _, raw in compositions(words)]


def passed_on(words: list[str]) -> list[str]:
    """Of a sweep's command line, what each member is given beside its own overrides: where configs are found, and
    Hydra's settings but for those of sweeps."""
    flags, overrides = _flags(words)
    hydra = [word for word in overrides if word.startswith("hydra") and not word.startswith(OF_SWEEPS)]
    return [*(part for key, value in flags.items() for part in (FLAGS[key], value)), *hydra]


def config_folders(words: Sequence[str]) -> list[Path]:
    """Where a command line's configs are looked for, in this order."""
    flags, _ = _flags(words)
    given = [Path(flags[key]).resolve() for key in ("config_path", "config_dir") if key in flags]
    return [*given, CONFIGS]


def launcher(words: Sequence[str]) -> DictConfig:
    """hydra.launcher of a command line, as Hydra composes it."""
    from hydra import compose, initialize_config_dir

    chosen = [word for word in words if word.startswith(("hydra/launcher=", "hydra.launcher."))]
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return compose("config", chosen, return_hydra_config=True).hydra.launcher


def launcher_jobs(words: Sequence[str]) -> int | None:
    """hydra.launcher.jobs of a command line that Hydra does not read; raises UserError for no positive number."""
    value = next((word.partition("=")[2] for word in words if word.startswith("hydra.launcher.jobs=")), None)
    if value is None:
        return None
    if not value.isdecimal() or int(value) < 1:
        raise UserError(f"hydra.launcher.jobs: must be a whole number of at least 1, got {value!r}")
    return int(value)


def read_queue(file: Path) -> list[list[str]]:
    """A YAML list of lines such as "experiment=table1 model=resnet110"; raises UserError for anything else."""
    try:
        lines = yaml.safe_load(file.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise UserError(f"queue: must be a YAML file, got {file} ({' '.join(str(error).split())})") from None
    if not isinstance(lines, list) or not lines or not all(isinstance(line, str) for line in lines):
        raise UserError(f'queue: must hold a list of lines such as "experiment=table1 model=resnet110", got {file}')
    return [shlex.split(line) for line in lines]


def _flags(words: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """The command line's --config-path, --config-name and --config-dir where given, and its key=value words."""
    read, rest = hydra_internals.arguments_parser().parse_known_args(words)
    given = {key: getattr(read, key) for key in FLAGS if getattr(read, key)}
    return given, [*read.overrides, *(word for word in rest if not word.startswith("-"))]
