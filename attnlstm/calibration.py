"""Temperature scaling (Guo et al. 2017, section 4.2): one number that makes probabilities honest.

Owns the fit. Knows numpy only; which rows it is fitted on, and where the temperature is kept, is the
caller's.
"""

import numpy as np
import numpy.typing as npt

LOWEST, HIGHEST = 0.05, 20.0
"""Bounds of a temperature: beyond them the rows say nothing about it (all right, or no better than chance)."""

HALVINGS = 60
"""Steps of the bisection: ln(HIGHEST / LOWEST) / 2**60 is below what a float64 can tell apart."""


def fit_temperature(logits: npt.NDArray[np.floating], labels: npt.NDArray[np.integer]) -> float:
    """The temperature in [0.05, 20] whose softmax(logits / temperature) has the least log loss.

    logits: float (N, C), of rows that were not trained on. labels: integer (N,), in 0 .. C - 1.
    Raises ValueError without rows, if shapes disagree, or if a logit is not finite.

        temperature = fit_temperature(result.validation_logits, validation.labels)
        network.config = dataclasses.replace(network.config, temperature=temperature)
    """
    if logits.ndim != 2 or labels.shape != logits.shape[:1] or not len(logits):
        raise ValueError(f"logits must be (N, C) and labels (N,), N > 0; got {logits.shape} and {labels.shape}")
    if not np.isfinite(logits).all():
        raise ValueError("logits must be finite to fit a temperature")
    z = logits.astype(np.float64)
    z -= z.max(axis=1, keepdims=True)
    of_label = z[np.arange(len(z)), labels].mean()

    # The log loss is convex in 1 / temperature, so its slope there crosses zero once: bisect on its sign.
    low, high = np.log(LOWEST), np.log(HIGHEST)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        p = np.exp(z / np.exp(middle))
        expected = ((p * z).sum(axis=1) / p.sum(axis=1)).mean()
        if expected > of_label:  # too sure of itself: a higher temperature loses less
            low = middle
        else:
            high = middle
    return float(np.exp((low + high) / 2))
