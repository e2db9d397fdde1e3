"""What a comparison of methods came to: a table, two figures, and in words which methods cannot be told apart.

python scripts/rank.py experiment=small_compare
python scripts/rank.py compare=nl,wd dataset=digits ...    the words that train.py was given
python scripts/rank.py results/runs/comparisons/NAME.json  the file that train.py wrote
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run this checkout's code

if __name__ == "__main__":  # before the slow imports
    from normloss.cli import start

    start.prepare()

from normloss.analysis import ranking_figures
from normloss.analysis.ranking import Ranking, look_up, rank, table
from normloss.cli import entry
from normloss.errors import UserError
from normloss.sweeps import comparison
from normloss.sweeps.comparison import Comparison


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", metavar="key=value | FILE", help="which comparison; the only one if none")
    parser.add_argument("--store", type=Path, help="the runs (default: results/runs, or that of FILE)")
    parser.add_argument("--results", type=Path, default=Path("results"), help="archived runs (%(default)s)")
    parser.add_argument("--out", type=Path, help="holds tables/ and figures/ (default: that of --results)")
    parser.add_argument("--baseline", help="method that the others' differences are to (default: wd, else none)")
    options = parser.parse_intermixed_args(arguments)
    return entry.script(lambda: print(show(options)))


def show(options: argparse.Namespace) -> str:
    asked, store = find(options.words, options.store)
    if options.baseline and options.baseline not in asked.methods:
        raise UserError(f"--baseline: must be one of {' '.join(asked.methods)}, got {options.baseline!r}")
    ranking = rank(asked, look_up(store, options.results), options.baseline)
    if not ranking.methods:
        far = "; ".join(f"{tuned.method}: {tuned.why}" for tuned in ranking.unfinished)
        raise UserError(f"no method of {asked.name} is tried yet ({far}); to go on: {asked.command}")
    return write(ranking, options.out or options.results)


def find(words: list[str], store: Path | None) -> tuple[Comparison, Path]:
    """The comparison that is asked for, and the store that holds its runs."""
    if len(words) == 1 and "=" not in words[0]:
        file = Path(words[0])
        return comparison.read(file), store or file.absolute().parent.parent
    if words:
        from normloss.sweeps import tuning

        if not tuning.asked(words):
            raise UserError(f"{' '.join(words)}: must be the words of a comparison: compare=..., or such an experiment")
        search = tuning.Search(words)
        return search.comparison, store or search.store
    store = store or Path("results/runs")
    files = sorted((store / comparison.FOLDER).glob("*.json"))
    if len(files) != 1:
        there = f"; there are: {' '.join(map(str, files))}" if files else ""
        raise UserError(f"{store}: must hold one comparison where none is named, got {len(files)}{there}")
    return comparison.read(files[0]), store


def write(ranking: Ranking, out: Path) -> str:
    """The table as text; it and the figures are written to `out`."""
    name, shown = ranking.comparison.name, table(ranking)
    try:
        shown.save(out / "tables")
        ranking_figures.save(ranking, out / "figures")
    except OSError as error:
        raise UserError(f"--out: must be a folder that can be written, got {out} ({error.strerror})") from None
    files = f"{out}/tables/{name}.md, .tex and .csv, {out}/figures/{name}_test_error.png and {name}_sensitivity.png"
    more = f"\nTo go on: {ranking.comparison.command}" if ranking.ended < ranking.planned else ""
    return f"{shown.markdown()}\nWritten: {files}{more}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
