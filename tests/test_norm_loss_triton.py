"""The Triton kernel: interpreted on the CPU and on a GPU against autograd in float64; compiled for a GPU without one.

CUDA graphs are stood in for by `Tape`, which keeps what a capture would record; the tests at the end need a GPU.
"""

import copy
import gc
import json
import os
import subprocess
import sys
import weakref
from collections.abc import Callable
from contextlib import contextmanager
from unittest.mock import MagicMock

import pytest
import torch
from torch import Tensor, nn

import normloss
from normloss.regularizers import capture, kernels
from tests.conftest import ROOT, cuda
from tests.test_norm_loss_forms import LAYOUTS, by_autograd, gradients, network, with_random_gradients

triton = pytest.importorskip("triton", reason="triton is not installed: it is for Linux, see the extra dev")
from normloss.regularizers import norm_loss_triton  # noqa: E402

INTERPRETED = """
import json
from tests import test_norm_loss_triton as file

with file.triton_for_every_weight():
    print(json.dumps(file.{}()))
"""


def short_and_long(layout: torch.memory_format, device: str) -> nn.ModuleList:
    """Dense weights, their filters shorter and longer than a block; with gradients."""
    model = network(torch.float32, layout)[:10]
    model.extend([nn.Linear(norm_loss_triton.BLOCK, 2), nn.Linear(2 * norm_loss_triton.BLOCK + 1, 3)])
    return with_random_gradients(model.to(device))


def norm_loss(model: nn.Module) -> normloss.NormLoss:
    reg = normloss.NormLoss(model, lam=0.3)
    reg.kernel = "triton"
    return reg


def worst(model: nn.Module, expected: list[Tensor]) -> float:
    pairs = zip(gradients(model), expected, strict=True)
    return max(((a.double() - b).abs() / b.abs().clamp_min(1)).max().item() for a, b in pairs)


@contextmanager
def triton_for_every_weight():
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(kernels, "why_not_triton", lambda weight: "")
        yield


def interpreted(function: str) -> dict[str, float]:
    """What a function of this file returns in a process of its own: triton reads the variable when first imported."""
    run = subprocess.run(
        [sys.executable, "-c", INTERPRETED.format(function)],
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


# steps ---------------------------------------------------------------------------------------------------


def errors_of_steps(device: str = "cpu") -> dict[str, float]:
    errors = {}
    for layout in LAYOUTS:
        model = short_and_long(layout, device)
        reg = norm_loss(model)
        for step, lam in enumerate([0.3, 0.3, 1, 1e-3]):
            if step > 1:
                with_random_gradients(model)  # elsewhere in memory
            expected = by_autograd(model, lam)
            reg.lam = lam
            reg.before_step()
            errors[f"{layout}, step {step}"] = worst(model, expected)
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.sub_(0.1 * parameter.grad)
    return errors


def test_the_kernel_adds_autograds_gradient():
    errors = interpreted("errors_of_steps")
    assert len(errors) == 8
    assert max(errors.values()) < 1e-6, errors


@pytest.mark.parametrize("capability", [75, 90])
def test_the_kernel_compiles_for_a_gpu(monkeypatch, tmp_path, capability):
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    types = {"table": "*i64", "weight_of_row": "*i64", "weights": "i32", "lam": "fp32", "tiny": "fp32"}
    constants = {"BLOCK": norm_loss_triton.BLOCK}
    source = ASTSource(norm_loss_triton.add_to_filters, signature={**types, "BLOCK": "constexpr"}, constexprs=constants)
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32))
    assert compiled.asm["cubin"]


# captures ------------------------------------------------------------------------------------------------


class Tape:
    """Keeps the copies and launches that a graph would capture, their tensors by weak references only."""

    def __init__(self) -> None:
        self.nodes: list[tuple] = []

    @contextmanager
    def capture(self):
        copy_, launch = Tensor.copy_, norm_loss_triton.add_to_filters

        def copy_or_keep(table: Tensor, host: Tensor, non_blocking: bool = False) -> Tensor:
            if not non_blocking:
                return copy_(table, host)
            self.nodes.append((copy_, weakly(table, host)))
            return table

        launches = MagicMock()
        launches.__getitem__.side_effect = lambda grid: (
            lambda *args, BLOCK: self.nodes.append((launch[grid], weakly(*args, BLOCK)))
        )
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(capture, "capturing", lambda device: True)
            patched.setattr(capture, "stream", lambda device: 7)  # no step ran on it
            patched.setattr(Tensor, "copy_", copy_or_keep)
            patched.setattr(norm_loss_triton, "add_to_filters", launches)
            yield

    def replay(self) -> None:
        for function, args in self.nodes:
            function(*[arg() if isinstance(arg, weakref.ref) else arg for arg in args])


def weakly(*args) -> list:
    return [weakref.ref(arg) if isinstance(arg, Tensor) else arg for arg in args]


def errors_of_replays() -> dict[str, float]:
    """Of two graphs with gradients of their own, replayed among steps on other gradients and on fewer weights."""
    model = short_and_long(torch.channels_last, "cpu")
    reg = norm_loss(model)
    errors = {}

    def check(name: str, run: Callable[[], None], lam: float, own: list[Tensor]) -> None:
        for parameter, gradient in zip(model.parameters(), own, strict=True):
            parameter.grad = gradient.normal_()
            parameter.data.mul_(1.1)
        expected = by_autograd(model, lam)
        run()
        errors[name] = worst(model, expected)

    def new_gradients() -> list[Tensor]:
        return [parameter.grad for parameter in with_random_gradients(model).parameters()]

    graphs = []
    for _ in range(2):
        new_gradients()
        reg.before_step()
        own, tape = new_gradients(), Tape()
        before = gradients(model)
        with tape.capture():
            reg.before_step()
        assert all(map(torch.equal, before, gradients(model)))
        assert len(tape.nodes) == 2
        graphs.append((tape, own))
    reg.lam = 1.0  # a graph keeps that of its capture
    outside = new_gradients()
    for turn in range(3):
        for number, (tape, own) in enumerate(graphs):
            check(f"step {turn}, {number}", reg.before_step, 1.0, outside)
            check(f"replay {turn}, {number}", tape.replay, 0.3, own)
        new_gradients()
        model[turn].weight.grad = None
        reg.before_step()
        gc.collect()
    return errors


def test_a_replay_reads_the_addresses_of_its_own_capture():
    errors = interpreted("errors_of_replays")
    assert len(errors) == 12
    assert max(errors.values()) < 1e-6, errors


def test_each_step_of_a_capture_needs_one_outside(monkeypatch):
    monkeypatch.setattr(norm_loss_triton, "add_to_filters", MagicMock())
    reg = norm_loss(short_and_long(torch.contiguous_format, "cpu"))

    def refused():
        return pytest.raises(RuntimeError, match="take one step before the capture or set reg.kernel")

    with triton_for_every_weight():
        with Tape().capture(), refused():
            reg.before_step()
        for _ in range(2):
            reg.before_step()
            with Tape().capture():
                reg.before_step()
                with refused():
                    reg.before_step()
        reg.weights[0].grad = None
        with Tape().capture(), refused():
            reg.before_step()
        table = norm_loss_triton.FilterTable(reg.weights[1:])
        with Tape().capture(), refused():
            table.add_norm_loss(0.3)
        with Tape().capture(), refused():
            norm_loss_triton.FilterTable(reg.weights[1:])


# with a GPU ----------------------------------------------------------------------------------------------


@cuda
def test_on_cuda_the_kernel_adds_autograds_gradient():
    errors = errors_of_steps("cuda")
    assert len(errors) == 8
    assert max(errors.values()) < 1e-6, errors


@cuda
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_on_cuda_a_graph_replays_the_kernel(ieee, layout):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 128, 3), nn.ReLU(), nn.Conv2d(128, 4, 3))
    model.to("cuda", memory_format=layout)
    reg = norm_loss(model)
    x = torch.randn(8, 3, 10, 10, device="cuda").to(memory_format=layout)

    def step():
        model.zero_grad(set_to_none=True)
        model(x).square().mean().backward()
        reg.before_step()

    graphs = []
    for _ in range(2):
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                step()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            step()
        graphs.append((graph, [parameter.grad for parameter in model.parameters()]))

    for _ in range(3):
        for graph, own in graphs:
            step()  # on the current stream, with gradients elsewhere
            gc.collect()
            with torch.no_grad():
                x.normal_()
                for parameter in model.parameters():
                    parameter.mul_(1.1)
            graph.replay()
            exact = copy.deepcopy(model).double()
            exact.zero_grad(set_to_none=True)
            (exact(x.double()).square().mean() + normloss.NormLoss(exact, lam=0.3).value()).backward()
            for gradient, parameter in zip(own, exact.parameters(), strict=True):
                torch.testing.assert_close(gradient.double(), parameter.grad, rtol=1e-4, atol=1e-5)
