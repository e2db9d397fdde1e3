"""The trained weights of finished runs: folded into plain tensors with what they are, and given back as a model.

results/weights/<id>.safetensors has the run's id, config and final metrics in its header: no code, no pickle.
"""

import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from normloss import __version__, models, regularizers
from normloss.config import Config, read_stored, run_id, science
from normloss.config.schema import Trained
from normloss.errors import UserError
from normloss.runs import contract
from normloss.runs.contract import BadRun
from normloss.runs.files import Damaged, find_damage, parse_json, write_whole

KEY = "normloss"  # of the header


def load(file: str | Path) -> nn.Module:
    """The model of an exported .safetensors file, on the CPU and in evaluation mode: plain layers, ready to fine-tune.

    Raises UserError for a file that is none of scripts/export.py's.
    """
    header, tensors = _read(Path(file))
    trained = header["config"]
    if trained.model.depth > len(tensors):  # no file of a few bytes asks for a network of a million layers
        raise _refusal(file, f"a network {trained.model.depth} layers deep of {len(tensors)} tensors")
    with torch.device("meta"):  # without memory, and without drawing from the generator of whoever calls
        model = models.build(trained.model, trained.dataset.num_classes, trained.dataset.channels)
    try:
        model.load_state_dict(tensors, assign=True)
    except RuntimeError as error:
        raise _refusal(file, " ".join(str(error).split())[:200]) from None
    return model.eval()


def describe(file: str | Path) -> dict[str, Any]:
    """What the header of an exported file says: id, config (what was trained), final (the metrics), version."""
    header, _ = _read(Path(file))
    return header | {"config": header["config"].model_dump(mode="json")}


def _read(file: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        with safe_open(file, framework="pt") as opened:
            header = parse_json((opened.metadata() or {}).get(KEY, "").encode())
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  no mapping
        trained = Trained.model_validate(header.get("config"))
        if header.get("id") != run_id(header["config"]):
            raise Damaged(f"says that it is run {header.get('id')!r}, and its config is another's")
    except ValidationError as error:
        raise _refusal(file, error.errors()[0]["msg"]) from None
    except (OSError, SafetensorError, Damaged) as error:
        raise _refusal(file, " ".join(str(error).split())[:200]) from None
    return header | {"config": trained}, tensors


def _refusal(file: str | Path, got: str) -> UserError:
    return UserError(f"{file}: must be a file that scripts/export.py --weights wrote, got {got}")


def load_checkpoint(path: Path) -> nn.Module:
    """The network of a run's folder with the weights of its last.pt, on the CPU, reparametrized as it was trained.

    Raises UserError where the folder has none.
    """
    return _load_checkpoint(path)[0]


def export(path: Path, final: Mapping[str, Any], to: Path) -> None:
    """Write the weights of the finished run in `path`, folded, with its config and metrics; raises UserError."""
    model, reg, cfg = _load_checkpoint(path)
    reg.fold()
    header = {"id": cfg.id, "config": science(cfg.stored()), "final": dict(final), "version": __version__}
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    to.parent.mkdir(parents=True, exist_ok=True)
    write_whole(to, save(tensors, {"format": "pt", KEY: json.dumps(header, sort_keys=True)}))


def _load_checkpoint(path: Path) -> tuple[nn.Module, regularizers.Regularizer, Config]:
    file = path / "last.pt"
    try:
        cfg = read_stored(contract.read_config(path, path.name))
        if damage := find_damage(file):
            raise Damaged(f"last.pt is damaged ({damage})" if file.exists() else "last.pt is gone")
        checkpoint = torch.load(file, map_location="cpu", weights_only=True)
        model = models.build(cfg.model, cfg.dataset.num_classes, cfg.dataset.channels)
        reg = regularizers.build(model, cfg.reg)  # a reparametrization names the weights differently
        model.load_state_dict(checkpoint["model"])
    except (Damaged, BadRun, RuntimeError, KeyError, ValueError, pickle.UnpicklingError, EOFError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path}: must be the folder of a run with its weights: {reason}") from None
    return model.eval(), reg, cfg
