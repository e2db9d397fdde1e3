"""What a user can type wrong, and where a command's output can go: one line that names the thing, or it works."""

import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
from conftest import ROOT
from runs_support import write_run

import train
from normloss.cli import entry, start

DIGITS = ["dataset=digits", "train.milestones=[]", "wandb.mode=disabled", "device=cpu"]


@pytest.fixture
def command(monkeypatch, capsys, tmp_path):
    """command(*words): python train.py WORDS in this process; its exit status and lines. Nothing may be trained."""

    def run(*words):
        monkeypatch.setattr(start, "prepare", lambda: None)  # streams and signals are pytest's
        monkeypatch.setattr(train, "train", lambda cfg, run: pytest.fail(f"trains: {words}"))
        monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
        monkeypatch.setattr(sys, "argv", [str(ROOT / "train.py"), *words])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            entry.run(train.main)
            raise SystemExit(0)
        out, err = capsys.readouterr()
        return SimpleNamespace(status=ended.value.code or 0, out=out, err=err, lines=err.splitlines())

    return run


@pytest.fixture
def refused(command, tmp_path):
    """refused(*words) -> the one line, without "normloss: "; nothing is started."""

    def run(*words):
        ended = command(*words)
        assert ended.status == 2, ended.err
        (line,) = ended.lines
        assert "run " not in ended.out
        return line.removeprefix("normloss: ")

    return run


# words -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "fault"),
    [
        ("reg=nl+x=1", "= must be quoted; give each key=value as a word of its own"),
        ("data_dir=~/x", """~ must be quoted; write 'data_dir="~/x"'"""),
        ("data_dir=/data/bücher", """ü must be quoted; write 'data_dir="/data/bücher"'"""),
        ("train.milestones=[1,2", "[ is not closed"),
        ("train.milestones=1,2]", "] closes nothing"),
        ("train.milestones=[1,2}", "} closes ["),
        ("reg='nl", "the quote ' is not closed"),
        ('data_dir="my data', 'the quote " is not closed'),
        ("reg=nl}", "} closes nothing"),
        ("reg", "must be key=value"),
        ("=nl", "must be key=value"),
        ("re g=nl", "'re g' is no key"),
        ("data_dir='a'b", "cannot be read"),
        ("seed=many(1,2)", "cannot be read"),
    ],
)
def test_a_word_that_cannot_be_parsed_is_named_with_what_is_wrong(refused, word, fault):
    line = refused(*DIGITS, word)
    assert line.startswith(f"{word}: {fault}"), line
    assert "hydra.cc" not in line


@pytest.mark.parametrize(
    ("word", "line"),
    [
        ("seed=99999999999999999999", "seed: must be at most 9223372036854775807, got 99999999999999999999"),
        ("train.batch_size=2147483648", "train.batch_size: must be at most 2147483647, got 2147483648"),
        ("train.epochs=99999999999999999999", "train.epochs: must be at most 2147483647, got 99999999999999999999"),
        ("train.max_steps=1e30", "train.max_steps: must be a whole number, got 1e+30"),
        ("train.micro_batch=-1", "train.micro_batch: must be at least 1, got -1"),
        ("threads=3000000000", "threads: must be at most 1024, got 3000000000"),
        ("workers=5000", "workers: must be at most 1024, got 5000"),
        ("train.lr=1e999", "train.lr: must be a finite number, got inf"),
        ("train.momentum=1", "train.momentum: must be less than 1, got 1"),
        ("model.depth=99999999999999999998", "model.depth: must be at most 2147483647, got 99999999999999999998"),
    ],
)
def test_a_number_out_of_range_is_refused_with_the_range(refused, word, line):
    assert refused(*DIGITS, "train.epochs=1", word) == line


# options -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["-m", *DIGITS, "seed=1,2", "--cfg", "job"], "-m and --cfg: only one of them"),
        ([*DIGITS, "-m", "seed=1,2"], "-m: options stand before all key=value, got seed=1,2 behind it"),
        (["--foo"], "--foo: no such option"),
        ([*DIGITS, "--config-name"], "--config-name: expected one argument"),
        (["--cfg", "everything"], "--cfg: invalid choice: 'everything'"),
        (["--cfg"], "--cfg: expected one argument"),
        (["--experimental-rerun", "x.pickle"], "--experimental-rerun: is not taken, since it reads a pickle"),
        (["-m", *DIGITS, "seed=1,2", "hydra/sweeper=optuna"], "hydra/sweeper: must be one of basic, got 'optuna'"),
    ],
)
def test_an_option_that_cannot_be_is_named_in_a_line(refused, words, line):
    assert refused(*words).startswith(line)


def test_another_sweeper_is_told_where_to_stand(refused):
    line = refused("-m", *DIGITS, "seed=1,2", "hydra/sweeper=optuna")
    assert line.endswith("another sweeper starts python train.py key=value itself (docs/experiments.md)")


@pytest.mark.parametrize("words", [["-m", "model=wrn28_10,wrn16_4"], ["experiment=fig2", "model=wrn28_10,wrn16_4"]])
@pytest.mark.parametrize("key", ["model.dropout", "+model.dropout", "++model.dropout"])
def test_a_key_of_every_swept_model_need_not_be_one_of_the_default_model(refused, tmp_path, words, key):
    # every member is composed before the first is checked, and refused for its depth alone
    line = refused(*words, "recipe=cifar10_wrn28_10", f"{key}=0.3", "model.depth=1", f"store={tmp_path}")
    assert line == "model.depth: must be 6n+4, got 1"


def test_a_key_that_a_swept_model_does_not_have_is_named(refused, tmp_path):
    words = ["-m", *DIGITS, "model=resnet8,resnet20", "recipe=digits_resnet8", "model.dropout=0.3"]
    assert refused(*words, f"store={tmp_path}").startswith("model.dropout: no such key")


# real processes ----------------------------------------------------------------------------------


def shell(line, **environment):
    """sh -c LINE, where $TRAIN, $COMPARE and so on are the commands."""
    scripts = {path.stem.upper(): f"{sys.executable} {path}" for path in (ROOT / "scripts").glob("*.py")}
    own = {key: value for key, value in os.environ.items() if not key.startswith(("WANDB_", "NORMLOSS_"))}
    own |= {"PYTHONPATH": str(ROOT), "TRAIN": f"{sys.executable} {ROOT / 'train.py'}"} | scripts | environment
    ended = subprocess.run(["sh", "-c", line], env=own, capture_output=True, timeout=300)
    out, err = ended.stdout.decode(), ended.stderr.decode()
    assert "Traceback" not in err, err
    return SimpleNamespace(status=ended.returncode, out=out, err=err)


def test_a_symlink_to_train_py_alone_is_train_py(tmp_path):
    (tmp_path / "train.py").symlink_to(ROOT / "train.py")
    ended = shell(f"cd {tmp_path} && {sys.executable} train.py --cfg job dataset=digits", PYTHONPATH="")
    assert ended.status == 0, ended.err
    assert "name: resnet8" in ended.out


COMMANDS = {  # what each says to --help, and how it is refused
    "TRAIN": ["--help", "seed=-1 reg=nl+x=1"],
    "COMPARE": ["--help", "--store /nowhere/ü"],
    "EXPORT": ["--help", "/nowhere/ü"],
    "MERGE": ["--help", "/nowhere/ü"],
    "PLAN": ["--help", "no_such_experiment"],
    "FIGURES": ["--help", "/nowhere/ü.ipynb"],
    "WANDB_SYNC": ["--help", "--store /nowhere/ü"],
}


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_prints_to_a_log_file_of_any_encoding(name, encoding, tmp_path):
    for words, status in zip(COMMANDS[name], (0, 2), strict=True):
        ended = shell(f"cd {tmp_path} && ${name} {words} >out 2>err; echo $?", PYTHONIOENCODING=encoding)
        assert ended.out == f"{status}\n", (tmp_path / "err").read_text()
        text = ((tmp_path / "out").read_bytes() + (tmp_path / "err").read_bytes()).decode("latin-1")
        assert "Traceback" not in text
        assert text


def test_what_an_encoding_cannot_spell_is_replaced(tmp_path):
    code = "from normloss.cli import start; start.open_streams(); print('λ ± ‖')"
    ended = shell(f'{sys.executable} -c "{code}"', PYTHONIOENCODING="ascii")
    assert ended.out == "? ? ?\n"


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-", ">&- 2>&- <&-"])
def test_a_closed_stream_is_no_reason_not_to_run(closed, tmp_path):
    words = "dataset=digits reg=nl+x=1"
    assert shell(f"$TRAIN --cfg job dataset=digits {closed}").status == 0
    assert shell(f"$TRAIN {words} {closed}").status == 2
    # a file that is opened later does not get a closed stream's number, where what is printed would land in it
    code = (
        "import os; from normloss.cli import start; start.open_streams(); f = open('/dev/null'); print('x');"
        " assert f.fileno() > 2 and os.get_inheritable(1)"
    )
    assert shell(f'{sys.executable} -c "{code}" {closed}').status == 0


def interrupted(words, seconds, number):
    """A command that gets a signal so long after it began to listen, which is before its slow imports: its exit status
    and error lines. Until then Python itself starts, and what that says of a signal is its own."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen([sys.executable, *map(str, words)], env={**os.environ, "PYTHONPATH": str(ROOT)}, **pipes)
    until = time.monotonic() + 120
    while not listens(process.pid) and process.poll() is None and time.monotonic() < until:
        time.sleep(0.002)
    time.sleep(seconds)
    process.send_signal(number)
    _, err = process.communicate(timeout=300)
    return process.returncode, err.decode().splitlines()


def listens(pid):
    """Whether a process has a handler for SIGUSR2, which is the last to get one."""
    with open(f"/proc/{pid}/status") as facts:
        caught = next((line.split()[1] for line in facts if line.startswith("SigCgt:")), "0")
    return int(caught, 16) >> (signal.SIGUSR2 - 1) & 1


@pytest.mark.parametrize("script", ["train", "compare", "export", "merge", "plan", "figures", "report", "wandb_sync"])
def test_a_signal_in_a_commands_first_moments_is_a_line(script, tmp_path, config):
    cfg = config("dataset=digits", "model=resnet8", "train.epochs=4", "train.milestones=[]")
    write_run(tmp_path / "runs", cfg, 5.0)
    out = [f"--results={tmp_path}", f"--store={tmp_path / 'runs'}"]
    words = {
        "train": ["dataset=digits", f"store={tmp_path / 'new'}"],
        "compare": [f"--out={tmp_path}", out[1]],
        "export": [out[0], str(tmp_path / "runs")],
        "merge": [str(tmp_path / "runs"), f"--store={tmp_path / 'other'}"],
        "plan": ["demo", out[1]],
        "figures": out,
        "report": out,
        "wandb_sync": out[1:],
    }[script]
    file = ROOT / "train.py" if script == "train" else ROOT / "scripts" / f"{script}.py"
    seen = set()
    for seconds, number in ((0, signal.SIGINT), (0.5, signal.SIGTERM), (1.5, signal.SIGINT)):
        status, lines = interrupted([file, *words], seconds, number)
        assert not any("Traceback" in line for line in lines), lines
        seen.add(status)
        if status == 75:
            assert lines[-1].endswith("start it again to go on")
            assert f"stopped by {number.name}" in lines[-1]
    assert seen <= {75, 0, 2}
    assert 75 in seen
