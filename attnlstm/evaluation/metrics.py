"""The probabilities that networks give to held-out rows, and how good they are against labels.

Owns the definitions of the figures on a checkpoint's card. Knows nothing about files or where rows come from; torch is
imported only where networks score.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from attnlstm.network import AttentionLSTM

NUM_BINS = 15
"""Equal-width bins of the calibration error (Guo et al. 2017, section 2)."""

_TOKENS_AT_ONCE = 4 << 20


def probabilities_of(
    networks: "Sequence[AttentionLSTM]",
    classes: tuple[str, ...],
    values: npt.NDArray[np.integer],
    offsets: npt.NDArray[np.int64],
    threads: int | None = None,
) -> list[npt.NDArray[np.float32]]:
    """Score held-out rows with one network or several in one pass, a few at a time, as they may exceed memory.

    Returns for each network its probabilities, float32 (N, len(classes)), in the order of `classes`.

    A class that a network does not know has probability 0. Probabilities of classes that are not among `classes` are
    left out, so a row's may sum to less than 1; a row whose class is not known by a network is one it gets wrong. A row
    with a token id that a network does not know has 0 for every class.
    values, offsets: N ragged rows. threads: None for one a core.
    """
    from attnlstm.batching import plan_pieces
    from attnlstm.engines import open_engine
    from attnlstm.process import num_cores

    engines = [open_engine(network, threads=threads or num_cores()) for network in networks]
    results = [np.zeros((len(offsets) - 1, len(classes)), np.float32) for _ in networks]
    for rows in plan_pieces(offsets, _TOKENS_AT_ONCE):
        first, last = offsets[rows.start], offsets[rows.stop]
        part, part_offsets = values[first:last], offsets[rows.start : rows.stop + 1] - first
        for network, engine, result in zip(networks, engines, results, strict=True):
            at, known, known_offsets = _known(part, part_offsets, network.config.padding_id)
            if not len(at):
                continue
            probabilities = engine.score(known, known_offsets).probabilities
            for place, name in enumerate(network.config.classes):
                if name in classes:
                    result[rows.start + at, classes.index(name)] = probabilities[:, place]
    return results


def _known(
    values: npt.NDArray[np.integer], offsets: npt.NDArray[np.int64], num_tokens_known: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.integer], npt.NDArray[np.int64]]:
    """The rows without a token id beyond a vocabulary: (M,) which they are, their values, their offsets (M + 1,)."""
    largest = np.maximum.reduceat(values, offsets[:-1]) if values.max() >= num_tokens_known else None
    if largest is None:
        return np.arange(len(offsets) - 1), values, offsets
    is_known, lengths = largest < num_tokens_known, np.diff(offsets)
    known_offsets = np.concatenate(([0], np.cumsum(lengths[is_known])))
    return np.flatnonzero(is_known), values[np.repeat(is_known, lengths)], known_offsets


def evaluate(
    probabilities: npt.NDArray[np.floating], labels: npt.NDArray[np.integer], classes: tuple[str, ...]
) -> dict[str, Any]:
    """Figures that fit into JSON.

    probabilities: float (N, C), rows sum to 1. labels: integer (N,), in 0 .. C - 1. classes: C names.
    Returns num_rows, accuracy, majority_accuracy (of always naming the commonest label), macro_f1 (mean over
    the classes among the labels), log_loss (nats), auroc (see there), ece (expected calibration error of the
    top class), per_class (name to precision, recall, f1, num_rows) and confusion (row: label, column:
    prediction, in the order of classes).
    Raises ValueError without rows or if shapes disagree.
    """
    num_rows, num_classes = probabilities.shape
    if not num_rows or labels.shape != (num_rows,) or len(classes) != num_classes:
        raise ValueError(
            f"probabilities (N, C), N > 0, labels (N,) and C classes must agree; got {probabilities.shape}, "
            f"{labels.shape} and {len(classes)}"
        )
    if labels.min() < 0 or labels.max() >= num_classes:
        raise ValueError(f"labels must be in 0..{num_classes - 1}; found {labels.min()}..{labels.max()}")
    p = probabilities.astype(np.float64)
    predicted = p.argmax(axis=1)
    confusion = confusion_of(predicted, labels, num_classes)

    counts = np.stack([confusion.diagonal(), confusion.sum(axis=1), confusion.sum(axis=0)])
    right, of_label, of_prediction = counts
    # A class that is nowhere has 0 of 0, which counts as 0.
    precision = right / np.maximum(of_prediction, 1)
    recall = right / np.maximum(of_label, 1)
    f1 = _f1(counts)
    return {
        "num_rows": num_rows,
        **accuracy_and_macro_f1(counts),
        "majority_accuracy": float(of_label.max() / num_rows),
        "log_loss": float(log_losses(p, labels).mean()),
        "auroc": auroc(p, labels),
        "ece": _calibration_error(p.max(axis=1), predicted == labels),
        "per_class": {
            name: {
                "precision": float(precision[i]),
                "recall": float(recall[i]),
                "f1": float(f1[i]),
                "num_rows": int(of_label[i]),
            }
            for i, name in enumerate(classes)
        },
        "confusion": confusion.tolist(),
    }


def log_losses(probabilities: npt.NDArray[np.floating], labels: npt.NDArray[np.integer]) -> npt.NDArray[np.float64]:
    """float64 (N,), nats: -ln of the probability of each label; shapes as for `evaluate`.

    A probability of 0 in float32 is one below its smallest step from 1, and its logarithm is taken there.
    """
    of_truth = probabilities[np.arange(len(labels)), labels].astype(np.float64)
    losses: npt.NDArray[np.float64] = -np.log(np.maximum(of_truth, np.finfo(np.float32).eps))
    return losses


def confusion_of(
    predicted: npt.NDArray[np.integer], labels: npt.NDArray[np.integer], num_classes: int
) -> npt.NDArray[np.int64]:
    """Counts (C, C), row: label, column: prediction, of integers (N,) in 0 .. C - 1."""
    cells = labels.astype(np.int64) * num_classes + predicted
    return np.bincount(cells, minlength=num_classes**2).reshape(num_classes, num_classes)


def counts_by_class(
    predicted: npt.NDArray[np.integer], labels: npt.NDArray[np.integer], num_classes: int
) -> npt.NDArray[np.int64]:
    """Counts (3, C): rows of a class that are right, that have it as label, and that have it as prediction.

    predicted, labels: integers (N,) in 0 .. C - 1. Those of several parts add up, and are small with many classes.
    """
    each = (labels[predicted == labels], labels, predicted)
    return np.stack([np.bincount(classes, minlength=num_classes) for classes in each])


def accuracy_and_macro_f1(counts: npt.NDArray[np.int64]) -> dict[str, float]:
    """Share of right predictions, and the mean F1 over the classes among the labels.

    counts: (3, C), as `counts_by_class` gives them. Both are 0 where there are no rows.
    """
    right, of_label, _ = counts
    f1 = _f1(counts)[of_label > 0]
    return {
        "accuracy": float(right.sum() / max(1, of_label.sum())),
        "macro_f1": float(f1.mean()) if len(f1) else 0.0,
    }


def auroc(probabilities: npt.NDArray[np.floating], labels: npt.NDArray[np.integer]) -> float | None:
    """Area under the ROC curve: the chance that a row of a class scores higher for it than a row of another.

    probabilities: float (N, C). labels: integer (N,). Ties count half. With two classes it is the same for both; with
    more it is the mean over the classes, each against the rest. None where a class has no row, which leaves nothing
    to compare.
    """
    num_classes = probabilities.shape[1]
    of_label = np.bincount(labels, minlength=num_classes)
    if not of_label.all():
        return None
    areas = []
    for i in range(1 if num_classes == 2 else 0, num_classes):
        # The statistic of Mann and Whitney: what is left of the sum of ranks when nothing ranks below the class.
        _, inverse, counts = np.unique(probabilities[:, i], return_inverse=True, return_counts=True)
        mean_ranks = np.cumsum(counts) - (counts - 1) / 2
        num_in = int(of_label[i])
        above = mean_ranks[inverse][labels == i].sum() - num_in * (num_in + 1) / 2
        areas.append(above / (num_in * (len(labels) - num_in)))
    return float(np.mean(areas))


def _f1(counts: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """F1 of each class; one that is nowhere has 0 of 0, which counts as 0."""
    right, of_label, of_prediction = counts
    f1: npt.NDArray[np.float64] = 2 * right / np.maximum(of_label + of_prediction, 1)
    return f1


def _calibration_error(confidence: npt.NDArray[np.float64], is_right: npt.NDArray[np.bool_]) -> float:
    """Mean over rows of |accuracy - confidence| of the row's bin; bins are open below and closed above."""
    bins = np.clip(np.ceil(confidence * NUM_BINS).astype(np.int64) - 1, 0, NUM_BINS - 1)
    gap = np.bincount(bins, is_right - confidence, NUM_BINS)
    return float(np.abs(gap).sum() / len(confidence))
