"""A backfill whose partitions run on the workers of a work pool: one of them is killed in the middle of it."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter

from builders import scored_files
from flows.backfill import backfill
from servers import children_of, wait_until

DATES = ("2026-11-01", "2026-11-02", "2026-11-03")
FILES, ROWS, TOKENS = 5, 100, 200  # of each date: some seconds on one core
WAIT_S = 300


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three dates of a few small files."""
    folder = tmp_path_factory.mktemp("source")
    random = np.random.default_rng(53)
    for date in DATES:
        partition = folder / f"date={date}"
        partition.mkdir()
        for index in range(FILES):
            rows = pa.array([random.bytes(TOKENS) for _ in range(ROWS)], pa.binary())
            pq.write_table(pa.table({"tokens": rows}), partition / f"part-{index}.parquet")
    return folder


@pytest.fixture
def start_worker(deployed: None, environment: dict[str, str]) -> Callable[[], Any]:
    """start_worker(): a context with a worker of the pool, which ends with it."""
    command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", "attnlstm"]
    eager = environment | {"PREFECT_WORKER_QUERY_SECONDS": "1"}

    @contextmanager
    def start() -> Iterator[subprocess.Popen[bytes]]:
        with subprocess.Popen(command, env=eager, stdout=subprocess.DEVNULL) as worker:
            try:
                yield worker
            finally:
                worker.terminate()
                worker.wait(WAIT_S)

    return start


@pytest.mark.slow
def test_output_is_the_undisturbed_one_after_a_worker_was_killed_in_the_middle(
    start_worker: Callable[[], Any], environment: dict[str, str], source: Path, slow_registry: Path, tmp_path: Path
) -> None:
    undisturbed, output = tmp_path / "undisturbed", tmp_path / "output"
    places = {"source": str(source), "registry": str(slow_registry)}
    backfill(output=str(undisturbed), **places)

    words = [places["source"], str(output), "--registry", places["registry"], "--fan-out", "classify/partition"]
    command = [sys.executable, "-c", "from flows.cli.app import main; main()", "backfill", *words, "--parallel", "2"]
    with start_worker() as worker, subprocess.Popen(command, env=environment) as interrupted:
        try:
            written = output / "predictions"
            wait_until(lambda: any(written.glob("*/*.parquet")) and any(written.glob("*/*.tmp")), WAIT_S)
            _kill_with_children(worker.pid)
            interrupted.send_signal(signal.SIGINT)
            assert interrupted.wait(WAIT_S) == 130
        finally:
            interrupted.kill()
    assert _states_of_partition_runs() == ["Cancelling", "Cancelling"]
    assert any(name.endswith(".tmp") for name in scored_files(output)), "nothing was at work when it was killed"

    with start_worker():
        state: Any = backfill(output=str(output), **places, parallel=2, fan_out="classify/partition", return_state=True)

    assert state.message == "3 of 3 partitions completed."
    runs = state.result()
    assert [(run["partition"], run["state"]) for run in runs] == [(f"date={date}", "Completed") for date in DATES]
    assert 0 < sum(run["rows"] for run in runs) < len(DATES) * FILES * ROWS, "all was scored again"
    assert scored_files(output) == scored_files(undisturbed)


def _states_of_partition_runs() -> list[str]:
    """The states of the runs of classify/partition that were started so far."""
    with get_client(sync_client=True) as client:
        deployment = client.read_deployment_by_name("classify/partition")
        of_it = FlowRunFilter.model_validate({"deployment_id": {"any_": [deployment.id]}})
        return [str(run.state.name) for run in client.read_flow_runs(flow_run_filter=of_it)]


def _kill_with_children(pid: int) -> None:
    """As when a machine is switched off: the worker and the runs that it has started."""
    for each in (pid, *children_of(pid)):
        os.kill(each, signal.SIGKILL)
