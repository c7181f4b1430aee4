"""All deployments of prefect.yaml on the tests' server, and Prefect's own commands against it."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from prefect.client.orchestration import get_client

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def environment(prefect_server: str) -> dict[str, str]:
    """Of subprocesses that talk to the tests' server and say little."""
    return {**os.environ, "PREFECT_API_URL": prefect_server, "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "WARNING"}


@pytest.fixture(scope="session")
def run_prefect(environment: dict[str, str]) -> Callable[..., None]:
    """run_prefect(*words): the command `prefect`, in the repository's root, which must succeed."""

    def run(*words: str) -> None:
        done = subprocess.run(
            [sys.executable, "-m", "prefect", *words],
            cwd=REPOSITORY,
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr

    return run


@pytest.fixture(scope="session")
def deployed(run_prefect: Callable[..., None]) -> None:
    """All deployments on the tests' server, by the commands that the file gives, with schedules that rest."""
    run_prefect("work-pool", "create", "attnlstm", "--type", "process")
    run_prefect("--no-prompt", "deploy", "--all", "--prefect-file", "deployments/prefect.yaml")
    with get_client(sync_client=True) as client:
        for found in client.read_deployments():
            for schedule in found.schedules:
                # Else a test on the hour would have the worker run the demo's places.
                client.update_deployment_schedule(found.id, schedule.id, active=False)
