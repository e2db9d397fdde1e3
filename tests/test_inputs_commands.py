"""Where a command's output can go, and signals in its first moments: one line, or it works."""

import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest
from conftest import ROOT
from forked import surroundings, wait_until_it_listens
from runs_support import write_run


def shell(line, **environment):
    """sh -c LINE, where $TRAIN, $COMPARE and so on are the commands."""
    files = [ROOT / "train.py", *(ROOT / "scripts").glob("*.py")]
    scripts = {path.stem.upper(): f"{sys.executable} {path}" for path in files}
    own = surroundings(**scripts, **environment)
    ended = subprocess.run(["sh", "-c", line], env=own, capture_output=True, timeout=300)
    out, err = ended.stdout.decode(), ended.stderr.decode()
    assert "Traceback" not in err, err
    return SimpleNamespace(status=ended.returncode, out=out, err=err)


def test_a_symlink_to_train_py_alone_is_train_py(tmp_path):
    (tmp_path / "train.py").symlink_to(ROOT / "train.py")
    ended = shell(f"cd {tmp_path} && {sys.executable} train.py --cfg job dataset=digits", PYTHONPATH="")
    assert ended.status == 0, ended.err
    assert "name: resnet8" in ended.out


REFUSED = {  # words that a command refuses
    "train": "seed=-1 reg=nl+x=1",
    "compare": "--store /nowhere/ü",
    "export": "/nowhere/ü",
    "merge": "/nowhere/ü",
    "plan": "no_such_experiment",
    "figures": "/nowhere/ü.ipynb",
    "wandb_sync": "--store /nowhere/ü",
}
COMMANDS = sorted({path.stem for path in (ROOT / "scripts").glob("*.py")} - {"checkout"} | {"train"})


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_prints_to_a_log_file_of_any_encoding(name, tmp_path):
    """Started from another folder, where another normloss is installed: it runs its own checkout."""
    (tmp_path / "normloss").mkdir()
    (tmp_path / "normloss" / "__init__.py").write_text("raise ImportError('the normloss of another checkout')")
    for words, status in [("--help", 0), *([(REFUSED[name], 2)] if name in REFUSED else [])]:
        line = f"cd {tmp_path} && ${name.upper()} {words} >out 2>err; echo $?"
        ended = shell(line, PYTHONIOENCODING="ascii", PYTHONPATH=str(tmp_path))
        assert ended.out == f"{status}\n", (tmp_path / "err").read_text()
        text = (tmp_path / "out").read_text("ascii") + (tmp_path / "err").read_text("ascii")
        assert text and "Traceback" not in text


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-", ">&- 2>&- <&-"])
def test_a_closed_stream_is_no_reason_not_to_run(closed):
    assert shell(f"$TRAIN --cfg job dataset=digits {closed}").status == 0
    assert shell(f"$TRAIN dataset=digits reg=nl+x=1 {closed}").status == 2
    # a file that is opened later does not get a closed stream's number, where what is printed would land in it
    code = (
        "import os; from normloss import output; output.open_streams(); f = open('/dev/null'); print('x');"
        " assert f.fileno() > 2 and os.get_inheritable(1)"
    )
    assert shell(f'{sys.executable} -c "{code}" {closed}').status == 0


SCRIPTS = {
    "train.py": ["dataset=digits", "store={}/new"],
    "scripts/compare.py": ["--out={}", "--store={}/runs"],
    "scripts/export.py": ["--results={}", "{}/runs"],
    "scripts/merge.py": ["{}/runs", "--store={}/other"],
    "scripts/plan.py": ["demo", "--store={}/runs"],
    "scripts/figures.py": ["--results={}", "--store={}/runs"],
    "scripts/report.py": ["--results={}", "--store={}/runs"],
    "scripts/wandb_sync.py": ["--store={}/runs"],
}


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_signal_in_a_commands_first_moments_is_a_line(script, tmp_path, config):
    """Once it listens, which is before its slow imports; until then Python itself starts, and answers as it does."""
    write_run(
        tmp_path / "runs", config("dataset=digits", "model=resnet8", "train.epochs=4", "train.milestones=[]"), 5.0
    )
    words = [sys.executable, ROOT / script, *(word.format(tmp_path) for word in SCRIPTS[script])]
    process = subprocess.Popen(words, env=surroundings(), stderr=subprocess.PIPE, text=True)
    wait_until_it_listens(process)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=300)
    assert (process.returncode, err) == (75, "normloss: stopped by SIGINT; rerun the command to resume\n")
