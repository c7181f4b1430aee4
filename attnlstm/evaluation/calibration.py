"""Temperature scaling (Guo et al. 2017, section 4.2), one number that makes probabilities honest, and a bias for each
class beside it (Alexandari, Kundaje and Shrikumar 2020).

Owns the fits. Knows numpy only; which rows they are fitted on, and where the numbers are kept, is the caller's.
"""

import numpy as np
import numpy.typing as npt

LOWEST, HIGHEST = 0.05, 20.0
"""Bounds of a temperature: beyond them the rows say nothing about it (all right, or no better than chance)."""

BIAS_DEVIATION = 1.0
"""How far from 0, in nats, biases are expected to lie (a normal distribution), unless a class's rows say otherwise."""

NEWTON_STEPS, SMALLEST_STEP = 20, 1e-6
"""Most steps to the biases, of which three to five are usual, and the last one's length in nats."""

HALVINGS = 32
"""Steps of the bisection: ln(HIGHEST / LOWEST) / 2**32 is far below what rows can tell."""


def fit_temperature(
    logits: npt.NDArray[np.floating],
    labels: npt.NDArray[np.integer],
    weights: npt.NDArray[np.floating] | None = None,
) -> float:
    """The temperature in [0.05, 20] whose softmax(logits / temperature) has the least log loss.

    logits: float (N, C), of rows that were not trained on. labels: integer (N,), in 0 .. C - 1. weights: float (N,),
    what each row counts for, not all 0; None for all alike.
    One more row, whose label may be any, is taken to have been seen: few rows that are all right are no ground for
    certainty (after Platt 1999, section 2.2).
    Raises ValueError without rows, if shapes disagree, or if a logit is not finite.

        network.config = dataclasses.replace(network.config, temperature=fit_temperature(logits, labels))
    """
    if logits.ndim != 2 or labels.shape != logits.shape[:1] or not len(logits):
        raise ValueError(f"logits must be (N, C) and labels (N,), N > 0; got {logits.shape} and {labels.shape}")
    if not np.isfinite(logits).all():
        raise ValueError("logits must be finite to fit a temperature")
    z = logits.astype(np.float64)
    z -= z.max(axis=1, keepdims=True)
    of_label = np.average(z[np.arange(len(z)), labels], weights=weights)
    of_any = np.average(z.mean(axis=1), weights=weights)
    num_seen = len(z) if weights is None else weights.sum()
    of_label += (of_any - of_label) / (num_seen + 1)

    # The log loss is convex in 1 / temperature, so its slope there crosses zero once: bisect on its sign.
    low, high = np.log(LOWEST), np.log(HIGHEST)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        p = np.exp(z / np.exp(middle))
        expected = np.average((p * z).sum(axis=1) / p.sum(axis=1), weights=weights)
        if expected > of_label:  # too sure of itself: a higher temperature loses less
            low = middle
        else:
            high = middle
    return float(np.exp((low + high) / 2))


def fit_biases(
    logits: npt.NDArray[np.floating],
    labels: npt.NDArray[np.integer],
    weights: npt.NDArray[np.floating] | None = None,
) -> npt.NDArray[np.float64]:
    """float64 (C,): what to add to the logits of each class, before a temperature is fitted.

    Together with a temperature they have the least log loss, beside what it costs a bias to be far from 0. They mend
    what a temperature cannot: a class whose rows the network knows by heart gets too little of what it has not seen.
    All 0 unless the rows gain more than a nat for each bias, so that chance does not pass for a gain (Akaike 1974).
    Arguments and errors as of `fit_temperature`.
    """
    counts = np.ones(len(logits)) if weights is None else weights.astype(np.float64)
    biases = np.zeros(logits.shape[1])

    def loss(biases: npt.NDArray[np.float64], temperature: float) -> float:
        of_prior = float(((biases / temperature) ** 2).sum()) / (2 * BIAS_DEVIATION**2)
        return float(counts @ log_losses_of_logits(logits + biases, labels, temperature)) + of_prior

    temperature = fit_temperature(logits, labels, weights)
    without = loss(biases, temperature)
    for _ in range(NEWTON_STEPS):
        p = np.exp((logits + biases - (logits + biases).max(axis=1, keepdims=True)) / temperature)
        p /= p.sum(axis=1, keepdims=True)
        of_class = counts[:, None] * p
        slope = (
            of_class.sum(axis=0) - np.bincount(labels, counts, len(biases)) + biases / temperature / BIAS_DEVIATION**2
        )
        # Not a matrix product: its sums would depend on the number of threads.
        curvature = np.diag(of_class.sum(axis=0) + 1 / BIAS_DEVIATION**2) - np.einsum("nc,nd->cd", of_class, p)
        step = temperature * np.linalg.solve(curvature, slope)
        before = loss(biases, temperature)
        while loss(biases - step, temperature) > before and np.abs(step).max() > SMALLEST_STEP:
            step /= 2
        biases -= step
        temperature = fit_temperature(logits + biases, labels, weights)
        if np.abs(step).max() <= SMALLEST_STEP:
            break
    gained = without - loss(biases, temperature)
    return biases if gained > len(biases) - 1 else np.zeros(len(biases))


def log_losses_of_logits(
    logits: npt.NDArray[np.floating], labels: npt.NDArray[np.integer], temperature: float = 1.0
) -> npt.NDArray[np.float64]:
    """float64 (N,): -ln softmax(logits / temperature) at the labels, in nats. Shapes as for `fit_temperature`."""
    z = logits.astype(np.float64)
    z -= z.max(axis=1, keepdims=True)
    z /= temperature
    losses: npt.NDArray[np.float64] = np.log(np.exp(z).sum(axis=1)) - z[np.arange(len(z)), labels]
    return losses
