"""The spaces of configs/search that a tuning comparison draws from, by a quasi-random sequence.

A space is {key: (low, high)}, log-uniform. configs/search/shared.yaml is every method's; the file of a method's own
name adds its λ. Only the values drawn reach a run's config.
"""

from typing import Any

from normloss.config import CONFIGS
from normloss.config.plain import read_dict
from normloss.errors import UserError

Space = dict[str, tuple[float, float]]
DIGITS = 4  # significant, of a value drawn: ids stay the same whatever the last bit of a machine's logarithm


def methods() -> list[str]:
    """Return the names of configs/reg that can be compared: baselines and norm loss first."""
    first = ("none", "wd", "nl")
    stems = {path.stem for path in (CONFIGS / "reg").glob("*.yaml")}
    return [*first, *sorted(stems - set(first))]


def variants() -> set[str]:
    """Return the names that are another setting of a method, such as pbwn_epoch: not part of `compare=all`."""
    return {name for name in methods() if _reg(name)["name"] != name}


def space(method: str) -> Space:
    """Return a method's space, the shared keys first; raises UserError for a method with λ and no space for it."""
    files = [CONFIGS / "search" / f"{name}.yaml" for name in ("shared", method)]
    read = [read_dict(file) for file in files if file.exists()]
    found = {key: (bounds["low"], bounds["high"]) for keys in read for key, bounds in keys.items()}
    if "lam" in _reg(method) and "reg.lam" not in found:
        raise UserError(f"compare: needs the space of reg.lam of {method} in {files[1]}")
    return found


def draw(space: Space, trials: int) -> list[dict[str, float]]:
    """Return points 1 to `trials` of the Halton sequence laid over a space; more trials keep those drawn before."""
    from scipy.stats.qmc import Halton

    sequence = Halton(d=len(space), scramble=False)
    sequence.fast_forward(1)  # point 0 is the corner of lows
    return [
        {
            key: float(f"{low * (high / low) ** share:.{DIGITS}g}")
            for (key, (low, high)), share in zip(space.items(), point, strict=True)
        }
        for point in sequence.random(trials)
    ]


def _reg(name: str) -> dict[str, Any]:
    return read_dict(CONFIGS / "reg" / f"{name}.yaml")
