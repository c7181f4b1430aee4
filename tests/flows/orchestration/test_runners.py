"""Shards scored by the processes of a Ray or Dask cluster: the files are those that threads write.

Both clusters are started once, with two processes each, and used by all tests as a backfill's runs use one.
"""

import importlib.util
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from builders import scored_files
from flows.backfill import backfill
from flows.classify import classify
from flows.orchestration import runners
from flows.orchestration.runners import open_workers
from flows.settings import RunnerName


@pytest.fixture(scope="module", params=["dask", "ray"])
def runner(request: pytest.FixtureRequest) -> Iterator[str]:
    """The name of a runner whose cluster of two processes is up; what asks for that runner gets it."""
    with open_workers(request.param, None, 2, "auto", shared=True) as workers:
        assert (workers.at_once, workers.in_process) == (2, False)
        yield request.param


@pytest.fixture(autouse=True)
def _a_task_for_each_shard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flows.orchestration.task_runs._TASK_TOKEN_BYTES", 1)


@pytest.mark.slow
def test_processes_of_a_cluster_write_the_bytes_that_threads_write(
    runner: str, rescore: Callable[..., Any], scored: Any, tmp_path: Path
) -> None:
    again = rescore(tmp_path / "output", runner=runner)
    assert again.state.is_completed(), again.state.message
    assert scored_files(again.output) == scored_files(scored.output)
    for field in ("engine", "drift", "evaluation", "totals"):
        found, wanted = getattr(again.manifest, field), getattr(scored.manifest, field)
        if field == "totals":
            found, wanted = ({k: v for k, v in each.items() if "second" not in k} for each in (found, wanted))
        assert found == wanted


@pytest.mark.slow
def test_process_that_is_killed_while_it_writes_is_survived(
    runner: str, rescore: Callable[..., Any], many_rows: Path, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"keep": [], "label_column": None, "chunk_bytes": 512}
    undisturbed = rescore(tmp_path / "undisturbed", many_rows, **options)
    with _killing_who_writes_to(tmp_path / "output") as killed:
        again = rescore(tmp_path / "output", many_rows, runner=runner, **options)
    assert len(killed) == 1
    assert again.state.is_completed(), again.state.message
    assert scored_files(again.output) == scored_files(undisturbed.output)
    assert list(again.output.rglob("*.tmp")) == []


@pytest.fixture(scope="module")
def many_rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three files that take long enough for something to happen meanwhile. Read only."""
    folder = tmp_path_factory.mktemp("many_rows")
    chance = random.Random(11)
    for number in range(3):
        rows = [chance.randbytes(chance.randint(1, 60)) for _ in range(6_000)]
        pq.write_table(pa.table({"tokens": pa.array(rows, pa.binary())}), folder / f"{number}.parquet")
    return folder


@contextmanager
def _killing_who_writes_to(output: Path) -> Iterator[list[int]]:
    """The first process below this one that has an unfinished file of the output open is killed; yields its id."""
    killed: list[int] = []
    ended = threading.Event()

    def watch() -> None:
        while not killed and not ended.wait(0.01):
            if any(output.rglob("*.tmp")):
                killed.extend(_kill_one(output))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield killed
    finally:
        ended.set()
        watcher.join()


def _kill_one(output: Path) -> list[int]:
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            if any(file.path.startswith(str(output)) for file in process.open_files()):
                process.kill()
                return [process.pid]
    return []


@pytest.mark.parametrize(
    ("runner_name", "address", "message"),
    [
        ("threads", "tcp://host:8786", "--address tcp://host:8786 is of a cluster, and the runner is threads"),
        ("ray", None, r"the runner ray needs prefect_ray, .*: pip install 'attnlstm\[ray\]'"),
        ("dask", None, r"the runner dask needs prefect_dask, .*: pip install 'attnlstm\[dask\]'"),
    ],
)
def test_what_can_not_work_is_said_before_anything_else(
    runner_name: Any, address: str | None, message: str, monkeypatch: pytest.MonkeyPatch, dataset: Path, tmp_path: Path
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name.startswith("prefect_") else find(name, *rest)
    )
    for flow in (classify, backfill):
        with pytest.raises(ValueError, match=message):
            flow.fn(str(dataset), str(tmp_path / "output"), runner=runner_name, address=address)
    assert not (tmp_path / "output").exists()


def test_fan_out_and_a_runner_exclude_each_other(dataset: Path) -> None:
    with pytest.raises(ValueError, match="leave out --runner dask, or --fan-out"):
        backfill.fn(str(dataset), "output", runner="dask", fan_out="classify/partition")


@pytest.mark.parametrize(("name", "address"), [("dask", "tcp://127.0.0.1:1"), ("ray", "ray://127.0.0.1:1")])
def test_address_without_a_cluster_is_named(name: RunnerName, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runners, "_REACH_SECONDS", 0.2)
    monkeypatch.setattr(runners, "_shared", ContextVar("shared_workers", default=None))  # not the tests' own cluster
    with (
        pytest.raises(ConnectionError, match=rf"^The {name.capitalize()} cluster can't be reached at {address}: "),
        open_workers(name, address, None, "auto"),
    ):
        pytest.fail("nobody listens there")
