"""The spaces of configs/search that a tuning comparison draws from, by a quasi-random sequence.

A space is {key: (low, high)}, log-uniform. configs/search/shared.yaml is every method's; the file of a method's own
name adds its λ. Only the values drawn reach a run's config.
"""

from collections.abc import Sequence

from normloss.config import CONFIGS, reg_files
from normloss.config.plain import read_dict
from normloss.errors import UserError

Bounds = tuple[float, float]  # low, high
Space = dict[str, Bounds]
DIGITS = 4  # significant, of a value drawn: ids stay the same whatever the last bit of a machine's logarithm
MOST = 1023  # points of the sequence; a later one beyond all of these is within a thousandth of the range's end


def methods(variants: bool = True) -> list[str]:
    """Return the names of configs/reg: baselines and norm loss first. variants: also other settings of a method."""
    first = ["none", "wd", "nl"]
    found = {name for name, file in reg_files().items() if variants or file["name"] == name}
    return [*first, *sorted(found.difference(first))]


def space(method: str) -> Space:
    """Return the range of train.lr and, for a method with λ, of reg.lam; raises UserError if configs/search differs."""
    files = [CONFIGS / "search" / f"{name}.yaml" for name in ("shared", method)]
    read = [read_dict(file) for file in files if file.exists()]
    found = {key: (bounds["low"], bounds["high"]) for keys in read for key, bounds in keys.items()}
    needed = ["train.lr", *(["reg.lam"] if "lam" in reg_files()[method] else [])]
    if list(found) != needed:
        got = " and ".join(found) or "none"
        raise UserError(f"configs/search: must have ranges of {' and '.join(needed)} for {method}, got {got}")
    return found


def draw(bounds: Bounds, count: int) -> list[float]:
    """Return points 1 to `count` of the Halton sequence of base 2 laid over a range; more keep those drawn before."""
    from scipy.stats.qmc import Halton

    low, high = bounds
    sequence = Halton(d=1, scramble=False)
    sequence.fast_forward(1)  # point 0 is the lower bound
    return [float(f"{low * (high / low) ** share:.{DIGITS}g}") for (share,) in sequence.random(count)]


def beyond(bounds: Bounds, tried: Sequence[float], best: float) -> float | None:
    """Return the next point of the sequence outside the values tried, on the side where `best` is the last of them.

    None if `best` lies between others, or the range ends there.
    """
    lowest, highest = best == min(tried), best == max(tried)
    points = draw(bounds, MOST) if lowest or highest else []
    return next((value for value in points if (lowest and value < best) or (highest and value > best)), None)
