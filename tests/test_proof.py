"""A graph that fails or computes something else costs one line: the run goes on as an eager one.

CUDA is stood in for by tapes that raise at a stage, or replay another step.
"""

import time
from functools import partial

import pytest
import torch
from forked import Command
from test_executors import DIGITS, DROPOUT, SIZES, Tape, assert_same, batches, parts, results, trained
from test_faults import assert_same_end

from normloss.errors import Interrupted, UserError
from normloss.runs import files, records
from normloss.training import executors, optimizer, proof
from normloss.training.eager import Compiled, Eager
from normloss.training.graph import WARM_UP, CudaCapture, CudaGraph
from normloss.training.proof import Proven
from tests.conftest import cuda

SCHEDULE = [0.1] * 8 + [0.01] * 8  # of lr, for SIZES: captured twice
ILLEGAL = "CUDA error: an illegal memory access was encountered\nCUDA kernel errors might be asynchronous"


class Failing(Tape):
    """Raises at the k-th call of a stage, halfway through a warm-up's step."""

    def __init__(self, stage: str, k: int, error: Exception | None = None) -> None:
        super().__init__()
        self.stage, self.k, self.error = stage, k, error or RuntimeError("no graph today\nsome advice")
        self.calls = 0

    def due(self, stage: str) -> bool:
        self.calls += stage == self.stage
        return stage == self.stage and self.calls == self.k

    def warm_up(self, work):
        super().warm_up(work)
        if self.due("warm-up"):
            raise self.error  # after the weights, the momentum and the batch norm have moved

    def capture(self, work):
        if self.due("capture"):
            torch.rand(3)  # whatever it drew before it failed
            raise self.error
        super().capture(work)

    def replay(self):
        if self.due("replay"):
            raise self.error
        super().replay()


class Run:
    """Takes notes."""

    id = "0badcafe"

    def __init__(self) -> None:
        self.noted = {}

    def note(self, **facts):
        self.noted |= facts


def proven(config, tape, *overrides, run=None, demanded=False):
    cfg = config(*DIGITS, "train.batch_size=8", *overrides)
    model, *rest = parts(cfg)
    return Proven(CudaGraph(model, *rest, tape), run, demanded), model


def eager_run(config, *overrides):
    model, *rest = parts(config(*DIGITS, "train.batch_size=8", *overrides))
    torch.manual_seed(3)
    return trained(Eager(model, *rest), model, SIZES, SCHEDULE)


def run_of(executor, model):
    torch.manual_seed(3)
    return trained(executor, model, SIZES, SCHEDULE)


# what fails ------------------------------------------------------------------------------------------

STAGES = [("warm-up", 1), ("warm-up", 2), ("warm-up", 5), ("capture", 1), ("capture", 2), ("replay", 1), ("replay", 3)]


@pytest.mark.parametrize(("stage", "k"), STAGES)
@pytest.mark.parametrize("what", [("reg=nl",), ("reg=sn",), ("reg=wn",), DROPOUT], ids=["nl", "sn", "wn", "dropout"])
def test_a_stage_that_raises_leaves_an_eager_run(config, capsys, stage, k, what):
    executor, model = proven(config, Failing(stage, k), *what, run=Run())
    assert_same(run_of(executor, model), eager_run(config, *what))
    reason = f"{stage}: RuntimeError: no graph today"
    assert executor.name == f"eager (graph: {reason})"
    assert executor.run.noted == {"executor": executor.name}
    assert capsys.readouterr().out == f"the CUDA graph failed ({reason}); going on eagerly\n"


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), torch.linalg.LinAlgError("eigh")])
def test_what_an_eager_step_would_raise_too_is_raised(config, error):
    executor, model = proven(config, Failing("capture", 1, error), run=Run())
    with pytest.raises(type(error)):
        run_of(executor, model)
    assert executor.run.noted == {}


@pytest.mark.parametrize(("stage", "k"), STAGES)
def test_a_graph_asked_for_by_name_fails_in_one_line(config, stage, k):
    executor, model = proven(config, Failing(stage, k), run=Run(), demanded=True)
    with pytest.raises(UserError) as failed:
        run_of(executor, model)
    reason = f"{stage}: RuntimeError: no graph today"
    assert str(failed.value) == f"train.executor: graph failed ({reason}); choose auto or eager"


# what computes something else ------------------------------------------------------------------------


class Forgetful(Tape):
    """Replays without the penalty."""

    def replay(self):
        self.lam = 0.0
        super().replay()


class OldRate(Tape):
    """Replays another learning rate."""

    def replay(self):
        self.lr = 0.101 * self.lr / 0.1
        super().replay()


class OldBatch(Tape):
    """Replays the batch of its capture's warm-up."""

    def warm_up(self, work):
        super().warm_up(work)
        self.x = work.__self__.buffers.x.clone()

    def replay(self):
        self.work.__self__.buffers.x.copy_(self.x)
        super().replay()


class TwiceNormed(Tape):
    """Counts a batch twice in the running statistics."""

    def replay(self):
        super().replay()
        self.work.__self__.model.bn1.running_mean.mul_(1.01)


class WrongLoss(Tape):
    """The right weights, another cross entropy."""

    def replay(self):
        super().replay()
        self.work.__self__.buffers.ce.add_(0.1)


class Broken(Tape):
    """Leaves no numbers."""

    def replay(self):
        super().replay()
        self.work.__self__.model.conv1.weight.data.fill_(torch.nan)


@pytest.mark.parametrize("tape", [Forgetful, OldRate, OldBatch, TwiceNormed, WrongLoss, Broken])
def test_a_graph_that_takes_another_step_is_given_up(config, tape):
    executor, model = proven(config, tape(), "reg.lam=0.01", run=Run())
    assert_same(run_of(executor, model), eager_run(config, "reg.lam=0.01"))
    assert executor.name.startswith("eager (graph: another step than the eager one: ")
    assert executor.run.noted == {"executor": executor.name}


@pytest.mark.parametrize("what", [("reg=nl",), ("reg=sn",), ("reg=wn",), ("reg=oni",), DROPOUT, ("reg=pbwn",)])
def test_a_graph_that_takes_the_eager_step_stays_and_is_compared_once(config, what):
    executor, model = proven(config, Tape(), *what, run=Run())
    assert_same(run_of(executor, model), eager_run(config, *what))
    assert executor.name == "graph"
    assert executor.run.noted == {}
    assert executor.graph.capture.log.count("capture") == 2
    assert executor.proven


def test_a_tensor_is_off_by_its_distance_over_its_change():
    """By hand: a change of 1 and a distance of 0.002 are twice a tolerance of 1e-3."""
    before, eager = {"w": torch.zeros(4)}, {"w": torch.tensor([1.0, 0, 0, 0])}
    near, far = {"w": torch.tensor([1.0, 0.0005, 0, 0])}, {"w": torch.tensor([1.0, 0, 0.002, 0])}
    assert proof.difference(before, eager, near, 1e-3) is None
    assert "w is off by 2 times the tolerance" in proof.difference(before, eager, far, 1e-3)


def test_a_step_that_changes_nothing_allows_nothing():
    still, moved = {"w": torch.ones(4)}, {"w": torch.ones(4) + 1e-5}
    assert proof.difference(still, still, still, 1e-3) is None
    assert proof.difference(still, still, moved, 1e-3) is not None


# a device that is lost -------------------------------------------------------------------------------


class Lost(Failing):
    """As after an illegal access: nothing of the device works from there on."""

    def recover(self):
        raise torch.AcceleratorError(ILLEGAL)


@pytest.mark.parametrize("demanded", [False, True])
def test_a_lost_device_interrupts_the_run_and_is_noted(config, demanded):
    executor, model = proven(config, Lost("replay", 2, torch.AcceleratorError(ILLEGAL)), run=Run(), demanded=demanded)
    reason = "replay: AcceleratorError: CUDA error: an illegal memory access was encountered"
    with pytest.raises(UserError if demanded else Interrupted) as lost:
        run_of(executor, model)
    assert reason in str(lost.value)
    assert executor.run.noted == ({} if demanded else {"unusable": {"graph": reason}})


def test_an_error_that_shows_later_is_the_graphs_too(config):
    executor, _ = proven(config, Tape(), run=Run())
    with pytest.raises(Interrupted, match="run 0badcafe lost its device under a CUDA graph"), executor.watch():
        raise torch.AcceleratorError(ILLEGAL)
    with pytest.raises(RuntimeError, match="shape"), executor.watch():
        raise RuntimeError("a shape that does not fit")


HERE = [*DIGITS, "device=cpu", "wandb.mode=disabled", "train.eval_batches=1", "train.max_steps=30"]


@pytest.fixture
def on_a_tape(monkeypatch):
    """on_a_tape(make) -> runs of this process take graphs for possible, on the tape that make() gives."""

    def patch(make):
        monkeypatch.setattr(executors, "CudaCapture", lambda device: make())
        monkeypatch.setattr(executors, "obstacle", lambda *_: None)

    return patch


def undisturbed(tmp_path):
    process = Command(tmp_path / "eager.log", *HERE, "train.executor=eager", f"store={tmp_path / 'eager'}")
    assert process.wait() == 0, process.text()
    (run,) = records.load_runs(tmp_path / "eager")
    return run


def test_a_run_whose_graph_fails_is_the_eager_run_and_says_so(on_a_tape, tmp_path):
    on_a_tape(lambda: Failing("replay", 9))
    process = Command(tmp_path / "log", *HERE, f"store={tmp_path / 'runs'}")
    assert process.wait() == 0, process.text()
    assert process.text().count("the CUDA graph failed (replay: RuntimeError: no graph today); going on eagerly") == 1
    (run,) = records.load_runs(tmp_path / "runs")
    assert run.meta["executor"] == "eager (graph: replay: RuntimeError: no graph today)"
    assert_same(results(run), results(undisturbed(tmp_path)))


def lost_after_a_checkpoint():
    return Lost("replay", 20, torch.AcceleratorError(ILLEGAL))


def test_a_run_that_loses_its_device_goes_on_eagerly_when_started_again(on_a_tape, tmp_path):
    on_a_tape(lost_after_a_checkpoint)
    words = [*HERE, f"store={tmp_path / 'runs'}", "checkpoint_minutes=0.0001"]
    first = Command(tmp_path / "log1", *words)
    assert first.wait() == 75, first.text()
    assert first.text().splitlines()[-1].endswith("start it again to go on, eagerly")
    (folder,) = (tmp_path / "runs").iterdir()
    left = files.read_json(folder / "status.json")
    assert (left["state"], left["saved"]) == ("incomplete", 23)  # the step before the one that was lost
    again = Command(tmp_path / "log2", *words)
    assert again.wait() == 0, again.text()
    assert "its CUDA graph failed before (replay: AcceleratorError: CUDA error: an illegal" in again.text()
    run = records.load_run(folder)
    assert run.meta["executor"].startswith("eager (graph: replay: AcceleratorError")
    assert_same_end(run, undisturbed(tmp_path))


def test_a_sweep_starts_a_member_that_lost_its_device_again_by_itself(on_a_tape, tmp_path):
    on_a_tape(lost_after_a_checkpoint)
    words = [*HERE, f"store={tmp_path / 'runs'}", "checkpoint_minutes=0.0001"]
    sweep = Command(tmp_path / "log", "-m", *words, "seed=0,1")
    assert sweep.wait() == 0, sweep.text()
    runs = records.load_runs(tmp_path / "runs")
    assert [len(run.meta["sessions"]) for run in runs] == [2, 2]
    alone = undisturbed(tmp_path)  # of seed 0
    assert_same_end(records.load_run(tmp_path / "runs" / alone.id), alone)


def test_a_graph_by_name_that_fails_late_keeps_what_was_saved(on_a_tape, tmp_path):
    on_a_tape(lambda: Failing("replay", 20))
    words = [*HERE, f"store={tmp_path / 'runs'}", "checkpoint_minutes=0.0001", "train.executor=graph"]
    process = Command(tmp_path / "log", *words)
    assert process.wait() == 2, process.text()
    (folder,) = (tmp_path / "runs").iterdir()
    assert files.read_json(folder / "status.json")["saved"] == 23
    again = Command(tmp_path / "again", *words[:-1], "train.executor=eager")
    assert again.wait() == 0, again.text()
    assert_same_end(records.load_run(folder), undisturbed(tmp_path))


# the compiler, and the optimizer's kernel --------------------------------------------------------------


def test_a_compiler_that_fails_is_one_line(config):
    def backend(graph, inputs):
        raise OSError("no C compiler")

    model, *rest = parts(config(*DIGITS, "train.batch_size=8"))
    torch._dynamo.reset()
    executor = Compiled(model, *rest, backend=backend)
    line = "train.executor: compile failed (BackendCompilerFailed: backend='backend' raised: OSError: no C compiler)"
    with pytest.raises(UserError) as failed:
        executor.step(*next(batches([8])))
    assert str(failed.value) == f"{line}; choose auto or eager"


def test_an_optimizer_without_its_kernel_goes_on_with_several(config, monkeypatch, capsys):
    model, _, _, settings = parts(config(*DIGITS))
    build = partial(optimizer.build, model, settings, torch.device("cpu"))
    assert build().defaults["fused"]

    def fails(*_, **__):
        raise RuntimeError("no kernel image is available\nmore")

    monkeypatch.setattr(torch, "_fused_sgd_", fails)
    assert not build().defaults["fused"]
    line = "SGD in one kernel failed (RuntimeError: no kernel image is available); going on with several\n"
    assert capsys.readouterr().out == line


# with a GPU ------------------------------------------------------------------------------------------------


@cuda
@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
@pytest.mark.parametrize("preset", ["nl", "wd", "sn", "wn", "oni", "so"])
def test_on_cuda_a_graph_proves_itself(config, preset, precision):
    """With the kernels of a run, which add in no fixed order; the proof takes less than a second."""
    cfg = config("dataset=cifar10", "model=resnet20", "recipe=cifar10_resnet110", f"reg={preset}",
                 f"train.precision={precision}")  # fmt: skip
    model, *rest = parts(cfg, "cuda")
    executor = Proven(CudaGraph(model, *rest, CudaCapture(torch.device("cuda"))))
    model.train()
    x = torch.randn(128, 3, 32, 32, device="cuda").to(memory_format=torch.channels_last)
    y = torch.randint(10, (128,), device="cuda")
    for _ in range(WARM_UP):
        executor.step(x, y)
    torch.cuda.synchronize()
    began = time.monotonic()
    executor.step(x, y)
    torch.cuda.synchronize()
    assert time.monotonic() - began < 2.0  # with the capture
    assert executor.name == "graph"
    assert executor.proven


@cuda
def test_on_cuda_a_capture_that_fails_leaves_a_device_that_trains(config):
    """The host reads a value within the capture, which CUDA forbids; dropout draws after it as before it."""
    cfg = config(*DIGITS, *DROPOUT)
    model, *rest = parts(cfg, "cuda")
    graph = CudaGraph(model, *rest, CudaCapture(torch.device("cuda")))
    work = graph.step_in_place

    def reads():
        work()
        if torch.cuda.is_current_stream_capturing():
            graph.buffers.ce.item()

    graph.step_in_place = reads
    executor = Proven(graph)
    torch.manual_seed(3)
    state, metrics = trained(executor, model, SIZES, SCHEDULE, device="cuda")
    assert executor.name.startswith("eager (graph: capture: ")
    model, *rest = parts(cfg, "cuda")
    torch.manual_seed(3)
    expected = trained(Eager(model, *rest), model, SIZES, SCHEDULE, device="cuda")
    assert_same((state, metrics), expected, rtol=1e-3, atol=1e-4)
