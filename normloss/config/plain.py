"""What OmegaConf holds or reads, as plain dicts with text as keys."""

from pathlib import Path
from typing import Any

from omegaconf import OmegaConf


def as_dict(node: Any, resolve: bool = False, throw_on_missing: bool = False) -> dict[str, Any]:
    """OmegaConf.to_container of a mapping."""
    container: Any = OmegaConf.to_container(node, resolve=resolve, throw_on_missing=throw_on_missing)
    return container


def read_dict(file: Path) -> dict[str, Any]:
    """A YAML file, its interpolations as they stand."""
    return as_dict(OmegaConf.load(file))
