"""The serve command: the deployments, their schedules and a server, on one machine, until interrupted.

Each run is a process of its own, which ends with this one. Names, limits and schedules are those of
deployments/prefect.yaml, which is for work pools and no part of the installed package. Prefect is imported late here,
so that its server starts meanwhile.
"""

import asyncio
import os
import signal
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any
from zoneinfo import available_timezones

from pydantic import Field

from flows.cli import DONE
from flows.cli.server import PAGE_PORT, start_prefect

if TYPE_CHECKING:
    from prefect.deployments.runner import RunnerDeployment

# A process that serves a deployment asks for its runs every 10 s (PREFECT_RUNNER_POLL_FREQUENCY).
_SILENT_AFTER = timedelta(seconds=30)
_LOOK_SECONDS = 0.05


def serve(
    source: str,
    output: str,
    *,
    registry: str = "registry",
    labelled: str | None = None,
    classify_cron: str = "0 * * * *",
    retrain_cron: str = "0 3 * * 0",
    timezone: str = "UTC",
    limit: Annotated[int, Field(ge=1)] = 3,
    port: Annotated[int, Field(ge=1, le=65535)] = PAGE_PORT,
) -> int:
    """Run classify and retrain on schedules, and backfill on demand, until interrupted.

    Starts a Prefect server on this machine, unless PREFECT_API_URL or the active Prefect profile names one. At the end
    runs are cancelled and schedules paused; they go on when this command runs again. An output that exists keeps the
    settings it was made with; a new one gets the defaults of classify.

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
    # As in deployments/prefect.yaml: on a server with its automations, runs that give no sign of life are Crashed.
    os.environ.setdefault("PREFECT_FLOWS_HEARTBEAT_FREQUENCY", "30")
    start_prefect(page_port=port)
    from prefect.settings import PREFECT_UI_URL

    deployments = _deployments(source, output, registry, labelled, classify_cron, retrain_cron, timezone)
    asyncio.run(_run_until_stopped(deployments, limit, str(PREFECT_UI_URL.value())))
    print("Stopped. The schedules are paused until this command runs again.")
    return DONE


def _deployments(
    source: str,
    output: str,
    registry: str,
    labelled: str | None,
    classify_cron: str,
    retrain_cron: str,
    timezone: str,
) -> "list[RunnerDeployment]":
    from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyLimitStrategy
    from prefect.events import DeploymentEventTrigger
    from prefect.schedules import Cron
    from prefect.types.entrypoint import EntrypointType

    from flows.backfill import backfill
    from flows.classify import classify, recorded_parameters
    from flows.orchestration.credentials import refuse_credentials
    from flows.orchestration.scheduled import above_scheduled_start, fill
    from flows.retrain import retrain

    places = {"source": source, "output": output, "registry": registry}
    refuse_credentials(places | {"labelled": labelled})
    fill(source, datetime.now(UTC))  # refused here, and not by every run
    scoring = places | recorded_parameters(output)

    def common(limit: int) -> dict[str, Any]:
        return {
            "tags": ["attnlstm"],
            "concurrency_limit": ConcurrencyLimitConfig(
                limit=limit, collision_strategy=ConcurrencyLimitStrategy.ENQUEUE
            ),
            "paused": False,  # since this process pauses them when it ends
            "entrypoint_type": EntrypointType.MODULE_PATH,
        }

    deployments: list[Any] = [
        classify.to_deployment(
            "classify",
            description="Score what is new or has changed.",
            parameters=scoring,
            schedule=Cron(classify_cron, timezone=timezone, slug="hourly"),
            **common(1),
        ),
        classify.to_deployment(
            "partition", description="Score one partition, for a backfill.", parameters=scoring, **common(8)
        ),
        backfill.to_deployment(
            "backfill",
            description="Classify a range of partitions, such as dates, given as start and end.",
            parameters=places | {"source": above_scheduled_start(source)},
            **common(1),
        ),
    ]
    if labelled is not None:
        deployments.append(
            retrain.to_deployment(
                "retrain",
                description="Train a new checkpoint, and promote it if it is shown to be no worse.",
                parameters={"source": labelled, "registry": registry},
                schedule=Cron(retrain_cron, timezone=timezone, slug="weekly"),
                triggers=[
                    DeploymentEventTrigger(name="retrain-on-drift", expect={"attnlstm.evaluation.drift.detected"})
                ],
                **common(1),
            )
        )
    return deployments


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
