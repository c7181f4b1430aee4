"""What has to hold between input rows and their predictions: the same rows, and probabilities that make sense.

Knows nothing about networks: whether a probability is the right one, only scoring again can tell.
"""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from storage.input.tokens import TokenRows
from storage.output.checked_rows import CheckedRows

# How far the sum of a row's float32 probabilities may be from 1.
_TOLERANCE = 1e-4


def check_predictions(
    found: CheckedRows,
    tokens: TokenRows,
    carried: dict[str, pa.ChunkedArray],
    checkpoint: str,
    classes: tuple[str, ...],
) -> None:
    """found: N rows of predictions. tokens: of these rows. carried: id and kept columns, N values each or more."""
    num_rows = found.table.num_rows
    expected = carried | {
        "num_tokens": pa.chunked_array([pa.array(tokens.num_tokens, mask=tokens.num_tokens < 0)]),
        "truncated": pa.chunked_array([pa.array(tokens.truncated)]),
        "error": pa.chunked_array([tokens.errors]),
        "checkpoint": pa.chunked_array([pa.repeat(checkpoint, num_rows)]),
    }
    for name, column in expected.items():
        found.check_equal(name, column[:num_rows])
    is_scored = found.table["error"].is_null().to_numpy()
    is_whole = is_scored.copy()
    for name in ("prediction", "score", "probabilities"):
        is_whole &= found.check_presence(name, is_scored)
    _check_probabilities(found.only(["prediction", "score", "probabilities"], is_whole), classes)


def _check_probabilities(found: CheckedRows, classes: tuple[str, ...]) -> None:
    """found: rows that have a prediction, a score and probabilities."""
    flat = pc.list_flatten(found.table["probabilities"]).to_numpy()  # NaN for a null
    probabilities = flat.reshape(-1, len(classes))
    in_range = ((probabilities >= 0) & (probabilities <= 1)).all(axis=1)
    sums = probabilities.sum(axis=1, dtype=np.float64)
    best = probabilities.max(axis=1, initial=0)
    scores = found.table["score"].to_numpy()
    codes = pc.fill_null(pc.index_in(found.table["prediction"], pa.array(classes)), -1).to_numpy()
    # Of equal probabilities either class will do.
    is_best = (codes >= 0) & (probabilities[np.arange(len(codes)), codes] == best)
    found.tell(~in_range, lambda row: f"probabilities are {found.shown('probabilities', row)}, expected all in 0..1")
    found.tell(
        in_range & (np.abs(sums - 1) > _TOLERANCE),
        lambda row: f"probabilities sum to {sums[row]:.6f}, expected 1",
    )
    found.tell(
        in_range & (scores != best),
        lambda row: f"score is {scores[row]}, expected {best[row]}, the largest probability",
    )
    found.tell(
        in_range & ~is_best,
        lambda row: (
            f"prediction is {found.shown('prediction', row)}, "
            f"expected {classes[probabilities[row].argmax()]!r}, the class of the largest probability"
        ),
    )
