"""results/paper.yaml against the paper's own text, and the tables that set our runs beside it."""

import csv
import io
import json
import math
import os
import re
from pathlib import Path

import pytest
from runs_support import write_run
from scipy import stats

from normloss.analysis import overhead, tables
from normloss.analysis.entries import Best, Difference, Each, Misset, Range, Time
from normloss.analysis.findings import Finding
from normloss.analysis.paper import Cell, Paper
from normloss.analysis.results import Results
from normloss.analysis.select import load
from normloss.analysis.show import show
from normloss.analysis.study import read_studies

ROOT = Path(__file__).resolve().parent.parent
TEXT = Path(os.environ.get("NORMLOSS_PAPER", ROOT.parent / "shared" / "paper.md"))
NAMES = {"table1": "TABLE I\n", "table2": "TABLE II\n", "table3": "TABLE III\n"}


@pytest.fixture(scope="module")
def paper():
    return Paper()


@pytest.fixture(scope="module")
def text():
    if not TEXT.exists():
        pytest.skip(f"the paper's text is not at {TEXT} (NORMLOSS_PAPER=FILE names it)")
    return TEXT.read_text()


@pytest.mark.parametrize("name", NAMES)
def test_every_row_is_the_papers(paper, text, name):
    printed = re.search(rf"{NAMES[name]}.*?<tbody>(.*?)</tbody>", text, re.S)[1]
    theirs = [re.findall(r"<td>(.*?)</td>", row) for row in re.findall(r"<tr>(.*?)</tr>", printed, re.S)]
    ours = []
    for row in paper.tables[name].rows:
        model = f"{row.model} [{row.quoted}]*" if row.quoted else row.model + (" (Ours)" if row.method == "nl" else "")
        ours.append([model, row.method, *cells(row.values)])
    as_numbers = [[*row[:2], *(re.findall(r"[\d.]+", cell) for cell in row[2:])] for row in theirs]
    assert [[*row[:2], *([float(x) for x in cell] for cell in row[2:])] for row in as_numbers] == ours


def cells(values):
    keys = (("top1",), ("top5",)) if "top1" in values else (("best", "mean"),)
    return [[values[key] for key in pair if key in values] for pair in keys]


def test_every_number_of_the_text_is_the_papers(paper, text):
    short = {row.method: row.values for row in paper.tables["table2_short"].rows}
    flat = " ".join(text.split())
    for words, method in (("for the weight decay is", "wd"), ("whilst for the norm loss the average error is", "nl")):
        assert f"{words} {short[method]['mean']} with a best run of {short[method]['best']}" in flat
    hours = paper.text["hours"]
    assert f"with weight decay takes, on average, {hours['wd']} hours" in flat
    assert f"with norm loss takes, on average, {hours['nl']} hours" in flat
    theirs = paper.text["srip_baselines"]
    assert f"({theirs['theirs']}% vs {theirs['paper']}% accuracy for the baseline ResNet110)" in flat
    assert r"\lambda = 5 \cdot 10^{-4}" in flat and paper.text["lam"] == 5e-4
    assert f"averaged over {paper.text['smooth']} steps" in flat
    sizes = paper.text["batch_size"]
    assert rf"batch sizes $\{{{', '.join(map(str, sizes['sizes']))}\}}$" in flat
    assert f"only for batch size {sizes['wd_ahead'][0]} the opposite is true" in flat
    assert f"is achieved by the networks trained with batch size {sizes['best']}" in flat


def test_every_claim_is_in_the_papers_words(paper, text):
    flat = " ".join(text.split()).replace("  ", " ")
    flat = re.sub(r"\$\\lambda_\{(\w+)\}\$", r"λ_\1", flat)
    for claim in paper.claims.values():
        assert " ".join(claim.says.split()) in " ".join(flat.split()), claim.name


@pytest.fixture
def store(tmp_path, config):
    """Table I's ResNet110: wd with all five seeds, nl with three."""
    for method, errors in {"wd": (6.5, 6.6, 6.7, 6.4, 6.8), "nl": (6.0, 5.9, 6.1)}.items():
        for seed, error in enumerate(errors):
            cfg = config("dataset=cifar10", "model=resnet110", f"reg={method}", f"seed={seed}")
            write_run(tmp_path / "runs", cfg, error, seconds=100.0 if method == "wd" else 105.0)
    return tmp_path / "runs"


@pytest.fixture
def df(store, tmp_path):
    return load(store, tmp_path)


def test_a_row_shows_the_papers_value_ours_and_the_difference(paper, df):
    table = tables.paper_table(paper.tables["table1"], df)
    cells = {tuple(row[:2]): row[2:] for row in table.cells}
    # mean 6.6, sd sqrt(0.1 / 4) = 0.158, 2.776 * 0.158 / sqrt(5) = 0.196
    assert cells["ResNet110", "wd"] == ["6.32 (6.568)", "6.40 (6.60 ± 0.16)", "5 of 5", "+0.03", "6.40 to 6.80", "–"]
    assert cells["ResNet110", "nl"] == ["5.9 (5.996)", "5.90 (6.00 ± 0.10)", "3 of 5", "+0.00", "5.75 to 6.25", "0.009"]
    assert cells["WRN-28-10", "nl"] == ["4.47 (4.662)", "missing", "0 of 5", "–", "–", "–"]
    assert cells["ResNet110", "PBWN [19]*"][0] == "– (6.27)"
    assert cells["ResNet110", "wd [2]*"][1] == "as wd above"
    assert cells["WRN-28-10", "wd [3]*"][1] == "not run (dropout, Nesterov)"
    rows = {(row["model"], row["method"]): row for row in csv.DictReader(io.StringIO(table.csv()))}
    nl, wrn = rows["ResNet110", "nl"], rows["WRN-28-10", "nl"]
    keys = ("n", "test_error_best", "test_error_mean", "test_error_sd", "difference")
    assert [nl[key] for key in keys] == ["3", "5.9", "6", "0.1", "0.004"]
    assert (wrn["n"], wrn["test_error_mean"], wrn["paper_mean"], wrn["paper_best"]) == ("0", "", "4.662", "4.47")


def test_imagenets_table_shows_top_1_and_top_5(paper, config, tmp_path):
    write_run(tmp_path, config("dataset=imagenet", "model=resnet50", "reg=nl"), 24.0)
    rows = tables.paper_table(paper.tables["table3"], load(tmp_path, tmp_path)).rows
    nl = next(row for row in rows if row["method"] == "nl")
    assert (nl["n"], nl["top1"], nl["top5"]) == (1, 24.0, 6.0)
    assert nl["difference_top5"] == pytest.approx(6.0 - nl["paper_top5"])


def test_what_is_missing_comes_with_its_command_but_not_in_latex(paper, df):
    table = tables.paper_table(paper.tables["table1"], df)
    line = "ResNet110 nl, 2 missing: `python train.py -m dataset=cifar10 model=resnet110 reg=nl seed=3,4`"
    assert line in table.commands
    assert line in table.markdown()
    assert "train.py" in table.html()
    assert "train.py" not in table.latex()
    assert not any(command.startswith("ResNet110 wd, ") for command in table.commands)


def test_nl_against_wd_is_paired_by_seed(paper, df):
    notes = "\n".join(tables.paper_table(paper.tables["table1"], df).notes)
    # differences -0.5 -0.7 -0.6: mean -0.6, sd 0.1; t = -0.6 / (0.1 / sqrt(3)) = -10.39
    assert (
        "ResNet110, nl − wd: the paper −0.572; ours −0.60 over 3 pairs of seeds (95 % interval −0.85 to −0.35;"
        " paired t(2) = −10.39, p = 0.009, effect size d = −6.00)." in notes
    )
    assert "WRN-28-10, nl − wd: the paper +0.696; ours missing." in notes


def cell_of(paper, store, tmp_path):
    """Table I with the runs of the store, and its row of ResNet110 with norm loss."""
    table = tables.paper_table(paper.tables["table1"], load(store, tmp_path))
    return table, next(row for row in table.rows if (row["model"], row["method"]) == ("ResNet110", "nl"))


CELL = ("dataset=cifar10", "model=resnet110", "reg=nl")


def test_runs_are_found_by_what_was_trained_and_only_whole_ones_count(paper, df, store, tmp_path, config):
    """Neither a trial of a few steps nor bfloat16 nor an unfinished run."""
    for word in ("reg.lam=1e-3", "train.batch_size=64"):
        assert Cell((*CELL, word)).done(df).empty
    write_run(store, config(*CELL, "seed=4", "train.max_steps=9"), 1.0)
    for seed in range(5):
        write_run(store, config(*CELL, f"seed={seed}", "train.precision=bf16"), 1.0)
    cfg = config(*CELL, "seed=3")
    write_run(store, cfg, 1.0)
    (store / cfg.id / "DONE").unlink()
    (store / cfg.id / "status.json").write_text('{"state": "diverged"}')
    table, nl = cell_of(paper, store, tmp_path)
    assert (nl["n"], nl["mean"]) == (3, pytest.approx(6.0))
    assert cfg.id not in table.markdown()  # states of this machine are in the report and the plan alone


def test_a_cell_holds_runs_of_one_precision_and_names_tf32(paper, config, store, tmp_path):
    """D21: of which more are done, fp32 where as many."""

    def in_tf32(reg: str, *errors: float, first: int = 0) -> None:
        for seed, error in enumerate(errors, first):
            write_run(store, config(*CELL[:2], f"reg={reg}", f"seed={seed}", "train.precision=tf32"), error)

    in_tf32("nl", 4.0, 4.1, 4.2)
    table, nl = cell_of(paper, store, tmp_path)
    assert nl["mean"] == pytest.approx(6.0)
    assert "†" not in table.markdown()

    in_tf32("nl", 4.3, first=3)
    table, nl = cell_of(paper, store, tmp_path)
    assert (nl["n"], nl["mean"]) == (4, pytest.approx(4.15))
    assert math.isnan(nl["p"])  # wd's are in fp32
    assert "4.00 (4.15 ± 0.13)†" in table.markdown()
    assert "†: convolutions and matrix products in TF32, the rest in float32 (D21)." in table.notes
    (command,) = (line for line in table.commands if line.startswith("ResNet110 nl"))
    assert command.endswith("model=resnet110 reg=nl train.precision=tf32 seed=4`")

    in_tf32("wd", 5.0, 5.2, 5.4, 5.6, 5.8, 6.0)
    assert cell_of(paper, store, tmp_path)[1]["p"] < 0.05


def test_a_study_shows_runs_of_one_precision(config, store, tmp_path):
    study = read_studies()["fig4"]
    for reg, precision in (("wd", "tf32"), ("nl", "tf32"), ("nl", "fp32")):
        words = ["dataset=cifar100", "model=wrn28_10", "train.batch_size=64", "seed=0"]
        write_run(store, config(*words, f"reg={reg}", f"train.precision={precision}"), 20.0)
    df = load(store, tmp_path)
    assert set(study.runs(df)["train.precision"]) == {"tf32"}
    assert study.missing(df) == study.size - 2
    for reg in ("wd", "nl"):  # each network has its own: ResNet110's runs in `store` are in fp32
        write_run(store, config("dataset=cifar10", "model=wrn28_10", f"reg={reg}", "train.precision=tf32"), 4.0)
    found = read_studies()["table1"].runs(load(store, tmp_path))
    pairs = set(zip(found["model.name"], found["train.precision"], strict=True))
    assert pairs == {("resnet110", "fp32"), ("wrn28_10", "tf32")}

    words = ["dataset=cifar10", "model=resnet20", "recipe=mini", "train.epochs=16", "train.milestones=[8,12]"]
    for seed, precision in ((5, "fp32"), (5, "tf32"), (6, "tf32")):
        write_run(store, config(*words, f"seed={seed}", f"train.precision={precision}"), 13.0)
    small = read_studies()["small_table1"].runs(load(store, tmp_path))  # precision: own
    assert [*small["train.precision"]] == ["fp32"]


def test_claims_say_what_our_runs_say(paper, store, tmp_path):
    (tmp_path / "results").mkdir()
    rows = {row["claim"]: row for row in Results(store, tmp_path / "results").claims().rows}
    assert set(rows) == {claim.says for claim in paper.claims.values()}
    error = rows[paper.claims["resnet110_cifar10"].says]
    # differences -0.5 -0.7 -0.6
    assert (error["paper"], error["n"], error["verdict"]) == ("ResNet110 −0.572", 3, "unfinished, 3 of 5 seeds")
    assert [error["value"], error["low"], error["high"]] == pytest.approx([-0.6, -0.848, -0.352], abs=1e-3)
    time = rows[paper.claims["overhead"].says]  # no run of the store says that it ran alone
    assert (time["paper"], time["verdict"]) == ("4.79 h / 4.56 h: +5.04 %", "not tested")
    assert "results/bench/overhead_*.json" in time["ours"]
    lam = rows[paper.claims["lam"].says]
    assert (lam["n"], lam["verdict"]) == (0, "not tested")


def test_a_verdict_needs_an_interval_on_one_side():
    below = Finding("nl − wd", -1.0, n=5, low=-1.5, high=-0.5)
    across = Finding("nl − wd", -1.0, n=5, low=-2.5, high=0.5)
    assert (below.against(0.0, -1), below.against(0.0, 1)) == ("holds", "does not hold")
    assert across.against(0.0, -1) == across.against(0.0, 1) == "inconclusive"
    assert Finding("nl − wd", -1.0, n=2).against(0.0, -1) == "inconclusive"
    assert Finding("nl − wd", -1.0, n=5, planned=8, low=-1.5, high=-0.5).against(0.0, -1) == "unfinished, 5 of 8 seeds"


def found(store, results, entry, study="fig2"):
    """What an entry finds, for the study's methods where it does not name them."""
    entry = entry if entry.of else entry.model_copy(update={"of": ["nl", "wd"]})
    return show(entry, load(store, results), Paper(), read_studies()[study])


def test_only_times_of_runs_that_ran_alone_are_compared(tmp_path, config):
    def train(method: str, seed: int, seconds: float, **at_once: int) -> None:
        cfg = config("dataset=cifar10", "model=resnet110", f"reg={method}", f"seed={seed}")
        file = tmp_path / "runs" / write_run(tmp_path / "runs", cfg, 6.0, seconds=seconds) / "meta.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | at_once))

    for method, seconds in (("wd", 360.0), ("nl", 720.0)):
        train(method, 0, seconds)  # does not say
        train(method, 1, seconds, at_once=4)
    train("wd", 2, 360.0, at_once=1)
    assert found(tmp_path / "runs", tmp_path, Time()) == []
    train("nl", 2, 369.0, at_once=1)
    assert [each.result for each in found(tmp_path / "runs", tmp_path, Time())] == ["+2.50 %"]


@pytest.fixture
def swept(tmp_path, config):
    """swept({"wd": {"1e-4": (20.0, 20.2)}}) -> a store of WRN-28-10 on CIFAR-100 with the errors of seeds 0, 1."""

    def write(points):
        for method, over in points.items():
            for lam, errors in over.items():
                for seed, error in enumerate(errors):
                    words = ("dataset=cifar100", "model=wrn28_10", f"reg={method}", f"reg.lam={lam}", f"seed={seed}")
                    write_run(tmp_path / "runs", config(*words), error)
        return tmp_path / "runs"

    return write


POINTS = {  # lam -> the errors of seeds 0 1 2
    "wd": {"1e-4": (20.0, 20.2, 20.4), "5e-4": (19.0, 19.0, 19.0), "1e-3": (22.0, 22.4, 22.2)},
    "nl": {"1e-4": (18.5, 18.6, 18.7), "5e-4": (18.6, 18.6, 18.9), "1e-3": (18.9, 18.7, 18.8)},
}


def test_the_range_is_each_seeds_own_paired_by_seed(swept, tmp_path):
    store = swept(POINTS | {"wd": POINTS["wd"] | {"1e-1": (90.0,)}})  # which nl does not have
    (one,) = found(store, tmp_path, Range(x="reg.lam"))
    # wd 3.0 3.4 3.2, nl 0.4 0.1 0.2
    test = stats.ttest_rel([0.4, 0.1, 0.2], [3.0, 3.4, 3.2])
    low, high = test.confidence_interval()
    assert (one.value, one.n, one.low, one.high, one.p) == pytest.approx((-8.9 / 3, 3, low, high, test.pvalue))
    assert "wd 3.20 (of the means 3.20)" in one.detail and "nl 0.23 (of the means 0.20)" in one.detail


def test_a_wrong_factor_is_compared_with_the_recipes_value(swept, tmp_path):
    """The recipe of WRN-28-10 on CIFAR-100: wd 5e-4, nl 1e-3."""
    each = found(swept(POINTS), tmp_path, Misset(x="reg.lam"))
    texts = {one.what: one for one in each}
    smaller = texts["nl, test error at λ 10 times smaller than its recipe's, 0.0001 − 0.001"]
    assert smaller.value == pytest.approx(-0.2)  # -0.4 -0.1 -0.1
    details = [one.detail for one in each if "wd" in one.what]
    assert details == ["0.005 was not trained here", "5e-05 was not trained here"]
    assert len(each) == 4


def test_best_and_each_serve_the_methods_of_a_study(swept, tmp_path):
    store = swept(POINTS)
    choice, difference = found(store, tmp_path, Best(x="reg.lam"))
    assert choice.chosen == (0.0001, 0.0005)
    assert difference.value == pytest.approx(-0.4)  # 18.5 18.6 18.7 against 19.0
    (each,) = found(store, tmp_path, Each(x="reg.lam"))
    assert each.detail.startswith("−1.60 at 0.0001, −0.30 at 0.0005, −3.40 at 0.001 points; nl is lower at 3 of 3")
    assert (each.against("most", -1), each.n) == ("holds", 3)


def test_a_difference_within_a_margin_is_equivalent_or_not(swept, tmp_path):
    store = swept({method: {"5e-4": errors["5e-4"]} for method, errors in POINTS.items()})
    (one,) = found(store, tmp_path, Difference(within=1.0))  # -0.4 -0.4 -0.1: 90 % interval -0.59 to -0.01
    assert one.detail == "equivalent within ±1 points (90 % interval −0.59 to −0.01), by two one-sided tests"
    (one,) = found(store, tmp_path, Difference(within=0.5))
    assert one.detail.startswith("inconclusive")


def test_operations_are_the_papers_formulas():
    # 16 filters of 3 x 3 x 3 on 32 x 32 pixels, 128 images
    assert overhead.count(16, 3, 3, 3, 128, 32, 32) == (2 * 432, 3 * 432 + 16 + 2 * 432, 6 * 128 * 432 * 1024)


def test_the_arithmetic_of_norm_loss_is_nothing_beside_the_convolutions(tmp_path):
    rows = {row["network"]: row for row in overhead.table(tmp_path, Paper()).rows}
    assert [row["batch_size"] for row in rows.values()] == [128] * 3
    # ResNet110's convolutions: 432 + 18 blocks of 2 x 2304, 4608 + 9216 x 35, 18432 + 36864 x 35 weights
    weights = 432 + 36 * 2304 + 4608 + 35 * 9216 + 18432 + 35 * 36864
    assert rows["ResNet110"]["wd"] == 2 * weights
    assert rows["ResNet110"]["ratio"] == pytest.approx(3e-5, rel=0.3)
    assert rows["WRN-28-10"]["measured_percent"] is None
