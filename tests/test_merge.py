"""Runs of other stores: what is taken, what is named and left, and what a stranger's folder cannot do."""

import json
import os
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from runs_support import STEPS, finish, kill_at_call, killed_after, session, train

from normloss.errors import UserError
from normloss.runs import checkpoint
from normloss.runs.merge import merge
from normloss.runs.records import FILES, load_run, load_runs

DIGITS = ["dataset=digits", "model=resnet8", "wandb.mode=disabled", "threads=1", "device=cpu"]
DATA = Path(__file__).parent / "data"


@pytest.fixture
def there(config, tmp_path):
    return config("dataset=digits", "model=resnet8", f"store={tmp_path / 'there'}")


@pytest.fixture
def here(there, tmp_path):
    """The same run in the store that others are merged into."""
    return there.model_copy(update={"store": str(tmp_path / "here")})


def take(*stores, into):
    """What became of the runs: the outcomes that there were."""
    merged = merge([Path(cfg.store) for cfg in stores], Path(into.store))
    return {outcome: runs for outcome, runs in merged.items() if runs}


def folder(cfg) -> Path:
    return Path(cfg.store) / cfg.id


def content(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.iterdir() if file.name != ".lock"}


def change(path: Path, **values) -> None:
    """Other values in a JSON file; None takes a key out."""
    changed = json.loads(path.read_text()) | values
    path.write_text(json.dumps({key: value for key, value in changed.items() if value is not None}))


def test_a_new_run_is_taken_whole_and_twice_is_once(there, here):
    killed_after(there, last=2)
    (folder(there) / "notes.py").write_text("not a run's")
    assert take(there, into=here) == {"new": [there.id]}
    taken = content(folder(here))
    assert taken == {name: data for name, data in content(folder(there)).items() if name in FILES}
    assert take(there, into=here) == {"here": [there.id]}
    assert content(folder(here)) == taken
    assert [path.name for path in Path(here.store).iterdir()] == [here.id]


def test_a_run_that_was_trained_further_elsewhere_is_taken_and_resumes_here(there, here):
    killed_after(here, last=1)
    shutil.copytree(here.store, there.store)
    with pytest.raises(KeyboardInterrupt), session(there) as run:
        run.load("cpu")
        train(run, 2, 3)
        raise KeyboardInterrupt
    log = folder(here) / "epochs.jsonl"
    log.write_text(log.read_text().replace('"seconds": 1.5', '"seconds": 1.25'))  # another machine's; of other length
    assert take(there, into=here) == {"further": [here.id]}
    with session(here) as run:
        assert run.load("cpu")["step"] == 3 * STEPS


def finished(cfg, error=5.0):
    with session(cfg) as run:
        finish(run, 2, error)


def test_a_run_is_taken_where_it_is_further_than_here(there, here):
    """By an epoch, by a checkpoint within one, or since it is finished."""
    killed_after(there, last=1)
    killed_after(here, last=2)
    before = content(folder(here))
    assert take(there, into=here) == {"here": [here.id]}
    assert content(folder(here)) == before
    shutil.rmtree(folder(here))
    change(killed_after(here, last=1) / "status.json", saved=5)
    change(folder(there) / "status.json", saved=7)
    assert take(there, into=here) == {"further": [here.id]}
    assert take(there, into=here) == {"here": [here.id]}
    shutil.rmtree(folder(there))
    finished(there)
    assert take(there, into=here) == {"further": [here.id]}
    assert load_run(folder(here)).final["test_error"] == 5.0
    assert not (folder(here) / "last.pt.prev").exists()


@pytest.mark.parametrize("older", ["there", "here"])
def test_equal_finished_runs_are_one_whether_done_holds_the_config_or_not(there, here, older):
    finished(there), finished(here)
    change(folder(there if older == "there" else here) / "DONE", config=None, seconds=77.0)
    before = content(folder(here))
    assert take(there, into=here) == {"here": [here.id]}
    assert content(folder(here)) == before


def test_runs_of_version_0_1_0_are_taken(here, tmp_path):
    with tarfile.open(DATA / "runs_0.1.0.tar.xz") as archive:
        archive.extractall(tmp_path / "old", filter="data")
    merged = merge([tmp_path / "old"], Path(here.store))
    assert merged["new"] == ["9f444f44", "f3db9b67"]
    assert [run.state for run in load_runs(here.store)] == ["incomplete", "done"]
    assert checkpoint.load(Path(here.store) / "9f444f44" / "last.pt")


def refusal(there, here):
    """The line that names the run there, of which nothing is taken."""
    merged = take(there, into=here)
    (line,) = merged.pop("refused")
    assert line.isprintable() and not merged
    return line


def assert_left(there, here, words):
    """The run there is named with `words`, and both are as they were."""
    before = [content(folder(cfg)) for cfg in (there, here)]
    assert words in refusal(there, here)
    assert [content(folder(cfg)) for cfg in (there, here)] == before


@pytest.mark.parametrize(("theirs", "ours"), [(2, 1), (1, 2)])
def test_runs_that_took_different_ways_are_left(there, here, theirs, ours):
    killed_after(there, last=theirs), killed_after(here, last=ours)
    log = folder(there) / "epochs.jsonl"
    log.write_text(log.read_text().replace('"epoch": 1,', '"epoch": 1, "test_error": 3.5,'))
    assert_left(there, here, "has other epochs than the run here")


def test_finished_runs_that_ended_differently_are_left(there, here):
    finished(there, 5.0), finished(here, 6.0)
    assert_left(there, here, "ended with other metrics than the run here")


HARMS = {
    "other images": lambda theirs, ours: change(theirs / "meta.json", data="other"),
    "the log of ours": lambda theirs, ours: (ours / "epochs.jsonl").write_text("<html>\n"),
    "the log of theirs": lambda theirs, ours: (theirs / "epochs.jsonl").write_text('{"epoch": 7}\n'),
    "a truncated checkpoint": lambda theirs, ours: os.truncate(theirs / "last.pt", 100),
    "no meta data": lambda theirs, ours: (theirs / "meta.json").write_text(""),
}


@pytest.mark.parametrize("harm", HARMS)
def test_damaged_runs_are_left(there, here, harm):
    killed_after(there, last=2)
    killed_after(here, last=1)
    HARMS[harm](folder(there), folder(here))
    assert_left(there, here, "was trained on other data than the run here" if harm == "other images" else " is ")


def test_a_run_in_training_is_left_alone_on_both_sides(there, here, load_script, capsys):
    with pytest.raises(KeyboardInterrupt), session(there):
        raise KeyboardInterrupt
    assert take(there, into=here) == {"unsaved": [there.id]}
    assert not folder(here).exists()
    killed_after(there, last=2)
    with session(here):
        assert take(there, into=here) == {"busy": [here.id]}
    with session(there):
        assert load_script("merge").main([there.store, "--store", here.store]) == 4
    assert f"being trained, skipped: {there.id}" in capsys.readouterr().out


def test_a_store_does_not_take_itself(here):
    killed_after(here, last=1)
    with pytest.raises(UserError, match="is the store"):
        take(here, into=here)


@pytest.mark.parametrize("cut", range(1, 8))
@pytest.mark.parametrize("known", [True, False])
def test_a_merge_that_is_killed_is_ended_by_the_next(there, here, monkeypatch, cut, known):
    """Seven files are written."""
    if known:
        killed_after(here, last=1)
    finished(there)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "replace", kill_at_call(cut, os.replace))
        take(there, into=here)
    assert "done" not in {run.state for run in load_runs(here.store)}
    take(there, into=here)
    assert load_run(folder(here)).state == "done"


def moved(path: Path) -> Path:
    return path.rename(path.parent.parent / f"moved-{path.name}")


STRANGE = {
    "the id of another": lambda path: path.rename(path.with_name("00000000")),
    "a name with a command for terminals": lambda path: path.rename(path.with_name("\x1b[2Jx\n")),
    "a link to a folder": lambda path: path.symlink_to(moved(path)),
    "a link as weights": lambda path: (path / "last.pt").symlink_to(moved(path / "last.pt")),
    "a pickle in the steps": lambda path: np.savez(path / "steps.npz", step=[{}], ce=[{}]),
}


@pytest.mark.parametrize("harm", STRANGE.values(), ids=STRANGE)
def test_a_strangers_folder_is_named_in_a_line_and_nothing_of_it_is_taken(there, here, harm):
    killed_after(there, last=2)
    harm(folder(there))
    assert refusal(there, here)
    assert load_runs(here.store) == []


def test_the_command_says_what_was_taken(there, here, load_script, capsys):
    path = killed_after(there, last=1)
    main = load_script("merge").main
    assert main([there.store, "--store", here.store]) == 0
    counts = "1 new, 0 trained further elsewhere, 0 unchanged"
    assert capsys.readouterr().out == f"{here.store}: {counts}\n"
    path.rename(path.with_name("00000000"))
    assert main([there.store, "--store", here.store]) == 2
    out, err = capsys.readouterr()
    assert f"not imported: {there.store}/00000000/config.yaml holds the config of run {there.id}" in out
    assert err == "normloss: 1 folders were not imported, see above\n"
    assert main([f"{there.store}x", "--store", here.store]) == 2
    assert "x: no such folder" in capsys.readouterr().err
