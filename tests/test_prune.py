"""scripts/prune.py: what a finished run loses, and what it keeps."""

from pathlib import Path

import pytest
import torch
from runs_support import killed_after, session, train, write_run
from test_archive import run_with_weights

from normloss.errors import UserError
from normloss.runs import checkpoint, weights
from normloss.runs.checkpoint import prune
from normloss.runs.records import load_run


@pytest.fixture
def finished(config, tmp_path):
    """A finished run with its weights; its model's logits of some images."""
    cfg = config("dataset=digits", "model=resnet8", "reg=oni", f"store={tmp_path / 'runs'}")
    path, x, logits, _ = run_with_weights(cfg)
    path.rename(tmp_path / "trained")
    write_run(tmp_path / "runs", cfg, 5.0)
    (tmp_path / "trained" / "last.pt").rename(path / "last.pt")
    return cfg, path, x, logits


def files(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.iterdir() if file.name != ".lock"}


def test_a_finished_run_keeps_its_weights_and_says_what_it_freed(finished, load_script, capsys):
    cfg, path, x, logits = finished
    before, size = files(path), (path / "last.pt").stat().st_size
    main = load_script("prune").main
    assert main([cfg.store, "--dry"]) == 0
    told = capsys.readouterr().out
    assert files(path) == before
    assert main([cfg.store]) == 0
    assert capsys.readouterr().out == told.replace("would be ", "")
    after = files(path)
    freed = sum(map(len, before.values())) - sum(map(len, after.values()))
    assert told == f"{cfg.store}: {freed / 1e6:.1f} MB would be freed, of 1 of 1 finished runs\n"
    assert freed > 0.4 * size
    assert {name for name in before if after.get(name) != before[name]} == {"last.pt"}
    assert checkpoint.load(path / "last.pt")
    with torch.no_grad():
        torch.testing.assert_close(weights.load_checkpoint(path)[0](x), logits)
    assert load_run(path).state == "done"
    assert prune(path) == 0


def test_an_unfinished_run_and_a_damaged_checkpoint_are_left(finished, config, tmp_path):
    unfinished = killed_after(config("dataset=digits", "model=resnet8", f"store={tmp_path}"), last=2)
    (finished[1] / "last.pt").write_bytes(b"x")
    for path in (unfinished, finished[1]):
        before = files(path)
        assert prune(path) == 0
        assert files(path) == before


def test_a_pruned_run_that_loses_its_end_is_an_error_that_advises(finished):
    cfg, path, *_ = finished
    prune(path)
    (path / "DONE").unlink()
    with pytest.raises(UserError, match=r"only weights.*restart=true trains anew"), session(cfg) as run:
        run.load("cpu", keys=("optimizer",))
        train(run, 1, 1)
