"""What the reader of a tuning comparison is told, from typed outcomes."""

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
TRIALS = {"wd": [9.0, 8.0, 20.0], "nl": [8.5, 12.0, 9.0], "so": [30.0, 31.0, 29.0]}  # validation errors
FINALS = {"wd": [8.0, 8.4, 8.1, 8.6, 8.2], "nl": [7.9, 8.5, 8.0, 8.3, 8.1], "so": [28.0, 29.0, 27.5, 28.5, 29.5]}


def run(seed, value, final):
    """A run that came to a value; None: not yet; nan: diverged."""
    state = "missing" if value is None else "diverged" if math.isnan(value) else "done"
    return Run("", seed, state, final if state == "done" else None)


def ranked(baseline=None, trials=TRIALS, **finals):
    methods = {}
    for method, errors in trials.items():
        found = []
        for lr, error in zip((0.1, 0.03, 0.3), errors, strict=False):
            tests = zip(SEEDS, finals.get(method, FINALS.get(method)), strict=True)
            ends = [run(seed, value, {"test_error": value}) for seed, value in tests]
            tried = [run(0, error, {"val_error": error, "val_ce": 1.0})]
            found.append(Trial({"train.lr": lr, "reg.lam": lr / 100}, tried, ends))
        methods[method] = MethodResult(method, found, 0)
    made = Tuning("tiny", ["compare=x"], "digits resnet8, 2 epochs, batch size 64", 300, {}, methods)
    return rank(made, baseline)


def numbers(ranking):
    text = table(ranking, Path("nowhere")).csv()
    return {row["method"]: row for row in csv.DictReader(io.StringIO(text))}


def text_of(ranking):
    return table(ranking, Path("nowhere")).markdown()


def test_holm_by_hand():
    # ascending 0.005 0.01 0.03 0.04, times 5 4 3 2 of five planned tests, never falling
    adjusted = holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005, "e": math.nan}, 5)
    assert adjusted == pytest.approx({"a": 0.04, "b": 0.09, "c": 0.09, "d": 0.025, "e": math.nan}, nan_ok=True)
    assert holm({"a": 0.6, "b": 0.7}, 2) == {"a": 1.0, "b": 1.0}


def test_equal_methods_are_told_from_the_baseline_in_at_most_one_comparison_of_twenty():
    """16 equal methods, five seeds: against the lowest mean, chosen afterwards, it was 13.8 % of the comparisons."""
    generator, draws, wrong = np.random.default_rng(0), 400, 0
    trials = {method: [8.0] for method in ["wd", *(f"m{i}" for i in range(15))]}
    for _ in range(draws):
        errors = generator.normal(8.0, 0.3, (16, 5)).tolist()
        wrong += any(p < 0.05 for p in ranked(trials=trials, **dict(zip(trials, errors, strict=True))).p.values())
    # 0.05 and two standard errors of 400 draws
    assert wrong / draws <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / draws)


def test_the_family_of_tests_is_fixed_from_the_start():
    done, begun = numbers(ranked()), numbers(ranked(trials=TRIALS | {"so": [30.0, None, None]}))
    # nl is the less likely of two tests when both are made, and the first of two when so is not: times 2 at least
    assert float(begun["nl"]["p_holm"]) == pytest.approx(min(1, 2 * float(begun["nl"]["p"])), rel=1e-4)
    assert float(done["nl"]["p_holm"]) <= float(begun["nl"]["p_holm"])


@pytest.mark.parametrize(("baseline", "others"), [(None, ("nl", "so")), ("so", ("nl", "wd"))])
def test_rows_hold_what_another_library_computes(baseline, others):
    rows = numbers(ranked(baseline))
    assert list(rows) == ["nl", "wd", "so"]  # ascending mean test error
    base, p = FINALS[baseline or "wd"], {}
    for method in others:
        test = stats.ttest_rel(FINALS[method], base)
        p[method] = test.pvalue
        found = [float(rows[method][key]) for key in ("p", "difference", "difference_low", "difference_high")]
        difference = np.subtract(FINALS[method], base).mean()
        assert found == pytest.approx([test.pvalue, difference, *test.confidence_interval()], rel=1e-4)
        assert rows[method]["baseline"] == (baseline or "wd")
    first, second = sorted(p, key=p.get)
    assert float(rows[first]["p_holm"]) == pytest.approx(2 * p[first], rel=1e-4)
    assert float(rows[second]["p_holm"]) == pytest.approx(max(p[second], 2 * p[first]), rel=1e-4)
    nl = rows["nl"]
    assert (nl["lr"], nl["lam"], nl["val_error"], nl["n"], nl["trials"]) == ("0.1", "0.001", "8.5", "5", "3")
    assert float(nl["test_error_mean"]) == pytest.approx(np.mean(FINALS["nl"]), rel=1e-5)
    assert float(nl["test_error_sd"]) == pytest.approx(np.std(FINALS["nl"], ddof=1), rel=1e-5)
    assert nl["trainings"] == "8"
    assert rows[baseline or "wd"]["difference"] == ""


def test_words_say_what_cannot_be_told_apart():
    text = text_of(ranked())
    assert "Lowest mean test error: nl, 8.16 % (n = 5)." in text
    assert "Against wd: higher: so; no difference found (p ≥ 0.05 after Holm's correction): nl." in text
    assert text.index("Lowest mean") < text.index("| method |")
    assert "λ was not tuned (nl, wd, so): the chosen learning rate was tried with one λ only." in text
    assert "may lie beyond: wd (train.lr=0.03), so (train.lr=0.3)." in text
    assert "Lowest mean test error: wd and nl, " in text_of(ranked(nl=FINALS["wd"]))


def test_a_half_filled_comparison_ranks_methods_whose_trials_are_all_there():
    ranking = ranked(trials=TRIALS | {"so": [30.0, None, None]}, nl=[7.9, 8.5, None, None, None])
    assert list(numbers(ranking)) == ["nl", "wd"]
    text = text_of(ranking)
    assert "Ranked: 2 of 3 methods, those whose settings are all tried. Not yet: so: 1 of 3 settings tried." in text
    assert "nl: 3 of 5 runs of the chosen setting are to be done." in text
    assert "not tested (fewer than three seeds in common, or equal): nl" in text  # two seeds are too few
    assert numbers(ranking)["nl"]["p"] == ""
    text = text_of(ranked(trials=TRIALS | {"wd": [9.0, 8.0, None]}))
    assert "Against wd: nothing is tested before it is tried to the end." in text


def test_what_diverged_is_counted_and_said():
    trials = TRIALS | {"nl": [math.nan, 12.0, math.nan], "so": [math.nan] * 3}
    ranking = ranked(trials=trials, nl=[7.9, math.nan, 8.0, 8.3, 8.1])
    rows, text = numbers(ranking), text_of(ranking)
    counts = [rows["nl"][key] for key in ("trials_diverged", "n", "finals_diverged", "difference_n")]
    assert counts == ["2", "4", "1", "4"]
    assert "nl: 2 of 3 settings diverged." in text
    assert "nl: 1 of 5 runs of the chosen setting diverged, not counted." in text
    assert (rows["so"]["n"], rows["so"]["val_error"]) == ("0", "")
    assert list(rows)[-1] == "so"


def test_figures_show_every_seed_and_every_setting():
    ranking = ranked(trials=TRIALS | {"wd": [9.0, 8.0, math.nan], "so": [29.0, 29.0, 30.0]})
    with style.look():
        errors, sensitivity = ranking_figures.test_errors(ranking), ranking_figures.sensitivity(ranking)
    (axes,) = errors.axes
    assert [text.get_text() for text in axes.get_yticklabels()] == ["nl", "wd", "so"]
    dots = [line.get_xdata() for line in axes.get_lines() if line.get_marker() == "o"]
    assert [sorted(xs) for xs in dots] == [sorted(FINALS[method]) for method in ("nl", "wd", "so")]
    (axes,) = sensitivity.axes
    dots = [line.get_xydata() for line in axes.get_lines() if line.get_marker() == "o"]
    tried = [each for each in dots if len(each) > 1]
    assert [each[:, 0].tolist() for each in tried] == [[8.5, 9.0, 12.0], [8.0, 9.0], [29.0, 29.0, 30.0]]
    assert len(np.unique(tried[2], axis=0)) == 3  # equal settings stand above each other
    assert [each[0, 0] for each in dots if len(each) == 1] == [8.5, 8.0, 29.0]  # ringed
    assert " 1 diverged" in {text.get_text() for text in axes.texts}
