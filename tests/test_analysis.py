"""Tables, figures and scripts/compare.py on a store of typed numbers."""

import itertools
import json
import math
import shlex
from dataclasses import replace
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import runs_support
import yaml
from scipy import stats as scipy_stats

from normloss.analysis import figures, stats, style, tables
from normloss.analysis.commands import command_of
from normloss.analysis.entries import Methods, Over, Points, Training
from normloss.analysis.select import done, frame, series, where
from normloss.analysis.study import read_conditions, read_studies, read_study
from normloss.config import read_stored
from normloss.errors import UserError
from normloss.runs.records import load_runs
from normloss.sweeps.composing import expand

ROOT = Path(__file__).resolve().parent.parent
DIGITS = {"dataset.name": "digits", "model.name": "resnet8"}
WD = {"name": "wd", "lam": 1e-4, "layers": "all", "half": True}
NL = {"name": "nl", "lam": 0.01, "layers": "conv+linear"}
ERRORS = {"wd": (2.0, 3.0, 4.0), "nl": (1.0, 1.1, 1.2)}  # percent, of seeds 0 1 2 at the last epoch
STEPS = 60
TRAINING = Training(name="digits", title="digits")
METHODS = Methods(name="digits")
BASE = json.loads((ROOT / "tests" / "data" / "identities.json").read_text())["experiments"]["demo"]["config"]
BASE["train"].pop("executor")  # as stored before the key was there
NAMES: dict[str, str] = {}  # id -> what the tests call the run


def write_run(store, name, reg, seed, error=5.0, state="done", model="resnet8", dataset=None, meta=None, **train):
    """A run folder; `name` is what the tests call it, `folder` gives its path."""
    depth = {"depth": int(model.removeprefix("resnet"))}
    config = BASE | {
        "dataset": BASE["dataset"] | (dataset or {}),
        "model": BASE["model"] | {"name": model} | depth,
        "reg": reg,
        "train": BASE["train"] | {"batch_size": 64, "epochs": 3, "milestones": [1, 2]} | train,
        "seed": seed,
    }
    cfg = read_stored(config)
    NAMES[cfg.id] = name
    epochs = cfg.train.epochs
    path = store / runs_support.write_run(store, cfg, error, steps=STEPS // epochs, epochs=epochs, seconds=42 / epochs)
    (path / "meta.json").write_text(json.dumps({"seconds_per_epoch": 2.0, "sessions": []} | (meta or {})))
    if state != "done":
        (path / "DONE").unlink()
        (path / "status.json").write_text(json.dumps({"state": state}))


def id_of(name):
    return [id for id, known in NAMES.items() if known == name][-1]


def folder(store, name):
    return store / id_of(name)


def names(df):
    return sorted(NAMES[id] for id in df["id"])


@pytest.fixture
def store(tmp_path):
    """wd and nl with three seeds each, one run that was stopped and one that diverged."""
    store = tmp_path / "runs"
    for reg in (NL, WD):
        for seed, error in enumerate(ERRORS[reg["name"]]):
            write_run(store, f"{reg['name']}{seed}", reg, seed, error)
    write_run(store, "stopped0", NL, 3, state="incomplete")
    write_run(store, "diverged0", NL | {"lam": 100.0}, 0, state="diverged")
    return store


@pytest.fixture
def script(load_script):
    return load_script("compare")


# stats -----------------------------------------------------------------------------------------


def test_statistics_equal_numbers_worked_out_by_hand():
    # 2 3 4: deviations -1 0 1, sd sqrt(2/2); 4.303 / sqrt(3) = 2.484
    three = stats.summarize([3.0, 2.0, 4.0])
    assert (three.n, three.best, three.mean, three.sd) == (3, 2.0, 3.0, 1.0)
    assert (three.low, three.high) == pytest.approx((0.516, 5.484), abs=1e-3)
    # deviations -0.14 -0.04 0.06 -0.02 0.14, squares sum to 0.0448, sd sqrt(0.0448/4); 2.776 / sqrt(5) = 1.2415
    five = stats.summarize([5.84, 5.94, 6.04, 5.96, 6.12])
    assert (five.mean, five.sd) == pytest.approx((5.98, 0.1058), abs=1e-4)
    assert (five.low, five.high) == pytest.approx((5.849, 6.111), abs=1e-3)


@pytest.mark.parametrize("values", [[], [0.7], [4.44, 4.44], [1.0, 3.0]])
def test_fewer_than_three_values_have_no_interval_and_no_test(values):
    few, test = stats.summarize(values), stats.paired(np.zeros(len(values)), values)
    assert (few.n, few.values, test.n) == (len(values), tuple(values), len(values))
    assert np.isnan([few.low, few.high, test.low, test.high, test.t, test.p, test.effect]).all()
    assert np.isnan(stats.paired([0.0] * 3, [0.25] * 3).p)  # three equal differences


def test_equivalence_is_two_one_sided_tests():
    # mean 0.2, sd 0.2, n = 4: one-sided t is (1 - 0.2) / (0.2 / 2) = 8 on the near side and 12 on the other
    values = [0.0, 0.1, 0.3, 0.4]
    verdict, low, high = stats.equivalence(values, 1.0)
    half = scipy_stats.t.ppf(0.95, 3) * np.std(values, ddof=1) / 2
    assert (verdict, low, high) == ("equivalent", pytest.approx(0.2 - half), pytest.approx(0.2 + half))
    for margin in (0.2, 0.35, 0.5):  # equivalent exactly where both one-sided tests have p < 0.05
        p = max(
            scipy_stats.ttest_1samp(values, bound, alternative=side).pvalue
            for bound, side in ((margin, "less"), (-margin, "greater"))
        )
        assert (stats.equivalence(values, margin)[0] == "equivalent") == (p < 0.05)
    assert stats.equivalence([3.0, 3.1, 2.9], 1.0)[0] == "not equivalent"
    assert stats.equivalence([0.5, 1.0, 1.5], 1.0)[0] == "inconclusive"
    assert stats.equivalence([0.0, 0.1], 1.0)[0] == "inconclusive"


def test_paired_statistics_equal_numbers_worked_out_by_hand():
    # differences -1 -2 -3: mean -2, sd 1; t = -2 sqrt(3) = -3.464; with 2 degrees of freedom p = 1 - t / sqrt(t^2 + 2)
    test = stats.paired([5.0, 6.0, 7.0], [4.0, 4.0, 4.0])
    assert (test.n, test.mean, test.sd, test.effect) == (3, -2.0, 1.0, -2.0)
    assert (test.t, test.p) == pytest.approx((-2 * math.sqrt(3), 1 - math.sqrt(12 / 14)))
    assert (test.low, test.high) == pytest.approx((-4.484, 0.484), abs=1e-3)


# select ----------------------------------------------------------------------------------------


def test_frame_has_the_config_and_the_last_epoch(store):
    df = frame(load_runs(store)).set_index("id")
    cells = df.loc[id_of("wd1"), ["dataset.name", "reg.lam", "seed", "test_error", "seconds"]]
    assert cells.tolist() == ["digits", 1e-4, 1, 3.0, 42.0]
    assert np.isnan(df.loc[id_of("diverged0"), "test_error"])
    assert df.loc[id_of("nl0"), "record"].id == id_of("nl0")
    assert not {"device", "wandb.group"} & set(df)  # not what was trained


def test_runs_match_however_their_steps_were_run(store):
    write_run(store, "nl4", NL, 4, executor="graph")  # the others were stored before the key was there
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
    write_run(store, "first0", NL | {"layers": "first"}, 0)
    groups = series(frame(load_runs(store)))
    assert {label: names(runs) for label, runs in groups.items()} == {
        "wd λ=0.0001": ["wd0", "wd1", "wd2"],
        "nl λ=0.01": ["nl0", "nl1", "nl2", "stopped0"],
        "nl λ=0.01 layers=first": ["first0"],
        "nl λ=100": ["diverged0"],
    }
    assert next(iter(groups)) == "wd λ=0.0001"


@pytest.mark.parametrize(
    ("change", "key"), [({"model": "resnet20"}, "model.name"), ({"batch_size": 32}, "train.batch_size")]
)
def test_runs_of_two_settings_are_refused(store, change, key):
    write_run(store, "other0", NL, 0, **change)
    df = frame(load_runs(store))
    with pytest.raises(UserError, match=rf"differ in {key} .*choose one, for example {key}=(64|resnet8)$"):
        series(df)
    with pytest.raises(UserError, match=key):
        tables.methods(df, METHODS)


def test_runs_on_other_images_of_a_folder_of_the_same_name_are_refused(store):
    for seed, images in enumerate(["aaaa", "bbbb"]):
        write_run(store, f"folder{seed}", NL, seed, dataset={"name": "folder", "label": "img"}, meta={"data": images})
    df = where(frame(load_runs(store)), {"dataset.name": "folder"})
    with pytest.raises(UserError, match=r"the 2 runs were trained on different images \(aaaa, bbbb\)"):
        series(df)
    assert series(df[df["seed"] == 0])


# tables ----------------------------------------------------------------------------------------


def test_table_shows_every_statistic(store):
    lines = tables.methods(frame(load_runs(store)), METHODS).markdown().splitlines()
    assert lines[0] == "digits resnet8, 3 epochs, batch size 64"
    assert lines[4:7] == [
        "| wd λ=0.0001 | 3 | 2.00 (3.00 ± 1.00) | 0.52 to 5.48 | – | 0.3000 | 1.040 (0.900–1.200) |",
        # differences -1 -1.9 -2.8: mean -1.9, sd 0.9; t = -3.657 and p = 1 - t / sqrt(t^2 + 2)
        "| nl λ=0.01 | 3 | 1.00 (1.10 ± 0.10) | 0.85 to 1.35 | 0.067 | 0.1100 | 1.040 (0.900–1.200) |",
        "| nl λ=100 | 0 | – | – | – | – | – |",
    ]
    assert lines[8].startswith("Errors at the last epoch; best is the lowest over seeds, never over epochs. ±:")
    assert lines[10] == "p: against wd λ=0.0001, paired by seed."
    assert lines[12] == "Diverged, not counted: nl λ=100."


def test_table_of_one_seed_shows_no_spread(store):
    table = tables.methods(where(frame(load_runs(store)), {"reg.name": "wd", "seed": 2}), METHODS).markdown()
    assert "| wd λ=0.0001 | 1 | 4.00 | – | – | 0.4000 | 1.040 (0.900–1.200) |" in table
    assert "| method | n | test error %, each seed |" in table
    assert "±" not in table
    assert "nan" not in table


def test_the_command_of_a_row_composes_to_its_runs(store):
    write_run(store, "first0", NL | {"layers": "first", "lam": 0.5}, 7, lr=0.2)
    for runs in series(frame(load_runs(store)), by=["train.lr"]).values():
        words = shlex.split(command_of(runs["record"]))
        assert words[:2] == ["python", "train.py"]
        assert sorted(cfg.id for cfg in expand(words[2:])) == sorted(runs["id"])
    assert command_of(runs["record"].map(lambda run: replace(run, config=run.config | {"reg": {"name": "gone"}}))) == ""


# figures ---------------------------------------------------------------------------------------


def test_figure_has_three_labelled_panels_of_finished_runs(store):
    fig = figures.training(done(frame(load_runs(store))), TRAINING)
    ce, error, norm = fig.axes
    assert [axes.get_xlabel() for axes in fig.axes] == ["step", "epoch", "epoch"]
    assert ce.get_ylabel() == "cross entropy of a training batch (nats)"
    assert (error.get_ylabel(), norm.get_ylabel()) == ("test error (%)", "filter norm")
    assert ce.get_yscale() == error.get_yscale() == "log"
    assert {text.get_text() for text in fig.legends[0].get_texts()} == {"wd λ=0.0001 (n = 3)", "nl λ=0.01 (n = 3)"}
    np.testing.assert_allclose(error.get_lines()[0].get_ydata(), [80.0, 0.01, 3.0])
    steps = ce.get_lines()[0].get_xdata()
    assert (steps[0], steps[-1], len(steps)) == pytest.approx((10, STEPS - 9, STEPS - 18))  # centred windows of 19


def test_figure_of_one_seed_shows_each_step(store):
    df = where(frame(load_runs(store)), {"seed": 0, "reg.name": "wd"})
    axes = figures.training(df, TRAINING).axes[0]
    (smooth,), (raw,) = axes.get_lines(), axes.collections
    assert len(smooth.get_xdata()) == STEPS - 18
    drawn = raw.get_paths()[0].vertices
    assert {1.0, float(STEPS)} <= set(drawn[:, 0])
    np.testing.assert_allclose(drawn[:, 1].max(), 2.3, rtol=1e-6)  # the first step's, not smoothed away


def test_files_are_the_same_bytes_twice_whatever_a_users_matplotlibrc_says(store, tmp_path):
    df = done(frame(load_runs(store)))

    def drawn(name):
        with style.look():
            style.save(figures.training(df, TRAINING), tmp_path / name)
        return [(tmp_path / f"{name}.{suffix}").read_bytes() for suffix in ("png", "pdf")]

    plain = drawn("plain")
    assert all(len(content) > 10_000 for content in plain) and len(list(tmp_path.glob("plain*"))) == 2
    with matplotlib.rc_context({"text.usetex": True, "font.size": 30, "savefig.bbox": "tight"}):
        assert drawn("theirs") == plain


def test_more_than_six_methods_are_parted_into_panels_of_equal_axes(tmp_path):
    for i, name in enumerate(["wd", "nl", "wn", "pbwn", "oni", "olm", "so", "mc"]):
        write_run(tmp_path, f"one of eight: {name}", {"name": name, "lam": 0.0}, 0, error=5.0 + i)
    fig = figures.training(frame(load_runs(tmp_path)), TRAINING)
    error = fig.axes[1::3]
    drawn = [[line.get_label().split()[0] for line in axes.get_lines()] for axes in error]
    assert drawn == [["wd", "nl", "mc", "olm", "oni", "pbwn"], ["wd", "nl", "so", "wn"]]
    assert error[0].get_ylim() == error[1].get_ylim()
    colours = [{line.get_label(): line.get_color() for line in axes.get_lines()} for axes in error]
    assert colours[0]["nl (n = 1)"] == colours[1]["nl (n = 1)"] == style.ORANGE


def test_every_pair_of_methods_is_told_apart_in_grey():
    methods = sorted(path.stem for path in (ROOT / "configs" / "reg").glob("*.yaml"))
    assert len(methods) >= 20
    looks = style.lines(methods)
    for one, other in itertools.combinations(methods, 2):
        a, b = looks[one], looks[other]
        assert (a["linestyle"], a["marker"]) != (b["linestyle"], b["marker"]), (one, other)
        assert (a["linestyle"], a["color"]) != (b["linestyle"], b["color"]), (one, other)  # many points: no markers


def test_an_axis_of_one_epoch_has_one_tick(tmp_path):
    write_run(tmp_path, "one epoch", WD, 0, error=5.0, epochs=1, milestones=[])
    df = frame(load_runs(tmp_path))
    axes = figures.training(df, TRAINING).axes[1]
    low, high = axes.get_xlim()
    assert [tick for tick in axes.xaxis.get_ticklocs() if low <= tick <= high] == [1]
    assert tables.methods(df, METHODS).title == "digits resnet8, 1 epoch, batch size 64"


def test_an_error_of_zero_is_in_the_picture(tmp_path):
    write_run(tmp_path, "zero0", WD, 0, error=0.0)
    axes = figures.training(frame(load_runs(tmp_path)), TRAINING).axes[1]
    assert axes.get_yscale() == "linear"
    assert axes.get_ylim()[0] < 0


def test_any_key_is_an_axis_and_a_factor_is_on_a_logarithmic_one(tmp_path):
    for lr, error in ((0.001, 9.0), (0.01, 5.0), (0.1, 4.0)):
        for seed in range(3):
            write_run(tmp_path, f"wd{lr}{seed}", WD, seed, error + seed, lr=lr)
    df = frame(load_runs(tmp_path))
    shown = Over(x="train.lr", y="train_ce", name="lr", title="lr")
    axes = figures.over(df, shown).axes[0]
    assert (axes.get_xscale(), axes.get_xlabel()) == ("log", "learning rate")
    assert axes.get_ylabel() == "training cross entropy (nats)"
    np.testing.assert_allclose(axes.get_lines()[0].get_xdata(), [0.001, 0.01, 0.1])
    table = tables.points(df, Points(x="train.lr", name="lr", title="lr"))
    assert [(row["train.lr"], row["n"], row["mean"]) for row in table.rows] == [
        (0.001, 3, 10),
        (0.01, 3, 6),
        (0.1, 3, 5),
    ]
    with pytest.raises(UserError, match=r"test_eror: no run has logged it; did you mean test_error"):
        figures.over(df, shown.model_copy(update={"y": "test_eror"}))
    with pytest.raises(UserError, match=r"train\.lrr: no run has such a key; did you mean train\.lr"):
        figures.over(df, shown.model_copy(update={"x": "train.lrr"}))
    with pytest.raises(UserError, match=r"train\.milestones: must be a number"):
        figures.over(df[df["train.lr"] == 0.1], shown.model_copy(update={"x": "train.milestones"}))


# the experiments' files --------------------------------------------------------------------------


STUDY = {"title": "T", "show": [{"plot": "over", "x": "reg.lam"}]}


def study_file(tmp_path, study, methods="wd,nl"):
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump({"hydra": {"sweeper": {"params": {"reg": methods}}}, "study": study}))
    return file


@pytest.mark.parametrize(
    ("study", "line"),
    [
        ({"titel": "T", "title": "T"}, "mine.yaml: study.titel: no such key; did you mean title?"),
        ({"show": []}, "mine.yaml: study.title: must be given"),
        (STUDY | {"show": [{"plot": "ovr"}]}, "study.show[0].plot: must be one of over curves"),
        (STUDY | {"show": [{"plot": "over"}]}, "study.show[0].x: must be given"),
        (STUDY | {"show": [{"x": "reg.lam"}]}, "study.show[0]: must have one of the keys plot, table, find, got x"),
        (
            STUDY | {"show": [{"plot": "over", "x": "seed", "lable": "s"}]},
            "show[0].lable: no such key; did you mean ylabel?",
        ),
        (
            STUDY | {"show": [{"plot": "over", "x": "seed", "xscale": "lg"}]},
            "show[0].xscale: must be 'auto', 'linear' or",
        ),
        (
            STUDY | {"show": [{"plot": "over", "x": "reg.lamb"}]},
            "reg.lamb: no such key of a run's config; did you mean reg.lam",
        ),
        (
            STUDY | {"show": [{"find": "difference", "where": {"modell": "x"}}]},
            "modell: no such key of a run's config; did",
        ),
        (STUDY | {"show": [{"plot": "training"}, {"plot": "training"}]}, "figures/mine is made before: name it"),
        (
            STUDY | {"show": [{"find": "difference", "headline": "It is {foo}."}]},
            "headline: must name only result interval n reading in braces, got 'It is {foo}.'",
        ),
    ],
)
def test_a_wrong_study_is_refused_in_words(tmp_path, study, line):
    with pytest.raises(UserError) as refused:
        read_study(study_file(tmp_path, study))
    assert line in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_file_that_says_nothing_is_drawn_over_what_it_sweeps(tmp_path):
    file = tmp_path / "lamstudy.yaml"
    file.write_text("hydra: {sweeper: {params: {seed: 'range(0,3)', reg: 'wd,nl', reg.lam: '1e-4,1e-3'}}}\n")
    study = read_study(file)
    assert (study.title, study.size, study.sweep["seed"]) == ("lamstudy", 12, ["0", "1", "2"])
    assert [(type(shown).__name__, shown.x) for shown in study.show] == [("Over", "reg.lam"), ("Points", "reg.lam")]
    file.write_text("hydra: {sweeper: {params: {train.nesterov: 'true,false', model: 'resnet8,resnet20'}}}\n")
    shown = read_study(file).show
    assert [type(each).__name__ for each in shown] == ["Training", "Methods"]
    assert shown[0].by == ["model.name", "train.nesterov"]


@pytest.mark.parametrize(
    ("methods", "entry", "of"),
    [
        ("so,none", {"find": "best", "x": "reg.lam"}, ["so", "none"]),
        ("so,none", {"find": "range", "x": "reg.lam", "of": ["so", "none"]}, ["so", "none"]),
        ("so,wd,none", {"find": "misset", "x": "reg.lam"}, ["so", "none", "wd"]),
        ("wd,nl", {"find": "difference"}, ["nl", "wd"]),
    ],
)
def test_a_finding_is_of_the_studys_methods(tmp_path, methods, entry, of):
    (found,) = read_study(study_file(tmp_path, {"title": "T", "show": [entry]}, methods)).show
    assert found.of == of


def test_a_finding_of_methods_that_the_study_lacks_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"study\.show\[0\]\.of: must name methods of the study \(so none\), got nl"):
        read_study(study_file(tmp_path, {"title": "T", "show": [{"find": "difference"}]}, "so,none"))


def test_a_study_that_does_not_say_otherwise_is_local(tmp_path):
    assert read_study(study_file(tmp_path, STUDY)).section.local
    shipped = read_studies()
    assert [study.name for study in shipped.values() if study.section.local] == ["demo"]
    assert all(study.section.question for study in shipped.values())


# scripts/compare.py ------------------------------------------------------------------------------


def test_compare_writes_the_table_and_the_figure(store, tmp_path, script, capsys):
    status = script.main(["dataset=digits", f"store={store}", "model.name=resnet8", "--out", str(tmp_path)])
    out, err = capsys.readouterr()
    assert (status, err) == (0, "")
    assert (tmp_path / "tables" / "digits_resnet8.md").read_text() in out
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {"digits_resnet8.png", "digits_resnet8.pdf"}
    assert {path.suffix for path in (tmp_path / "tables").iterdir()} == {".md", ".tex", ".csv"}
    last = out.splitlines()[-1]
    assert f"{tmp_path}/tables/digits_resnet8.md" in last
    assert "python train.py model=resnet110 reg=nl" in last


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["dataset=digits", "seed=7"], "to make some: python train.py -m dataset=digits seed=7 reg=wd,nl"),
        (["dataset=digits", "reg=nl", "seed=7"], "python train.py dataset=digits reg=nl seed=7"),
        (["reg.lam=100"], "no run is done (DIVERGED diverged)"),
        (["dataset=digits", "reg=wn", "seed=7,8"], "python train.py -m dataset=digits reg=wn seed=7,8"),
        (["reg=foo"], "reg: no such file in configs/reg, got foo"),
        (["dataset=cifra10"], "did you mean cifar10?"),
        (["digits"], "digits: must be key=value"),
        (["seed=[1"], "seed=[1: must be key=value"),
        (["dataset.nmae=digits"], "did you mean dataset.name"),
    ],
)
def test_compare_refuses_in_one_line(store, tmp_path, script, capsys, words, line):
    assert script.main([*words, f"--store={store}", f"--out={tmp_path / 'out'}"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("normloss: ")
    assert err.count("\n") == 1
    assert line.replace("DIVERGED", id_of("diverged0")) in err
    assert not (tmp_path / "out").exists()


def test_compare_says_where_all_that_match_are_truncated(tmp_path, script, capsys):
    write_run(tmp_path / "runs", "short", NL, 0, max_steps=2)
    words = ["dataset=digits", f"--store={tmp_path / 'runs'}", f"--results={tmp_path}", f"--out={tmp_path}"]
    assert script.main(words) == 2
    assert "every run that matches is truncated (1): only a condition on train.max_steps or" in capsys.readouterr().err
    assert script.main([*words, "train.max_steps=2"]) == 0


def test_conditions_are_read_as_train_reads_them():
    words = [
        "dataset=digits",
        "reg=wd,nl",
        "reg.lam=1e-3",
        "seed=range(0,2)",
        "train.milestones=[1,2]",
        "train.max_steps=null",
    ]
    expected = {
        "dataset.name": ["digits"],
        "reg.name": ["wd", "nl"],
        "reg.lam": [0.001],
        "seed": [0, 1],
        "train.milestones": [(1, 2)],
        "train.max_steps": [None],
    }
    assert read_conditions(words) == expected


def test_one_run_is_plotted_by_its_id(store, tmp_path, script, capsys):
    assert script.main([id_of("wd2"), f"store={store}", f"--out={tmp_path}"]) == 0
    assert "| wd λ=0.0001 | 1 | 4.00 |" in capsys.readouterr().out
    assert (tmp_path / "figures" / f"{id_of('wd2')}.png").exists()


@pytest.mark.parametrize("words", [[], ["--x", "train.lr"]])
def test_what_diverged_is_in_the_table_and_in_the_figure(tmp_path, script, capsys, monkeypatch, words):
    """Three of four runs at a learning rate of 9, and the one run of another method."""
    store, titles = tmp_path / "runs", []
    write_run(store, "low", NL, 0, 3.0, lr=0.1)
    write_run(store, "high", NL, 3, 2.0, lr=9.0)
    for seed in range(3):
        write_run(store, f"lost{seed}", NL, seed, state="diverged", lr=9.0)
    write_run(store, "wd", WD, 0, state="diverged", lr=9.0)
    monkeypatch.setattr(style, "save", lambda fig, path: titles.append(" ".join(fig.get_suptitle().split())))
    conditions = ["dataset=digits", *([] if words else ["train.lr=9"])]
    assert script.main([*conditions, *words, f"--store={store}", f"--out={tmp_path}", "--name=made"]) == 0
    lr = " lr=9" if words else ""
    note = f"Diverged, not counted: nl λ=0.01{lr} (3), wd λ=0.0001{lr}."
    table = (tmp_path / "tables" / "made.md").read_text()
    assert note in table
    assert "2.00" in table
    assert titles[0].endswith(note)
    assert f"diverged {id_of('lost1')}" in capsys.readouterr().out


def test_compare_says_that_it_cannot_write(store, tmp_path, script, capsys):
    (tmp_path / "file").touch()
    assert script.main(["dataset=digits", f"store={store}", f"out={tmp_path / 'file'}"]) == 2
    assert capsys.readouterr().err.startswith("normloss: out: must be a folder that can be written")
