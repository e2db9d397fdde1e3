"""Norm loss and its rivals for PyTorch: weight regularizers that a training step calls at three points.

reg = normloss.NormLoss(model, lam=1e-2)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
for x, y in loader:
    optimizer.zero_grad(); F.cross_entropy(model(x), y).backward()
    reg.before_step(); optimizer.step(); reg.after_step()

print(reg) is a table of what is covered, reg.norms() the norm of each filter.
"""

import importlib
from typing import Any

__version__ = "0.3.0"

_CLASSES = (
    "Chain",
    "DSO",
    "JacobianPenalty",
    "MC",
    "NormLoss",
    "OLM",
    "ONI",
    "PBWN",
    "Regularizer",
    "RiemannianOblique",
    "SO",
    "SRIP",
    "SpectralNormPenalty",
    "Stiefel",
    "WeightDecay",
    "WeightNorm",
)
__all__ = [*_CLASSES, "diagnostics", "functional", "load"]


def load(file: Any) -> Any:
    """Return the model of a file that scripts/export.py --weights wrote, to evaluate or fine-tune; needs the suite."""
    from normloss.runs import weights

    return weights.load(file)


def __getattr__(name: str) -> Any:
    # torch is imported on first use, so that --help and shell completion answer at once
    if name in _CLASSES:
        return getattr(importlib.import_module("normloss.regularizers"), name)
    if name in ("functional", "diagnostics"):
        return importlib.import_module(f"normloss.{name}")
    raise AttributeError(f"module 'normloss' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
