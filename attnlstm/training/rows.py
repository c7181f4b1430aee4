"""LabelledSequences rows as training sees them: in random batches, cropped, with tokens hidden.

Owns what is drawn and from which random numbers. Every draw has a generator of its own, made from the seed and
the number of the epoch or step, so a training that goes on in the middle draws what it would have drawn. Knows
numpy only.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from attnlstm.batching import check_ragged
from attnlstm.config import ModelConfig

BATCHES_PER_WINDOW = 16
"""Batches drawn at random together, then sorted by length so that each has rows of like length."""


@dataclass(frozen=True)
class LabelledSequences:
    """N ragged rows with their classes.

    values: integer, tokens of all rows end to end. offsets: int64 (N + 1,). labels: int64 (N,), in 0 .. C -
    1.
    """

    values: npt.NDArray[np.integer]
    offsets: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """int64 (N,), tokens of each row."""
        return np.diff(self.offsets)


def check_labelled(what: str, labelled: LabelledSequences, config: ModelConfig) -> None:
    """Raises ValueError unless every row has tokens and a class that the config knows. what: a name for messages."""
    num_rows = len(labelled.offsets) - 1
    if not num_rows or labelled.labels.shape != (num_rows,):
        raise ValueError(
            f"{what}: one label a row and at least one row are needed; "
            f"got {num_rows} rows and {len(labelled.labels)} labels"
        )
    check_ragged(labelled.values, labelled.offsets, config.padding_id)
    lowest, highest = labelled.labels.min(), labelled.labels.max()
    if lowest < 0 or highest >= config.num_classes:
        raise ValueError(f"{what}: labels must be in 0..{config.num_classes - 1}; found {lowest}..{highest}")


def shuffled_batches(
    lengths: npt.NDArray[np.int64], batch_rows: int, rng: np.random.Generator
) -> list[npt.NDArray[np.int64]]:
    """Every row once, in random batches of rows of like length."""
    rows = rng.permutation(len(lengths))
    window_rows = batch_rows * BATCHES_PER_WINDOW
    batches = []
    for start in range(0, len(rows), window_rows):
        window = rows[start : start + window_rows]
        window = window[np.argsort(lengths[window], kind="stable")]
        in_window = [window[i : i + batch_rows] for i in range(0, len(window), batch_rows)]
        batches += [in_window[i] for i in rng.permutation(len(in_window))]
    return batches


def crop(
    labelled: LabelledSequences, rows: npt.NDArray[np.int64], longest: int, rng: np.random.Generator
) -> LabelledSequences:
    """These rows, each with at most `longest` tokens, from a random place."""
    lengths = labelled.offsets[rows + 1] - labelled.offsets[rows]
    kept = np.minimum(lengths, longest)
    starts = labelled.offsets[rows] + rng.integers(0, lengths - kept + 1)
    offsets = np.concatenate(([0], np.cumsum(kept)))
    positions = np.arange(offsets[-1]) + np.repeat(starts - offsets[:-1], kept)
    return LabelledSequences(labelled.values[positions], offsets, labelled.labels[rows])


def hide_tokens(
    labelled: LabelledSequences, share: float, hidden_id: int, rng: np.random.Generator
) -> LabelledSequences:
    """The rows with about this share of their tokens replaced by `hidden_id`; each row keeps at least one."""
    if not share:
        return labelled
    hidden = rng.random(len(labelled.values)) < share
    hidden[rng.integers(labelled.offsets[:-1], labelled.offsets[1:])] = False
    # A wider type: the id of padding is one more than bytes can say.
    values = np.where(hidden, np.int32(hidden_id), labelled.values)
    return LabelledSequences(values, labelled.offsets, labelled.labels)


def balancing_weights(labels: npt.NDArray[np.int64], num_classes: int) -> npt.NDArray[np.float32]:
    """float32 (C,): what the rows of each class are worth, so that all classes of the rows are worth the same.

    The mean over the rows is 1. A class without rows has weight 1, which then says nothing.
    """
    counts = np.bincount(labels, minlength=num_classes)
    num_found = np.count_nonzero(counts)
    weights = np.where(counts, len(labels) / (num_found * np.maximum(counts, 1)), 1.0)
    return weights.astype(np.float32)
