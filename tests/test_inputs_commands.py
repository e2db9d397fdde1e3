"""Where a command's output can go, and signals in its first moments: one line, or it works."""

import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
from conftest import ROOT
from runs_support import write_run


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
    code = "from normloss import output; output.open_streams(); print('λ ± ‖')"
    ended = shell(f'{sys.executable} -c "{code}"', PYTHONIOENCODING="ascii")
    assert ended.out == "? ? ?\n"


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-", ">&- 2>&- <&-"])
def test_a_closed_stream_is_no_reason_not_to_run(closed, tmp_path):
    words = "dataset=digits reg=nl+x=1"
    assert shell(f"$TRAIN --cfg job dataset=digits {closed}").status == 0
    assert shell(f"$TRAIN {words} {closed}").status == 2
    # a file that is opened later does not get a closed stream's number, where what is printed would land in it
    code = (
        "import os; from normloss import output; output.open_streams(); f = open('/dev/null'); print('x');"
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
