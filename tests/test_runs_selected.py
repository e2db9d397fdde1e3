"""Which runs are compared: by config values, one setting for all but the method and the seed."""

import pytest
from digits_support import DIGITS, METHODS, NL, names, runs_of_two_methods, write_run

from normloss.analysis import tables
from normloss.analysis.select import frame, series, where
from normloss.errors import UserError
from normloss.runs.records import load_runs


@pytest.fixture
def store(tmp_path):
    return runs_of_two_methods(tmp_path / "runs")


def test_runs_match_however_their_steps_were_run(store):
    write_run(store, NL, 4, executor="graph")  # the others were stored before the key was there
    df = where(frame(load_runs(store)), {"reg.name": "nl", "reg.lam": 0.01})
    assert "train.executor" not in df
    assert [len(runs) for runs in series(df).values()] == [5]


def test_where_selects_by_config_values(store):
    df = frame(load_runs(store))
    assert names(where(df, {"reg.name": "wd"})) == ["wd0", "wd1", "wd2"]
    assert names(where(df, {"reg.lam": 0.01, "seed": 1})) == ["nl1"]
    assert len(where(df, {"train.milestones": (1, 2), "train.max_steps": None})) == len(df) == 8
    assert where(df, {"reg.half": False}).empty
    assert names(where(df, {"reg.name": ["wd", "nl"], "seed": [1, 2]})) == ["nl1", "nl2", "wd1", "wd2"]
    with pytest.raises(UserError, match=r"did you mean reg\.lam"):
        where(df, {"reg.lma": 1.0})
    assert where(frame([]), DIGITS).empty


def test_methods_differ_by_reg_only_and_baselines_come_first(store):
    write_run(store, NL | {"layers": "first"}, 0)
    groups = series(frame(load_runs(store)))
    assert {label: names(runs) for label, runs in groups.items()} == {
        "wd λ=0.0001": ["wd0", "wd1", "wd2"],
        "nl λ=0.01": ["nl0", "nl1", "nl2", "nl3"],
        "nl λ=0.01 layers=first": ["nl0"],
        "nl λ=100": ["nl0"],
    }
    assert next(iter(groups)) == "wd λ=0.0001"


def test_runs_of_two_settings_are_refused(store):
    write_run(store, NL, 0, model="resnet20")
    with pytest.raises(UserError, match=r"differ in model.name .*choose one, for example model.name=resnet8$"):
        tables.methods(frame(load_runs(store)), METHODS)


def test_runs_on_other_images_of_a_folder_of_the_same_name_are_refused(store):
    for seed, images in enumerate(["aaaa", "bbbb"]):
        write_run(store, NL, seed, dataset={"name": "folder", "label": "img"}, meta={"data": images})
    df = where(frame(load_runs(store)), {"dataset.name": "folder"})
    with pytest.raises(UserError, match=r"the 2 runs were trained on different images \(aaaa, bbbb\)"):
        series(df)
    assert series(df[df["seed"] == 0])
