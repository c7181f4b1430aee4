"""Ray Data: read, `map_batches` with a torch model on one core each, write.

Blocks are streamed from operator to operator; rows of a block are sorted by length before they are padded. Tasks, not
actors: an actor's process ends with each run, and its model would have to be loaded inside the clock.
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray
import ray.data

from peers import sorted_torch
from script import Score, Task, tokens_of, vectors

BLOCK_ROWS = 2048
CANDIDATES: list[dict[str, Any]] = [{"batch_rows": rows} for rows in (64, 256)]

# One model for each process, loaded by the first block that comes its way.
_open_once: Callable[[Task, int], Score] = functools.cache(
    lambda task, batch_rows: sorted_torch.open_peer(task, batch_rows, side_by_side=True)
)


def score_block(block: pa.Table, task: Task, batch_rows: int) -> pa.Table:
    values, offsets = tokens_of(pa.concat_arrays(block["tokens"].chunks))
    probabilities, weights = _open_once(task, batch_rows)(values, offsets)
    columns = {"id": block["id"], "probabilities": vectors(probabilities)}
    if task.attention:
        columns["weights"] = pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(weights))
    return pa.table(columns)


def open_peer(task: Task, batch_rows: int) -> Callable[[Path, Path], None]:
    """Unlike the other peers it does its own reading and writing."""
    ray.init(num_cpus=task.threads, include_dashboard=False, logging_level="error", log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    on_one_core = Task(task.checkpoint, 1, task.attention)

    def run(source: Path, output: Path) -> None:
        rows = ray.data.read_parquet(str(source), columns=["id", "tokens"])
        scored = rows.map_batches(
            score_block,
            fn_kwargs={"task": on_one_core, "batch_rows": batch_rows},
            batch_format="pyarrow",
            batch_size=BLOCK_ROWS,
            num_cpus=1,
        )
        scored.write_parquet(str(output), use_dictionary=False)

    return run
