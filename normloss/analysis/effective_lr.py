"""The effective learning rate of scale-invariant filters, lr / |w|^2, by layer group, from the norms that runs log.

Behind batch norm only a filter's direction counts, and a step turns it by about lr |g| / |w|^2, g the gradient at norm
one (van Laarhoven 2017; Zhang et al. 2019): two methods that hold norms apart also train at different learning rates.
"""

from collections.abc import Iterable

import numpy as np

from normloss.errors import UserError
from normloss.runs.records import RunRecord


def squared_norms(record: RunRecord) -> np.ndarray:
    """Mean of |w|^2 over the hidden convolutions, all layers but the first and the classifier, which in the CIFAR
    ResNets have batch norm behind them; |w| a layer's mean filter norm at the end of each epoch: (epochs,)."""
    norms = np.array([epoch["layer_norms"] for epoch in record.epochs])  # (epochs, layers)
    return (norms[:, 1:-1] ** 2).mean(axis=1)


def effective_lr(record: RunRecord) -> np.ndarray:
    """lr / |w|^2 of the hidden convolutions in each epoch: (epochs,)."""
    return np.array([epoch["lr"] for epoch in record.epochs]) / squared_norms(record)


def matched_lr(target: Iterable[RunRecord], source: Iterable[RunRecord]) -> list[float]:
    """Learning rates per epoch that give the norms of `source` the effective learning rate of `target`.

    Both are means over runs (seeds). Norms answer to the learning rate, so that the match is as good as `source` was
    trained like the run that takes the result: give it runs of a first match to match once more.
    """
    lr = np.mean([effective_lr(record) for record in target], axis=0)
    squares = np.mean([squared_norms(record) for record in source], axis=0)
    if lr.shape != squares.shape:
        raise UserError(f"match_lr: both must have the same number of epochs, got {len(lr)} and {len(squares)}")
    return [float(f"{value:.4g}") for value in lr * squares]
