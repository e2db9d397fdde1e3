"""Uploads stored runs to Weights & Biases, each as one whole run, however often it was stopped.

python scripts/wandb_sync.py [ID ...] [--store results/runs]

For runs that were trained without a network, or whose W&B files were cut short by a kill. Steps that W&B has already
are not uploaded twice. Project, entity, group and tags are those of the run's config, or of WANDB_PROJECT and so on. A
run that was uploaded to its end is skipped from then on.
"""

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import checkout  # noqa: F401  before the slow imports

from normloss.cli import entry, start
from normloss.config import read_stored
from normloss.errors import Interrupted, UserError, first_line
from normloss.runs.files import read_json, write_json
from normloss.runs.records import RunRecord, existing_folder, load_runs, read_config
from normloss.training import tracking

FINISH_SECONDS = 600  # to send what is left of a run
NOTE = "wandb/synced.json"  # in a run's folder: how far it was written


def main(arguments: list[str]) -> int:
    parser = start.Parser(__doc__)
    parser.add_argument("ids", nargs="*", metavar="ID", help="runs to upload (default: every run of the store)")
    parser.add_argument("--store", type=Path, default=Path("results/runs"), help="folder of runs (%(default)s)")
    options = parser.parse_args(arguments)
    return entry.script(lambda: sync(options.ids, options.store))


def sync(ids: list[str], store: Path) -> None:
    """Upload runs; raises UserError for an unknown run, a missing key or a host that does not answer, and Interrupted
    where W&B fails on the way."""
    records = {record.id: record for record in load_runs(existing_folder(store))}
    for id in ids:
        if id not in records:
            raise UserError(f"{id}: no such run in {store}")
    chosen = [records[id] for id in ids] or list(records.values())
    begun = [record for record in chosen if record.epochs]
    left = [one for one in begun if not _far(one).items() <= (read_json(one.path / NOTE) or {}).items()]
    import wandb  # here, since it is slow

    if left and not tracking.reachable(wandb):
        host = wandb.setup().settings.base_url
        raise UserError(f"W&B: needs a key (wandb login, WANDB_API_KEY) and an answer of {host}")
    for record in left:
        try:
            url = replay(record, wandb)
        except Exception as error:  # noqa: BLE001  UsageError, CommError, what the client's own process says
            line = f"{record.id}: W&B failed ({first_line(error)}); rerun the command to resume"
            raise Interrupted(line) from None
        print(f"{record.id}: {len(record.epochs)} epochs uploaded to {url}", flush=True)
    print(f"{len(left)} of {len(chosen)} runs uploaded; the others had nothing new")


def replay(record: RunRecord, wandb: Any) -> str:
    """Upload a run; return its address when W&B has everything, or raise TimeoutError."""
    cfg = read_stored(read_config(record.path))
    with tempfile.TemporaryDirectory(prefix="normloss-wandb-") as folder:
        run = tracking.start(wandb, cfg, folder, "online", FINISH_SECONDS)
        run.define_metric("*", step_metric="step")
        for epoch in record.epochs:
            tracking.send(run, epoch)
        if record.final:
            run.summary.update(record.final)
        began, url = time.monotonic(), run.url
        run.finish()  # says nothing where its time was not enough
        if time.monotonic() - began >= FINISH_SECONDS:
            raise TimeoutError(f"it did not take everything within {FINISH_SECONDS} seconds")
    (record.path / NOTE).parent.mkdir(exist_ok=True)
    write_json(record.path / NOTE, _far(record) | {"url": url})
    return url


def _far(record: RunRecord) -> dict[str, Any]:
    return {"step": record.epochs[-1]["step"], "done": record.final is not None}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
