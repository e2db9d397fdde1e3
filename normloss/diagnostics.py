"""Filter norms, Gram residuals and singular values, layer by layer, for every model and method.

python -m normloss.diagnostics FILE      prints the table of a checkpoint's weights (normloss/cli/inspect.py)
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from normloss import functional
from normloss.regularizers import select_weights
from normloss.regularizers.base import applied

ON_HOST = 128  # the size up to which a CPU decomposes a stack of matrices faster than a GPU's solver


@dataclass(frozen=True)
class Layer:
    """One weight as a filter matrix W (n, p)."""

    name: str
    n: int
    p: int
    norm_mean: float  # of its filters
    norm_min: float
    norm_max: float
    gram_residual: float  # |Gram - I|_F / sqrt(m) of the short side, m = min(n, p): 0 for orthonormal filters
    sigma_max: float  # largest singular value


@torch.no_grad()
def matrices(model: nn.Module) -> dict[str, Tensor]:
    """Return a copy of the filter matrix W (n, p) of every convolution and linear layer, by the layer's name."""
    weights = select_weights(model, "conv+linear")
    return {weight.name: weight.matrix(applied(weight)).clone() for weight in weights}


@torch.no_grad()
def turns(before: list[Tensor], model: nn.Module) -> dict[str, float | list[float]]:
    """Return how far filters turned since `before`, the values of matrices(), for an epoch's record.

    In degrees: turn_mean over all filters, layer_turns the mean of each layer in order.
    """
    angles = [functional.turned(W, V) for W, V in zip(matrices(model).values(), before, strict=True)]
    means = torch.stack([angle.mean() for angle in angles]).tolist()
    return {"turn_mean": torch.cat(angles).mean().item(), "layer_turns": [round(mean, 6) for mean in means]}


def diagnostics(model: nn.Module) -> list[Layer]:
    """Return filter norms, Gram residual and largest singular value of every convolution and linear layer."""
    return measured(matrices(model))


@torch.no_grad()
def measured(Ws: dict[str, Tensor]) -> list[Layer]:
    """Return the filter norms, Gram residual and largest singular value of filter matrices W (n, p), by their names."""
    if not Ws:
        return []
    residuals = [functional.gram_residual(W) for W in Ws.values()]
    numbers = []
    for norms, residual in zip(map(functional.filter_norms, Ws.values()), residuals, strict=True):
        gram = residual.norm() / len(residual) ** 0.5
        numbers.append(torch.stack([norms.mean(), norms.min(), norms.max(), gram]).float())
    rows = torch.cat([torch.stack(numbers).cpu(), _largest_singular_values(residuals)[:, None]], dim=1).tolist()
    return [Layer(name, *W.shape, *row) for (name, W), row in zip(Ws.items(), rows, strict=True)]


def _largest_singular_values(residuals: list[Tensor]) -> Tensor:
    """Return the largest singular value of each W from its Gram residual, on the CPU; one decomposition per size."""
    largest = torch.empty(len(residuals))
    sizes = [(len(residual), residual.dtype) for residual in residuals]
    for size in dict.fromkeys(sizes):
        same = [i for i, other in enumerate(sizes) if other == size]
        matrices = torch.stack([residuals[i] for i in same])  # (layers of this size, m, m)
        if size[0] <= ON_HOST:
            matrices = matrices.cpu()
        largest[same] = torch.linalg.eigvalsh(matrices)[:, -1].cpu().float()  # ascending; a GPU's host waits here
    return (1 + largest).clamp_min(0).sqrt()


def summary(layers: list[Layer]) -> dict[str, float | list[float]]:
    """Return an epoch's record: means and extremes over all filters and layers, and each layer's mean norm in order."""
    filters = sum(layer.n for layer in layers)
    return {
        "norm_mean": sum(layer.n * layer.norm_mean for layer in layers) / filters,
        "norm_min": min(layer.norm_min for layer in layers),
        "norm_max": max(layer.norm_max for layer in layers),
        "gram_residual": sum(layer.gram_residual for layer in layers) / len(layers),
        "sigma_max": max(layer.sigma_max for layer in layers),
        "layer_norms": [round(layer.norm_mean, 6) for layer in layers],
    }


def table(layers: list[Layer]) -> str:
    """Return a table for people, one line per layer."""
    width = max([30, *(len(layer.name) for layer in layers)])
    lines = [f"{'layer':{width}} {'n':>5} {'p':>5} {'norm mean':>10} {'min':>8} {'max':>8} {'gram':>8} {'sigma':>8}"]
    lines += [
        f"{layer.name:{width}} {layer.n:5} {layer.p:5} {layer.norm_mean:10.4f} {layer.norm_min:8.4f}"
        f" {layer.norm_max:8.4f} {layer.gram_residual:8.4f} {layer.sigma_max:8.4f}"
        for layer in layers
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    import sys

    from normloss.cli import inspect

    sys.exit(inspect.main(sys.argv[1:]))
