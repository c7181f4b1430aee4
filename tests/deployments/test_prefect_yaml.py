"""deployments/prefect.yaml: nothing in it is ignored, and what it describes runs on a real server and worker.

All tests of what is deployed are in this file, since the tests share one server, where a pool has one set of workers.
"""

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
import torch
import yaml
from prefect import Flow
from prefect.cli.deploy._models import ConcurrencyLimitSpec, DeploymentConfig, PrefectYamlModel, WorkPoolConfig
from prefect.cli.deploy._models import RawScheduleConfig as ScheduleConfig
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter
from prefect.client.schemas.objects import ConcurrencyLimitStrategy
from prefect.client.schemas.schedules import CronSchedule
from prefect.deployments import run_deployment
from prefect.events import DeploymentEventTrigger
from prefect.flows import load_flow_from_entrypoint
from prefect.utilities.callables import parameter_schema
from pydantic import BaseModel

from attnlstm.config import ModelConfig
from attnlstm.network import AttentionLSTM
from builders import COMMAND, save_checkpoint, scored_files, write_random_rows
from flows.backfill import backfill
from servers import children_of, wait_until

REPOSITORY = Path(__file__).resolve().parents[2]
WAIT_S = 300
PREFECT_YAML = REPOSITORY / "deployments" / "prefect.yaml"
NAMES = ("classify", "backfill", "retrain")
FLOW_OF = {name: name for name in NAMES} | {"partition": "classify"}

# `definitions` holds YAML anchors, which are resolved before Prefect reads a key.
OURS = {"definitions"}


def _read() -> dict[str, Any]:
    return dict(yaml.safe_load(PREFECT_YAML.read_text(encoding="utf-8")))


def _deployments() -> dict[str, dict[str, Any]]:
    return {deployment["name"]: deployment for deployment in _read()["deployments"]}


def _unknown(model: type[BaseModel], given: dict[str, Any], where: str) -> Iterator[str]:
    known = set(model.model_fields) | {field.alias for field in model.model_fields.values()}
    yield from (f"{where}{key}" for key in given if key not in known)


def test_file_has_no_key_that_prefect_would_pass_over_in_silence() -> None:
    read = _read()
    unknown = [*_unknown(PrefectYamlModel, {key: read[key] for key in read if key not in OURS}, "")]
    for name, deployment in _deployments().items():
        unknown += _unknown(DeploymentConfig, deployment, f"{name}.")
        unknown += _unknown(WorkPoolConfig, deployment["work_pool"], f"{name}.work_pool.")
        unknown += _unknown(ConcurrencyLimitSpec, deployment["concurrency_limit"], f"{name}.concurrency_limit.")
        for schedule in deployment.get("schedules", []):
            unknown += _unknown(ScheduleConfig, schedule, f"{name}.schedules.")
        for trigger in deployment.get("triggers", []):
            unknown += _unknown(DeploymentEventTrigger, trigger, f"{name}.triggers.")

    assert unknown == []
    PrefectYamlModel.model_validate(read)


def test_no_secret_is_named_since_deploying_would_write_it_out() -> None:
    # `prefect deploy` puts a block's value into the deployment, where anybody who may see that reads it.
    assert "prefect.blocks" not in PREFECT_YAML.read_text(encoding="utf-8")


@pytest.fixture(params=FLOW_OF)
def deployment(request: pytest.FixtureRequest) -> dict[str, Any]:
    return _deployments()[request.param]


def test_entrypoint_is_the_flow_of_its_name_and_takes_the_parameters(
    deployment: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(REPOSITORY)

    flow: Flow[..., Any] = load_flow_from_entrypoint(deployment["entrypoint"], use_placeholder_flow=False)

    assert flow.name == FLOW_OF[deployment["name"]]
    assert set(deployment["parameters"]) <= set(parameter_schema(flow).properties)


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A labelled source of two dates, a checkpoint, and where outputs are to be."""
    root = tmp_path_factory.mktemp("deployed")
    random = np.random.default_rng(43)
    for date in ("2026-11-01", "2026-11-02"):
        labels = ["low", "high"] * 40
        tokens = [bytes(random.integers(0, 128, 9).tolist()) for _ in labels]
        tokens = [
            row if label == "low" else bytes(b + 128 for b in row) for row, label in zip(tokens, labels, strict=True)
        ]
        (root / "source" / f"date={date}").mkdir(parents=True)
        pq.write_table(
            pa.table({"tokens": tokens, "label": labels}), root / "source" / f"date={date}" / "part-0.parquet"
        )
    torch.manual_seed(47)
    save_checkpoint(root / "checkpoint", AttentionLSTM(ModelConfig(classes=("high", "low"))))
    return {name: root / name for name in ("source", "checkpoint", "output", "backfilled", "registry")}


@pytest.mark.slow
def test_deployments_have_their_schedules_limits_and_descriptions_on_the_server(deployed: None) -> None:
    with get_client(sync_client=True) as client:
        found = {name: client.read_deployment_by_name(f"{flow}/{name}") for name, flow in FLOW_OF.items()}
        (automation,) = client.read_automations_by_name("retrain-on-drift")

    assert automation.trigger.expect == {"attnlstm.drift.detected"}
    assert automation.actions[0].deployment_id == found["retrain"].id
    schedules = {name: [each.schedule for each in found[name].schedules] for name in FLOW_OF}
    assert schedules["backfill"] == schedules["partition"] == []
    for name, cron in (("classify", "0 * * * *"), ("retrain", "0 3 * * 0")):
        (schedule,) = schedules[name]
        assert isinstance(schedule, CronSchedule)
        assert (schedule.cron, schedule.timezone) == (cron, "UTC")
        assert all(each.slug for each in found[name].schedules)
    for name, deployment in found.items():
        assert deployment.work_pool_name == "attnlstm"
        assert deployment.description == _deployments()[name]["description"]
        assert deployment.parameters == _deployments()[name]["parameters"]
        assert deployment.job_variables == _deployments()[name]["work_pool"]["job_variables"]
        assert deployment.tags == ["attnlstm"]
        assert deployment.enforce_parameter_schema
        assert deployment.global_concurrency_limit is not None
        assert deployment.global_concurrency_limit.limit == (8 if name == "partition" else 1)
        assert deployment.concurrency_options is not None
        assert deployment.concurrency_options.collision_strategy == ConcurrencyLimitStrategy.ENQUEUE


@pytest.mark.slow
def test_a_worker_runs_each_deployment(
    deployed: None, run_prefect: Callable[..., None], places: dict[str, Path]
) -> None:
    text = {name: str(path) for name, path in places.items()}
    scoring = {"source": text["source"], "checkpoint": text["checkpoint"], "registry": text["registry"]}
    parameters: dict[str, dict[str, Any]] = {
        "classify": {**scoring, "output": text["output"]},
        "backfill": {**scoring, "output": text["backfilled"], "start": "2026-11-02", "end": "2026-11-03"},
        "retrain": {"source": text["source"], "registry": text["registry"], "preset": "reference", "epochs": 2},
    }
    runs: dict[str, Any] = {
        name: run_deployment(f"{name}/{name}", parameters=parameters[name], timeout=0) for name in NAMES
    }

    run_prefect("worker", "start", "--pool", "attnlstm", "--run-once")

    with get_client(sync_client=True) as client:
        states = {name: client.read_flow_run(run.id).state for name, run in runs.items()}
    assert {name: state and (state.name, state.message) for name, state in states.items()} == {
        "classify": ("Completed", "160 rows in 2 shards scored, 0 with errors; 0 shards were up to date."),
        "backfill": ("Completed", "1 of 2 partitions completed, 1 no input."),
        "retrain": ("Completed", states["retrain"] and states["retrain"].message),
    }
    assert sum(pq.read_metadata(path).num_rows for path in (places["output"] / "predictions").rglob("*.parquet")) == 160
    assert [path.parent.name for path in (places["backfilled"] / "predictions").rglob("*.parquet")] == [
        "date=2026-11-02"
    ]
    (checkpoint,) = (places["registry"] / "checkpoints").iterdir()
    assert (checkpoint / "card.json").is_file()


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
    start_worker: Callable[[], Any], environment: dict[str, str], slow_registry: Path, tmp_path: Path
) -> None:
    """Of a backfill whose partitions run on the workers of the pool."""
    names = (f"date=2026-11-0{day}/part-{index}.parquet" for day in (1, 2, 3) for index in range(5))
    source = write_random_rows(tmp_path / "source", names)
    undisturbed, output = tmp_path / "undisturbed", tmp_path / "output"
    places = {"source": str(source), "registry": str(slow_registry)}
    backfill(output=str(undisturbed), **places)

    words = [places["source"], str(output), "--registry", places["registry"], "--fan-out", "classify/partition"]
    command = [*COMMAND, "backfill", *words, "--parallel", "2"]
    with start_worker() as worker, subprocess.Popen(command, env=environment) as interrupted:
        try:
            written = output / "predictions"
            wait_until(lambda: any(written.glob("*/*.parquet")) and any(written.glob("*/*.tmp")), WAIT_S)
            _kill_with_children(worker.pid)
            interrupted.send_signal(signal.SIGINT)
            assert interrupted.wait(WAIT_S) == 130
        finally:
            interrupted.kill()
    # A run that had begun can't answer any more; one that its worker had not begun yet is cancelled at once.
    states = _states_of_partition_runs()
    assert len(states) == 2
    assert "Cancelling" in states
    assert set(states) <= {"Cancelling", "Cancelled"}
    assert any(name.endswith(".tmp") for name in scored_files(output)), "nothing was at work when it was killed"

    with start_worker():
        state: Any = backfill(output=str(output), **places, parallel=2, fan_out="classify/partition", return_state=True)

    assert state.message == "3 of 3 partitions completed."
    runs = state.result()
    assert [run["partition"] for run in runs] == [f"date=2026-11-0{day}" for day in (1, 2, 3)]
    assert {run["state"] for run in runs} == {"Completed"}
    assert 0 < sum(run["rows"] for run in runs) < 3 * 5 * 100, "all was scored again"
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
