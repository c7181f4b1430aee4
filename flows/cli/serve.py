"""The serve command: the deployments, their schedules and a server, on one machine, until interrupted.

What is deployed, with which limits, schedules and triggers, is what deployments/prefect.yaml says, which is part of the
installed package. This file replaces the places of the demo by the command's own and the work pool by this process:
each run is a process of its own, which ends with this one. Prefect is imported late here, so that its server starts
meanwhile.
"""

import asyncio
import os
import signal
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from importlib import resources
from typing import TYPE_CHECKING, Annotated, Any, cast
from zoneinfo import available_timezones

import yaml
from pydantic import Field

from flows.cli import DONE
from flows.cli.server import PAGE_PORT, start_prefect

if TYPE_CHECKING:
    from prefect.deployments.runner import RunnerDeployment

_DEPLOYMENTS: list[dict[str, Any]] = yaml.safe_load((resources.files("flows.cli") / "prefect.yaml").read_text())[
    "deployments"
]
_SCHEDULES = {each["name"]: each["schedules"][0] for each in _DEPLOYMENTS if "schedules" in each}

# What the file's own data has and other data may not have. Runs on an output that records a label column use it.
_OF_THE_DEMO = {"label_column"}

# A process that serves a deployment asks for its runs every 10 s (PREFECT_RUNNER_POLL_FREQUENCY).
_SILENT_AFTER = timedelta(seconds=30)
_LOOK_SECONDS = 0.05


def serve(
    source: str,
    output: str,
    *,
    registry: str = "registry",
    labelled: str | None = None,
    classify_cron: str = _SCHEDULES["classify"]["cron"],
    retrain_cron: str = _SCHEDULES["retrain"]["cron"],
    timezone: str = _SCHEDULES["classify"]["timezone"],
    limit: Annotated[int, Field(ge=1)] = 3,
    port: Annotated[int, Field(ge=1, le=65535)] = PAGE_PORT,
) -> int:
    """Run classify and retrain on schedules, and backfill on demand, until interrupted.

    Starts a Prefect server on this machine, unless PREFECT_API_URL or the active Prefect profile names one. At the end
    runs are cancelled and schedules paused; they go on when this command runs again. An output that exists keeps the
    settings that it was made with; a new one gets the defaults of classify.

    All else is as deployments/prefect.yaml says, such as limits, and the preset and the time that retraining has.

    Args:
        source: Parquet file, folder, glob or URI to score. {scheduled:%Y-%m-%d} in it is a run's scheduled start.
        output: Folder or URI for predictions, attention and manifests.
        registry: Folder or URI of the checkpoint registry.
        labelled: Parquet file, folder, glob or URI to retrain on. Without it nothing is retrained.
        classify_cron: When to score what is new: minute, hour, day of month, month, day of week.
        retrain_cron: When to retrain, besides when drift is detected.
        timezone: Time zone of both, such as Europe/Berlin.
        limit: Runs at once. A backfill with fan_out takes one, and one more for each partition.
        port: Port of the server that is started here, on 127.0.0.1.
    """
    if timezone not in available_timezones():
        raise ValueError(f"{timezone} is no time zone that is known here. Write it like Europe/Berlin.")
    os.environ.setdefault("PYTHONSAFEPATH", "1")  # runs import what this process did, and not what lies around here
    for each in _DEPLOYMENTS:
        for name, value in each["work_pool"]["job_variables"]["env"].items():
            os.environ.setdefault(name, value)
    start_prefect(page_port=port)
    from prefect.settings import PREFECT_UI_URL

    crons = {"classify": classify_cron, "retrain": retrain_cron}
    deployments = make_deployments(source, output, registry, labelled, crons=crons, timezone=timezone)
    asyncio.run(_run_until_stopped(deployments, limit, str(PREFECT_UI_URL.value())))
    print("Stopped. The schedules are paused until this command runs again.")
    return DONE


def make_deployments(
    source: str, output: str, registry: str, labelled: str | None, *, crons: dict[str, str], timezone: str
) -> "list[RunnerDeployment]":
    """The deployments of prefect.yaml, for this process to run; without `labelled`, all but the one that retrains.

    crons: the schedule of a deployment, by its name, in place of the file's. Raises CredentialsError if a place holds
    credentials, and ValueError if the source names a scheduled start that is none.
    """
    from flows.orchestration.credentials import refuse_credentials
    from flows.orchestration.scheduled import above_scheduled_start, fill

    places = {"source": source, "output": output, "registry": registry}
    refuse_credentials(places | {"labelled": labelled})
    fill(source, datetime.now(UTC))  # refused here, and not by every run
    replaced: dict[str, dict[str, Any]] = {
        "classify": places,
        "partition": places,
        "backfill": places | {"source": above_scheduled_start(source)},
    }
    if labelled is not None:
        replaced["retrain"] = {"source": labelled, "registry": registry}
    deployments = []
    for each in _DEPLOYMENTS:
        if (name := each["name"]) in replaced:
            schedules = [
                schedule | {"cron": crons.get(name, schedule["cron"]), "timezone": timezone}
                for schedule in each.get("schedules", [])
            ]
            deployments.append(_make_deployment(each, replaced[name], schedules))
    return deployments


def _make_deployment(
    described: dict[str, Any], replaced: dict[str, Any], schedules: list[dict[str, Any]]
) -> "RunnerDeployment":
    """One deployment. described: its entry in prefect.yaml. replaced: parameters in place of the entry's."""
    from prefect.client.schemas.objects import ConcurrencyLimitConfig
    from prefect.events import DeploymentEventTrigger
    from prefect.flows import load_flow_from_entrypoint
    from prefect.schedules import Schedule
    from prefect.types.entrypoint import EntrypointType

    parameters = {name: value for name, value in described["parameters"].items() if name not in _OF_THE_DEMO}
    # Asynchronous code would get a coroutine, says its type.
    deployment: Any = load_flow_from_entrypoint(described["entrypoint"]).to_deployment(
        described["name"],
        description=described["description"],
        tags=described["tags"],
        parameters=parameters | replaced,
        schedules=[Schedule(**schedule) for schedule in schedules],
        triggers=[DeploymentEventTrigger.model_validate(trigger) for trigger in described.get("triggers", [])],
        concurrency_limit=ConcurrencyLimitConfig.model_validate(described["concurrency_limit"]),
        enforce_parameter_schema=described["enforce_parameter_schema"],
        paused=False,  # since this process pauses them when it ends
        entrypoint_type=EntrypointType.MODULE_PATH,
    )
    return cast("RunnerDeployment", deployment)


async def _run_until_stopped(deployments: "list[RunnerDeployment]", limit: int, page: str) -> None:
    """What `prefect.serve` does, but for SIGTERM: its handler never awaits the runner's stop, so runs stay Running."""
    from prefect.runner import Runner

    await _refuse_company(deployments)
    runner = Runner(name="attnlstm", limit=limit)
    for deployment in deployments:
        await runner.aadd_deployment(deployment)
    running = asyncio.ensure_future(runner.start())
    while not (runner.started or running.done()):
        await asyncio.sleep(_LOOK_SECONDS)
    stopped = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):  # in place of the runner's own handler
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    print(f"Prefect's page: {page}\nCtrl-C ends it.", flush=True)
    await asyncio.wait([running, asyncio.ensure_future(stopped.wait())], return_when=asyncio.FIRST_COMPLETED)
    if not running.done():
        await runner.astop()
    await running


async def _refuse_company(deployments: "list[RunnerDeployment]") -> None:
    """Raises ValueError if others run these deployments: they would share the runs, and lose the schedules at the end
    of this process."""
    from prefect.client.orchestration import get_client
    from prefect.exceptions import ObjectNotFound

    async with get_client() as client:
        for deployment in deployments:
            with suppress(ObjectNotFound):
                there = await client.read_deployment_by_name(deployment.full_name)
                if there.work_pool_name:
                    raise ValueError(
                        f"On this server the workers of the pool {there.work_pool_name} run {deployment.full_name}. "
                        f"Delete that deployment to serve it from here, or use another server."
                    )
                if not there.paused and there.last_polled and datetime.now(UTC) - there.last_polled < _SILENT_AFTER:
                    raise ValueError(
                        f"Another process serves {deployment.full_name} on this server. If that was killed, try again "
                        f"in {_SILENT_AFTER.seconds} s."
                    )
