"""`attnlstm serve`: one command, and there are a page, schedules and runs; one signal, and none of them is left."""

import asyncio
import os
import signal
import socket
import sqlite3
import subprocess
import tomllib
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.filters import DeploymentFilter, FlowRunFilter, FlowRunFilterState
from prefect.events import Event

from builders import COMMAND
from flows.cli import serve
from flows.cli.server import CommandServer
from servers import wait_until
from storage.errors import StorageError

REPOSITORY = Path(__file__).resolve().parents[3]
PREFECT_YAML = REPOSITORY / "deployments" / "prefect.yaml"
NAMES = ("classify", "retrain", "backfill", "partition")
FLOW_OF = {"partition": "classify"}
RUN_S, END_S = 300, 120  # of a busy machine
TWELVE_HOURS_ON = f"0 {(datetime.now(UTC).hour + 12) % 24} * * *"  # nothing comes due by itself while a test runs


@pytest.fixture
def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


@pytest.fixture
def serving(
    dataset_copy: Path, untrained_registry: Path, free_port: int, tmp_path: Path
) -> Iterator[subprocess.Popen[str]]:
    """The command at work in tmp_path, on relative paths, in a process group of its own."""
    environment = {name: value for name, value in os.environ.items() if name != "PREFECT_API_URL"}
    environment |= {
        "PREFECT_HOME": str(tmp_path / "prefect"),
        # Sooner than by default, for the test's sake.
        "PREFECT_RUNNER_POLL_FREQUENCY": "1",
        "PREFECT_SERVER_CONCURRENCY_MAXIMUM_CONCURRENCY_SLOT_WAIT_SECONDS": "1",
    }
    words = ["dataset", "output", "--registry", "registry", "--labelled", "dataset", "--port", str(free_port)]
    words += ["--classify-cron", TWELVE_HOURS_ON, "--retrain-cron", TWELVE_HOURS_ON]
    with subprocess.Popen(
        [*COMMAND, "serve", *words],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.slow
def test_serve_runs_what_is_due_or_asked_for_or_caused_by_drift_and_ends_without_a_trace(
    serving: subprocess.Popen[str], free_port: int, tmp_path: Path
) -> None:
    page = f"http://127.0.0.1:{free_port}"
    assert serving.stdout is not None
    assert serving.stdout.readline() == f"Prefect's page: {page}\n"
    assert "text/html" in httpx.get(page).raise_for_status().headers["content-type"]
    with SyncPrefectClient(api=f"{page}/api") as client:
        deployments = {name: client.read_deployment_by_name(f"{FLOW_OF.get(name, name)}/{name}") for name in NAMES}
        crons = {name: [each.schedule.cron for each in found.schedules] for name, found in deployments.items()}
        assert crons == {"classify": [TWELVE_HOURS_ON], "retrain": [TWELVE_HOURS_ON], "backfill": [], "partition": []}

        # Two that overlap: one waits for the other, and finds nothing to do.
        runs = [client.create_flow_run_from_deployment(deployments["classify"].id).id for _ in range(2)]
        wait_until(lambda: all(client.read_flow_run(run).state.is_final() for run in runs), RUN_S)
        ended = sorted(client.read_flow_run(run).state.message for run in runs)
        assert ended[0].startswith("420 rows in 4 shards scored"), ended
        assert ended[1].startswith("Nothing to do"), ended
        passed = {state.name for run in runs for state in client.read_flow_run_states(run)}
        assert "AwaitingConcurrencySlot" in passed
        assert len(list((tmp_path / "output" / "predictions").rglob("*.parquet"))) == 4
        scheduled = FlowRunFilter(state=FlowRunFilterState(type={"any_": ["SCHEDULED"]}))
        due = {each.deployment_id for each in client.read_flow_runs(flow_run_filter=scheduled)}
        assert due == {deployments[name].id for name in ("classify", "retrain")}

        resource = {"prefect.resource.id": "attnlstm.checkpoint.of-the-test"}
        drift = Event(event="attnlstm.drift.detected", resource=resource)
        client.request("POST", "/events", json=[drift.model_dump(mode="json")]).raise_for_status()
        retrain = DeploymentFilter(name={"any_": ["retrain"]})
        running = FlowRunFilter(state=FlowRunFilterState(name={"any_": ["Running"]}))
        wait_until(lambda: client.read_flow_runs(flow_run_filter=running, deployment_filter=retrain) != [], RUN_S)

    serving.send_signal(signal.SIGTERM)
    out, _ = serving.communicate(timeout=END_S)

    assert serving.returncode == 0
    assert "The schedules are paused" in out
    with pytest.raises(ProcessLookupError):
        os.killpg(serving.pid, 0)
    with sqlite3.connect(tmp_path / "prefect" / "prefect.db") as database:
        states = database.execute("SELECT state_name, count(*) FROM flow_run GROUP BY 1").fetchall()
        paused = database.execute("SELECT DISTINCT paused FROM deployment").fetchall()
    assert (dict(states), paused) == ({"Completed": 2, "Cancelled": 1}, [(1,)])


def test_a_port_in_use_is_an_error_that_says_what_to_do(free_port: int) -> None:
    with (
        socket.create_server(("127.0.0.1", free_port)),
        pytest.raises(OSError, match=f"Port {free_port} of 127.0.0.1 is in use.*name another port with --port"),
    ):
        CommandServer(page_port=free_port)


@pytest.fixture
def made(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Makes the deployments for some places, by name."""

    def make(**places: Any) -> dict[str, Any]:
        default = {"source": "data", "output": str(tmp_path / "output"), "registry": "registry", "labelled": "labelled"}
        crons = {"classify": "5 * * * *"}
        return {
            each.name: each for each in serve.make_deployments(**default | places, crons=crons, timezone="Asia/Tokyo")
        }

    return make


def test_deployments_are_those_of_prefect_yaml_but_for_places_and_schedules(made: Callable[..., Any]) -> None:
    source = "data/date={scheduled:%Y-%m-%d}"
    served = made(source=source)
    described = {each["name"]: each for each in yaml.safe_load(PREFECT_YAML.read_text())["deployments"]}

    assert set(served) == set(described)
    for name, own in served.items():
        known = described[name]
        limit = {"limit": own.concurrency_limit, "collision_strategy": own.concurrency_options.collision_strategy}
        assert known["concurrency_limit"] == limit
        assert (known["description"], known["tags"]) == (own.description, own.tags)
        assert [known["slug"] for known in known.get("schedules", [])] == [own.slug for own in own.schedules]
        triggers = [(known["name"], set(known["expect"])) for known in known.get("triggers", [])]
        assert triggers == [(own.name, own.expect) for own in own.triggers]
    crons = {
        name: [(each.schedule.cron, each.schedule.timezone) for each in own.schedules] for name, own in served.items()
    }
    assert crons == {
        "classify": [("5 * * * *", "Asia/Tokyo")],
        "retrain": [("0 3 * * 0", "Asia/Tokyo")],
        "backfill": [],
        "partition": [],
    }
    sources = {name: own.parameters["source"] for name, own in served.items()}
    assert sources == {"classify": source, "partition": source, "backfill": "data", "retrain": "labelled"}
    retrain = described["retrain"]["parameters"] | {"source": "labelled", "registry": "registry"}
    assert served["retrain"].parameters == retrain
    assert "label_column" not in served["classify"].parameters  # a column of the demo's rows
    # They are read from a file that the wheel holds.
    held = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    assert held["flows.cli"] == ["prefect.yaml"]
    assert (REPOSITORY / "flows" / "cli" / "prefect.yaml").resolve() == PREFECT_YAML


@pytest.mark.parametrize("name", ["source", "output", "registry", "labelled"])
def test_credentials_and_places_that_no_run_could_read_are_refused_before_a_server_has_them(
    name: str, made: Callable[..., Any]
) -> None:
    with pytest.raises(StorageError, match=rf"^{name} is s3://bucket/data with credentials in it\.") as refused:
        made(**{name: "s3://KEY:SECRET@bucket/data"})
    assert "SECRET" not in str(refused.value).replace("AWS_SECRET", "")
    with pytest.raises(ValueError, match="is no scheduled start"):
        made(source="data/date={scheduled}")


def test_settings_are_left_to_the_output_and_nothing_is_retrained_without_labels(
    made: Callable[..., Any], scored: Any
) -> None:
    served = made(output=str(scored.output), labelled=None)

    assert set(served) == {"classify", "partition", "backfill"}
    settings = {"keep", "label_column", "save_attention"}  # each run takes them from the output's own record
    assert [name for name, each in served.items() if settings & set(each.parameters)] == []


def test_deployments_of_a_work_pool_are_not_taken_over(prefect_server: str, made: Callable[..., Any]) -> None:
    deployment = made()["classify"]
    with get_client(sync_client=True) as client:
        client.create_work_pool(WorkPoolCreate(name="serve-test", type="process"))
        applied = deployment.apply(work_pool_name="serve-test")
        try:
            with pytest.raises(ValueError, match=r"workers of the pool serve-test run classify/classify\."):
                asyncio.run(serve._refuse_company([deployment]))
        finally:
            client.delete_deployment(applied)
