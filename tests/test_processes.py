"""Two processes with gloo: replicas stay equal under DDP, and FSDP2's shards are served as one process would."""

import os
import subprocess
import sys

import pytest
import torch

from tests.conftest import ROOT
from tests.processes_worker import METHODS, network, train

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone"]
    asked = subprocess.run(
        [*command, "tests/processes_worker.py", str(folder)], cwd=ROOT, capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert asked.returncode == 0, asked.stderr[-3000:]
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in (0, 1)]


def test_replicas_of_srip_are_equal_whatever_the_random_state(results):
    assert all(torch.equal(a, b) for a, b in zip(results[0]["replicas"], results[1]["replicas"], strict=True))


@pytest.mark.parametrize("name", [*METHODS, "sharded afterwards"])
def test_shards_are_served_as_one_process_does_it(results, name):
    weights, value, layers = train(network(), METHODS.get(name, METHODS["NormLoss"]))
    for result in results:
        theirs, their_value, their_layers = result["sharded"]["found"][name]
        assert their_value == pytest.approx(value, rel=1e-5)
        for key, weight in weights.items():
            torch.testing.assert_close(theirs[key], weight)
        for (layer, norm, sigma), (same, their_norm, their_sigma) in zip(layers, their_layers, strict=True):
            assert (layer, norm, sigma) == (same, pytest.approx(their_norm), pytest.approx(their_sigma))


@pytest.mark.parametrize("name", ["SO", "SRIP", "SpectralNormPenalty", "Stiefel"])
def test_what_needs_whole_matrices_says_so(results, name):
    for result in results:
        assert result["sharded"]["refused"][name].startswith(f"{name} needs the whole matrix of '0'")
