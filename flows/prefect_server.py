"""A Prefect server for one command, where none is configured: a child process that ends with this one.

It starts while this process still imports what it needs, on a socket that is open from the beginning, so that the first
request simply waits until the server can answer. Prefect itself would start one after everything else, and leave it
behind if this process is killed. Run as a module, this file is that child.
"""

import atexit
import contextlib
import importlib
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator

# The first start of a server migrates its database, which takes half a minute on a slow disk.
_START_SECONDS = 180
_STOP_SECONDS = 10

# What flows import when they run, and take seconds for: it may as well be while the server starts.
_FLOWS_IMPORT = ("torch", "attnlstm.engines.fused_kernel")

# What Prefect sets for a server that serves one process: no page, and no more services than a run needs.
_OF_ONE_COMMAND = {"PREFECT_UI_ENABLED": "0", "PREFECT__SERVER_EPHEMERAL": "1", "PREFECT__SERVER_FINAL": "1"}


class CommandServer:
    """A server on loopback, being started. It keeps its records in PREFECT_HOME."""

    def __init__(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listening, _without_interrupts():
            self.api_url = f"http://127.0.0.1:{listening.getsockname()[1]}/api"
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", __name__, str(listening.fileno())],
                env=os.environ | _OF_ONE_COMMAND,
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                pass_fds=[listening.fileno()],
            )
        atexit.register(self.stop)

    def wait(self) -> None:
        """Return once the server answers. Raises RuntimeError if it ended instead."""
        import httpx

        try:
            with httpx.Client(timeout=_START_SECONDS, trust_env=False) as client:
                client.get(f"{self.api_url}/health").raise_for_status()
        except httpx.HTTPError as error:
            self.stop()
            raise RuntimeError(
                f"Prefect's server did not start ({type(error).__name__}). What it printed is above; with a server of "
                "your own, set PREFECT_API_URL."
            ) from error

    def stop(self) -> None:
        """End the server, if it is still there."""
        assert self._process.stdin is not None, "it was opened as a pipe"
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        try:
            self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


_server: CommandServer | None = None
_of_this_process = contextlib.ExitStack()


def begin_prefect() -> None:
    """Start a server unless the environment or Prefect's profile names one. Returns at once; see `await_prefect`.

    Call it before anything but Prefect's settings is imported: they are read again here, and kept from then on.
    """
    global _server
    import prefect.context
    from prefect.settings import get_current_settings

    if _server is None and get_current_settings().api.url is None:
        _server = CommandServer()
        os.environ["PREFECT_API_URL"] = _server.api_url
        prefect.context.refresh_global_settings_context()


def await_prefect() -> None:
    """Return once there is a Prefect API to talk to."""
    from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings

    begin_prefect()
    if _server:
        for module in _FLOWS_IMPORT:
            with contextlib.suppress(ImportError):  # whoever needs it says so
                importlib.import_module(module)
        _server.wait()
        # Nobody listens for heartbeats there, and each flow run would take most of a second to end them.
        settings = temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None})
        _of_this_process.enter_context(settings)


@contextlib.contextmanager
def _without_interrupts() -> Iterator[None]:
    """Children started here do not get Ctrl-C: the server must outlive the run that it keeps the record of."""
    previous = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)


def _serve(descriptor: int) -> None:
    """In the child: answer on an open socket until the parent ends, however it does."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    import uvicorn

    config = uvicorn.Config(
        "prefect.server.api.server:create_app",
        factory=True,
        lifespan="on",
        log_level="error",
        timeout_graceful_shutdown=_STOP_SECONDS // 2,
    )
    uvicorn.Server(config).run([socket.socket(fileno=descriptor)])


def _end_with_parent() -> None:
    sys.stdin.buffer.read()  # the parent holds the other end and never writes
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    _serve(int(sys.argv[1]))
