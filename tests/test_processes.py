"""Two processes with gloo: replicas under Accelerate, shards of FSDP2, DTensors, and what FSDP1 cannot have."""

import pytest
import torch

from tests import closed_form
from tests.conftest import ran
from tests.processes_worker import METHODS, UPDATES, WHOLE, network, train

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone"]
    ran(*torchrun, "tests/processes_worker.py", folder)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in (0, 1)]


@pytest.mark.parametrize("name", UPDATES)
def test_one_update_is_the_closed_form(results, name):
    n = int(name.split()[1])
    expected = dict(closed_form.updated(closed_form.network(), closed_form.batches(2 * n)).named_parameters())
    for result in results:
        for key, weight in result["updates"][name].items():
            torch.testing.assert_close(weight, expected[key].detach(), rtol=1e-11, atol=1e-13)


def assert_as_one_process(theirs: tuple, method) -> None:
    weights, value, layers = train(network(), method)
    their_weights, their_value, their_layers = theirs
    assert their_value == pytest.approx(value, rel=1e-5)
    for key, weight in weights.items():
        torch.testing.assert_close(their_weights[key], weight)
    for (layer, norm, sigma), (same, their_norm, their_sigma) in zip(layers, their_layers, strict=True):
        assert (layer, norm, sigma) == (same, pytest.approx(their_norm), pytest.approx(their_sigma))


@pytest.mark.parametrize("name", [*METHODS, "sharded afterwards"])
def test_shards_are_served_as_one_process_does_it(results, name):
    for result in results:
        assert_as_one_process(result["shards"][name], METHODS.get(name, METHODS["NormLoss"]))


@pytest.mark.parametrize("name", [*METHODS, *WHOLE])
def test_replicated_dtensors_get_a_penalty_once_whose_gradients_were_still_to_be_summed(results, name):
    for result in results:
        assert_as_one_process(result["replicated"][name], {**METHODS, **WHOLE}[name])


@pytest.mark.parametrize("name", WHOLE)
def test_what_needs_whole_matrices_says_so(results, name):
    for result in results:
        assert result["whole_matrices_of_shards"][name].startswith(f"{name} needs the whole matrix of '0'")


def test_the_flat_shards_of_fsdp1_are_refused_wherever_they_are_met(results):
    for result in results:
        for said in result["flat_shards"]:
            assert "is a flat shard of FSDP1, which cuts filters: use FSDP2, torch.distributed.fsdp.fully_shard" in said
            assert "\n" not in said
