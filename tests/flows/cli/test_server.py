"""The server that a command starts where none is configured: it answers, and ends with the command, however it ends."""

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

START_S, END_S = 120, 60

START = """
from flows.cli.server import CommandServer

server = CommandServer()
print(server.api_url, server._process.pid, flush=True)
server.wait()
print("answers", flush=True)
input()
"""


@contextmanager
def _command(home: Path, **environment: str) -> Iterator[subprocess.Popen[str]]:
    inherited = {name: value for name, value in os.environ.items() if name != "PREFECT_API_URL"}
    with subprocess.Popen(
        [sys.executable, "-c", START],
        env=inherited | {"PREFECT_HOME": str(home)} | environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.slow
def test_it_outlives_signals_to_all_and_ends_when_the_command_is_killed(tmp_path: Path) -> None:
    with _command(tmp_path) as command:
        assert command.stdout is not None
        api_url, pid = command.stdout.readline().split()
        assert command.stdout.readline() == "answers\n"
        assert httpx.get(f"{api_url}/health").json() is True

        for number in (signal.SIGINT, signal.SIGTERM):  # which a terminal or `timeout` sends to all processes at once
            os.kill(int(pid), number)
        time.sleep(1)
        assert httpx.get(f"{api_url}/health").json() is True

        command.kill()
        command.wait()
        assert _ends(int(pid))
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{api_url}/health")


@pytest.mark.slow
def test_a_server_that_can_not_start_is_an_error_with_its_reason(tmp_path: Path) -> None:
    nowhere = f"sqlite+aiosqlite:///{tmp_path}/missing/folder/prefect.db"
    with _command(tmp_path, PREFECT_SERVER_DATABASE_CONNECTION_URL=nowhere) as command:
        _, errors = command.communicate(timeout=START_S)
        assert command.returncode == 1
        assert "RuntimeError: Prefect's server did not start" in errors
        assert "unable to open database file" in errors


def test_none_is_started_where_one_is_configured(monkeypatch: pytest.MonkeyPatch, prefect_server: str) -> None:
    import flows.cli.server

    monkeypatch.setenv("PREFECT_API_URL", prefect_server)
    flows.cli.server.start_prefect()
    assert flows.cli.server._server is None


def _ends(pid: int) -> bool:
    """Whether a process that is not our child ends in time."""
    descriptor = os.pidfd_open(pid)
    try:
        return bool(select.select([descriptor], [], [], END_S)[0])
    finally:
        os.close(descriptor)
