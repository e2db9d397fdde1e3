"""Which device a run gets, and one line for those that cannot be used. CUDA is stood in for."""

import warnings

import pytest
import torch

from normloss.training import device as devices
from tests.conftest import refused

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
     (2, "cpu", "cpu"), (0, "cuda", "there are: cpu"), (1, "cuda:1", "there are: cuda:0 cpu"),
     (2, "mps", "there are: cuda:0 cuda:1 cpu")],
)  # fmt: skip
def test_the_first_gpu_unless_another_is_named_which_must_be_there(gpus, count, name, chosen):
    gpus(count)
    if chosen.startswith("there are"):
        assert refused(devices.choose, name) == f"device: must be there, got {name}; {chosen}"
    else:
        assert devices.choose(name) == torch.device(chosen)


def test_a_driver_too_old_is_told_where_the_cpu_takes_its_place(gpus, capsys):
    gpus(0, driver=DRIVER)
    first = DRIVER.partition("\n")[0]
    assert devices.choose("auto") == torch.device("cpu")
    assert capsys.readouterr().out == f"device: cpu, since CUDA cannot be used ({first})\n"
    assert "got cuda; there are: cpu; CUDA cannot be used (CUDA initialization: The" in refused(devices.choose, "cuda")


def test_no_visible_gpu_is_no_trouble(monkeypatch, capsys):
    """CUDA_VISIBLE_DEVICES="" is what sweeps on a CPU and many clusters set."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    if torch.backends.mps.is_available():
        pytest.skip("a Mac's own GPU is taken")
    assert devices.choose("auto") == torch.device("cpu")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("device", "precision", "needed"),
    [("cuda", "tf32", "compute capability 8.0 or newer, got Tesla T4 of 7.5"),
     ("cuda", "bf16", "compute capability 8.0 or newer, got Tesla T4 of 7.5"), ("cuda", "fp32", None),
     ("cpu", "tf32", "a CUDA device, got cpu"), ("cpu", "bf16", None)],
)  # fmt: skip
def test_an_old_gpu_or_a_cpu_lacks_a_precision(gpus, device, precision, needed):
    gpus(1, "Tesla T4", (7, 5))
    if needed is None:
        devices.check(torch.device(device), precision)
    else:
        line = f"train.precision: {precision} needs {needed}; choose fp32"
        assert refused(devices.check, torch.device(device), precision) == line


def test_a_gpu_on_which_nothing_works_is_one_line(gpus):
    error = "CUDA error: no kernel image is available for execution on the device"
    gpus(1, "Tesla K80", (3, 7), works=torch.AcceleratorError(f"{error}\nadvice"))
    line = f"device: cuda:0 (Tesla K80) must work with torch {torch.__version__}, got AcceleratorError: {error}"
    assert refused(devices.check, torch.device("cuda:0"), "fp32") == line


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


@pytest.mark.parametrize(("cores", "threads"), [(1, 1), (2, 1), (3, 3), (64, 8)])
def test_a_run_takes_a_thread_for_each_core_up_to_eight_but_one_of_two(config, monkeypatch, ieee, cores, threads):
    monkeypatch.setattr(devices, "cores", lambda: cores)
    devices.setup(config("dataset=digits", "model=resnet8", "device=cpu"))
    assert torch.get_num_threads() == threads
