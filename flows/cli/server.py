"""A Prefect server for one command, where none is configured: a child process that ends with this one.

It serves that command alone and has no page, unless the command asks for one and names its port.

It starts while this process still imports what it needs, on a socket that is open from the beginning, so that the first
request simply waits until the server can answer. Prefect itself would start one after everything else, and leave it
behind if this process is killed. Run as a module, this file is that child.
"""

import atexit
import contextlib
import errno
import gc
import http.client
import importlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import tomllib
from collections.abc import Iterator
from pathlib import Path

# The first start of a server migrates its database, which takes half a minute on a slow disk.
_START_SECONDS = 180
_STOP_SECONDS = 10

# What flows import when they run, themselves or by way of Prefect.
_FLOWS_IMPORT = (
    "attnlstm.checkpoint",
    "prefect.flow_engine",
    "prefect.task_engine",
    "prefect.utilities.visualization",
    "fastapi.encoders",
    "anyio._backends._asyncio",
)

# Prefect's own default for the port of its page.
PAGE_PORT = 4200

# What Prefect sets for a server that serves one process: no page, and no more services than a run needs. Types of
# blocks are for a server with a page: to register them, every integration of Prefect that is installed is imported.
_OF_ONE_COMMAND = {
    "PREFECT_UI_ENABLED": "0",
    "PREFECT__SERVER_EPHEMERAL": "1",
    "PREFECT__SERVER_FINAL": "1",
    "PREFECT_SERVER_REGISTER_BLOCKS_ON_START": "0",
    "PREFECT_SERVER_MEMOIZE_BLOCK_AUTO_REGISTRATION": "0",
}

# Slots of deployments that outlive the server: a run whose slot is gone is ended by Prefect.
_OF_A_PAGE = {
    "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
}


class CommandServer:
    """A server on loopback, being started. It keeps its records in PREFECT_HOME.

    page_port: have Prefect's page on this port, and all services, such as the one that schedules runs.
    """

    def __init__(self, page_port: int | None = None) -> None:
        with _listen(page_port or 0) as listening, _without_stops():
            port = listening.getsockname()[1]
            self.api_url = f"http://127.0.0.1:{port}/api"
            settings = {"PREFECT_UI_API_URL": self.api_url} | _OF_A_PAGE if page_port else _OF_ONE_COMMAND
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", __name__, str(listening.fileno())],
                env=os.environ | settings,
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                pass_fds=[listening.fileno()],
            )
        atexit.register(self.stop)
        self._failure: Exception | None = None
        self._waking = threading.Thread(target=self._wake, args=[port], daemon=True)
        self._waking.start()

    def _wake(self, port: int) -> None:
        """Ask until it answers like one that is at work: after its first answer it starts its services, and is busy
        with that for half a second."""
        try:
            for path in ("/api/health", "/api/admin/version"):
                connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_START_SECONDS)
                with contextlib.closing(connection):
                    connection.request("GET", path)
                    status = connection.getresponse().status
                if status != http.client.OK:
                    raise http.client.HTTPException(f"{path} is answered with {status}")
        except (OSError, http.client.HTTPException) as error:
            self._failure = error

    def wait(self) -> None:
        """Return once the server answers. Raises RuntimeError if it ended instead."""
        self._waking.join()
        if self._failure is not None:
            self.stop()
            raise RuntimeError(
                f"Prefect's server did not start ({type(self._failure).__name__}). What it printed is above; with a "
                "server of your own, set PREFECT_API_URL."
            ) from self._failure

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


def begin_prefect(page_port: int | None = None) -> None:
    """Start a server unless the environment or Prefect's profile names one. Returns at once; see `start_prefect`.

    Call it before anything but Prefect's settings is imported: they are read again here, and kept from then on.
    page_port: as in `CommandServer`.
    """
    global _server
    if _server is None and not is_configured():
        _server = CommandServer(page_port)
        os.environ["PREFECT_API_URL"] = _server.api_url
        if "prefect.context" in sys.modules:
            sys.modules["prefect.context"].refresh_global_settings_context()


def is_configured() -> bool:
    """Whether the environment or Prefect's profile names a server.

    Prefect knows, and takes a second to be imported: it is asked where it is there already, or something may name one.
    """
    _find_home()
    if "prefect.settings" not in sys.modules and not _may_be_configured():
        return False
    from prefect.settings import get_current_settings

    return bool(get_current_settings().api.url)


def _may_be_configured() -> bool:
    """Whether anything is said of an API or of profiles, wherever Prefect looks: see `prefect.settings.sources`."""
    said = {name.upper(): value for name, value in os.environ.items()}
    if said.get("PREFECT_API_URL") is not None:
        return said["PREFECT_API_URL"] != ""  # an empty one overrides the profile
    if any(name.startswith(("PREFECT_API", "PREFECT_PROFILE")) for name in said):
        return True
    home = Path(os.environ.get("PREFECT_HOME") or "~/.prefect").expanduser()
    words = {Path(".env"): "prefect", Path("prefect.toml"): "", home / "profiles.toml": "api"}
    if any(path.is_file() and word in path.read_text(errors="replace").lower() for path, word in words.items()):
        return True
    project = Path("pyproject.toml")
    return project.is_file() and "prefect" in tomllib.loads(project.read_text(encoding="utf-8")).get("tool", {})


def _find_home() -> None:
    """Have Prefect keep its records in a temporary folder, and say so, where it can't in its own.

    Its own is ~/.prefect, unless PREFECT_HOME names another. A container's user may have neither a home nor an entry
    in the list of users.
    """
    own = os.environ.get("PREFECT_HOME") or os.path.join(os.path.expanduser("~"), ".prefect")
    try:
        if own.startswith("~"):
            raise FileNotFoundError(errno.ENOENT, "this user has no home folder", "~")
        os.makedirs(own, exist_ok=True)
        tempfile.TemporaryFile(dir=own).close()
    except OSError as error:
        folder = _of_this_process.enter_context(tempfile.TemporaryDirectory(prefix="attnlstm-prefect-"))
        atexit.register(_of_this_process.close)
        print(
            f"Prefect can't keep its records in {own} ({error.strerror}). They are in a temporary folder, until this "
            "command ends. Name a folder that can be written to with PREFECT_HOME.",
            file=sys.stderr,
        )
        os.environ["PREFECT_HOME"] = folder
        if os.path.expanduser("~") == "~":
            os.environ["HOME"] = folder  # Prefect and the libraries it is made of ask for it too


def start_prefect(page_port: int | None = None) -> None:
    """Return once there is a Prefect API to talk to. page_port: as in `CommandServer`."""
    begin_prefect(page_port)
    if _server is None:
        return
    if page_port is None:
        _rehearse()
        _without_heartbeats()
    _server.wait()


def _rehearse() -> None:
    """Have what a run would load in its course loaded: libraries, an engine's compiled code, the page's templates.

    It takes a second or two, which may as well be while the server starts.
    """
    with contextlib.suppress(ImportError):  # whoever needs it says so
        for module in _FLOWS_IMPORT:
            importlib.import_module(module)
        import numpy as np
        import pyarrow as pa

        from attnlstm.config import ModelConfig
        from attnlstm.engines import open_engine
        from attnlstm.network import AttentionLSTM
        from flows.pages.page import render_page
        from flows.pages.report import Report

        pa.array(np.zeros(1))  # loads pandas, if it is installed
        render_page(Report("", "", (), {}))
        engine = open_engine(AttentionLSTM(ModelConfig(classes=("a", "b"))), "cpu")
        engine.score(np.zeros(1, np.uint8), np.array([0, 1]))


def _without_heartbeats() -> None:
    """Nobody listens for them on a server of one command, and each flow run would take most of a second to end them."""
    from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings

    _of_this_process.enter_context(temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}))


def _listen(port: int) -> socket.socket:
    try:
        return socket.create_server(("127.0.0.1", port))
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        raise OSError(
            f"Port {port} of 127.0.0.1 is in use. To use the Prefect server that is there, set "
            f"PREFECT_API_URL=http://127.0.0.1:{port}/api; to start another, name another port with --port."
        ) from error


@contextlib.contextmanager
def _without_stops() -> Iterator[None]:
    """Children started here get neither Ctrl-C nor a SIGTERM to the whole process group, as of `timeout` or systemd:
    the server must outlive the runs that it keeps the record of."""
    previous = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)


@contextlib.contextmanager
def without_collecting() -> Iterator[None]:
    """Python's collector of garbage does not look through what is imported here, neither meanwhile nor at the end: that
    takes seconds. In a process that has imported it all before, such as one of tests, nothing is changed."""
    if "torch" in sys.modules:
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def _serve(descriptor: int) -> None:
    """In the child: answer on an open socket until the parent ends, however it does."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with without_collecting():
        import uvicorn

        config = uvicorn.Config(
            "prefect.server.api.server:create_app",
            factory=True,
            lifespan="on",
            log_level="error",
            timeout_graceful_shutdown=_STOP_SECONDS // 2,
        )
        config.load()
    uvicorn.Server(config).run([socket.socket(fileno=descriptor)])


def _end_with_parent() -> None:
    sys.stdin.buffer.read()  # the parent holds the other end and never writes
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})  # for this thread alone
    signal.raise_signal(signal.SIGTERM)


if __name__ == "__main__":
    _serve(int(sys.argv[1]))
