"""What a comparison's reader is told, from typed outcomes."""

import csv
import io
import math
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from normloss.analysis import ranking_figures, style
from normloss.analysis.ranking import holm, rank, table
from normloss.sweeps.trials import MethodResult, Run, Trial, Tuning

SEEDS = range(1, 6)


def made(trials, finals):
    """A tuning comparison. trials: method -> validation errors; finals: method -> test errors by seed; None: not yet,
    nan: diverged."""

    def run(id, seed, value, final):
        state = "missing" if value is None else "diverged" if math.isnan(value) else "done"
        return Run(id, seed, state, final if state == "done" else None)

    methods = {}
    for method, errors in trials.items():
        found = []
        for lr, error in zip((0.1, 0.03, 0.3), errors, strict=False):
            tried = [run(f"{method}/{lr}/0", 0, error, {"val_error": error, "val_ce": 1.0})]
            tests = zip(SEEDS, finals.get(method, [None] * 5), strict=True)
            ends = [run(f"{method}/{lr}/{seed}", seed, value, {"test_error": value}) for seed, value in tests]
            found.append(Trial({"train.lr": lr, "reg.lam": lr / 100}, tried, ends))
        methods[method] = MethodResult(method, found, 0)
    return Tuning("tiny", ["compare=x"], "digits resnet8, 2 epochs, batch size 64", 300, {}, methods)


TRIALS = {"wd": [9.0, 8.0, 20.0], "nl": [8.5, 12.0, 9.0], "so": [30.0, 31.0, 29.0]}
FINALS = {
    "wd": [8.0, 8.4, 8.1, 8.6, 8.2],
    "nl": [7.9, 8.5, 8.0, 8.3, 8.1],
    "so": [28.0, 29.0, 27.5, 28.5, 29.5],
}


BENCH = Path("nowhere")


def numbers(ranking):
    return {row["method"]: row for row in csv.DictReader(io.StringIO(table(ranking, BENCH).csv()))}


def text_of(ranking):
    return table(ranking, BENCH).markdown()


def test_holm_by_hand():
    # ascending 0.005 0.01 0.03 0.04, times 5 4 3 2 of five planned tests, never falling
    adjusted = holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005, "e": math.nan}, 5)
    assert adjusted == pytest.approx({"a": 0.04, "b": 0.09, "c": 0.09, "d": 0.025, "e": math.nan}, nan_ok=True)
    assert holm({"a": 0.6, "b": 0.7}, 2) == {"a": 1.0, "b": 1.0}


def test_equal_methods_are_told_from_the_baseline_in_at_most_one_comparison_of_twenty():
    """16 equal methods, five seeds: against the lowest mean, chosen afterwards, it was 13.8 % of the comparisons."""
    generator = np.random.default_rng(0)
    methods = ["wd", *(f"m{i}" for i in range(15))]
    trials, wrong, draws = {method: [8.0] for method in methods}, 0, 400
    for _ in range(draws):
        errors = generator.normal(8.0, 0.3, (16, 5))
        ranking = rank(made(trials, dict(zip(methods, errors.tolist(), strict=True))))
        wrong += any(p < 0.05 for p in ranking.p.values())
    # 0.05 and two standard errors of 400 draws
    assert wrong / draws <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / draws)


def test_the_family_of_tests_is_fixed_from_the_start():
    done = numbers(rank(made(TRIALS, FINALS)))
    begun = numbers(rank(made(TRIALS | {"so": [30.0, None, None]}, FINALS)))
    # nl is the less likely of two tests when both are made, and the first of two when so is not: times 2 at least
    assert float(begun["nl"]["p_holm"]) == pytest.approx(min(1, 2 * float(begun["nl"]["p"])), rel=1e-4)
    assert float(done["nl"]["p_holm"]) <= float(begun["nl"]["p_holm"])


def test_rows_hold_what_another_library_computes():
    rows = numbers(rank(made(TRIALS, FINALS)))
    assert list(rows) == ["nl", "wd", "so"]  # ascending mean test error
    p = {}
    for method in ("nl", "so"):
        test = stats.ttest_rel(FINALS[method], FINALS["wd"])
        low, high = test.confidence_interval()
        p[method] = test.pvalue
        assert float(rows[method]["p"]) == pytest.approx(test.pvalue, rel=1e-4)
        assert float(rows[method]["difference"]) == pytest.approx(
            np.subtract(FINALS[method], FINALS["wd"]).mean(), rel=1e-4
        )
        assert [float(rows[method][key]) for key in ("difference_low", "difference_high")] == pytest.approx(
            [low, high], rel=1e-4
        )
    assert float(rows["so"]["p_holm"]) == pytest.approx(min(1, 2 * p["so"]), rel=1e-4)
    assert float(rows["nl"]["p_holm"]) == pytest.approx(max(p["nl"], 2 * p["so"]), rel=1e-4)
    nl = rows["nl"]
    assert (nl["lr"], nl["lam"], nl["val_error"], nl["n"], nl["trials"]) == ("0.1", "0.001", "8.5", "5", "3")
    assert float(nl["test_error_mean"]) == pytest.approx(np.mean(FINALS["nl"]), rel=1e-5)
    assert float(nl["test_error_sd"]) == pytest.approx(np.std(FINALS["nl"], ddof=1), rel=1e-5)
    assert nl["trainings"] == "8"
    assert rows["wd"]["difference"] == ""


def test_words_say_what_cannot_be_told_apart():
    text = text_of(rank(made(TRIALS, FINALS)))
    assert "nl has the lowest mean test error, 8.16 % (n = 5)." in text
    assert "Against wd: higher: so; not told apart from it (p ≥ 0.05 after Holm's correction): nl." in text
    assert text.index("lowest mean") < text.index("| method |")
    assert "λ was not tuned (nl, wd, so): the chosen learning rate was tried with one λ only." in text
    assert "may lie beyond: wd (train.lr=0.03), so (train.lr=0.3)." in text
    assert "ms per step" not in text


def test_equal_means_share_the_lowest():
    text = text_of(rank(made(TRIALS, FINALS | {"nl": FINALS["wd"]})))
    assert "nl and wd have the lowest mean test error" in text or "wd and nl have the lowest mean test error" in text


def test_a_half_filled_comparison_ranks_methods_whose_trials_are_all_there():
    trials = TRIALS | {"so": [30.0, None, None]}
    finals = FINALS | {"nl": [7.9, 8.5, None, None, None]}
    ranking = rank(made(trials, finals))
    assert [ranked.method for ranked in ranking.methods] == ["nl", "wd"]
    text = text_of(ranking)
    assert "Ranked: 2 of 3 methods, those whose settings are all tried. Not yet: so: 1 of 3 settings tried." in text
    assert "nl: 3 of 5 runs of the chosen setting are to be done." in text
    assert "not tested (fewer than three seeds in common, or equal): nl" in text  # two seeds are too few
    assert numbers(ranking)["nl"]["p"] == ""


def test_what_diverged_is_counted_and_said():
    trials = TRIALS | {"nl": [math.nan, 12.0, math.nan], "so": [math.nan] * 3}
    finals = FINALS | {"nl": [7.9, math.nan, 8.0, 8.3, 8.1]}
    ranking = rank(made(trials, finals))
    rows, text = numbers(ranking), text_of(ranking)
    assert (rows["nl"]["trials_diverged"], rows["nl"]["n"], rows["nl"]["finals_diverged"]) == ("2", "4", "1")
    assert rows["nl"]["difference_n"] == "4"
    assert "nl: 2 of 3 settings diverged." in text
    assert "nl: 1 of 5 runs of the chosen setting diverged, not counted." in text
    assert (rows["so"]["n"], rows["so"]["val_error"]) == ("0", "")
    assert list(rows)[-1] == "so"


def test_the_baseline_is_the_one_that_is_asked_for():
    rows = numbers(rank(made(TRIALS, FINALS), "so"))
    assert {row["baseline"] for row in rows.values()} == {"so"}
    assert float(rows["wd"]["difference"]) == pytest.approx(8.26 - 28.5, rel=1e-4)


def test_figures_show_every_seed_and_every_setting():
    trials = TRIALS | {"wd": [9.0, 8.0, math.nan]}
    ranking = rank(made(trials, FINALS))
    with style.look():
        errors, sensitivity = ranking_figures.test_errors(ranking), ranking_figures.sensitivity(ranking)
    (axes,) = errors.axes
    assert [text.get_text() for text in axes.get_yticklabels()] == ["nl", "wd", "so"]
    dots = [line.get_xdata() for line in axes.get_lines() if line.get_marker() == "o"]
    assert [sorted(xs) for xs in dots] == [sorted(FINALS[method]) for method in ("nl", "wd", "so")]
    (axes,) = sensitivity.axes
    dots = [list(line.get_xdata()) for line in axes.get_lines() if line.get_marker() == "o"]
    assert [xs for xs in dots if len(xs) > 1] == [[8.5, 9.0, 12.0], [8.0, 9.0], [29.0, 30.0, 31.0]]
    assert [xs for xs in dots if len(xs) == 1] == [[8.5], [8.0], [29.0]]  # ringed
    assert " 1 diverged" in {text.get_text() for text in axes.texts}


def test_equal_settings_are_dots_above_each_other():
    trials = TRIALS | {"wd": [8.0, 8.0, 9.0]}
    axes = ranking_figures.sensitivity(rank(made(trials, FINALS))).axes[0]
    drawn = [line.get_xydata() for line in axes.get_lines() if line.get_marker() == "o" and len(line.get_xdata()) == 3]
    assert all(len(np.unique(dots, axis=0)) == 3 for dots in drawn)
