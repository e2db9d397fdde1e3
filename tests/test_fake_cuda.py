"""tests/fake_cuda.py in a process of its own: once it has seen fake CUDA tensors, torch's autograd cannot be forked."""

import multiprocessing
import os
import sys
from contextlib import redirect_stdout

import pytest


def run(log):
    with open(log, "w") as file, redirect_stdout(file):
        sys.__stdout__ = file
        status = pytest.main(["-q", "-p", "no:cacheprovider", "-p", "no:xdist", "tests/fake_cuda.py"])
    os._exit(status)


def test_the_cuda_code_on_fake_tensors(tmp_path):
    process = multiprocessing.get_context("fork").Process(target=run, args=(tmp_path / "log",))
    process.start()
    process.join()
    said = (tmp_path / "log").read_text()
    assert process.exitcode == 0, said
    assert int(said.split(" passed")[0].split()[-1]) > 24
