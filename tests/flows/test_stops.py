"""Runs that are stopped from outside, and servers that are away: what Prefect shows in the end is true, and the output
comes out as that of an undisturbed run.

Each run is a process of its own against a server of these tests' own. ATTNLSTM_OUTAGE_SECONDS sets how long the server
is away or its database locked; without it these two are skipped, since they take a minute or more.
"""

import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from prefect.client.orchestration import SyncPrefectClient
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Cancelling, Scheduled
from prefect.types.entrypoint import EntrypointType

from builders import COMMAND, Files, scored_files, write_random_rows
from flows.classify import classify
from servers import Server, children_of, drain_prefect, wait_until

pytestmark = pytest.mark.slow
outage = pytest.mark.skipif("ATTNLSTM_OUTAGE_SECONDS" not in os.environ, reason="takes long: make outages")

OUTAGE_S = float(os.environ.get("ATTNLSTM_OUTAGE_SECONDS", "0"))
WAIT_S = 180 + 3 * OUTAGE_S
FILES = 24  # some seconds on one core
COMMITTED = 3  # files of predictions, before a run is disturbed


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server("prefect", tmp_path_factory.mktemp("prefect"), os.getpid())
    server.environment["PREFECT_API_URL"] = server.api_url
    yield server
    drain_prefect()
    server.kill()


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory, slow_registry: Path) -> dict[str, str]:
    """Parameters of classify but for the output: a source of many small files, and the registry."""
    source = write_random_rows(
        tmp_path_factory.mktemp("source"), (f"part-{index:02}.parquet" for index in range(FILES))
    )
    return {"source": str(source), "registry": str(slow_registry)}


class Run:
    """A run of classify in another process, which has committed some of its files and has others to do."""

    def __init__(self, server: Server, parameters: dict[str, Any], command: list[str], run_id: UUID | None) -> None:
        self.server, self.parameters, self.output = server, parameters, Path(parameters["output"])
        self.process = subprocess.Popen(command, env=server.environment, stderr=subprocess.PIPE, text=True)

        # By their names: a temporary file can be gone before it is read.
        def has_committed() -> bool:
            return len([*self.output.glob("*/*.parquet")]) >= 2 * COMMITTED

        wait_until(lambda: self.process.poll() is not None or has_committed(), WAIT_S)
        assert self.process.poll() is None, "the run ended before it could be disturbed"
        with SyncPrefectClient(api=server.api_url) as client:
            (self.id,) = [run_id] if run_id else [run.id for run in client.read_flow_runs() if run.state.is_running()]


@pytest.fixture(scope="module")
def classify_into(server: Server, inputs: dict[str, str]) -> Callable[[Path], Files]:
    """classify_into(output): runs undisturbed, in this process; gives what is there then."""

    def run(output: Path) -> Files:
        with temporary_settings({PREFECT_API_URL: server.api_url}):
            state = classify(**inputs, output=str(output), workers=1, return_state=True)
        assert state.is_completed(), state.message
        return scored_files(output)

    return run


@pytest.fixture(scope="module")
def undisturbed(classify_into: Callable[[Path], Files], tmp_path_factory: pytest.TempPathFactory) -> Files:
    files = classify_into(tmp_path_factory.mktemp("undisturbed"))
    assert len(files) == 2 * FILES
    return files


@pytest.fixture
def start(server: Server, inputs: dict[str, str], undisturbed: Files, tmp_path: Path) -> Iterator[Callable[..., Run]]:
    """start(deployed): `attnlstm classify` at work, or a run of a deployment, which another process watches as a worker
    does."""
    runs: list[Run] = []

    def begin(deployed: bool) -> Run:
        parameters = {**inputs, "output": str(tmp_path / "output"), "workers": 1}
        if deployed:
            deployment = classify.to_deployment("stops", entrypoint_type=EntrypointType.MODULE_PATH)
            with temporary_settings({PREFECT_API_URL: server.api_url}):
                found = deployment.apply()
            with SyncPrefectClient(api=server.api_url) as client:
                run_id = client.create_flow_run_from_deployment(found, parameters=parameters, state=Scheduled()).id
            command = [sys.executable, "-m", "prefect", "flow-run", "execute", str(run_id)]
        else:
            run_id = None
            words = [inputs["source"], parameters["output"], "--registry", inputs["registry"], "--workers", "1"]
            command = [*COMMAND, "classify", *words]
        runs.append(Run(server, parameters, command, run_id))
        return runs[-1]

    yield begin
    for run in runs:
        run.process.kill()


def cancel_from_the_page(run: Run) -> None:
    with SyncPrefectClient(api=run.server.api_url) as client:
        client.set_flow_run_state(run.id, Cancelling())


def kill_the_flows_process(run: Run) -> None:
    for child in children_of(run.process.pid):
        os.kill(child, signal.SIGKILL)


def interrupt(run: Run) -> None:
    run.process.send_signal(signal.SIGINT)


def terminate(run: Run) -> None:
    run.process.send_signal(signal.SIGTERM)


def take_the_server_away(run: Run) -> None:
    run.server.kill()
    time.sleep(OUTAGE_S)
    run.server.start()


def lock_the_servers_database(run: Run) -> None:
    database = sqlite3.connect(run.server.database, timeout=30, isolation_level=None)
    database.execute("BEGIN EXCLUSIVE")
    time.sleep(OUTAGE_S)
    database.execute("ROLLBACK")
    database.close()


@pytest.mark.parametrize(
    ("disturb", "deployed", "state", "code"),
    [
        (cancel_from_the_page, True, "Cancelled", None),
        (kill_the_flows_process, True, "Crashed", None),
        (terminate, False, "Crashed", -signal.SIGTERM),
        (interrupt, False, "Crashed", 130),
        pytest.param(take_the_server_away, False, "Completed", 0, marks=outage),
        pytest.param(lock_the_servers_database, False, "Completed", 0, marks=outage),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_the_state_of_a_disturbed_run_is_true_and_its_output_comes_out_as_that_of_an_undisturbed_one(
    disturb: Callable[[Run], None],
    deployed: bool,
    state: str,
    code: int | None,
    start: Callable[..., Run],
    classify_into: Callable[[Path], Files],
    undisturbed: Files,
) -> None:
    run = start(deployed)
    disturb(run)
    run.process.communicate(timeout=WAIT_S)

    assert code is None or run.process.returncode == code
    with SyncPrefectClient(api=run.server.api_url) as client:
        assert client.read_flow_run(run.id).state.name == state
    if state != "Completed":
        assert 0 < len(scored_files(run.output)) < len(undisturbed)
        classify_into(run.output)
    assert scored_files(run.output) == undisturbed
