"""The effective learning rate and its match, against numbers worked out by hand."""

from types import SimpleNamespace

import pytest

from normloss.analysis.layers import effective_lr, matched_lr, squared_norms
from normloss.errors import UserError


def run(*epochs: tuple[float, list[float]]) -> SimpleNamespace:
    return SimpleNamespace(epochs=[{"lr": lr, "layer_norms": norms} for lr, norms in epochs])


def test_effective_lr_is_over_the_mean_squared_norm_of_hidden_layers():
    record = run((0.1, [9, 1, 2, 9]), (0.01, [9, 2, 2, 9]))
    assert squared_norms(record) == pytest.approx([2.5, 4])
    assert effective_lr(record) == pytest.approx([0.04, 0.0025])


def test_matched_rates_give_the_source_the_targets_effective_rate():
    target, source = run((0.1, [5, 1, 5]), (0.01, [5, 1, 5])), run((0.1, [5, 2, 5]), (0.01, [5, 3, 5]))
    assert matched_lr([target], [source]) == pytest.approx([0.4, 0.09])
    other = run((0.1, [5, 4, 5]), (0.01, [5, 3, 5]))  # |w|^2 of 4 and 16: 10 in the mean
    assert matched_lr([target], [source, other]) == pytest.approx([1.0, 0.09])
    assert matched_lr([source], [source]) == pytest.approx([0.1, 0.01])


def test_runs_of_other_lengths_are_refused():
    with pytest.raises(UserError, match="same number of epochs, got 1 and 2"):
        matched_lr([run((0.1, [1, 1, 1]))], [run((0.1, [1, 1, 1]), (0.1, [1, 1, 1]))])
