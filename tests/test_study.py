"""An experiment's file: what it sweeps and shows, and what it may not say."""

import pytest
import yaml
from conftest import refused

from normloss.analysis.study import read_conditions, read_studies, read_study

STUDY = {"title": "T", "show": [{"plot": "over", "x": "reg.lam"}]}


def study_file(tmp_path, study, methods="wd,nl"):
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump({"hydra": {"sweeper": {"params": {"reg": methods}}}, "study": study}))
    return file


@pytest.mark.parametrize(
    ("study", "line"),
    [
        ({"titel": "T", "title": "T"}, "mine.yaml: study.titel: no such key; did you mean title?"),
        (STUDY | {"show": [{"plot": "ovr"}]}, "study.show[0].plot: must be one of over curves"),
        (STUDY | {"show": [{"x": "reg.lam"}]}, "study.show[0]: must have one of the keys plot, table, find, got x"),
        (STUDY | {"show": [{"plot": "training", "lable": "s"}]}, "show[0].lable: no such key"),
        (
            STUDY | {"show": [{"plot": "over", "x": "reg.lamb"}]},
            "reg.lamb: no such key of a run's config; did you mean",
        ),
        (STUDY | {"show": [{"find": "difference", "where": {"modell": 1}}]}, "modell: no such key of a run's config"),
        (
            STUDY | {"show": [{"find": "difference", "of": ["so", "wd"]}]},
            "of: must name methods of the study (nl wd), got",
        ),
        (STUDY | {"beside": [{"experiment": "fig9"}]}, "mine.yaml: beside: no such experiment, got fig9"),
        (STUDY | {"show": [{"plot": "training"}] * 2}, "mine.yaml: figures/mine is made by mine.yaml too: name it"),
        (
            STUDY | {"show": [{"find": "difference", "headline": "It is {foo}."}]},
            "headline: must name only result interval n reading in braces, got 'It is {foo}.'",
        ),
    ],
)
def test_a_wrong_study_is_refused_in_words(tmp_path, study, line):
    study_file(tmp_path, study)
    assert line in refused(read_studies, tmp_path)


def test_a_file_that_says_nothing_is_drawn_over_what_it_sweeps(tmp_path):
    file = tmp_path / "lamstudy.yaml"
    file.write_text("hydra: {sweeper: {params: {seed: 'range(0,3)', reg: 'wd,nl', reg.lam: '1e-4,1e-3'}}}\n")
    study = read_study(file)
    assert (study.section.title, study.size, study.sweep["seed"]) == ("lamstudy", 12, ["0", "1", "2"])
    assert [(type(shown).__name__, shown.x) for shown in study.show] == [("Over", "reg.lam"), ("Points", "reg.lam")]
    file.write_text("hydra: {sweeper: {params: {train.nesterov: 'true,false', model: 'resnet8,resnet20'}}}\n")
    shown = read_study(file).show
    assert [type(each).__name__ for each in shown] == ["Training", "Methods"]
    assert shown[0].by == ["model.name", "train.nesterov"]


@pytest.mark.parametrize(
    ("methods", "entry", "of"),
    [
        ("so,none", {"find": "best", "x": "reg.lam"}, ["so", "none"]),
        ("so,wd,none", {"find": "misset", "x": "reg.lam"}, ["so", "none", "wd"]),
        ("wd,nl", {"find": "difference"}, ["nl", "wd"]),
    ],
)
def test_a_finding_is_of_the_studys_methods(tmp_path, methods, entry, of):
    (found,) = read_study(study_file(tmp_path, {"title": "T", "show": [entry]}, methods)).show
    assert found.of == of


def test_conditions_are_read_as_train_reads_them():
    words = ["dataset=digits", "reg=wd,nl", "reg.lam=1e-3", "seed=range(0,2)", "train.milestones=[1,2]"]
    expected = {"dataset.name": ["digits"], "reg.name": ["wd", "nl"], "reg.lam": [0.001], "seed": [0, 1]}
    assert read_conditions([*words, "train.max_steps=null"]) == expected | {
        "train.milestones": [(1, 2)],
        "train.max_steps": [None],
    }
