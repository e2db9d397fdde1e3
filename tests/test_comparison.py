"""Tuned comparisons: what is drawn, what is chosen, and that every trial is an ordinary run."""

import json
import math
import subprocess
import sys

import pytest
import yaml

from normloss.errors import UserError
from normloss.regularizers import REGULARIZERS
from normloss.runs.records import load_runs
from normloss.sweeps import comparison, launch, spaces, tuning
from normloss.sweeps.comparison import RunState, judge, lookup_in
from normloss.sweeps.composing import expand
from normloss.sweeps.tuning import Search
from tests.conftest import ROOT

DIGITS = ("dataset=digits", "model=resnet8", "dataset.val=100")


def radical_inverse(n: int, base: int) -> float:
    """0.d1d2d3... of n = ...d3d2d1 in a base: the Halton sequence by its definition."""
    value, share = 0.0, 1.0
    while n:
        share /= base
        value += share * (n % base)
        n //= base
    return value


# spaces ------------------------------------------------------------------------------------------


def test_what_is_drawn_is_the_halton_sequence_laid_over_the_space_in_four_digits():
    drawn = spaces.draw({"train.lr": (0.01, 1.0), "reg.lam": (1e-4, 0.1)}, 12)
    for n, values in enumerate(drawn, 1):
        for key, base, low, decades in (("train.lr", 2, -2, 2), ("reg.lam", 3, -4, 3)):
            exact = 10 ** (low + decades * radical_inverse(n, base))
            assert values[key] == pytest.approx(exact, rel=6e-4)
            assert values[key] == float(f"{values[key]:.4g}")


def test_more_trials_keep_those_that_were_drawn():
    assert spaces.draw(spaces.space("nl"), 12)[:8] == spaces.draw(spaces.space("nl"), 8)


@pytest.mark.parametrize("method", spaces.methods())
def test_lam_spans_three_decades_with_the_authors_value_in_the_middle(method, config):
    reg = config("dataset=cifar10", "model=resnet110", f"reg={method}").reg
    space = spaces.space(method)
    if "lam" not in yaml.safe_load((ROOT / "configs" / "reg" / f"{method}.yaml").read_text()):
        assert list(space) == ["train.lr"]
        return
    low, high = space["reg.lam"]
    assert high / low == pytest.approx(1000)
    assert abs(math.log10(reg.lam / math.sqrt(low * high))) <= 0.52  # half a decade: of several values of theirs


# the runs ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def search(tmp_path_factory):
    store = tmp_path_factory.mktemp("store")
    return Search(["compare=none,nl,srip", "trials=3", "seeds=2", "trial_seeds=2", "seed=5", *DIGITS, f"store={store}"])


@pytest.mark.parametrize("method", ["none", "nl", "srip"])
def test_each_run_is_the_one_that_its_words_train_alone(search, method):
    setting = search.comparison.methods[method][1]
    for run in (setting.trials[0], setting.finals[-1]):
        cfg, words = search.run(run.id)
        (alone,) = expand(words)
        assert run.id == alone.id == cfg.id
        assert alone.seed == run.seed
        assert alone.train.lr == setting.values["train.lr"] == 0.03162
        assert not any(word.startswith(("compare", "trials")) for word in words)
        assert "compare" not in alone.stored()


def test_a_schedule_of_lam_is_scaled_with_lam(search):
    setting = search.comparison.methods["srip"][1]
    (alone,) = expand(search.run(setting.trials[0].id).words)
    factor = setting.values["reg.lam"] / 1e-2
    assert alone.reg.lam_values == pytest.approx([lam * factor for lam in (1e-2, 1e-5, 1e-6, 1e-8, 0.0)], rel=6e-4)


def test_seeds_are_the_same_for_every_method_and_fresh_for_the_chosen_setting(search):
    for settings in search.comparison.methods.values():
        assert {tuple(run.seed for run in setting.trials) for setting in settings} == {(5, 6)}
        assert {tuple(run.seed for run in setting.finals) for setting in settings} == {(7, 8)}


def test_an_experiment_may_be_a_comparison():
    assert tuning.asked(["experiment=small_compare", "budget_minutes=10"])
    assert not tuning.asked(["experiment=small_compare", "reg=nl", "hydra.mode=RUN"])
    assert not tuning.asked(["experiment=small_table1"])
    assert "208 runs" in (ROOT / "configs" / "experiment" / "small_compare.yaml").read_text()  # 16 (8 + 5)
    made = Search(["experiment=small_compare", "trials=2"]).comparison
    assert (made.name, made.held_out, set(made.methods)) == ("small_compare", 5000, set(REGULARIZERS))
    assert {len(settings) for settings in made.methods.values()} == {2}
    assert {len(setting.finals) for settings in made.methods.values() for setting in settings} == {5}


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


def outcomes(search, method, errors):
    """A look at a store where trial (setting, seed) came to a validation error; None: not yet; nan: diverged."""
    seen = {}
    for setting, row in zip(search.comparison.methods[method], errors, strict=True):
        for run, error in zip(setting.trials, row, strict=True):
            if error is None:
                continue
            final = {
                "val_error": error,
                "val_ce": 1.0,
                "test_error": 100 - error,
            }  # what the test set likes is not best
            seen[run.id] = RunState("diverged") if math.isnan(error) else RunState("done", final)
    return lambda id: seen.get(id, RunState())


@pytest.mark.parametrize(
    ("errors", "number", "why"),
    [
        ([[30, 10], [12, 14], [20, 20]], 2, "setting 2 of 3 has the lowest validation error, 13.00 %; the next 20"),
        ([[10, 10], [10, 10], [20, 20]], 1, "setting 1 of 3 has the lowest validation error, 10.00 %; the next 10"),
        ([[1, math.nan], [12, 14], [13, 15]], 2, "the lowest validation error, 13.00 %; the next 14.00 %; 1 diverged"),
        ([[1, None], [12, 14], [13, 15]], None, "2 of 3 settings tried"),
        ([[math.nan, 1], [math.nan, 2], [3, math.nan]], None, "all 3 settings diverged"),
    ],
)  # fmt: skip
def test_the_choice(search, errors, number, why):
    tuned = judge(search.comparison, "nl", outcomes(search, "nl", errors))
    assert (tuned.chosen and tuned.chosen.number) == number
    assert why in tuned.why


def test_of_equal_errors_the_lower_cross_entropy_is_chosen(search):
    look = outcomes(search, "nl", [[10, 10]] * 3)
    third = {run.id for run in search.comparison.methods["nl"][2].trials}
    better = {"val_error": 10, "val_ce": 0.5}
    tuned = judge(search.comparison, "nl", lambda id: RunState("done", better) if id in third else look(id))
    assert tuned.chosen.number == 3


def write(store, id, state, error=0.0):
    (store / id).mkdir(parents=True, exist_ok=True)
    (store / id / "status.json").write_text(json.dumps({"state": state}))
    if state == "done":
        (store / id / "DONE").write_text(json.dumps({"id": id, "val_error": error, "val_ce": error}))


def test_the_second_phase_follows_the_last_trial(tmp_path):
    search = Search(["compare=none", "trials=3", "seeds=2", *DIGITS, f"store={tmp_path}"])
    settings = search.comparison.methods["none"]
    (entry,) = search.entries()
    trials = [setting.trials[0].id for setting in settings]
    ids = lambda: [run.cfg.id for run in entry()]  # noqa: E731
    assert ids() == trials
    write(tmp_path, trials[0], "done", 20.0)
    write(tmp_path, trials[1], "done", 10.0)
    assert ids() == trials
    write(tmp_path, trials[2], "diverged")
    assert ids() == [*trials[:2], *(run.id for run in settings[1].finals)]
    record = json.loads((tmp_path / "comparisons" / f"{search.comparison.name}.json").read_text())
    assert record["outcome"]["none"]["chosen"] == 2
    assert [run["state"] for run in record["outcome"]["none"]["finals"]] == ["missing", "missing"]


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
    path = comparison.save(search.comparison, tmp_path)
    read = comparison.read(path)
    assert read.methods == search.comparison.methods
    assert read.command == search.comparison.command
    path.write_text('{"name": 1}')
    with pytest.raises(UserError, match="must be a file that train.py compare="):
        comparison.read(path)


@pytest.mark.slow
def test_a_queue_trains_both_phases_and_goes_on(tmp_path):
    words = ["compare=none,nl", "trials=2", "seeds=2", *DIGITS, "train.max_steps=2", "train.epochs=1"]
    words += ["train.milestones=[]", "wandb.mode=disabled", "device=cpu", "name=tiny"]
    (tmp_path / "queue.yaml").write_text(yaml.safe_dump([" ".join(words)]))
    store = tmp_path / "runs"
    command = [sys.executable, "-P", str(ROOT / "train.py"), f"queue={tmp_path / 'queue.yaml'}", f"store={store}"]
    asked = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert asked.returncode == 0, asked.stdout + asked.stderr
    assert "8 of 8 runs done" in asked.stdout
    records = load_runs(store)
    assert len(records) == 8
    assert all(record.config["dataset"]["val"] == 100 and "val_error" in record.final for record in records)
    made = comparison.read(store / "comparisons" / "tiny.json")
    best = [judge(made, method, lookup_in(store)).chosen for method in ("none", "nl")]
    tried = {run.id for one in made.methods.values() for setting in one for run in setting.trials}
    assert {record.id for record in records} == tried | {run.id for one in best for run in one.setting.finals}
    again = subprocess.run([*command[:3], *words, f"store={store}"], cwd=ROOT, capture_output=True, text=True)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "sweep of 8 runs, 8 done before" in again.stdout
