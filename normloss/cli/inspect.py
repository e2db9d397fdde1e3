"""The weights of a checkpoint as a table: python -m normloss.diagnostics results/runs/<id>/last.pt"""

import sys
from pathlib import Path

import torch
from torch import nn

from normloss.diagnostics import diagnostics, table
from normloss.errors import UserError


def load_model(checkpoint: Path) -> nn.Module:
    """The network of a run's folder with the checkpoint's weights; raises UserError where that cannot be read."""
    import yaml

    from normloss import models, regularizers
    from normloss.config import read_stored

    try:
        cfg = read_stored(yaml.safe_load((checkpoint.parent / "config.yaml").read_text()))
        state = torch.load(checkpoint, map_location="cpu", weights_only=True)["model"]
    except (OSError, RuntimeError, KeyError, ValueError) as error:
        raise UserError(f"{checkpoint}: must be the last.pt of a run's folder ({error})") from None
    model = models.build(cfg.model, cfg.dataset.num_classes, cfg.dataset.channels)
    regularizers.build(model, cfg.reg)  # a reparametrization names the weights differently
    model.load_state_dict(state)
    return model


def main(arguments: list[str]) -> int:
    if len(arguments) != 1:
        print(__doc__, file=sys.stderr)
        return 2
    try:
        print(table(diagnostics(load_model(Path(arguments[0])))))
    except UserError as error:
        print(f"normloss: {error}", file=sys.stderr)
        return error.status
    return 0
