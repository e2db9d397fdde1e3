"""scripts/plan.py: which runs are done and missing, and how long those take."""

import pytest
import yaml
from runs_support import write_run

TABLE1 = ("dataset=cifar10", "model=resnet20", "recipe=mini", "train.epochs=16", "train.milestones=[8,12]")


def test_the_plan_says_what_is_left_and_how_long(tmp_path, config, load_script, capsys):
    store = tmp_path / "my runs"
    for method in ("wd", "nl"):
        for seed in range(3):
            write_run(store, config(*TABLE1, f"reg={method}", f"seed={seed}"), 13.0)
    unfinished = store / write_run(store, config(*TABLE1, "reg=nl", "seed=3"), 1.0)
    (unfinished / "DONE").unlink()
    (unfinished / "status.json").write_text('{"state": "incomplete"}')
    log = unfinished / "epochs.jsonl"
    log.write_text(log.read_text().splitlines(keepends=True)[0])
    assert load_script("plan").main(["small_table1", f"store={store}", f"--results={tmp_path}"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "small_table1: 10 runs: 6 done, 1 incomplete, 3 missing"
    # 100 s an epoch, 16 epochs: three whole runs, and 15 epochs of the one that is not finished, 1.75 h
    assert next(line for line in out if line.startswith("left: ")) in ("left: 1.7 h", "left: 1.8 h")
    assert out[-1] == f"to train missing runs: python train.py experiment=small_table1 'store={store}'"


def test_the_plan_tells_runs_apart_by_the_swept_key(tmp_path, load_script, capsys):
    assert load_script("plan").main(["small_lr_none", "seed=0", f"store={tmp_path}", f"--results={tmp_path}"]) == 0
    out = capsys.readouterr().out.splitlines()
    lines = [line.split("  ")[2] for line in out if " missing" in line and ":" not in line]
    assert lines == [f"cifar10 resnet8 none seed=0 lr={lr} batch=128" for lr in (0.1, 0.3)]


def test_the_plan_shows_the_configs(load_script, capsys):
    assert load_script("plan").main(["demo", "--dry"]) == 0
    configs = yaml.safe_load(capsys.readouterr().out)
    assert sorted(config["reg"]["name"] for config in configs.values()) == 3 * ["nl"] + 3 * ["wd"]


@pytest.mark.parametrize(
    ("words", "line"),
    [(["tabel1"], "experiment: must be one of demo"), (["demo", "--results=/nowhere"], "/nowhere: no such folder")],
)
def test_the_plan_refuses_in_one_line(load_script, capsys, words, line):
    assert load_script("plan").main(words) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"normloss: {line}")
    assert err.count("\n") == 1
