"""Tuned comparisons: what is drawn, what is chosen, and that every trial is an ordinary run."""

import json
import math
import subprocess
import sys

import pytest
import yaml

from normloss.analysis import ranking
from normloss.config.labels import rescale
from normloss.errors import UserError
from normloss.regularizers import REGULARIZERS
from normloss.runs.records import load_runs
from normloss.sweeps import comparison, launch, spaces, tuning
from normloss.sweeps.comparison import RunState, judge, lookup_in
from normloss.sweeps.composing import expand
from normloss.sweeps.tuning import Search
from tests.conftest import ROOT

DIGITS = ("dataset=digits", "model=resnet8", "dataset.val=100")
# 10^(-2 + 2 s) and, of nl, 10^(-4 + 3 s) in four digits, s = 1/2 1/4 3/4 1/8 5/8 3/8 7/8 1/16
RATES = [0.1, 0.03162, 0.3162, 0.01778, 0.1778, 0.05623, 0.5623, 0.01334]
LAMS = [0.003162, 0.0005623, 0.01778, 0.0002371, 0.007499, 0.001334, 0.04217, 0.000154]
OLD = ROOT / "results" / "comparisons" / "small_compare.1.json"


# spaces ------------------------------------------------------------------------------------------


def test_what_is_drawn_are_shares_of_the_logarithm_and_more_keep_those_drawn_before():
    for low, high, values in ((0.01, 1.0, RATES), (1e-4, 0.1, LAMS)):
        assert spaces.draw((low, high), 8) == values
        assert spaces.draw((low, high), 5) == values[:5]


@pytest.mark.parametrize("method", spaces.methods())
def test_lam_spans_three_decades_with_the_authors_value_in_the_middle(method, config):
    space = spaces.space(method)
    if "lam" not in yaml.safe_load((ROOT / "configs" / "reg" / f"{method}.yaml").read_text()):
        assert list(space) == ["train.lr"]
        return
    low, high = space["reg.lam"]
    lam = config("dataset=cifar10", "model=resnet110", f"reg={method}").reg.lam
    assert high / low == pytest.approx(1000)
    assert abs(math.log10(lam / math.sqrt(low * high))) <= 0.52  # half a decade: of several values of theirs


@pytest.mark.parametrize(
    ("epochs", "milestones"),
    [(200, [20, 50, 70, 120]), (164, [16, 41, 57, 98]), (8, [1, 2, 3, 5]), (6, [1, 2, 3, 4]), (4, [1, 2, 3, 4]),
     (2, [1, 2, 2, 2])],
)  # fmt: skip
def test_milestones_of_lam_that_would_coincide_are_an_epoch_apart(config, epochs, milestones):
    assert rescale([20, 50, 70, 120], 200, epochs) == milestones
    reg = config("dataset=digits", "model=resnet8", "reg=srip", f"train.epochs={epochs}", "train.milestones=[]").reg
    assert reg.lam_milestones == milestones


# the runs ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def search(tmp_path_factory):
    store = tmp_path_factory.mktemp("store")
    return Search(["compare=none,nl,srip", "trials=4", "seeds=2", "trial_seeds=2", "seed=5", *DIGITS, f"store={store}"])


@pytest.fixture(scope="module")
def of_trials(tmp_path_factory):
    """of_trials(8) -> the search of nl and none with that many trials, one seed each."""
    made = {}

    def make(trials: int, *words: str) -> Search:
        if (trials, *words) not in made:
            store = tmp_path_factory.mktemp("store")
            made[trials, *words] = Search(["compare=nl,none", f"trials={trials}", *words, *DIGITS, f"store={store}"])
        return made[trials, *words]

    return make


def outcomes(search, error, ce=lambda values: 1.0):
    """A look at a store where each trial came to error(values, seed); None: not yet; nan: diverged."""

    def lookup(id):
        _, setting, seed = search.plans[id]
        if all(run.id != id for run in setting.trials) or (value := error(setting.values, seed)) is None:
            return RunState()
        final = {"val_error": value, "val_ce": ce(setting.values), "test_error": -value}  # the test set likes the worst
        return RunState("diverged") if math.isnan(value) else RunState("done", final)

    return lookup


def settings(search, method, error):
    """What is known of a method's settings, as (rate, λ), and how many are to come."""
    made = search.comparison(outcomes(search, error))
    found = [(one.values["train.lr"], one.values.get("reg.lam")) for one in made.methods[method]]
    return found, made.to_come[method]


def nearest(rate, lam=0.02):
    """An error that falls towards a rate and, one tenth as steeply, a λ."""
    distance = lambda one, other: abs(math.log(one / other))  # noqa: E731
    return lambda values, seed: distance(values["train.lr"], rate) + distance(values.get("reg.lam", lam), lam) / 10


@pytest.mark.parametrize(
    ("trials", "best", "rates", "lams"),
    [
        (8, 0.1, RATES[:4], LAMS[:4]),
        (7, 0.1, RATES[:4], LAMS[:3]),
        (8, 0.3, [*RATES[:4], 0.5623], LAMS[:4]),
        (8, 0.6, [*RATES[:4], 0.5623, 0.7499], LAMS[:4]),  # s = 15/16
        (8, 0.014, [*RATES[:4], 0.01334, 0.01155], LAMS[:4]),  # s = 1/32
        (2, 0.1, [0.1, 0.03162, 0.3162], LAMS[:1]),  # a single rate is the lowest and the highest
        (1, 0.1, [0.1], []),
    ],
)  # fmt: skip
def test_the_rate_is_tried_at_the_authors_lam_then_lam_at_the_best_rate(of_trials, trials, best, rates, lams):
    found, to_come = settings(of_trials(trials), "nl", nearest(best))
    rate = min(rates, key=lambda one: abs(math.log(one / best)))
    assert found == [*((one, 0.01) for one in rates), *((rate, lam) for lam in lams)]
    assert to_come == 0
    assert settings(of_trials(trials), "none", nearest(best)) == ([(one, None) for one in RATES[:trials]], 0)


def test_lam_waits_for_every_rate(of_trials):
    first = [(rate, 0.01) for rate in RATES[:4]]
    for last, known in ((None, (first, 4)), (math.nan, ([*first, *((0.03162, lam) for lam in LAMS[:4])], 0))):
        error = lambda values, seed, last=last: last if values["train.lr"] == 0.01778 else values["train.lr"]  # noqa: E731
        assert settings(of_trials(8), "nl", error) == known


def test_a_method_of_which_every_rate_diverged_has_ended(of_trials):
    search = of_trials(8)
    lookup = outcomes(search, lambda values, seed: math.nan)
    tuned = judge(search.comparison(lookup), "nl", lookup)
    assert (tuned.complete, tuned.chosen, tuned.why) == (True, None, "all 4 settings diverged")


def test_the_authors_lam_is_not_tried_twice(of_trials, monkeypatch):
    search = of_trials(8, "seed=1")
    monkeypatch.setitem(search.spaces["nl"], "reg.lam", (1e-3, 0.1))  # whose middle it is
    found, _ = settings(search, "nl", nearest(0.1))
    assert [lam for _, lam in found[4:]] == [0.003162, 0.03162, 0.001778, 0.01778]


def test_more_trials_keep_stage_one_and_stage_two_where_the_best_rate_stays(of_trials):
    few, many = (of_trials(trials) for trials in (8, 16))
    ids = [{run.id for one in each.comparison(outcomes(each, nearest(0.1))).methods["nl"] for run in one.trials}
           for each in (few, many)]  # fmt: skip
    assert [len(each) for each in ids] == [8, 16]
    assert ids[0] < ids[1]


def test_runs_of_the_earlier_search_count_where_they_are_the_same():
    old, new = comparison.read(OLD), Search(["experiment=small_compare"]).comparison(lambda id: RunState())
    trials = lambda made, method: [run.id for one in made.methods[method] for run in one.trials]  # noqa: E731
    assert set(new.methods) == set(REGULARIZERS)
    for method in new.methods:
        if "reg.lam" not in new.spaces[method]:
            assert new.methods[method] == old.methods[method]
        assert len(new.methods[method]) + new.to_come[method] == 8
    assert trials(new, "wd")[0] == trials(old, "wd")[0]  # 0.1 and 1e-4, of both
    assert trials(new, "nl")[1] == trials(old, "nl")[1]  # 0.03162 and 1e-2


@pytest.mark.parametrize("method", ["none", "nl", "srip"])
def test_each_run_is_the_one_that_its_words_train_alone(search, method):
    known = search.comparison(outcomes(search, nearest(0.1))).methods[method]
    for setting in (known[0], known[-1]):
        for run in (setting.trials[0], setting.finals[-1]):
            cfg, words = search.run(run.id)
            (alone,) = expand(words)
            assert run.id == alone.id == cfg.id
            assert alone.seed == run.seed
            assert (alone.train.lr, alone.reg.lam) == (setting.values["train.lr"], setting.values.get("reg.lam", 0.0))
            assert not any(word.startswith(("compare", "trials")) for word in words)


def test_a_schedule_of_lam_is_scaled_with_lam(search):
    known = search.comparison(outcomes(search, nearest(0.1))).methods["srip"]
    schedules = [search.run(one.trials[0].id).cfg.reg.lam_values for one in (known[0], known[-2])]
    authors = [1e-2, 1e-5, 1e-6, 1e-8, 0.0]
    assert schedules[0] == authors
    # 10^(log10 3e-4 + 3/2) = 0.009487
    assert schedules[1] == pytest.approx([lam * 0.9487 for lam in authors], rel=6e-4)


def test_seeds_are_the_same_for_every_method_and_fresh_for_the_chosen_setting(search):
    for known in search.comparison().methods.values():
        assert {tuple(run.seed for run in setting.trials) for setting in known} == {(5, 6)}
        assert {tuple(run.seed for run in setting.finals) for setting in known} == {(7, 8)}


def test_the_default_name_follows_from_what_is_known_before_any_result(of_trials):
    names = {of_trials(8, *words).name for words in ((), ("seeds=4",), ("seed=1",), ("trial_seeds=2",))}
    assert len(names | {of_trials(7).name}) == 5  # eight and seven trials have the same first stage
    assert all(name.startswith("digits_resnet8_") for name in names)


def test_an_experiment_may_be_a_comparison():
    assert tuning.asked(["experiment=small_compare", "budget_minutes=10"])
    assert not tuning.asked(["experiment=small_compare", "reg=nl", "hydra.mode=RUN"])
    assert not tuning.asked(["experiment=small_table1"])
    assert "208 runs" in (ROOT / "configs" / "experiment" / "small_compare.yaml").read_text()  # 16 (8 + 5)
    made = Search(["experiment=small_compare", "compare=wd,wn", "trials=2"]).comparison()
    assert (made.name, made.held_out, list(made.methods)) == ("small_compare", 5000, ["wd", "wn"])
    assert {len(setting.finals) for known in made.methods.values() for setting in known} == {5}


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("compare=nl", "dataset=digits", "model=resnet8"), "dataset.val: must be given, .*, got 0"),
        (("compare=nl,wdd", *DIGITS), "compare: must be all or some of none wd nl .*, got 'wdd'; did you mean wd"),
        (("compare=", *DIGITS), "compare: must be all or some of .*, got ''"),
        (("compare=nl", "trials=0", *DIGITS), "trials: must be a whole number of at least 1, got '0'"),
        (("compare=nl", "seeds=0,1", *DIGITS), "seeds: must be a whole number of at least 1, got '0,1'"),
        (("compare=nl", "reg=wd", *DIGITS), "reg=wd: is drawn by the comparison; compare=METHOD"),
        (("compare=nl", "train.lr=0.1", *DIGITS), "train.lr=0.1: is drawn by the comparison; configs/search"),
        (("compare=nl", "train.batch_size=32,64", *DIGITS), "takes one setting of everything else, got 2"),
        (("compare=nl", "name=a/b", *DIGITS), "name: must be a file's name without a folder, got 'a/b'"),
    ],
)  # fmt: skip
def test_a_comparison_that_cannot_be_made_is_one_line(words, line):
    with pytest.raises(UserError, match=line):
        Search(list(words))


# the choice --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("errors", "number", "why"),
    [
        ([[30, 10], [12, 14], [20, 20], [25, 25]], 2, "2 of 4 has the lowest validation error, 13.00 %; the next 20"),
        ([[10, 10], [10, 10], [20, 20], [10, 10]], 1, "1 of 4 has the lowest validation error, 10.00 %; the next 10"),
        ([[1, math.nan], [12, 14], [13, 15], [90, 9]], 2, "validation error, 13.00 %; the next 14.00 %; 1 diverged"),
        ([[1, None], [12, 14], [13, 15], [90, 9]], None, "3 of 4 settings tried"),
        ([[math.nan, 1], [math.nan, 2], [3, math.nan], [math.nan] * 2], None, "all 4 settings diverged"),
    ],
)  # fmt: skip
def test_the_choice(search, errors, number, why):
    lookup = outcomes(search, lambda values, seed: errors[RATES.index(values["train.lr"])][seed - 5])
    tuned = judge(search.comparison(lookup), "none", lookup)
    assert (tuned.chosen and tuned.chosen.number) == number
    assert why in tuned.why


def test_of_equal_errors_the_lower_cross_entropy_is_chosen(search):
    lookup = outcomes(search, lambda values, seed: 10, ce=lambda values: 1 - (values["train.lr"] == RATES[2]))
    assert judge(search.comparison(lookup), "none", lookup).chosen.number == 3


def write(store, id, state, error=0.0):
    (store / id).mkdir(parents=True, exist_ok=True)
    (store / id / "status.json").write_text(json.dumps({"state": state}))
    if state == "done":
        (store / id / "DONE").write_text(json.dumps({"id": id, "val_error": error, "val_ce": error}))


def test_each_phase_follows_the_last_trial_of_the_one_before(tmp_path):
    search = Search(["compare=nl", "trials=4", "seeds=2", *DIGITS, f"store={tmp_path}"])
    (entry,) = search.entries()
    ids = lambda: [run.cfg.id for run in entry()]  # noqa: E731
    first = ids()
    assert len(first) == 2  # 0.1 and 0.03162
    write(tmp_path, first[0], "done", 20.0)
    assert ids() == first
    write(tmp_path, first[1], "diverged")
    (further,) = set(ids()) - {*first}  # 0.3162
    write(tmp_path, further, "done", 30.0)
    lams = ids()[2:]
    assert len(lams) == 2
    write(tmp_path, lams[0], "done", 19.0)
    write(tmp_path, lams[1], "done", 21.0)
    finals = ids()[4:]
    record = json.loads((tmp_path / "comparisons" / f"{search.name}.json").read_text())
    assert record["outcome"]["nl"]["chosen"] == 4
    assert record["outcome"]["nl"]["finals"] == [
        {"id": id, "seed": seed, "state": "missing"} for id, seed in zip(finals, (1, 2), strict=True)
    ]
    assert not search.done
    for id in finals:
        write(tmp_path, id, "done", 18.0)
    assert search.done


def test_a_comparison_of_which_every_trial_diverged_is_done(tmp_path, capsys):
    words = ["compare=none", "trials=2", *DIGITS, f"store={tmp_path}"]
    for run in tuning.Search(words).runs():
        write(tmp_path, run.cfg.id, "diverged")
    assert tuning.run(words, launch.settings(words)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "nothing to train: every trial diverged"
    record = json.loads(next((tmp_path / "comparisons").iterdir()).read_text())
    assert record["outcome"]["none"]["why"] == "all 2 settings diverged"


def test_the_file_gives_the_comparison_back(search, tmp_path):
    made = search.comparison()
    path = comparison.save(made, tmp_path, lookup_in(tmp_path))
    read = comparison.read(path)
    assert (read.methods, read.to_come, read.command) == (made.methods, made.to_come, made.command)
    path.write_text('{"name": 1}')
    with pytest.raises(UserError, match="must be a file that train.py compare="):
        comparison.read(path)


def test_a_file_of_the_earlier_search_is_kept_and_ranked(tmp_path):
    folder = tmp_path / "comparisons"
    folder.mkdir()
    (folder / "tiny.json").write_bytes(OLD.read_bytes())
    for _ in range(2):
        Search(["compare=none", "trials=1", "name=tiny", *DIGITS, f"store={tmp_path}"]).save()
        assert sorted(path.name for path in folder.iterdir()) == ["tiny.1.json", "tiny.json"]
    assert (folder / "tiny.1.json").read_bytes() == OLD.read_bytes()
    assert comparison.read(folder / "tiny.json").to_come == {"none": 0}
    old, lookup = ranking.find([str(folder / "tiny.1.json")], None, ROOT / "results")
    found = ranking.rank(old, lookup)
    assert (old.name, found.title.partition(",")[0]) == ("tiny.1", "Methods compared by an earlier search")
    assert [one.method for one in found.methods] == ["nl", "none", "so", "oblique", "pbwn", "wn", "wd"]
    assert found.planned == found.ended == 91


@pytest.mark.slow
def test_a_queue_trains_all_phases_and_goes_on(tmp_path):
    words = ["compare=none,nl", "trials=2", "seeds=2", *DIGITS, "train.max_steps=2", "train.epochs=1"]
    words += ["train.milestones=[]", "wandb.mode=disabled", "device=cpu", "name=tiny"]
    (tmp_path / "queue.yaml").write_text(yaml.safe_dump([" ".join(words)]))
    store = tmp_path / "runs"
    command = [sys.executable, "-P", str(ROOT / "train.py"), f"queue={tmp_path / 'queue.yaml'}", f"store={store}"]
    asked = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert asked.returncode == 0, asked.stdout + asked.stderr
    made = comparison.read(store / "comparisons" / "tiny.json")
    records = load_runs(store)
    assert f"{len(records)} of {len(records)} runs done" in asked.stdout
    assert all(record.config["dataset"]["val"] == 100 and "val_error" in record.final for record in records)
    best = [judge(made, method, lookup_in(store)).chosen for method in ("none", "nl")]
    tried = {run.id for one in made.methods.values() for setting in one for run in setting.trials}
    assert {record.id for record in records} == tried | {run.id for one in best for run in one.setting.finals}
    again = subprocess.run([*command[:3], *words, f"store={store}"], cwd=ROOT, capture_output=True, text=True)
    assert again.returncode == 0, again.stdout + again.stderr
    assert f"sweep of {len(records)} runs, {len(records)} done before" in again.stdout
