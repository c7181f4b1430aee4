"""Rows that are there more than once: what finding them costs where there are none, and gains where there are.

The engine against itself without the search, on one core, in turns: rows of lognormal lengths without repeats, and
the names of tests' data, which repeat.
"""

import os
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from attnlstm.engines.fused_cpu import FusedCpuEngine
from end_to_end import Plan
from findings import Findings
from script import load_network, tokens_of
from turns import describe, ratio
from workloads import Workload, checkpoint, lognormal, ragged

DATA = Path(os.environ.get("ATTNLSTM_TEST_DATA") or Path(__file__).resolve().parents[3] / "shared" / "data")

Rows = tuple[npt.NDArray[np.integer], npt.NDArray[np.int64]]


class _AllDifferent:
    """In place of the search: no row has an equal."""

    def __init__(self, values: npt.NDArray[np.integer], offsets: npt.NDArray[np.int64]) -> None:
        self.first_rows = np.arange(len(offsets) - 1)

    def copy_scores(self, *scores: object) -> None:
        pass


def compare_repeats(plan: Plan, num_rows: int = 2000) -> Findings:
    network = load_network(checkpoint(Workload("lognormal", 0), plan.folder))
    engine, without = FusedCpuEngine(network), FusedCpuEngine(network)
    without._equal_rows = _AllDifferent  # type: ignore[assignment]
    kinds: dict[str, Rows] = {"lognormal, no repeats": ragged(lognormal(num_rows))}
    names = DATA / "names" / "train.parquet"
    if names.exists():
        kinds["names"] = _named(names)
    rows, figures = [], {}
    for kind, data in kinds.items():
        seconds: dict[str, list[float]] = {"with": [], "without": []}
        for turn in range(plan.rounds + 1):
            for name, each in (("with", engine), ("without", without)):
                began = time.process_time()
                each.score(*data)
                if turn:  # the first one warms up
                    seconds[name].append(time.process_time() - began)
        different = len(engine._equal_rows(data[0].astype(np.int32), data[1]).first_rows) / (len(data[1]) - 1)
        gain = ratio(seconds["without"], seconds["with"])
        rows.append([kind, f"{len(data[1]) - 1:,}", f"{different:.1%}", describe(gain)])
        figures[kind] = {"share_of_different_rows": different, "times_faster": gain}
    header = ["one core, hidden 32", "rows", "different ones", "times faster than without the search"]
    return Findings("Equal rows computed once", header, rows, ["By CPU time"], figures)


def _named(file: Path) -> Rows:
    column = pq.read_table(file, columns=["tokens"])["tokens"].combine_chunks().cast(pa.binary())
    return tokens_of(column)
