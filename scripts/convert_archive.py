"""Makes results/archive/<id>.npz of results/summary.csv and results/curves/<id>.npz, as version 0.2 kept them.

python scripts/convert_archive.py [RESULTS]

Runs that results/archive has already stay as they are. curves/ is removed, summary.csv written anew.
"""

import csv
import io
import json
import shutil
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run this checkout's code

from normloss.runs import archive
from normloss.runs.files import write_whole
from normloss.runs.records import load_archive


def convert(results: Path) -> None:
    (results / "archive").mkdir(exist_ok=True)
    for row in csv.DictReader(io.StringIO((results / "summary.csv").read_text(encoding="utf-8"))):
        file = results / "archive" / f"{row['id']}.npz"
        if file.exists():
            continue
        meta = json.loads(row["meta"]) | {key: row[key] for key in ("commit", "started", "ended", "wandb") if row[key]}
        texts = {"config": json.loads(row["config"]), "meta": meta, "final": json.loads(row["final"])}
        with np.load(results / "curves" / file.name, allow_pickle=False) as curves:
            arrays: dict = {key: np.array(json.dumps(value, sort_keys=True)) for key, value in texts.items()} | dict(
                curves
            )
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **arrays)
        write_whole(file, buffer.getbuffer())
    write_whole(results / "summary.csv", archive._summary(load_archive(results)).encode())
    shutil.rmtree(results / "curves")


if __name__ == "__main__":
    convert(Path(sys.argv[1] if len(sys.argv) > 1 else "results"))
