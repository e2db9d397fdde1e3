"""normloss VERB ...: the commands of the suite, each a module of this folder with main(arguments) -> exit status.

Nothing but the verb that is asked for is imported: some need torch alone.
"""

import importlib
import sys

from normloss.cli import start

VERBS = {
    "compare": "a table and a figure of the finished runs that match",
    "evaluate": "errors, calibration and confusions of a run or an exported file, on any images",
    "export": "finished runs into results/summary.csv and results/curves, for git",
    "figures": "every table and figure of the paper, from the runs there are",
    "inspect": "filter norms, Gram residuals and singular values of a checkpoint; needs torch alone",
    "merge": "take runs of other stores into this one",
    "npz": "a class-folder tree of images as one file",
    "plan": "what an experiment still needs, and how long",
    "prune": "free disk space: finished runs keep their weights alone",
    "rank": "what a comparison of methods came to: a table, two figures, what cannot be told apart",
    "report": "tables, figures and runs on one page",
    "wandb_sync": "write runs to Weights & Biases from their own records",
}


def main(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print("normloss VERB ..., where VERB --help says more:")
        print("\n".join(f"  {verb:12s}{what}" for verb, what in VERBS.items()))
        return 0
    verb, *rest = arguments[0].replace("-", "_"), *arguments[1:]
    if verb not in VERBS:
        return _refuse(f"{verb}: no such verb; there are: {' '.join(VERBS)}")
    sys.argv = [f"normloss {verb}", *rest]  # for usage lines
    try:
        module = importlib.import_module(f"normloss.cli.{verb}")
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == "normloss":
            raise
        return _refuse(f"{verb}: needs the suite (no module {error.name}): pip install 'normloss[suite]'")
    return module.main(rest)


def _refuse(line: str) -> int:
    print(f"normloss: {line}", file=sys.stderr)
    return 2


def console() -> None:
    """The console script."""
    start.prepare()
    sys.exit(main(sys.argv[1:]))
