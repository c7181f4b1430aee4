"""Whether two outputs say the same of the same rows: the largest differences of probabilities and attention weights.

Reads whatever Parquet files lie in an output, ours or a peer's: rows are told apart by `id`.
"""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow.dataset as ds
import pyarrow.parquet as pq

TOLERANCE = 1e-4


def differences(output: Path, reference: Path, attention: bool) -> dict[str, float]:
    """Largest absolute differences by column. Raises ValueError above TOLERANCE, or if rows or lengths differ."""
    found = {}
    for column in ("probabilities", "weights") if attention else ("probabilities",):
        ours, theirs = _by_id(reference, column), _by_id(output, column)
        if ours.shape != theirs.shape:
            raise ValueError(f"{output} has {len(theirs):,} {column}, and {reference} has {len(ours):,}")
        found[column] = float(np.abs(ours - theirs).max())
        if not found[column] <= TOLERANCE:
            raise ValueError(f"{column} of {output} differ from those of {reference} by {found[column]}")
    return found


def _by_id(output: Path, column: str) -> npt.NDArray[np.float32]:
    """All numbers of a list column, in order of the rows' ids."""
    files = sorted(path for path in output.rglob("*.parquet") if column in pq.read_schema(path).names)
    table = ds.dataset(files).to_table(columns=["id", column]).sort_by("id")
    return np.concatenate([chunk.flatten().to_numpy() for chunk in table[column].chunks])
