"""Where the seconds of a run go: bare scoring, the same shards from Parquet to Parquet, and `classify`, in turns.

CPU time counts, of all threads, and that of Prefect's server beside it. Of the shards it is told apart by part: by
functions of the product that are wrapped for the measurement. What none of them takes is scoring, with its threads.
"""

import os
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.dataset as ds

import flows.cli.server
import flows.operations.score
import storage.locations
import storage.output.predictions
from attnlstm.engines import open_engine
from contenders import BUNDLES, CONTENDERS, FLOW
from end_to_end import Plan
from findings import Findings
from script import Task, load_network, tokens_of
from turns import describe, ratio, spread
from workloads import Workload, checkpoint, dataset

BARE, SERVER = "scoring alone", "Prefect's server, during classify"
READ, DECODE, TABLES, WRITE, FLUSH = (
    "reading Parquet",
    "tokens as arrays",
    "tables to write",
    "encoding, compressing and writing Parquet",
    "waiting for the disk (not CPU time)",
)


class Parts:
    """CPU seconds by part, without those of parts within it; of FLUSH, seconds as they pass."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()
        self._lock, self._of_thread = threading.Lock(), threading.local()

    @contextmanager
    def of(self, part: str) -> Iterator[None]:
        clock = time.perf_counter if part == FLUSH else time.thread_time
        outer = getattr(self._of_thread, "inner", 0.0)
        self._of_thread.inner, began = 0.0, clock()
        try:
            yield
        finally:
            seconds = clock() - began
            with self._lock:
                self.seconds[part] += seconds - self._of_thread.inner
            self._of_thread.inner = outer + (0.0 if part == FLUSH else seconds)

    def watch(self) -> None:
        """From now on, in this process."""
        writer, file = storage.output.predictions.ShardWriter, storage.output.predictions._ParquetFile
        for owner, name, part in (
            (flows.operations.score, "decode_rows", DECODE),
            (writer, "write", TABLES),
            (file, "write", WRITE),
            (file, "finish", WRITE),
            (storage.locations, "_flush", FLUSH),
        ):
            setattr(owner, name, self._watched(getattr(owner, name), part))
        flows.operations.score.read_shard = self._watched_items(flows.operations.score.read_shard)

    def _watched(self, function: Callable[..., Any], part: str) -> Callable[..., Any]:
        def watched(*args: Any, **kwargs: Any) -> Any:
            with self.of(part):
                return function(*args, **kwargs)

        return watched

    def _watched_items(self, function: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
        def watched(*args: Any, **kwargs: Any) -> Iterator[Any]:
            items, end = function(*args, **kwargs), object()
            while True:
                with self.of(READ):
                    item = next(items, end)
                if item is end:
                    return
                yield item

        return watched


def compare_seconds(plan: Plan, rows_of_hidden: dict[int, int]) -> Findings:
    """rows_of_hidden: rows to score, by hidden size."""
    parts, load = Parts(), os.getloadavg()[0]
    parts.watch()
    rows, figures = [], {}
    for hidden_size, num_rows in rows_of_hidden.items():
        found, num_tokens = _measured(Workload("lognormal", num_rows, hidden_size), plan, parts)
        speeds = {name: [num_tokens / each["seconds"] / 1e6 for each in found[name]] for name in found}
        cpu = {name: [1e9 * each["cpu"] / num_tokens for each in found[name]] for name in found}
        of_parts = {part: [1e9 * each[part] / num_tokens for each in found[BUNDLES]] for part in _PARTS}
        of_parts["scoring, in the shards"] = [1e9 * each["scoring"] / num_tokens for each in found[BUNDLES]]
        of_parts[SERVER] = [1e9 * each["server"] / num_tokens for each in found[FLOW]]
        for name in found:
            shares = [ratio(speeds[name], speeds[BARE]), ratio(cpu[BARE], cpu[name])]
            cells = [describe(each) for each in (spread(cpu[name]), shares[1], spread(speeds[name]), shares[0])]
            rows.append([f"hidden {hidden_size}: {name}", *cells])
        rows += [
            [f"hidden {hidden_size}, {part}", describe(spread(each)), "", "", ""] for part, each in of_parts.items()
        ]
        figures[str(hidden_size)] = {"num_tokens": num_tokens, "measurements": found}
    header = ["", "ns of CPU a token", "of scoring alone", "Mtokens/s", "of scoring alone"]
    notes = [f"{plan.threads} cores, full attention; classify without its server, which has a line of its own"]
    notes += [f"hidden {size}: {each['num_tokens']:,} tokens" for size, each in figures.items()]
    notes += [f"Load of the machine before: {load:.1f}; beyond its cores, only CPU times are to be compared"]
    return Findings("Where the seconds go", header, rows, notes, figures)


_PARTS = (READ, DECODE, TABLES, WRITE, FLUSH)


def _measured(workload: Workload, plan: Plan, parts: Parts) -> tuple[dict[str, list[dict[str, float]]], int]:
    source, model = dataset(workload, plan.folder), checkpoint(workload, plan.folder)
    column = ds.dataset(source).to_table(columns=["tokens"]).combine_chunks()["tokens"]
    values, offsets = tokens_of(column.chunk(0))
    engine = open_engine(load_network(model), "cpu", plan.threads)
    task, output = Task(model, plan.threads, attention=True), plan.folder / "output"
    few = dataset(Workload("lognormal", plan.warm_up_rows, workload.hidden_size), plan.folder)
    whole = {name: CONTENDERS[name].open(task, {}) for name in (BUNDLES, FLOW)}
    for run in whole.values():
        run(few, output)
        shutil.rmtree(output)
    engine.score(values[: offsets[1]], offsets[:2])
    calls: dict[str, Callable[[], object]] = {BARE: lambda: engine.score(values, offsets)}
    calls |= {name: partial(run, source, output) for name, run in whole.items()}
    found: dict[str, list[dict[str, float]]] = {name: [] for name in calls}
    for _ in range(plan.rounds):
        for name, call in calls.items():
            parts.seconds.clear()
            server, cpu, began = _server_seconds(), time.process_time(), time.perf_counter()
            call()
            each = {"seconds": time.perf_counter() - began, "cpu": time.process_time() - cpu}
            each |= {"server": _server_seconds() - server} | {part: parts.seconds[part] for part in _PARTS}
            found[name].append(each | {"scoring": each["cpu"] - sum(each[part] for part in _PARTS if part != FLUSH)})
            shutil.rmtree(output, ignore_errors=True)  # scoring alone leaves none
    return found, len(values)


def _server_seconds() -> float:
    """CPU seconds of this process's own server up to now; 0 where it has none, or where there is no /proc."""
    server = flows.cli.server._server
    try:
        fields = Path(f"/proc/{server._process.pid}/stat").read_text().rpartition(")")[2].split() if server else []
    except OSError:
        return 0.0
    return sum(map(int, fields[11:13])) / 100
