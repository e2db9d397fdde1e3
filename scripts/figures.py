"""Executes the notebooks headless: every table and figure from whatever runs there are. Never trains.

python scripts/figures.py [--store results/runs] [--results results] [notebooks/tables.ipynb ...]

Then results/README.md and the findings in README.md are written. Works from any folder, and side by side with others.
"""

import argparse
import atexit
import os
import sys
import tempfile
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run this checkout's code

if __name__ == "__main__":  # before the slow imports
    from normloss.cli import start

    start.prepare()

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from traitlets.config import Config

from normloss.analysis import report
from normloss.analysis.ranking import apart
from normloss.analysis.results import ROOT, Results
from normloss.cli import entry
from normloss.errors import UserError
from normloss.signals import Signalled

LONGEST_PLACE = 70  # bytes of a path that a folder with sockets can lie in: a socket's own has at most 103
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("notebooks", nargs="*", type=Path, default=NOTEBOOKS)
    parser.add_argument("--store", type=Path, help="runs of this machine (results/runs of the repository)")
    parser.add_argument("--results", type=Path, help="archived runs; gets tables/, figures/ (the repository's)")
    options = parser.parse_args(arguments)
    return entry.script(lambda: draw(options.notebooks, Results(options.store, options.results)))


def draw(notebooks: list[Path], results: Results) -> None:
    places = {"NORMLOSS_STORE": results.store, "NORMLOSS_RESULTS": results.folder}  # the kernel runs in another folder
    os.environ |= {name: str(path) for name, path in places.items() if path.is_dir()}
    with entry.written("results", results.folder):
        tempfile.TemporaryFile(dir=results.folder).close()  # before notebooks take their time
    if os.path.expanduser("~") == "~":  # no HOME and no such user, as in some containers: Jupyter needs a folder
        os.environ["HOME"] = tempfile.gettempdir()
    for notebook in notebooks:
        execute(notebook)
    with entry.written("results", results.folder):
        report.write_markdown(results)  # draws the comparisons of methods too, which no notebook shows
    print(summary(results))


def execute(notebook: Path) -> None:
    """Run every cell; the file stays as it is."""
    if not notebook.exists():
        raise UserError(f"{notebook}: no such notebook")
    content = nbformat.read(notebook, as_version=4)
    # the kernel runs in the repository; its sockets and files lie in a folder of their own that goes with it, so that
    # nobody else on this machine can open a port and two of these do not meet
    short = None if len(os.fsencode(tempfile.gettempdir())) <= LONGEST_PLACE else "/tmp"
    with tempfile.TemporaryDirectory(prefix="normloss-", dir=short) as folder:
        place = {"connection_file": f"{folder}/kernel.json", "ip": f"{folder}/socket"}
        own = {"transport": "ipc", **place} if os.name == "posix" else {}
        client = NotebookClient(
            content, timeout=600, resources={"metadata": {"path": str(ROOT)}}, config=Config(KernelManager=own)
        )
        client.create_kernel_manager().kernel_spec_manager.kernel_dirs = []  # this Python, whatever the user registered
        environment = os.environ | {
            "IPYTHONDIR": folder
        }  # not the user's profile, whose startup files could do anything
        with ThreadPoolExecutor(1) as beside:  # in the main thread it would take the signals for itself
            ended = beside.submit(client.execute, env=environment)
            try:
                ended.result()
            except CellExecutionError as error:
                raise UserError(f"{notebook.name}: a cell failed ({error.ename}: {error.evalue})") from None
            except Signalled:
                end_kernel(client, ended)
                raise


def end_kernel(client: NotebookClient, ended: Future) -> None:
    """Without a word, whenever it starts; asked to end, it would tell of the cell that it was in."""
    while not ended.done():
        process = getattr(getattr(client.km, "provisioner", None), "process", None)
        if process is not None:
            process.kill()
        time.sleep(0.05)
    atexit.unregister(client._cleanup_kernel)  # where it had not come up, there is nothing to ask any more


def summary(results: Results) -> str:
    """What was found, how far our means are from the paper's, and how much is missing."""
    lines = [each.sentence for study in results.with_runs for each in results.findings(study)]
    lines += [apart(ranking) for ranking in results.rankings if ranking.tested]
    for table in results.paper.tables.values():
        for row in (row for row in table.rows if row.cell):
            errors, theirs = row.done(results.df)["test_error"], row.values.get("mean", row.values.get("top1"))
            if len(errors):
                lines.append(
                    f"{table.name} {row.model} {row.method}: ours {errors.mean():.2f} (n = {len(errors)}), paper"
                    f" {theirs:g}, {errors.mean() - theirs:+.2f}"
                )
    done = int((results.df["state"] == "done").sum())
    filled, cells = report.filled(results), len(results.paper.cells)
    lines.append(
        f"{done} finished runs; {filled} of the paper's {cells} cells have runs, and below each table stands what fills"
        f" the others. Tables are in {results.folder / 'tables'}, figures in {results.folder / 'figures'}"
    )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
