"""Runs that are stopped from outside, and servers that are away: what Prefect shows in the end is true, and the output
comes out as that of an undisturbed run.

Each run is a process of its own against a server of these tests' own. ATTNLSTM_OUTAGE_SECONDS sets how long the server
is away or its database locked; without it these two are skipped, since they take a minute or more.
"""

import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import FlowRun
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Cancelling, Scheduled
from prefect.types.entrypoint import EntrypointType

from flows.classify import classify

pytestmark = pytest.mark.slow
outage = pytest.mark.skipif("ATTNLSTM_OUTAGE_SECONDS" not in os.environ, reason="takes long: make outages")

OUTAGE_S = float(os.environ.get("ATTNLSTM_OUTAGE_SECONDS", "0"))
WAIT_S = 180 + 3 * OUTAGE_S
FILES, ROWS, TOKENS = 24, 100, 200  # some seconds on one core
COMMITTED = 3  # files of predictions, before a run is disturbed

COMMAND = [sys.executable, "-c", "from flows.cli.app import main; main()", "classify"]
Files = dict[str, bytes]


class Server:
    """A Prefect server on a port and a database of its own, which can be killed and started again."""

    def __init__(self, home: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self._port = free.getsockname()[1]
        self.api_url = f"http://127.0.0.1:{self._port}/api"
        self.database = home / "prefect.db"
        self.environment = os.environ | {"PREFECT_HOME": str(home), "PREFECT_API_URL": self.api_url}
        self.start()

    def start(self) -> None:
        command = ["-m", "uvicorn", "--factory", "prefect.server.api.server:create_app", "--log-level", "critical"]
        self._process = subprocess.Popen([sys.executable, *command, "--port", str(self._port)], env=self.environment)
        _wait(self._answers)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def _answers(self) -> bool:
        assert self._process.poll() is None, "the server ended"
        try:
            return httpx.get(f"{self.api_url}/health").status_code == 200
        except httpx.HTTPError:
            return False


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("prefect"))
    yield server
    server.kill()


@pytest.fixture
def api(server: Server) -> Iterator[SyncPrefectClient]:
    with SyncPrefectClient(api=server.api_url) as client:
        yield client


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory, slow_registry: Path) -> dict[str, str]:
    """Parameters of classify but for the output: a source of many small files, and the registry."""
    source = tmp_path_factory.mktemp("source")
    random = np.random.default_rng(5)
    for index in range(FILES):
        rows = pa.array([random.bytes(TOKENS) for _ in range(ROWS)], pa.binary())
        pq.write_table(pa.table({"tokens": rows}), source / f"part-{index:02}.parquet")
    return {"source": str(source), "registry": str(slow_registry)}


class Run:
    """A run of classify in another process, which has committed some of its files and has others to do."""

    def __init__(self, server: Server, inputs: dict[str, str], output: Path, command: list[str]) -> None:
        self.inputs, self.output, self._server = inputs, output, server
        self.process = subprocess.Popen(command, env=server.environment, stderr=subprocess.PIPE, text=True)
        _wait(lambda: self.process.poll() is not None or len(_files(output)) >= 2 * COMMITTED)
        assert self.process.poll() is None, "the run ended before it could be disturbed"

    def end(self) -> int:
        self.process.communicate(timeout=WAIT_S)
        return self.process.returncode

    def finish(self) -> Files:
        """The same run again, in this process; gives what is there then."""
        with temporary_settings({PREFECT_API_URL: self._server.api_url}):
            state = classify(**_places(self.inputs, self.output), workers=1, return_state=True)
        assert state.is_completed(), state.message
        return _files(self.output)


@pytest.fixture(scope="module")
def undisturbed(server: Server, inputs: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Files:
    output = tmp_path_factory.mktemp("undisturbed")
    with temporary_settings({PREFECT_API_URL: server.api_url}):
        classify(**_places(inputs, output), workers=1)
    files = _files(output)
    assert len(files) == 2 * FILES
    return files


@pytest.fixture
def started(server: Server, inputs: dict[str, str], undisturbed: Files, tmp_path: Path) -> Iterator[Run]:
    """`attnlstm classify` at work."""
    places = _places(inputs, tmp_path / "output")
    words = [places["source"], places["output"], "--registry", places["registry"], "--workers", "1"]
    run = Run(server, inputs, tmp_path / "output", [*COMMAND, *words])
    yield run
    run.process.kill()


@pytest.fixture
def executed(
    server: Server, api: SyncPrefectClient, inputs: dict[str, str], undisturbed: Files, tmp_path: Path
) -> Iterator[tuple[Run, UUID]]:
    """A run of a deployment at work, watched by another process as a worker watches it."""
    deployment = classify.to_deployment("stops", entrypoint_type=EntrypointType.MODULE_PATH)
    with temporary_settings({PREFECT_API_URL: server.api_url}):
        deployment.apply()
    parameters = _places(inputs, tmp_path / "output") | {"workers": 1}
    found = api.read_deployment_by_name("classify/stops")
    created = api.create_flow_run_from_deployment(found.id, parameters=parameters, state=Scheduled())
    command = [sys.executable, "-m", "prefect", "flow-run", "execute", str(created.id)]
    run = Run(server, inputs, tmp_path / "output", command)
    yield run, created.id
    run.process.kill()


def test_a_run_that_is_cancelled_from_the_page_is_cancelled(
    executed: tuple[Run, UUID], api: SyncPrefectClient, undisturbed: Files
) -> None:
    run, run_id = executed
    api.set_flow_run_state(run_id, Cancelling())
    run.end()

    assert api.read_flow_run(run_id).state.name == "Cancelled"
    assert 0 < len(_files(run.output)) < len(undisturbed)
    assert run.finish() == undisturbed


def test_a_run_whose_process_is_killed_is_crashed(
    executed: tuple[Run, UUID], api: SyncPrefectClient, undisturbed: Files
) -> None:
    run, run_id = executed
    _kill_children(run.process.pid)
    run.end()

    assert api.read_flow_run(run_id).state.name == "Crashed"
    assert 0 < len(_files(run.output)) < len(undisturbed)
    assert run.finish() == undisturbed


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, -signal.SIGTERM), (signal.SIGINT, 130)])
def test_a_command_that_is_interrupted_is_crashed(
    started: Run, api: SyncPrefectClient, undisturbed: Files, number: signal.Signals, code: int
) -> None:
    run = _latest(api)
    started.process.send_signal(number)

    assert started.end() == code
    assert api.read_flow_run(run.id).state.name == "Crashed"
    assert 0 < len(_files(started.output)) < len(undisturbed)
    assert started.finish() == undisturbed


@outage
def test_a_run_goes_on_while_the_server_is_away(
    started: Run, server: Server, api: SyncPrefectClient, undisturbed: Files
) -> None:
    run = _latest(api)
    server.kill()
    time.sleep(OUTAGE_S)
    server.start()

    assert started.end() == 0
    assert api.read_flow_run(run.id).state.name == "Completed"
    assert _files(started.output) == undisturbed


@outage
def test_a_run_goes_on_while_the_servers_database_is_locked(
    started: Run, server: Server, api: SyncPrefectClient, undisturbed: Files
) -> None:
    run = _latest(api)
    database = sqlite3.connect(server.database, timeout=30, isolation_level=None)
    database.execute("BEGIN EXCLUSIVE")
    time.sleep(OUTAGE_S)
    database.execute("ROLLBACK")
    database.close()

    assert started.end() == 0
    assert api.read_flow_run(run.id).state.name == "Completed"
    assert _files(started.output) == undisturbed


def _places(inputs: dict[str, str], output: Path) -> dict[str, Any]:
    return {**inputs, "output": str(output)}


def _files(output: Path) -> Files:
    """Everything that a reader would find: whole files and, were there any, temporary ones."""
    found = [path for name in ("predictions", "attention") for path in (output / name).rglob("*") if path.is_file()]
    return {path.relative_to(output).as_posix(): path.read_bytes() for path in found}


def _latest(api: SyncPrefectClient) -> FlowRun:
    (run,) = [run for run in api.read_flow_runs() if run.state.is_running()]
    return run


def _kill_children(pid: int) -> None:
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in children.read_text().split():
            os.kill(int(child), signal.SIGKILL)


def _wait(done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.1)
