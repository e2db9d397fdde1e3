"""Which device a run gets, and one line for those that cannot be used. CUDA is stood in for."""

import warnings

import pytest
import torch

from normloss.errors import UserError
from normloss.training import device as devices

DRIVER = "CUDA initialization: The NVIDIA driver on your system is too old (found version 11040).\nPlease update it."


@pytest.fixture
def gpus(monkeypatch):
    """gpus(2, name="Tesla T4", capability=(7, 5)) -> as if torch saw them; driver=: what it warns of."""

    def see(count: int, name: str = "NVIDIA H100", capability=(9, 0), driver: str = "", works: Exception | None = None):
        def available() -> bool:
            if driver:
                warnings.warn(driver, stacklevel=2)
            return count > 0

        zeros = torch.zeros

        def on_cuda(*shape, device="cpu", **options):
            if torch.device(device).type == "cuda":
                if works:
                    raise works
                device = "cpu"
            return zeros(*shape, device=device, **options)

        monkeypatch.setattr(torch.cuda, "is_available", available)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
        monkeypatch.setattr(torch, "zeros", on_cuda)

    return see


@pytest.mark.parametrize(
    ("count", "name", "chosen"),
    [(0, "auto", "cpu"), (1, "auto", "cuda:0"), (2, "auto", "cuda:0"), (2, "cuda", "cuda"), (2, "cuda:1", "cuda:1"),
     (2, "cpu", "cpu")],
)  # fmt: skip
def test_the_first_gpu_unless_another_is_named(gpus, count, name, chosen):
    gpus(count)
    assert devices.choose(name) == torch.device(chosen)


@pytest.mark.parametrize(
    ("count", "name", "there"), [(0, "cuda", "cpu"), (1, "cuda:1", "cuda:0 cpu"), (2, "mps", "cuda:0 cuda:1 cpu")]
)
def test_a_device_that_is_not_there_is_refused(gpus, count, name, there):
    gpus(count)
    with pytest.raises(UserError) as refused:
        devices.choose(name)
    assert str(refused.value) == f"device: must be there, got {name}; there are: {there}"


def test_a_driver_too_old_is_told_where_the_cpu_takes_its_place(gpus, capsys):
    gpus(0, driver=DRIVER)
    first = DRIVER.partition("\n")[0]
    assert devices.choose("auto") == torch.device("cpu")
    assert capsys.readouterr().out == f"device: cpu, since CUDA cannot be used ({first})\n"
    with pytest.raises(UserError, match=r"got cuda; there are: cpu; CUDA cannot be used \(CUDA initialization: The"):
        devices.choose("cuda")


def test_no_visible_gpu_is_no_trouble(monkeypatch, capsys):
    """CUDA_VISIBLE_DEVICES="" is what sweeps on a CPU and many clusters set."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    if torch.backends.mps.is_available():
        pytest.skip("a Mac's own GPU is taken")
    assert devices.choose("auto") == torch.device("cpu")
    assert capsys.readouterr().out == ""


CUDA = torch.device("cuda:0")


@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_an_old_gpu_lacks_a_precision(gpus, precision):
    gpus(1, "Tesla T4", (7, 5))
    with pytest.raises(UserError) as refused:
        devices.check(CUDA, precision)
    line = f"train.precision: {precision} needs compute capability 8.0 or newer, got Tesla T4 of 7.5; choose fp32"
    assert str(refused.value) == line
    devices.check(CUDA, "fp32")


def test_tf32_is_no_precision_of_a_cpu():
    with pytest.raises(UserError, match="train.precision: tf32 needs a CUDA device, got cpu; choose fp32"):
        devices.check(torch.device("cpu"), "tf32")
    devices.check(torch.device("cpu"), "bf16")


def test_a_gpu_on_which_nothing_works_is_one_line(gpus):
    error = "CUDA error: no kernel image is available for execution on the device"
    gpus(1, "Tesla K80", (3, 7), works=torch.AcceleratorError(f"{error}\nadvice"))
    with pytest.raises(UserError) as refused:
        devices.check(CUDA, "fp32")
    line = f"device: cuda:0 (Tesla K80) must work with torch {torch.__version__}, got AcceleratorError: {error}"
    assert str(refused.value) == line


@pytest.mark.filterwarnings("error")
def test_every_flag_of_tf32_says_the_same_however_often_it_changes():
    cuda, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    for tf32 in (True, False, True, False):
        devices.set_tf32(tf32)
        assert [cuda.allow_tf32, cudnn.allow_tf32] == [tf32, tf32]
        newer = [cuda.fp32_precision, cudnn.fp32_precision, cudnn.conv.fp32_precision, cudnn.rnn.fp32_precision]
        assert newer == ["tf32" if tf32 else "ieee"] * 4
        assert torch.get_float32_matmul_precision() == ("high" if tf32 else "highest")


def test_gpu_check_needs_a_gpu(gpus, load_script, tmp_path, capsys):
    gpus(0)
    assert load_script("gpu_check").main(["--window=1", f"--store={tmp_path}/store"]) == 2
    assert capsys.readouterr().err == "normloss: gpu_check: needs a CUDA device, got none\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("cores", "threads"), [(1, 1), (2, 1), (3, 3), (8, 8), (64, 8)])
def test_a_run_takes_a_thread_for_each_core_up_to_eight_but_one_of_two(cores, threads):
    assert devices.default_threads(cores) == threads
