"""scripts/export.py: finished runs join the archive of results/, each id once."""

from runs_support import write_run

from normloss.analysis.select import load
from normloss.runs import archive
from normloss.runs.records import load_archive, load_runs

SMALL = ("dataset=cifar10", "model=resnet8", "recipe=mini")


def test_exporting_again_changes_nothing_and_stores_merge(tmp_path, config):
    store = tmp_path / "runs"
    for seed in range(2):
        write_run(store, config(*SMALL, "reg=wd", f"seed={seed}"), 14.0 + seed)
    archive.add(load_runs(store), tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert archive.add(load_runs(store), tmp_path) == ([], [])
    assert {path: path.read_bytes() for path in before} == before
    other = tmp_path / "other"
    new = write_run(other, config(*SMALL, "reg=wd", "seed=7"), 41.0)
    again = write_run(other, config(*SMALL, "reg=wd", "seed=0"), 45.0)  # the same run, from another machine
    assert archive.add(load_runs(other), tmp_path) == ([new], [again])
    kept = {run.id: run.final["test_error"] for run in load_archive(tmp_path)}
    assert (len(kept), kept[new], kept[again]) == (3, 41.0, 14.0)


def test_what_git_keeps_is_drawn_from_the_archive_and_compared_from_the_store(tmp_path, config):
    cfg = config(*SMALL, "reg=wd", "seed=0")
    for store, error in (("runs", 14.0), ("own", 44.0)):
        write_run(tmp_path / store, cfg, error)
    archive.add(load_runs(tmp_path / "runs"), tmp_path)
    assert [*load(tmp_path / "own", tmp_path)["test_error"]] == [14.0]
    assert [*load(tmp_path / "own", tmp_path, first="store")["test_error"]] == [44.0]
