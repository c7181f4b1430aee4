"""A published checkpoint through the real classify path, before it becomes champion.

What is compared is what training saw, which the card keeps for a few rows, with what `classify` would write about the
same rows: a Parquet file in, the files of the registry, a Parquet file out. Knows nothing about Prefect.
"""

import tempfile
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from flows.operations.score import LoadedCheckpoint, ScoredShard, ScoringJob, score_bundle
from storage.labelled.rows import LabelledRows
from storage.labelled.split import TEST
from storage.locations import Location
from storage.output.layout import Output, OutputSettings
from storage.output.plan import plan_output
from storage.registry.cards import Sample
from storage.registry.checkpoints import StoredCheckpoint

TOLERANCE = 1e-4
"""How far apart two probabilities of the same row may be: ten times what engines differ by."""


def replay_through_classify(stored: StoredCheckpoint, rows: LabelledRows) -> str | None:
    """None if `classify` with these files gives the scores that training saw; else what is wrong."""
    sample = stored.card.sample or Sample(contents=(), probabilities=())
    place = {f"{content:016x}": index for index, content in enumerate(rows.contents[rows.splits == TEST].tolist())}
    pairs = zip(sample.contents, sample.probabilities, strict=True)
    here = [(place[content], p) for content, p in pairs if content in place]
    if not here:
        return "none of the rows whose scores its card keeps is among the test rows"
    values, offsets, _ = rows.side(TEST)
    tokens = [values[offsets[row] : offsets[row + 1]] for row, _ in here]
    seen = np.array([p for _, p in here], np.float64)
    with tempfile.TemporaryDirectory(prefix="attnlstm-smoke-") as folder:
        predictions = _classified(stored, tokens, Path(folder))
    if isinstance(predictions, str):
        return predictions
    errors = [error for error in predictions["error"].to_pylist() if error is not None]
    if errors:
        return f"classify gives {len(errors)} of {len(tokens)} rows no score: {errors[0]}"
    found = np.array(predictions["probabilities"].to_pylist(), np.float64)
    if found.shape != seen.shape:
        return f"classify gives {found.shape[1]} probabilities a row, and training saw {seen.shape[1]}"
    apart = float(np.abs(found - seen).max())
    return f"classify gives scores that are {apart:.2g} from those seen in training" if apart > TOLERANCE else None


def _classified(stored: StoredCheckpoint, tokens: list[npt.NDArray[np.integer]], folder: Path) -> pa.Table | str:
    """What classify writes about these rows; or why it does not."""
    (folder / "source").mkdir()
    path = folder / "source" / "rows.parquet"
    as_bytes = all(each.dtype == np.uint8 for each in tokens)
    column = pa.array([each.tobytes() for each in tokens], pa.binary()) if as_bytes else pa.array(tokens)
    pq.write_table(pa.table({"tokens": column}), path)
    output = Output(Location.parse(folder / "output"), OutputSettings())
    plan = plan_output(str(path), output)
    job = ScoringJob.of(stored, plan.source.root, output)
    for result in score_bundle(job, plan.pending(stored.id, "missing"), LoadedCheckpoint(job, stored)):
        if not isinstance(result, ScoredShard):
            return f"classify fails: {result.reason}"
    return pq.read_table(output.predictions(plan.shards[0].name).path, partitioning=None)
