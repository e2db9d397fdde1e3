"""The three ways to run a step give the same run; what a graph may replay is what never asks the device.

CUDA is stood in for by `Tape`, which keeps a step instead of capturing it; the tests at the end need a GPU.
"""

import json
import os
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch._inductor.runtime.cache_dir_utils import default_cache_dir
from torch.utils._python_dispatch import TorchDispatchMode

import train as script
from benchmarks import forms
from benchmarks.steps import StepLoop
from normloss import models, regularizers
from normloss.data.tensors import TensorData
from normloss.errors import Interrupted
from normloss.runs import records
from normloss.runs.provenance import versions
from normloss.signals import StopRequest
from normloss.sweeps import processes
from normloss.training import device as devices
from normloss.training import executors
from normloss.training.eager import Compiled, Eager
from normloss.training.graph import WARM_UP, CudaGraph
from tests.conftest import PRESETS, cuda, refused
from tests.forked import assert_same_end
from tests.test_methods import BeforeStep

DIGITS = ("dataset=digits", "model=resnet8", "train.epochs=2", "train.milestones=[]", "threads=1")


class Tape:
    """Keeps the step that a graph would capture: it is not run then, and replays the lr and lam of its capture."""

    def __init__(self, device: torch.device | None = None) -> None:
        self.work = None

    def warm_up(self, work):
        work()

    def capture(self, work):
        executor = work.__self__
        momenta = [executor.optimizer.state[p]["momentum_buffer"] for p in executor.model.parameters()]
        assert all(momentum is not None for momentum in momenta)  # else every replay would start the momentum anew
        self.work, self.lam = work, executor.reg.lam
        self.lr = executor.optimizer.param_groups[0]["lr"]

    def replay(self):
        executor = self.work.__self__
        (group,) = executor.optimizer.param_groups
        executor.reg.lam, lam = self.lam, executor.reg.lam
        group["lr"], lr = self.lr, group["lr"]
        self.work()
        executor.reg.lam, group["lr"] = lam, lr

    def discard(self):
        self.work = None


class Failing(Tape):
    """Cannot be captured for the k-th time."""

    def __init__(self, k: int = 1) -> None:
        self.left = k

    def capture(self, work):
        self.left -= 1
        if self.left == 0:
            raise RuntimeError("no graph today\nsome advice")
        super().capture(work)


def parts(cfg, device="cpu", seed=0):
    """Model, regularizer, optimizer and settings of a step, as train.py makes them."""
    torch.manual_seed(seed)
    model = models.build(cfg.model, cfg.dataset.num_classes, cfg.dataset.channels).to(device)
    reg = regularizers.build(model, cfg.reg)
    optimizer = torch.optim.SGD(model.parameters(), lr=cfg.train.lr, momentum=cfg.train.momentum, fused=True)
    return model, reg, optimizer, cfg.train


def batches(sizes, device="cpu"):
    generator = torch.Generator().manual_seed(1)
    for size in sizes:
        x = torch.randn(size, 1, 16, 16, generator=generator).to(device, memory_format=torch.channels_last)
        yield x, torch.randint(10, (size,), generator=generator).to(device)


def trained(executor: Eager, model: nn.Module, sizes, lrs=None, lams=None, device="cpu"):
    """State dict and metrics after a step for each batch size, with its lr and lam."""
    results = []
    model.train()
    for step, (x, y) in enumerate(batches(sizes, device)):
        if lrs:
            executor.optimizer.param_groups[0]["lr"] = lrs[step]
        if lams:
            executor.reg.lam = lams[step]
        results.append(executor.step(x, y))
    return model.state_dict(), torch.tensor([[float(value) for value in result] for result in results])


def assert_trains_as_eager(cfg, make, sizes, lrs=None, lams=None, device="cpu", **tolerance):
    """make(model, reg, optimizer, settings) -> the executor to compare; without a tolerance, bit for bit."""
    runs = []
    for executor in (Eager, make):
        model, *rest = parts(cfg, device)
        runs.append(trained(executor(model, *rest), model, sizes, lrs, lams, device))
    assert_same(*runs, **tolerance)


def assert_same(a, b, **tolerance):
    torch.testing.assert_close(a, b, **({"rtol": 0, "atol": 0} | tolerance))


class Tensors(TensorData):
    """Says which device it is on; holds nothing."""

    def __init__(self, device: str = "cuda") -> None:
        self.device = torch.device(device)


class FromFiles:
    device = torch.device("cuda")


@pytest.fixture
def chosen(config, monkeypatch, tmp_path):
    """chosen(data, "reg=nl") -> the executor's name on a stand-in for a GPU, with tmp_path as the store."""
    monkeypatch.setattr(executors, "CudaCapture", Tape)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "H200")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    executors.measured.cache_clear()

    def name(data, *overrides: str, run=None) -> str:
        cfg = config(*DIGITS, f"store={tmp_path}", *overrides)
        model, reg, optimizer, _ = parts(cfg)
        return executors.build(cfg, model, reg, optimizer, data, run).name

    return name


def test_auto_is_a_graph_wherever_one_can_be_had(chosen):
    assert chosen(Tensors()) == "graph"
    assert chosen(Tensors(), "train.micro_batch=32") == "graph"
    assert chosen(Tensors(), "reg=stiefel") == "eager"
    assert chosen(FromFiles()) == "eager"
    assert chosen(Tensors("cpu")) == "eager"
    for name in ("eager", "compile", "graph"):
        assert chosen(Tensors(), f"train.executor={name}") == name


def entry(tmp_path, executor: str) -> None:
    cell = f"H200, torch {versions()['torch']}, cuDNN {torch.backends.cudnn.version()}, resnet8, batch 64, fp32"
    (tmp_path / "executors.json").write_text(json.dumps({cell: {"executor": executor}}))


def test_auto_takes_what_was_measured_on_this_gpu_as_far_as_the_method_allows(chosen, tmp_path, capsys, monkeypatch):
    entry(tmp_path, "compile")
    processes.preload(str(tmp_path))
    (tmp_path / "executors.json").unlink()  # read once, by the parent of a sweep for all of its members
    assert chosen(Tensors()) == "compile"
    assert capsys.readouterr().out == f"executor: compile (by {tmp_path}/executors.json)\n"
    assert [chosen(Tensors(), f"reg={reg}") for reg in ("wd", "stiefel", "jac")] == ["compile", "compile", "eager"]
    assert chosen(FromFiles()) == "eager"
    for other in (["train.batch_size=32"], ["train.precision=bf16"], ["model=resnet20", "recipe=digits_resnet8"]):
        assert chosen(Tensors(), *other) == "graph"
    assert "executor: graph (not measured: H200, torch " in capsys.readouterr().out
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "H100")
    assert chosen(Tensors()) == "graph"


def test_what_is_compiled_stays_in_the_store_unless_its_user_says_where(chosen, tmp_path, monkeypatch):
    for given, kept in ((str(tmp_path / "own"),) * 2, (default_cache_dir(), str(tmp_path / "inductor"))):
        monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", given)
        chosen(Tensors(), "train.executor=compile")
        assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == kept


@pytest.mark.parametrize(
    ("before", "gpu", "name", "why"),
    [
        ("graph", "H200", "graph", "as before"),
        ("eager (graph: RuntimeError: no graph today)", "H200", "eager", "as before"),
        ("graph", "H100", "compile", "executors.json; before graph on H100, torch "),
    ],
)
def test_a_run_keeps_its_executor_on_the_same_gpu(chosen, tmp_path, capsys, before, gpu, name, why):
    entry(tmp_path, "compile")
    session = {"executor": before, "device_name": gpu, "versions": versions()}
    run = SimpleNamespace(status={"saved": 40}, meta={"sessions": [session, {}]})
    assert chosen(Tensors(), run=run) == name
    assert why in capsys.readouterr().out
    run.status["saved"] = 0  # nothing was trained
    assert chosen(Tensors(), run=run) == "compile"


@pytest.mark.parametrize(
    ("data", "overrides", "line"),
    [
        (Tensors, ["graph", "reg=jac"], "graph cannot replay the steps of reg=jac"),
        (Tensors, ["graph", "reg=pbwn", "reg.every=2"], "graph cannot replay the steps of reg=pbwn"),
        (Tensors, ["compile", "reg=jac"], "compile has no double backward, which reg=jac needs"),
        (FromFiles, ["graph"], "graph needs a data set that stays on the device as tensors, which digits does not"),
    ],
)
def test_what_cannot_be_run_is_refused_in_one_line(chosen, data, overrides, line):
    said = refused(chosen, data(), f"train.executor={overrides[0]}", *overrides[1:])
    assert said == f"train.executor: {line}; choose auto or eager"


# what a graph may replay -----------------------------------------------------------------------------


class HostWaits(TorchDispatchMode):
    """Counts the operations for which the host waits on a GPU: values and shapes read back, decompositions checked."""

    NAMES = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "_linalg_eigh", "_linalg_svd", "linalg_qr")

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.name().removeprefix("aten::").split(".")[0]
        indices = args[1] if name in ("index", "index_put", "index_put_") else ()
        if name in self.NAMES or any(index is not None and index.dtype == torch.bool for index in indices):
            self.found.append(name)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("preset", PRESETS)
def test_a_method_is_capturable_if_the_host_never_waits_within_its_step(config, preset):
    cfg = config(*DIGITS, f"reg={preset}", "train.batch_size=8", "train.micro_batch=4")
    model, reg, optimizer, settings = parts(cfg)
    executor = Eager(model, reg, optimizer, settings)
    trained(executor, model, [8])  # the first step makes the momentum
    x, y = next(batches([8]))
    with HostWaits() as waits:
        executor.step(x, y)
    assert reg.capturable == (not waits.found and not reg.needs_input_grad), waits.found


# graph: equal to eager, on the CPU -----------------------------------------------------------------------

DROPOUT = ("train.batch_size=8", "train.micro_batch=4", "model=wrn16_4", "model.width=1", "model.dropout=0.3",
           "recipe=digits_resnet8")  # fmt: skip
SIZES = [8] * 9 + [5] + [8] * 5 + [5]
SCHEDULES = {
    "constant": (None, None),
    "lr drops": ([0.1] * 6 + [0.01] * 10, None),
    "lr drops within the warm-up": ([0.1] * 2 + [0.01] * 14, None),
    "lam changes and ends": (None, [0.1] * 4 + [0.01] * 6 + [0.0] * 6),
}


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("preset", ["nl", "sn", "srip", "pbwn"])
def test_a_graph_trains_as_eager_does(config, preset, schedule):
    cfg = config(*DIGITS, f"reg={preset}", "train.batch_size=8")
    assert_trains_as_eager(cfg, partial(CudaGraph, capture=Tape()), SIZES, *SCHEDULES[schedule])


def test_a_compiled_graph_trains_as_eager_does_and_compiles_once(config):
    """A short batch and a new learning rate compile nothing."""
    compiled = []

    def backend(graph, inputs):
        compiled.append(graph)
        return graph.forward

    def make(model, *rest):
        whole = torch.compile(model, dynamic=False, fullgraph=True, backend=backend)
        return CudaGraph(model, *rest, capture=Tape(), compiled=whole)

    torch._dynamo.reset()
    cfg = config(*DIGITS, "train.batch_size=8")
    assert_trains_as_eager(cfg, make, SIZES, *SCHEDULES["lr drops"])
    assert len(compiled) == 1


def test_a_graph_trains_as_eager_does_with_dropout_and_micro_batches(config):
    assert_trains_as_eager(config(*DIGITS, *DROPOUT), partial(CudaGraph, capture=Tape()), SIZES)


@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.parametrize("what", [("reg=sn",), DROPOUT], ids=["sn", "dropout"])
def test_a_capture_that_raises_costs_a_line_and_the_run_continues_eagerly(config, capsys, what, k):
    cfg = config(*DIGITS, "train.batch_size=8", *what)
    noted = []
    run = SimpleNamespace(note=lambda **facts: noted.append(facts["executor"]))
    assert_trains_as_eager(cfg, partial(CudaGraph, capture=Failing(k), run=run), SIZES, *SCHEDULES["lr drops"])
    assert noted == ["eager (graph: RuntimeError: no graph today)"]
    line = "the CUDA graph cannot be captured (RuntimeError: no graph today); continuing eagerly\n"
    assert capsys.readouterr().out == line


@pytest.fixture
def trains(config, monkeypatch, tmp_path):
    """trains("a", "eager") -> its folder's finished run; "graph" on a Tape, "compile" without Inductor."""
    monkeypatch.setattr(executors, "Compiled", partial(Compiled, backend="eager", fullgraph=True))
    monkeypatch.setattr(executors, "CudaCapture", Tape)
    monkeypatch.setattr(executors, "obstacle", lambda *_: None)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    torch._dynamo.reset()

    def train(name: str, executor: str, stop: StopRequest | None = None) -> records.RunRecord:
        words = [*SHORT, "device=cpu", "wandb.mode=disabled", f"store={tmp_path / name}", f"train.executor={executor}"]
        script.train(cfg := config(*DIGITS, *words), stop)
        return records.load_run(tmp_path / name / cfg.id)

    return train


SHORT = ("train.batch_size=256", "train.epochs=2", "train.milestones=[1]", "train.warmup=1", "train.eval_batches=1")


@pytest.mark.parametrize(("first", "then"), [("graph", "compile"), ("compile", "graph")])
def test_a_run_stopped_under_one_executor_goes_on_under_another(trains, first, then):
    eager = trains("eager", "eager")
    with pytest.raises(Interrupted):
        trains("other", first, BeforeStep(5))
    resumed = trains("other", then)
    assert resumed.id == eager.id
    assert [session["executor"] for session in resumed.meta["sessions"]] == [first, then]
    assert_same_end(resumed, eager)


def test_compiled_micro_batches_train_as_eager_does(config):
    cfg = config(*DIGITS, "train.batch_size=8", "train.micro_batch=4")
    torch._dynamo.reset()
    assert_trains_as_eager(cfg, partial(Compiled, backend="eager", fullgraph=True), [8, 8, 6, 8])


def test_a_compiler_that_fails_is_one_line(config):
    def backend(graph, inputs):
        raise OSError("no C compiler")

    model, *rest = parts(config(*DIGITS, "train.batch_size=8"))
    torch._dynamo.reset()
    executor = Compiled(model, *rest, backend=backend)
    line = "train.executor: compile failed (BackendCompilerFailed: backend='backend' raised: OSError: no C compiler)"
    assert refused(executor.step, *next(batches([8]))) == f"{line}; choose eager"


@pytest.fixture
def deterministic(ieee):
    """Bit-identical kernels, in float32."""
    torch.use_deterministic_algorithms(True)


CAPTURABLE = ["none", "wd", "nl", "so", "dso", "mc", "srip", "sn", "wn", "pbwn", "pbwn_epoch", "oblique", "oni"]


@cuda
@pytest.mark.parametrize("preset", CAPTURABLE)
def test_on_cuda_a_graph_trains_as_eager_does(config, deterministic, preset):
    cfg = config(*DIGITS, f"reg={preset}", "train.batch_size=8")
    capture = executors.CudaCapture(torch.device("cuda"))
    make = partial(CudaGraph, capture=capture)
    assert_trains_as_eager(cfg, make, SIZES, *SCHEDULES["lr drops"], device="cuda", rtol=1e-5, atol=1e-6)
    assert capture.graph is not None


@cuda
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_on_cuda_a_graph_draws_dropout_as_eager_does(config, deterministic, precision):
    cfg = config(*DIGITS, *DROPOUT, f"train.precision={precision}")
    make = partial(CudaGraph, capture=executors.CudaCapture(torch.device("cuda")))
    assert_trains_as_eager(cfg, make, SIZES, device="cuda", rtol=1e-4, atol=1e-5)


@cuda
def test_on_cuda_no_step_makes_the_host_wait(config):
    model, *rest = parts(config(*DIGITS, "train.batch_size=8"), "cuda")
    graph = CudaGraph(model, *rest, executors.CudaCapture(torch.device("cuda")))
    data = list(batches([8] * (WARM_UP + 5), "cuda"))
    for x, y in data[: WARM_UP + 1]:
        graph.step(x, y)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for x, y in data[WARM_UP + 1 :]:
            graph.step(x, y)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@cuda
@pytest.mark.parametrize("precision", forms.CAPTURED)
@pytest.mark.parametrize("preset", ["nl", "wd", "sn", "wn", "oni", "so"])
@pytest.mark.parametrize("executor", ["graph", "compile"])
def test_on_cuda_a_captured_step_is_the_eager_one(config, ieee, executor, preset, precision):
    """With the kernels of a run, which add in no fixed order; a compiled one is also that without a capture."""
    cfg = config("dataset=cifar10", "model=resnet20", "recipe=cifar10_resnet110", f"reg={preset}", "device=cuda",
                 f"train.precision={precision}", f"train.executor={executor}")  # fmt: skip
    loop = StepLoop(cfg, devices.setup(cfg))
    loop.warm_up()
    assert forms.disagreements(loop) == []


@cuda
def test_on_cuda_a_capture_that_fails_leaves_a_device_that_trains(config, capsys):
    """The host reads a value within the capture, which CUDA forbids; dropout draws after it as before it."""
    cfg = config(*DIGITS, *DROPOUT)
    model, *rest = parts(cfg, "cuda")
    graph = CudaGraph(model, *rest, executors.CudaCapture(torch.device("cuda")))
    work = graph.step_in_place

    def reads():
        work()
        if torch.cuda.is_current_stream_capturing():
            graph.buffers.ce.item()

    graph.step_in_place = reads
    own = trained(graph, model, SIZES, *SCHEDULES["lr drops"], device="cuda")
    assert capsys.readouterr().out.startswith("the CUDA graph cannot be captured (")
    model, *rest = parts(cfg, "cuda")
    assert_same(own, trained(Eager(model, *rest), model, SIZES, *SCHEDULES["lr drops"], device="cuda"),
                rtol=1e-3, atol=1e-4)  # fmt: skip


@cuda
def test_on_cuda_inductor_trains_as_eager_does(config, ieee):
    cfg = config(*DIGITS, "train.batch_size=8")
    torch._dynamo.reset()
    assert_trains_as_eager(cfg, Compiled, [8, 8, 5], device="cuda", rtol=1e-3, atol=1e-4)
