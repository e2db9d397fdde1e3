"""Tuned comparisons: what is drawn, what is chosen, and that every trial is an ordinary run."""

import json
import math
import re
from functools import cache, partial

import pytest
import yaml

from normloss.analysis import ranking
from normloss.errors import UserError
from normloss.regularizers import REGULARIZERS
from normloss.runs.records import load_runs
from normloss.sweeps import launch, tuning
from normloss.sweeps.composing import expand
from normloss.sweeps.trials import look_up, read
from normloss.sweeps.tuning import Search
from tests.conftest import ROOT
from tests.forked import HERE, Command

DIGITS = ("dataset=digits", "model=resnet8", "dataset.val=100")
# 10^(-2 + 2 s) and, of nl, 10^(-4 + 3 s) in four digits, s = 1/2 1/4 3/4 1/8 5/8 3/8 7/8 1/16
RATES = [0.1, 0.03162, 0.3162, 0.01778, 0.1778, 0.05623, 0.5623, 0.01334]
LAMS = [0.003162, 0.0005623, 0.01778, 0.0002371]
OLD = ROOT / "results" / "comparisons" / "small_compare.1.json"


@pytest.mark.parametrize("method", tuning.all_methods())
def test_lam_spans_three_decades_with_the_authors_value_in_the_middle(method, config):
    lam, space = config("dataset=cifar10", "model=resnet110", f"reg={method}").reg.lam, tuning.space_of(method)
    assert list(space) == ["train.lr", *(["reg.lam"] if lam else [])]
    if lam:
        low, high = space["reg.lam"]
        assert high / low == pytest.approx(1000)
        assert abs(math.log10(lam / math.sqrt(low * high))) <= 0.52  # half a decade: of several values of theirs


@pytest.mark.parametrize(
    ("epochs", "milestones"), [(200, [20, 50, 70, 120]), (164, [16, 41, 57, 98]), (4, [1, 2, 3, 4]), (2, [1, 2, 2, 2])]
)
def test_milestones_of_lam_that_would_coincide_are_an_epoch_apart(config, epochs, milestones):
    reg = config("dataset=digits", "model=resnet8", "reg=srip", f"train.epochs={epochs}", "train.milestones=[]").reg
    assert reg.lam_milestones == milestones


@pytest.fixture(scope="module")
def make(tmp_path_factory):
    """make("trials=8") -> the search for nl and none of these words, made once."""

    @cache
    def search(*words: str) -> Search:
        return Search(["compare=nl,none", *words, *DIGITS, f"store={tmp_path_factory.mktemp('store')}"])

    return search


@pytest.fixture(scope="module")
def search(make):
    return make("compare=none,nl,srip", "trials=4", "seeds=2", "trial_seeds=2", "seed=5")


def outcomes(search, error, ce=lambda rate: 1.0):
    """A look at a store where each trial's run came to error(rate, λ, seed); None: not yet; nan: diverged."""

    def lookup(id):
        cfg = search.planned[id].cfg
        fresh = cfg.seed >= search.bases["none"].cfg.seed + search.counts["trial_seeds"]
        value = None if fresh else error(cfg.train.lr, cfg.reg.lam, cfg.seed)
        if value is None or math.isnan(value):
            return "missing" if value is None else "diverged", None
        return "done", {"val_error": value, "val_ce": ce(cfg.train.lr), "test_error": -value}  # not chosen by

    return lookup


def unknown(id):
    return "missing", None


def nearest(rate, lam=0.02):
    """An error that falls towards a rate and, one tenth as steeply, a λ."""
    return lambda lr, of, seed: abs(math.log(lr / rate)) + abs(math.log((of or lam) / lam)) / 10


def tried(search, method, error):
    """What is known of a method's trials, as (rate, λ), and how many are to come."""
    made = search.result(method, outcomes(search, error))
    return [(*trial.values.values(),) for trial in made.trials], made.to_come


@pytest.mark.parametrize(
    ("count", "best", "rates", "lams"),
    [
        (8, 0.1, RATES[:4], LAMS),
        (7, 0.1, RATES[:4], LAMS[:3]),
        (8, 0.3, [*RATES[:4], 0.5623], LAMS),
        (8, 0.6, [*RATES[:4], 0.5623, 0.7499], LAMS),  # s = 15/16
        (8, 0.014, [*RATES[:4], 0.01334, 0.01155], LAMS),  # s = 1/32
        (2, 0.1, [0.1, 0.03162, 0.3162], LAMS[:1]),  # a single rate is the lowest and the highest
        (1, 0.1, [0.1], []),
    ],
)  # fmt: skip
def test_the_rate_is_tried_at_the_authors_lam_then_lam_at_the_best_rate(make, count, best, rates, lams):
    rate = min(rates, key=lambda one: abs(math.log(one / best)))
    stages = [*((one, 0.01) for one in rates), *((rate, lam) for lam in lams)]
    assert tried(make(f"trials={count}"), "nl", nearest(best)) == (stages, 0)
    assert tried(make(f"trials={count}"), "none", nearest(best)) == ([(one,) for one in RATES[:count]], 0)


@pytest.mark.parametrize(("last", "lams", "to_come"), [(None, [], 4), (math.nan, [(0.03162, lam) for lam in LAMS], 0)])
def test_lam_waits_for_every_rate(make, last, lams, to_come):
    found = tried(make("trials=8"), "nl", lambda rate, lam, seed: last if rate == 0.01778 else rate)
    assert found == ([*((rate, 0.01) for rate in RATES[:4]), *lams], to_come)


def test_the_authors_lam_is_not_tried_twice(make, monkeypatch):
    search = make("trials=8", "seed=1")
    monkeypatch.setitem(search.spaces["nl"], "reg.lam", (1e-3, 0.1))  # whose middle it is
    assert [lam for _, lam in tried(search, "nl", nearest(0.1))[0][4:]] == [0.003162, 0.03162, 0.001778, 0.01778]


def ids(result):
    return [run.id for trial in result.trials for run in trial.runs]


def test_runs_of_the_earlier_search_count_where_they_are_the_same():
    old, new = read(OLD, unknown), Search(["experiment=small_compare"]).tuning(unknown)
    assert set(new.methods) == set(REGULARIZERS)
    for method, result in new.methods.items():
        assert "reg.lam" in new.spaces[method] or result == old.methods[method]
        assert len(result.trials) + result.to_come == 8
        assert {len(trial.finals) for trial in result.trials} == {5}
    assert ids(new.methods["wd"])[0] == ids(old.methods["wd"])[0]  # 0.1 and 1e-4, of both
    assert ids(new.methods["nl"])[1] == ids(old.methods["nl"])[1]  # 0.03162 and 1e-2
    assert (new.name, new.held_out) == ("small_compare", 5000)
    assert "208 runs" in (ROOT / "configs" / "experiment" / "small_compare.yaml").read_text()  # 16 (8 + 5)


@pytest.mark.parametrize("method", ["none", "nl", "srip"])
def test_each_run_is_the_one_that_its_words_train_alone(search, method):
    known = search.result(method, outcomes(search, nearest(0.1))).trials
    for trial in (known[0], known[-1]):
        for run in (trial.runs[0], trial.finals[-1]):
            cfg, words = search.planned[run.id]
            (alone,) = expand(words)
            assert alone == cfg
            assert (alone.id, alone.seed) == (run.id, run.seed)
            assert trial.values == {"train.lr": cfg.train.lr} | ({"reg.lam": cfg.reg.lam} if cfg.reg.lam else {})
        assert [run.seed for run in [*trial.runs, *trial.finals]] == [5, 6, 7, 8]


def test_a_schedule_of_lam_is_scaled_with_lam(search):
    known = search.result("srip", outcomes(search, nearest(0.1))).trials
    schedules = [search.planned[trial.runs[0].id].cfg.reg.lam_values for trial in (known[0], known[-2])]
    assert schedules[0] == [1e-2, 1e-5, 1e-6, 1e-8, 0.0]
    assert schedules[1] == [0.009487, 9.487e-6, 9.487e-7, 9.487e-9, 0.0]  # 10^(log10 3e-4 + 3/2) = 0.009487


def test_the_default_name_follows_from_what_is_known_before_any_result(make):
    names = {make("trials=8", *words).name for words in ((), ("seeds=4",), ("seed=1",), ("trial_seeds=2",))}
    assert len(names | {make("trials=7").name}) == 5  # eight and seven trials have the same first stage
    assert all(re.fullmatch("digits_resnet8_[0-9a-f]{8}", name) for name in names)


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
    result = search.result("none", outcomes(search, lambda rate, lam, seed: errors[RATES.index(rate)][seed - 5]))
    assert result.number == number
    assert why in result.why


def test_of_equal_errors_the_lower_cross_entropy_is_chosen(search):
    lookup = outcomes(search, lambda rate, lam, seed: 10, ce=lambda rate: 1 - (rate == RATES[2]))
    assert search.result("none", lookup).number == 3


def write(store, id, state, error=0.0):
    (store / id).mkdir(parents=True, exist_ok=True)
    (store / id / "status.json").write_text(json.dumps({"state": state}))
    if state == "done":
        (store / id / "DONE").write_text(json.dumps({"id": id, "val_error": error, "val_ce": error}))


def test_each_phase_follows_the_last_trial_of_the_one_before(tmp_path):
    search, seen = Search(["compare=nl", "trials=4", "seeds=2", *DIGITS, f"store={tmp_path}"]), set()
    (entry,) = search.entries()

    def new():
        """The ids that are listed for the first time."""
        found = [run.cfg.id for run in entry() if run.cfg.id not in seen]
        seen.update(found)
        return found

    first, second = new()  # 0.1 and 0.03162
    write(tmp_path, first, "done", 20.0)
    assert new() == []
    write(tmp_path, second, "diverged")
    (further,) = new()  # 0.3162
    write(tmp_path, further, "done", 30.0)
    for id, error in zip(new(), (19.0, 21.0), strict=True):
        write(tmp_path, id, "done", error)
    finals = new()
    record = json.loads((tmp_path / "comparisons" / f"{search.name}.json").read_text())
    assert (chosen := record["outcome"]["nl"]["chosen"]) == 4
    assert [run["id"] for run in record["methods"]["nl"][chosen - 1]["finals"]] == finals
    assert {run.cfg.id for run in entry()} == seen - {second}  # a trial that diverged is not tried again


@pytest.mark.parametrize(("method", "count"), [("none", 2), ("nl", 1)])
def test_a_comparison_of_which_every_rate_diverged_is_done(tmp_path, capsys, method, count):
    words = [f"compare={method}", "trials=2", "name=tiny", *DIGITS, f"store={tmp_path}"]
    for run in Search(words).runs():
        write(tmp_path, run.cfg.id, "diverged")
    assert launch.tune(words, launch.settings(words)) == 0
    assert capsys.readouterr().out.splitlines()[0] == "sweep of 0 runs, 0 done before"
    record = json.loads((tmp_path / "comparisons" / "tiny.json").read_text())
    assert record["outcome"][method]["why"] == f"all {count} settings diverged"


def test_the_file_gives_the_comparison_back(search):
    path, made = search.save(), search.tuning(partial(look_up, search.store))
    again = read(path, partial(look_up, search.store))
    assert (again.methods, again.name, again.command) == (made.methods, made.name, made.command)
    path.write_text('{"name": 1}')
    with pytest.raises(UserError, match="must be a file that train.py compare="):
        read(path, unknown)


def test_a_file_of_the_earlier_search_is_kept_and_ranked(tmp_path):
    folder = tmp_path / "comparisons"
    folder.mkdir()
    (folder / "tiny.json").write_bytes(OLD.read_bytes())
    for _ in range(2):
        Search(["compare=none", "trials=1", "name=tiny", *DIGITS, f"store={tmp_path}"]).save()
        assert sorted(path.name for path in folder.iterdir()) == ["tiny.1.json", "tiny.json"]
    assert (folder / "tiny.1.json").read_bytes() == OLD.read_bytes()
    found = ranking.rank(ranking.find([str(folder / "tiny.1.json")], None, ROOT / "results"))
    assert found.title.startswith("Methods compared by an earlier search, which drew rate and λ together, cifar10")
    assert [one.method for one in found.methods] == ["nl", "none", "so", "oblique", "pbwn", "wn", "wd"]
    assert found.planned == found.ended == 91


def test_the_command_to_resume_names_the_store_that_was_asked_for(tmp_path):
    found = ranking.find(["compare=none", "trials=1", *DIGITS], tmp_path / "my runs", ROOT / "results")
    assert found.command.endswith(f" 'store={tmp_path}/my runs'")


@pytest.mark.slow
def test_a_queue_trains_all_phases_and_goes_on(tmp_path):
    words = ["compare=none,nl trials=2 seeds=1 name=tiny", *DIGITS, *HERE, "train.max_steps=2", "train.epochs=1"]
    (tmp_path / "queue.yaml").write_text(yaml.safe_dump([" ".join(words)]))
    store = tmp_path / "runs"
    for _ in range(2):
        process = Command(tmp_path / "log", f"queue={tmp_path / 'queue.yaml'}", f"store={store}")
        assert process.wait() == 0, process.text()
    results = read(store / "comparisons" / "tiny.json", partial(look_up, store)).methods.values()
    records = load_runs(store)
    assert all(record.config["dataset"]["val"] == 100 and "val_error" in record.final for record in records)
    trained = [[*ids(result), *(run.id for run in result.finals)] for result in results]
    assert {record.id for record in records} == {*trained[0], *trained[1]}
    assert f"sweep of {len(records)} runs, {len(records)} done before" in process.text()
