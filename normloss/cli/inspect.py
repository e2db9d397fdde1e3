"""Prints the weights of a checkpoint: filter norms, Gram residual and largest singular value of each layer.

FILE: a state dict, a checkpoint that contains one (of this suite, timm, PyTorch Lightning, ...), or .safetensors.
A run's last.pt is shown as its network applies the weights. Other files have only names and shapes: their filters are
counted along the first axis, or along the second if the length of the layer's bias fits only that.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from normloss.cli.start import Parser
from normloss.diagnostics import Layer, matrices, measured, table
from normloss.errors import UserError, exit_status, first_line

NAMES = ("state_dict", "model", "model_state_dict", "module")  # under which checkpoints hold a state dict
WEIGHTS = ("weight", "in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight", "original")


def main(arguments: list[str]) -> int:
    parser = Parser(__doc__, prog="normloss inspect")
    parser.add_argument("file", type=Path, metavar="FILE")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="also draw the norms; needs matplotlib")
    asked = parser.parse_args(arguments)

    def work() -> None:
        try:
            layers = measured(filters(asked.file))
            print(table(layers), flush=True)
            if asked.plot:
                plot(layers, asked.plot)
        except ModuleNotFoundError as error:
            package = (error.name or "").partition(".")[0]
            raise UserError(f"{asked.file}: needs the package {package}: pip install 'normloss[suite]'") from None

    return exit_status(work, output_closed=0)


def filters(file: Path) -> dict[str, Tensor]:
    """Return the filter matrices (n, p) of a file by layer; raises UserError if there are none."""
    if file.name.startswith("last.pt") and (file.parent / "config.yaml").exists():
        from normloss.runs.weights import load_checkpoint

        return matrices(load_checkpoint(file.parent.resolve(), file.name)[0])
    found = dict(of_state(state_in(read(file))))
    if not found:
        raise UserError(f"{file}: holds no weight of two axes or more")
    return found


# reading ---------------------------------------------------------------------------------------------------


class Ignored:
    """A stand-in for whatever a checkpoint holds besides tensors: nothing of it is imported or run."""

    def __new__(cls, *args: Any) -> "Ignored":
        return super().__new__(cls)

    def __setstate__(self, state: Any) -> None:
        pass


def read(file: Path) -> Mapping[str, Any]:
    """Return the contents of a checkpoint; raises UserError."""
    try:
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(file)
        unknown: list[Any] = [(Ignored, name) for name in torch.serialization.get_unsafe_globals_in_checkpoint(file)]
        with torch.serialization.safe_globals(unknown):
            contents = torch.load(file, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror or error})") from None
    except ModuleNotFoundError:
        raise
    except Exception as error:  # noqa: BLE001 - a damaged file fails in any way
        raise UserError(f"{file}: must be a checkpoint of torch or .safetensors ({first_line(error)})") from None
    if not isinstance(contents, Mapping):
        raise UserError(f"{file}: must hold a state dict, got {type(contents).__name__}")
    return contents


def state_in(contents: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the state dict in a checkpoint, under its usual names, else the part with most tensors, no optimizer's."""
    for name in NAMES:
        if isinstance(contents.get(name), Mapping):
            return state_in(contents[name])
    if any(isinstance(value, Tensor) for value in contents.values()):
        return contents
    parts = [value for key, value in contents.items() if isinstance(value, Mapping) and "optim" not in str(key)]
    return max(map(state_in, parts), key=lambda state: sum(isinstance(v, Tensor) for v in state.values()), default={})


# rows ------------------------------------------------------------------------------------------------------


def of_state(state: Mapping[str, Any]) -> Iterator[tuple[str, Tensor]]:
    """Yield (layer, W) for each weight of two axes or more; weight normalization, old or new, is applied."""
    for name, value in state.items():
        layer, _, last = str(name).rpartition(".")
        if last in ("weight_g", "original0", "original1", "weight_v"):
            pair = {"weight_v": f"{layer}.weight_g", "original1": f"{layer}.original0"}.get(last, "")
            if pair in state:
                v = value.float().flatten(1)
                yield (
                    layer.removesuffix(".parametrizations.weight"),
                    state[pair].float().reshape(-1, 1) * v / v.norm(dim=1)[:, None],
                )
        elif isinstance(value, Tensor) and value.ndim > 1 and value.is_floating_point() and last.startswith(WEIGHTS):
            bias = state.get(f"{layer}.bias")
            columns = bias is not None and len(bias) == value.shape[1] != len(value)
            W = value.transpose(0, 1) if columns else value
            yield layer if last == "weight" and layer else str(name), W.flatten(1)


# the picture -----------------------------------------------------------------------------------------------


def plot(layers: list[Layer], file: Path) -> None:
    """Draw the mean norm of each layer's filters, and the range from the smallest to the largest."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(max(6, 0.12 * len(layers)), 4), layout="constrained")
    axes = figure.subplots()
    places = range(len(layers))
    axes.vlines(places, [layer.norm_min for layer in layers], [layer.norm_max for layer in layers], color="0.7")
    axes.plot(places, [layer.norm_mean for layer in layers], "o", markersize=3, label="mean, min to max")
    axes.axhline(1, color="0.4", linewidth=0.8)
    axes.set(xlabel="layer", ylabel="filter norm")
    if len(layers) <= 30:
        axes.set_xticks(list(places), [layer.name for layer in layers], rotation=90, fontsize=7)
    axes.legend()
    try:
        figure.savefig(file, dpi=150)
    except (OSError, ValueError) as error:
        raise UserError(f"--plot {file}: cannot be written ({error})") from None
