"""Turns what Hydra and OmegaConf raise into a UserError of one line."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from normloss.config import CONFIGS, RETIRED, Config, did_you_mean, is_gone, reg_files, section_keys
from normloss.config.plain import read_dict
from normloss.errors import Stop, UserError

OF_TUNING = ("trials", "seeds", "trial_seeds", "name")  # words next to compare= that are no keys of a run's config


@contextmanager
def one_line() -> Iterator[None]:
    """Raise whatever Hydra raises within this block as a UserError.

    For words that it cannot take Hydra raises TypeErrors and AssertionErrors as well as its own exceptions.
    """
    try:
        yield
    except (Stop, BrokenPipeError):
        raise
    except Exception as error:
        raise UserError(explain(error)) from error


def explain(error: Exception) -> str:
    """Return an error of Hydra or OmegaConf in one line, with the nearest key or the choices of a group."""
    from hydra.errors import MissingConfigException

    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, choice = error.missing_cfg_file.rpartition("/")
        if not group:
            return f"--config-name: no such config, got {choice!r}"
        gone = "basic" if group == "hydra/launcher" else ""  # Hydra's own, refused
        options = " ".join(one for one in error.options or [] if one != gone)
        more = "; the default is DATASET_MODEL; to borrow one: recipe=cifar10_resnet110" if group == "recipe" else ""
        return f"{group}: must be one of {options}, got {choice!r}{more}"
    text = str(error)
    found = re.search(r"Could not override '([^']+)'", text)
    key = found[1] if found else getattr(error, "full_key", None) if "is not in struct" in text else None
    if key in RETIRED:
        return is_gone(key)
    if key in OF_TUNING:
        return f"{key}: is a key of tuning comparisons only, compare=METHOD,..."
    if key and "No match in the defaults list" in text:
        groups = sorted(path.name for path in CONFIGS.iterdir() if path.is_dir() and path.name != "hydra")
        return f"{key}: no such group; there are: {' '.join(groups)}"
    if key:
        return f"{key}: no such key{_nearest_key(key)}"
    if missing := re.search(r"Missing mandatory value: (\S+)", text):
        return f"{missing[1]}: must be given"
    return " ".join(text.split()) or type(error).__name__


def _nearest_key(key: str) -> str:
    """Return '; did you mean ...': the same key of another section, else the nearest of its own."""
    section, _, word = key.rpartition(".")
    sections = {name: section_keys([name]) for name in ("train", "model", "dataset", "wandb")}
    sections["reg"] = sorted({key for file in reg_files().values() for key in file})
    sections["lam"] = ["wd", "nl"]
    sections["hydra.launcher"] = list(read_dict(CONFIGS / "hydra" / "launcher" / "slurm.yaml"))
    if word in sections.get(section, []):
        return f" of the chosen {section}; others have it"
    elsewhere = [f"{name}.{word}" for name, keys in sections.items() if word in keys]
    if elsewhere:
        return f"; did you mean {elsewhere[0]}?" + " (of sweeps: -m)" * elsewhere[0].startswith("hydra.")
    if section in sections:
        return did_you_mean(word, sections[section], section)
    return did_you_mean(word, [*Config.model_fields, "recipe", "experiment", "debug"])
