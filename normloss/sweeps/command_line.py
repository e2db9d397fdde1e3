"""The runs of one command line that is no queue and no tuning comparison, as Hydra composes them.

Hydra composes each choice of groups once, which takes it 0.1 s; other swept values are set on copies.
"""

import itertools
import os
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property, partial
from pathlib import Path
from typing import NamedTuple, NoReturn

from omegaconf import DictConfig, OmegaConf

from normloss.config import CONFIGS, Config, check, default_model
from normloss.errors import UserError
from normloss.sweeps.refusals import one_line


class Planned(NamedTuple):
    """A run of a command line."""

    cfg: Config
    words: list[str]  # the overrides that choose it alone


Entry = Callable[[], list[Planned]]  # of a queue: its runs as far as they are known; called anew when one has ended


def is_sweep(words: Sequence[str]) -> bool:
    """Return whether Hydra takes a command line for a sweep."""
    with one_line(), _composer(words) as composer:
        return composer.is_sweep


def hydra_node(words: Sequence[str]) -> DictConfig:
    """Return the node `hydra` of a command line's config: its launcher, and what its experiment sweeps."""
    with one_line(), _composer(words) as composer:
        return composer.hydra_node


def compositions(words: Sequence[str]) -> list[Planned]:
    """Return the runs of a command line; raises UserError in one line."""
    with one_line(), _composer(words) as composer:
        found = list(composer.runs())
    return [Planned(check(raw), own) for own, raw in found]


class _Composer:
    """Composes from the config folders that a command line names; to be used while Hydra is initialized."""

    def __init__(self, words: Sequence[str]) -> None:
        from hydra import compose
        from hydra.core.global_hydra import GlobalHydra
        from hydra.core.override_parser.overrides_parser import OverridesParser

        self.options = parse(words)
        given = _prepared(self.options.overrides)
        self.overrides = [word for word in given if not word.startswith(("hydra.", "hydra/"))]
        self.of_hydra = [word for word in given if word.startswith(("hydra.", "hydra/"))]
        if self.options.config_dir:
            if not Path(self.options.config_dir).is_dir():
                raise UserError(f"--config-dir: must be a folder that exists, got {self.options.config_dir}")
            self.of_hydra.append(f"hydra.searchpath=[file://{Path(self.options.config_dir).resolve()}]")
        self.experiment = [word for word in self.overrides if word.startswith(("experiment=", "+experiment="))]
        self.loader = GlobalHydra.instance().config_loader()
        self.parse = OverridesParser.create(self.loader).parse_overrides
        self.compose = partial(compose, self.options.config_name or "config")

    @cached_property
    def hydra_node(self) -> DictConfig:
        """Hydra's own settings, as the experiment and the words of `hydra.` have them."""
        return self.compose([*self.experiment, *self.of_hydra], return_hydra_config=True).hydra

    @property
    def is_sweep(self) -> bool:
        from hydra.types import RunMode

        if self.options.multirun or not (self.experiment or self.of_hydra):
            return bool(self.options.multirun)
        return self.hydra_node.mode == RunMode.MULTIRUN

    def runs(self) -> Iterator[tuple[list[str], DictConfig]]:
        """Yield own overrides and config of each run: of one, or of the product of all that is swept.

        The experiment's keys come first, so that the command line wins.
        """
        if not self.is_sweep:
            yield self.overrides, self.compose([*self.overrides, *self.of_hydra])
            return
        params = self.hydra_node.sweeper.params or {}
        choices: dict[str, list[str]] = {}
        for override in self.parse([*(f"{key}={values}" for key, values in params.items()), *self.overrides]):
            key, own = override.get_key_element(), [str(override.input_line)]
            swept = override.is_sweep_override()
            choices[key] = [f"{key}={one}" for one in override.sweep_string_iterator()] if swept else own
            if not choices[key]:
                raise UserError(f"{override.input_line}: has no value to sweep over")
        # a value in a composed config, rather than a key that is added or deleted, or a group
        keys = [key for key in choices if key[0] not in "+~" and "@" not in key]
        set_on_copies = [key for key in keys if len(choices[key]) > 1 and not self.loader.get_group_options(key)]
        values = {word: self.parse([word])[0].value() for key in set_on_copies for word in choices[key]}
        bases: dict[tuple[str, ...], DictConfig] = {}
        for words in itertools.product(*choices.values()):
            base = tuple(word for word in words if word not in values)
            if base not in bases:
                bases[base] = self.compose([*base, *self.of_hydra])
            raw = bases[base].copy()
            for key, word in zip(choices, words, strict=True):
                if word in values:
                    OmegaConf.update(raw, key, values[word], merge=True)
            yield list(words), raw


@contextmanager
def _composer(words: Sequence[str]) -> Iterator[_Composer]:
    from hydra import initialize_config_dir

    given = parse(words).config_path
    with initialize_config_dir(str(Path(given).resolve() if given else CONFIGS), version_base="1.3"):
        yield _Composer(words)


def _prepared(overrides: list[str]) -> list[str]:
    """Return overrides with the data set's own model; raises UserError for what Hydra would take otherwise than meant.

    The data set's file cannot say its model: Hydra resolves ${dataset}_${model} before reading it.
    """
    for word in overrides:
        if word.lstrip("+").startswith("experiment=") and "," in word:  # two default runs (hydra issue 2807)
            raise UserError(f"{word}: one experiment per command; start one after the other")
        group, _, choice = word.partition("=")
        if choice.startswith("[") and (CONFIGS / group.lstrip("+")).is_dir():  # Hydra would merge several files
            raise UserError(f"{group}: must be one name, got {choice}; for several runs: -m {group}=a,b")
    chosen = dict(word.split("=", 1) for word in overrides if "=" in word)
    model = default_model(chosen.get("dataset", ""))
    if model is None or "model" in chosen:
        return overrides
    place = overrides.index(f"dataset={chosen['dataset']}") + 1
    return [*overrides[:place], f"model={model}", *overrides[place:]]


def parse(words: Sequence[str]) -> Namespace:
    """Return the options of a command line, such as `multirun` and `cfg`, and its key=value words as `overrides`.

    Raises UserError with argparse's message. The one use of Hydra's insides: tests/test_composing.py fails when a
    version of Hydra breaks it.
    """
    from hydra._internal.utils import get_args_parser

    def refuse(message: str) -> NoReturn:
        raise UserError(message.removeprefix("argument "))

    parser = get_args_parser()
    parser.error = refuse  # type: ignore[method-assign]  # argparse would print a usage of 12 lines and exit
    options = parser.parse_intermixed_args(words)
    if options.experimental_rerun:
        raise UserError("--experimental-rerun: is rejected: it reads a pickle, which can run any code")
    return options


# what Hydra answers itself ------------------------------------------------------------------------


def is_for_hydra(words: Sequence[str]) -> bool:
    """Return whether a command line asks for help, a config, information or completion."""
    options = parse(words)
    return bool(options.help or options.hydra_help or options.cfg or options.info or options.shell_completion)


def ask_hydra(words: Sequence[str]) -> int:
    """Let Hydra answer; return the exit status. Nothing is trained."""
    import hydra

    options = parse(words)
    if options.cfg == "job":
        compositions(words)  # raises for what no run can have
    asked = [*(word for word in words if word not in options.overrides), *_prepared(options.overrides)]
    sys.argv[1:] = ["--help"] if options.help else asked
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises instead of printing and exiting with 1
    with one_line():
        hydra.main(str(CONFIGS), "config", version_base="1.3")(lambda raw: None)()
    return 0
