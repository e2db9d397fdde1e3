"""Every example runs on digits and brings the filter norms nearer to one."""

import json
import re

import pytest

from tests.conftest import ROOT, ran

pytestmark = pytest.mark.slow

SHOWS = sorted(file.name for file in (ROOT / "examples").glob("*.py") if 'show("after"' in file.read_text())
NEEDS = {"timm_model.py": "timm", "hugging_face.py": "transformers", "accelerate_loop.py": "accelerate"}

TRAIN = '''
"""A stand-in for timm's script: it makes its optimizer as that does, and trains on noise."""
import argparse, torch, timm
from timm.optim import create_optimizer_v2, optimizer_kwargs
parser = argparse.ArgumentParser()
for name, value in dict(opt="sgd", lr=0.1, weight_decay=0.0, momentum=0.9).items():
    parser.add_argument("--" + name.replace("_", "-"), type=type(value), default=value)
args = parser.parse_args()
model = timm.create_model("resnet10t", num_classes=4)
norms = lambda: torch.cat([p.flatten(1).norm(dim=1) for p in model.parameters() if p.ndim > 1])
optimizer = create_optimizer_v2(model, **optimizer_kwargs(cfg=args))
for when in ("before", "after"):
    print(f"{when}: filter norms from {norms().min():.3f} to {norms().max():.3f}")
    for _ in range(60):
        optimizer.zero_grad()
        sum(0 * p.sum() for p in model.parameters()).backward()
        optimizer.step()
'''


def run(*words: str) -> str:
    return ran(*words, HF_HUB_OFFLINE="1").stdout


def spread(said: str, when: str) -> float:
    """How far the norms are from one."""
    smallest, largest = map(float, re.search(rf"{when}: filter norms from ([\d.]+) to ([\d.]+)", said).groups())
    return max(1 - smallest, largest - 1)


@pytest.mark.parametrize("name", SHOWS)
def test_an_example_brings_the_norms_nearer_to_one(name):
    pytest.importorskip(NEEDS.get(name, "torch"))
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"] if name == "ddp.py" else []
    said = run(*launcher, f"examples/{name}")
    assert spread(said, "after") < 0.5 * spread(said, "before")


def test_timms_script_is_hooked_from_outside(tmp_path):
    pytest.importorskip("timm")
    (tmp_path / "train.py").write_text(TRAIN)
    said = run("examples/timm_script.py", str(tmp_path / "train.py"), "0.3", "--lr", "0.1", "--weight-decay", "0")
    assert spread(said, "after") < 0.05 * spread(said, "before")


def test_optuna_drives_train_by_ask_and_tell(tmp_path):
    words = ["dataset=digits", "model=resnet8", "reg=nl", "train.max_steps=2", "train.eval_batches=1", "device=cpu"]
    said = run("examples/optuna_search.py", "2", *words, "threads=1", "wandb.mode=disabled", f"store={tmp_path}")
    errors = [json.loads(file.read_text())["test_error"] for file in tmp_path.glob("*/DONE")]
    assert len(errors) == 2
    assert said.splitlines()[-1].endswith(f"with an error of {min(errors):.2f} %")
