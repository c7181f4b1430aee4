"""How good the weights of a moment are on the validation rows, and so which to keep.

Owns the criterion. Knows numpy only, and nothing of how the logits came about.
"""

import hashlib
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from attnlstm.evaluation.calibration import fit_temperature, log_losses_of_logits
from attnlstm.evaluation.metrics import accuracy_and_macro_f1, counts_by_class

REPEATS_CORRELATION = 0.1
"""So two equal rows count almost like two, and no number of them like more than ten."""


@dataclass(frozen=True)
class Validated:
    """Figures on the validation rows. loss: mean, in nats. calibrated_loss: the least that a temperature leaves, where
    rows that are the same count once. It decides.

    It is the loss after calibration, as that is the state in which a network is used: the loss as it is would prefer
    early weights that are unsure of themselves to later ones that are right more often and too sure. And repeated rows
    are all right or all wrong together; a few that are there dozens of times would decide alone.
    """

    loss: float
    calibrated_loss: float
    accuracy: float
    macro_f1: float


def count_repeats(values: npt.NDArray[np.integer], offsets: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """int64 (N,): how many of the ragged rows have the same tokens as this one, itself included."""
    digests = b"".join(
        hashlib.blake2b(values[start:end].tobytes(), digest_size=8).digest()
        for start, end in pairwise(offsets.tolist())
    )
    _, inverse, counts = np.unique(np.frombuffer(digests, np.uint64), return_inverse=True, return_counts=True)
    repeats: npt.NDArray[np.int64] = counts[inverse]
    return repeats


def calibration_weights(repeats: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """float64 (N,): what rows count for in a temperature. repeats: see `count_repeats`.

    What is there often must count more, since probabilities are to be right on average over rows; but a cluster of m
    equal rows does not say as much as m rows. It counts like m / (1 + (m - 1) r) of them (the design effect of
    cluster samples, Kish 1965, section 5.4), with r = REPEATS_CORRELATION.
    """
    weights: npt.NDArray[np.float64] = 1 / (1 + (repeats - 1) * REPEATS_CORRELATION)
    return weights


def validate(
    logits: npt.NDArray[np.floating], labels: npt.NDArray[np.integer], weights: npt.NDArray[np.float64]
) -> Validated:
    """logits: float (N, C). labels: integer (N,), in 0 .. C - 1. weights: float (N,), what each row counts for.

    Raises FloatingPointError unless logits are finite.
    """
    if not np.isfinite(logits).all():
        raise FloatingPointError("the network gives logits that are not finite")
    figures = accuracy_and_macro_f1(counts_by_class(logits.argmax(axis=1), labels, logits.shape[1]))
    calibrated = log_losses_of_logits(logits, labels, fit_temperature(logits, labels, weights))
    return Validated(
        loss=float(log_losses_of_logits(logits, labels).mean()),
        calibrated_loss=float(np.average(calibrated, weights=weights)),
        accuracy=figures["accuracy"],
        macro_f1=figures["macro_f1"],
    )
