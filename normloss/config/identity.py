"""The trained part of a config, apart from where and how: one rule for run ids, selection and stored configs.

A key that is new since version 0.1.0 is part of the identity only where it differs from its default, so that every run
trained before keeps its id. A key that is gone is dropped where a stored config is read.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

TRAINED = ("dataset", "model", "reg", "train", "seed")
HOW = {"train.executor"}  # how a step is run, not what is trained
ADDED: dict[str, Any] = {  # keys newer than version 0.1.0, with the default that leaves them out
    "train.lr_values": None,
    "dataset.val": 0,
    "reg.decoupled": False,
}
RETIRED = {  # top-level keys that are gone, with what replaces them
    "decode": "JPEGs are decoded on the host",
    "seeds": "-m seed=0,1,2 hydra.launcher.jobs=N trains N at a time, each in a process of its own",
}


def trained_config(stored: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of a stored config that says what is trained: its run id is made of it, and runs match by it."""
    return {key: _trained_part(stored[key], key) for key in TRAINED}


def _trained_part(value: Any, path: str) -> Any:
    if not isinstance(value, Mapping):
        return value
    kept = {}
    for key, item in value.items():
        at = f"{path}.{key}"
        if at not in HOW and not (at in ADDED and _canonical(item) == ADDED[at]):
            kept[key] = _trained_part(item, at)
    return kept


def is_truncated(stored: Mapping[str, Any]) -> bool:
    """Return whether a run was truncated on purpose (train.max_steps, train.eval_batches): no evidence for anything."""
    return stored["train"]["max_steps"] is not None or stored["train"]["eval_batches"] is not None


def without_retired(stored: Mapping[str, Any]) -> dict[str, Any]:
    """Return a stored config without the keys that are gone since: none of them was part of an identity."""
    return {key: value for key, value in stored.items() if key not in RETIRED}


def run_id(stored: Mapping[str, Any]) -> str:
    """Return 8 hex digits of SHA-256 over what is trained, in canonical JSON."""
    return _digest(trained_config(stored))


def setting_id(stored: Mapping[str, Any]) -> str:
    """Return an id that runs share if they differ in the seed only: a setting."""
    return _digest({**trained_config(stored), "seed": None})


def fp32_setting_id(stored: Mapping[str, Any]) -> str:
    """Return setting_id with tf32 taken for fp32, whose place in tables and figures it may take (D21)."""
    train = stored["train"]
    return setting_id({**stored, "train": {**train, "precision": "fp32"}} if train["precision"] == "tf32" else stored)


def _digest(value: dict[str, Any]) -> str:
    text = json.dumps(_canonical(value), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _canonical(value: Any) -> Any:
    """Return a value with one spelling for each number, so that lam=1 and lam=1.0 are one run."""
    if isinstance(value, dict):
        return {key: _canonical(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_canonical(item) for item in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value
