"""The Triton kernel without a GPU: interpreted on the CPU against autograd in float64, and compiled for one."""

import json
import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT

triton = pytest.importorskip("triton", reason="triton is not installed: it is for Linux, see the extra dev")

INTERPRETED = """
import json
import torch
from torch import nn
import normloss
from normloss.regularizers.norm_loss_triton import BLOCK, FilterTable
from tests.test_norm_loss_forms import by_autograd, gradients, network, with_random_gradients

errors = {}
for layout in (torch.contiguous_format, torch.channels_last):
    model = network(torch.float32, layout)[:10]
    model.extend([nn.Linear(BLOCK, 2), nn.Linear(2 * BLOCK + 1, 3)])
    reg = normloss.NormLoss(model, lam=1)
    with_random_gradients(model)
    table = FilterTable(reg.weights)
    for step, lam in enumerate([0.3, 0.3, 1, 1e-3]):
        if step > 1:
            with_random_gradients(model)  # elsewhere in memory
        expected = by_autograd(model, lam)
        with torch.no_grad():
            table.add_norm_loss(lam)
        errors[f"{layout}, step {step}"] = max(
            ((a.double() - b).abs() / b.abs().clamp_min(1)).max().item()
            for a, b in zip(gradients(model), expected, strict=True)
        )
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.sub_(0.1 * parameter.grad)
print(json.dumps(errors))
"""


def test_the_kernel_adds_autograds_gradient():
    """In a process of its own: triton is interpreted only if the variable is set before its first import."""
    run = subprocess.run(
        [sys.executable, "-c", INTERPRETED],
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    errors = json.loads(run.stdout)
    assert len(errors) == 8
    assert max(errors.values()) < 1e-6, errors


@pytest.mark.parametrize("capability", [75, 90])
def test_the_kernel_compiles_for_a_gpu(monkeypatch, tmp_path, capability):
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from normloss.regularizers.norm_loss_triton import BLOCK, add_to_filters

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    types = {"table": "*i64", "weight_of_row": "*i64", "weights": "i32", "lam": "fp32", "tiny": "fp32"}
    source = ASTSource(add_to_filters, signature={**types, "BLOCK": "constexpr"}, constexprs={"BLOCK": BLOCK})
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32))
    assert compiled.asm["cubin"]
