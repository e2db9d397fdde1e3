"""The console script `normloss VERB ...`: what works without a checkout; all else is a script of one.

A verb is a module of this folder with main(arguments) -> exit status. Only the module of the given verb is imported:
inspect needs torch only.
"""

import importlib
import sys

from normloss.cli import start

VERBS = {
    "evaluate": "errors, calibration and confusions of a run or an exported file, on any images",
    "inspect": "filter norms, Gram residuals and singular values of a checkpoint; needs torch only",
}
SCRIPTS = ("compare", "export", "figures", "merge", "npz", "plan", "prune", "rank", "report", "wandb_sync")


def main(arguments: list[str]) -> int:
    """Run a verb; return its exit status, 2 for a verb that does not exist."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print("normloss VERB ...; arguments of a verb: normloss VERB --help")
        print("\n".join(f"  {verb:12s}{what}" for verb, what in VERBS.items()))
        return 0
    verb, *rest = arguments[0].replace("-", "_"), *arguments[1:]
    if verb in SCRIPTS:
        return _refuse(f"{verb}: is a script of the repository: python scripts/{verb}.py")
    if verb not in VERBS:
        return _refuse(f"{arguments[0]}: no such verb; there are: {' '.join(VERBS)}")
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
    """Run the console script normloss."""
    start.prepare()
    sys.exit(main(sys.argv[1:]))
