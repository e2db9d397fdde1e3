"""Calibration error, temperature and confusions against closed forms and a second way of counting."""

import math

import numpy as np
import pytest

from normloss.analysis.calibration import confused_most, expected_calibration_error, temperature


def test_ece_counted_image_by_image():
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(500, 7)) * 3, rng.integers(7, size=500)
    bins = {}
    for row, label in zip(logits, labels, strict=True):
        weights = [math.exp(value - max(row)) for value in row]
        confidence = max(weights) / sum(weights)
        bins.setdefault(math.ceil(confidence * 15), []).append((confidence, row.argmax() == label))
    total = sum(len(b) * abs(np.mean([c for c, _ in b]) - np.mean([r for _, r in b])) for b in bins.values())
    assert expected_calibration_error(logits, labels) == pytest.approx(total / 500)


@pytest.mark.parametrize("share", [0.6, 0.75, 0.95])
def test_the_temperature_brings_a_constant_confidence_to_the_accuracy(share):
    # all logits (z, 0): cross entropy is least where sigmoid(z / T) is the accuracy, T = z / log(share / (1 - share))
    logits, labels = np.tile([4.0, 0.0], (100, 1)), (np.arange(100) >= 100 * share).astype(int)
    found = temperature(logits, labels)
    assert found == pytest.approx(4 / math.log(share / (1 - share)), rel=1e-4)
    assert expected_calibration_error(logits / found, labels) == pytest.approx(0, abs=1e-4)


def test_confusions_are_counted_and_right_ones_are_none():
    predicted = np.array([0, 1, 1, 1, 2, 0, 2])
    labels = np.array([0, 0, 0, 1, 2, 2, 2])
    assert confused_most(np.eye(3)[predicted], labels, 5) == [(0, 1, 2, 3), (2, 0, 1, 3)]
    assert confused_most(np.eye(3)[labels], labels, 5) == []
