"""Calibration of a model's confidence, and its confusions: from logits (N, K) and labels (N,), float64."""

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax

BINS = 15
TEMPERATURES = (0.01, 100.0)  # between which one is sought


def expected_calibration_error(logits: np.ndarray, labels: np.ndarray) -> float:
    """Return sum_b n_b/N |accuracy_b - confidence_b|, 0 to 1, over BINS bins ((b-1)/BINS, b/BINS] of the confidence.

    Confidence is the highest softmax probability. Guo et al. 2017, "On calibration of modern neural networks".
    """
    probabilities = softmax(np.asarray(logits, float), axis=1)
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    place = np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)
    gap = np.bincount(place, right - confidence, BINS)  # n_b (accuracy_b - confidence_b)
    return float(np.abs(gap).sum() / len(labels))


def cross_entropy(logits: np.ndarray, labels: np.ndarray) -> float:
    """Return the mean of -log softmax(logits)[label]."""
    return float(-log_softmax(np.asarray(logits, float), axis=1)[np.arange(len(labels)), labels].mean())


def temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """Return T > 0 that minimises the cross entropy of logits / T: temperature scaling, Guo et al. 2017.

    Sought between TEMPERATURES; the cross entropy is convex in 1/T, so that there is one minimum.
    """
    ends = np.log(TEMPERATURES)
    found = minimize_scalar(lambda t: cross_entropy(logits / np.exp(t), labels), bounds=ends, options={"xatol": 1e-6})
    return float(np.exp(found.x))


def confused_most(logits: np.ndarray, labels: np.ndarray, count: int) -> list[tuple[int, int, int, int]]:
    """Return (class, taken for, images, images of the class), most first; only classes that are confused at all."""
    classes = logits.shape[1]
    matrix = np.zeros((classes, classes), int)
    np.add.at(matrix, (labels, logits.argmax(axis=1)), 1)
    totals = matrix.sum(axis=1)
    np.fill_diagonal(matrix, 0)
    order = np.argsort(-matrix, axis=None, kind="stable")[:count]
    places = zip(*np.unravel_index(order, matrix.shape), strict=True)
    return [(int(i), int(j), int(matrix[i, j]), int(totals[i])) for i, j in places if matrix[i, j]]
