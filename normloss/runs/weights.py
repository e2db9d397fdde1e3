"""Trained weights of finished runs: exported as folded, plain tensors with their config, and loaded as a model.

results/weights/<id>.safetensors has the run's id, config, final metrics, preprocessing and class names in its header:
no code, no pickle. docs/weights.md says how to use one.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from normloss import __version__, models, regularizers
from normloss.config import Config, read_stored, run_id, trained_config
from normloss.config.schema import ImageNet, Images, TensorImages, Trained
from normloss.errors import UserError
from normloss.runs import checkpoint
from normloss.runs.files import one_line, read_json, write_whole
from normloss.runs.records import read_config

KEY = "normloss"  # of the header


def load(file: str | Path) -> nn.Module:
    """Return the model of an exported .safetensors file, on the CPU and in evaluation mode: plain layers to fine-tune.

    Raises UserError for a file that is none of scripts/export.py's.
    """
    header, tensors = _read(Path(file))
    trained = header["config"]
    with torch.device("meta"):  # without memory, and without drawing from the generator of whoever calls
        model = models.build(trained.model, trained.dataset.num_classes, trained.dataset.channels)
    try:
        model.load_state_dict(tensors, assign=True)
    except RuntimeError as error:
        raise _refusal(file, error) from None
    return model.eval()


def describe(file: str | Path) -> dict[str, Any]:
    """Return the header of an exported file: id, config (what was trained), final (the metrics), version,
    preprocessing, and classes (their names by label) where the images have any."""
    header, _ = _read(Path(file))
    how = preprocessing(header["config"].dataset)  # which files of before 0.3 do not hold
    return {"preprocessing": how} | header | {"config": header["config"].model_dump(mode="json")}


def preprocessing(cfg: Images) -> dict[str, Any]:
    """Return how a picture becomes the network's input, in this order, and what training added.

    upright: turned as EXIF says; background: under transparent pixels; resize: pixels of the short side, by `filter`;
    size: of the centre crop; mean and std per channel, of pixels in 0..255: x = (pixel - mean) / std.
    """
    training = {"flip": cfg.flip} | ({"pad": cfg.pad, "padding": cfg.padding} if isinstance(cfg, TensorImages) else {})
    return {
        "upright": not isinstance(cfg, ImageNet),
        "background": "white",
        "channels": cfg.channels,
        "resize": cfg.resize if isinstance(cfg, ImageNet) else cfg.size,
        "filter": "bicubic",
        "size": cfg.size,
        "mean": cfg.mean,
        "std": cfg.std,
        "training": training,
    }


def _read(file: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        with safe_open(file, framework="pt") as opened:
            header = json.loads((opened.metadata() or {})[KEY])
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  no mapping
        trained = Trained.model_validate(header["config"])
        own = run_id(header["config"])
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:  # pydantic's is a ValueError
        raise _refusal(file, error) from None
    if header["id"] != own:
        raise _refusal(file, f"one that says that it is run {header['id']!r} and holds the config of {own}")
    return header | {"config": trained}, tensors


def _refusal(file: str | Path, got: object) -> UserError:
    return UserError(one_line(f"{file}: must be a file that scripts/export.py --weights wrote, got {got}"))


def load_checkpoint(path: Path, name: str = "last.pt") -> tuple[nn.Module, regularizers.Regularizer, Config]:
    """Return the network of a run's folder with the weights of a checkpoint, its regularizer and config.

    The network is on the CPU, reparametrized as in training. Raises UserError where the folder has no such checkpoint.
    """
    try:
        cfg = read_stored(read_config(path))
        model = models.build(cfg.model, cfg.dataset.num_classes, cfg.dataset.channels)
        reg = regularizers.build(model, cfg.reg)  # a reparametrization names the weights differently
        model.load_state_dict(checkpoint.load(path / name)["model"])
    except (UserError, RuntimeError, KeyError, ValueError) as error:
        raise UserError(one_line(f"{path}: must be the folder of a run with its weights: {error}")) from None
    return model.eval(), reg, cfg


def export(path: Path, final: Mapping[str, Any], to: Path) -> None:
    """Write the weights of the finished run in `path`, folded, with their header; raises UserError."""
    model, reg, cfg = load_checkpoint(path)
    reg.fold()
    classes = (read_json(path / "meta.json") or {}).get("classes")  # their names by label, where they have any
    header = {"id": cfg.id, "config": trained_config(cfg.stored()), "final": dict(final), "version": __version__}
    header |= {"preprocessing": preprocessing(cfg.dataset)} | ({"classes": classes} if classes else {})
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    to.parent.mkdir(parents=True, exist_ok=True)
    write_whole(to, save(tensors, {"format": "pt", KEY: json.dumps(header, sort_keys=True)}))
