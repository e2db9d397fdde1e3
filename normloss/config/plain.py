"""OmegaConf's configs as plain dicts."""

from pathlib import Path
from typing import Any

from omegaconf import OmegaConf


def as_dict(node: Any, resolve: bool = False, throw_on_missing: bool = False) -> dict[str, Any]:
    """Return a mapping of OmegaConf as a dict with text as keys."""
    container: Any = OmegaConf.to_container(node, resolve=resolve, throw_on_missing=throw_on_missing)
    return container


def read_dict(file: Path) -> dict[str, Any]:
    """Read a YAML file, its interpolations as they stand."""
    return as_dict(OmegaConf.load(file))
