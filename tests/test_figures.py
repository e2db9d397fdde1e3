"""Figures of finished runs: axes, intervals, looks, bytes."""

import itertools

import matplotlib
import numpy as np
import pytest
from conftest import ROOT
from digits_support import STEPS, TRAINING, WD, runs_of_two_methods, write_run

from normloss import models
from normloss.analysis import figures, layers, style, tables
from normloss.analysis.entries import Over, Points
from normloss.analysis.select import done, frame, where
from normloss.errors import UserError
from normloss.regularizers import select_layers
from normloss.runs.records import load_runs


@pytest.fixture
def store(tmp_path):
    return runs_of_two_methods(tmp_path / "runs")


def test_figure_has_three_labelled_panels_of_finished_runs(store):
    fig = figures.training(done(frame(load_runs(store))), TRAINING)
    ce, error, norm = fig.axes
    assert [axes.get_xlabel() for axes in fig.axes] == ["step", "epoch", "epoch"]
    assert ce.get_ylabel() == "cross entropy of a training batch (nats)"
    assert (error.get_ylabel(), norm.get_ylabel(), fig.get_suptitle()) == ("test error (%)", "filter norm", "digits")
    assert norm.get_ylim()[0] == 0  # above it the line of norm one
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
        write_run(tmp_path, {"name": name, "lam": 0.0}, 0, error=5.0 + i)
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


def test_an_error_of_zero_is_in_the_picture(tmp_path):
    write_run(tmp_path, WD, 0, error=0.0)
    axes = figures.training(frame(load_runs(tmp_path)), TRAINING).axes[1]
    assert axes.get_yscale() == "linear"
    assert axes.get_ylim()[0] < 0


def test_methods_stand_side_by_side_on_a_linear_axis_with_their_intervals(tmp_path):
    for reg, lr, seed in itertools.product((WD, WD | {"name": "nl"}), (1.0, 4.0), range(3)):
        write_run(tmp_path, reg, seed, 5.0 + seed, lr=lr)
    axes = figures.over(frame(load_runs(tmp_path)), Over(x="train.lr", xscale="linear", name="lr", title="lr")).axes[0]
    bars = [bar.lines[2][0].get_segments()[0] for bar in axes.containers]
    np.testing.assert_allclose([bar[:, 1] for bar in bars], [[3.516, 8.484]] * 4, atol=1e-3)  # 6 -+ 4.303 / sqrt(3)
    np.testing.assert_allclose([bar[0, 0] for bar in bars], [0.982, 3.982, 1.018, 4.018])  # 0.6 % of the axis aside


def test_any_key_is_an_axis_and_a_factor_is_on_a_logarithmic_one(tmp_path):
    for lr, error in ((0.001, 9.0), (0.01, 5.0), (0.1, 4.0)):
        for seed in range(3):
            write_run(tmp_path, WD, seed, error + seed, lr=lr)
    df = frame(load_runs(tmp_path))
    shown = Over(x="train.lr", y="train_ce", name="lr", title="lr")
    axes = figures.over(df, shown).axes[0]
    assert (axes.get_xscale(), axes.get_xlabel()) == ("log", "learning rate")
    assert axes.get_ylabel() == "training cross entropy (nats)"
    np.testing.assert_allclose(axes.get_lines()[0].get_xdata(), [0.001, 0.01, 0.1])
    table = tables.points(df, Points(x="train.lr", name="lr", title="lr"))
    means = {row["train.lr"]: (row["n"], row["mean"]) for row in table.rows}
    assert means == {0.001: (3, 10), 0.01: (3, 6), 0.1: (3, 5)}
    with pytest.raises(UserError, match=r"test_eror: no run has logged it; did you mean test_error"):
        figures.over(df, shown.model_copy(update={"y": "test_eror"}))
    with pytest.raises(UserError, match=r"train\.lrr: no run has such a key; did you mean train\.lr"):
        figures.over(df, shown.model_copy(update={"x": "train.lrr"}))
    with pytest.raises(UserError, match=r"train\.milestones: must be a number"):
        figures.over(df[df["train.lr"] == 0.1], shown.model_copy(update={"x": "train.milestones"}))


def test_layers_are_named_by_the_models_own_modules(config):
    for network in ("cifar10 resnet20", "cifar10 wrn16_4", "imagenet resnet50", "imagenet resnet18"):
        dataset, model = network.split()
        cfg = config(f"dataset={dataset}", f"model={model}", "recipe=mini")
        names = list(select_layers(models.build(cfg.model, cfg.dataset.num_classes, 3), "conv+linear"))
        groups = layers.groups(cfg.model.model_dump())
        assert list(groups.values())[-1].stop == len(names)
        prefixes = {part: {name.split(".")[0] for name in names[places]} for part, places in groups.items()}
        assert (prefixes["stem"], prefixes["classifier"]) == ({"conv1"}, {"fc"})
        for i in range(1, len(groups) - 1):
            assert prefixes[f"stage {i}"] in ({f"stage{i}"}, {f"layer{i}"})
