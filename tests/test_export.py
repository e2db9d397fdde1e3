"""scripts/export.py: finished runs join the archive of results/, each id once."""

import pytest
from runs_support import write_run

from normloss.analysis.select import load
from normloss.runs import archive
from normloss.runs.records import load_archive, load_runs

SMALL = ("dataset=cifar10", "model=resnet8", "recipe=mini")


@pytest.fixture(scope="module")
def store(config, tmp_path_factory):
    """Two finished runs."""
    store = tmp_path_factory.mktemp("export") / "runs"
    for seed in range(2):
        write_run(store, config(*SMALL, "reg=wd", f"seed={seed}"), 14.0 + seed)
    return store


def test_exporting_again_changes_nothing_and_stores_merge(store, tmp_path, config):
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


def test_what_git_keeps_is_drawn_from_the_archive_and_compared_from_the_store(store, tmp_path, config):
    archive.add(load_runs(store), tmp_path)
    cfg = config(*SMALL, "reg=wd", "seed=0")
    write_run(tmp_path / "runs", cfg, 44.0)
    df = load(tmp_path / "runs", tmp_path).set_index("id")
    assert (df.loc[cfg.id, "test_error"], len(df)) == (14.0, 2)
    own = load(tmp_path / "runs", tmp_path, first="store").set_index("id")
    assert (own.loc[cfg.id, "test_error"], len(own)) == (44.0, 2)


def test_export_says_what_it_did(store, tmp_path, load_script, capsys):
    script = load_script("export")
    assert script.main([str(store), "--results", str(tmp_path)]) == 0
    assert "runs added" in capsys.readouterr().out
    assert script.main([str(store), "--results", str(tmp_path)]) == 0
    assert "0 runs added" in capsys.readouterr().out
    assert script.main([str(tmp_path / "nowhere")]) == 2
    assert capsys.readouterr().err.startswith(f"normloss: {tmp_path / 'nowhere'}: no such folder")
