"""Servers that tests talk to: Prefect's and an S3 server of moto's, each a process of its own on loopback.

Knows how such a process is started, how to tell that it answers, that it ends with the run of the tests, and how to
wait for what any process does. Run as a script, this file is that process. Knows nothing of pytest or what is tested.
"""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Literal

from filelock import FileLock

Kind = Literal["prefect", "s3"]

_START_S = 180  # of a busy machine: Prefect's server imports for some seconds and then migrates its database
_DRAIN_S = 60
_LOOK_S = 1.0  # between two looks at whether the run of the tests is still there


class Server:
    """A server on a free port of loopback, which keeps what it keeps in a folder, and can be killed and started again.

    owner: the process with this id is the run of the tests; without it, the server ends.
    """

    def __init__(self, kind: Kind, folder: Path, owner: int) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self._port = free.getsockname()[1]
        self._command = [sys.executable, __file__, kind, str(self._port), str(owner)]
        self.address = f"127.0.0.1:{self._port}"
        self.api_url = f"http://{self.address}/api"  # of Prefect's
        self.database = folder / "prefect.db"
        self.environment = os.environ | {"PREFECT_HOME": str(folder)}
        self.start()

    def start(self) -> None:
        """Start it, and return once it answers. Raises RuntimeError if it ends instead."""
        # A session of its own, so that Ctrl-C ends the tests first and the server with them.
        self.process = subprocess.Popen(
            self._command, env=self.environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip
        deadline = time.monotonic() + _START_S
        while not self._answers():
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                raise RuntimeError(f"A server for the tests did not start; this says why: {' '.join(self._command)}")
            time.sleep(0.05)

    def kill(self) -> None:
        """End it at once, as when its machine is switched off."""
        self.process.kill()
        self.process.wait()

    def _answers(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self._port)) == 0


def shared_server(kind: Kind, run: Path, owner: int) -> str:
    """The address of the one server of a kind that a run of the tests has, started by whichever process asks first.

    run: a folder that all processes of the run share. The server ends with `owner`, or by `end_shared_servers`.
    """
    known = run / f"{kind}.json"
    with FileLock(run / f"{kind}.lock"):
        if not known.exists():
            (run / kind).mkdir()
            server = Server(kind, run / kind, owner)
            known.write_text(json.dumps({"address": server.address, "pid": server.process.pid}))
            server.process.returncode = 0  # not this process's to wait for: others may still need it
        return str(json.loads(known.read_text())["address"])


def end_shared_servers(run: Path) -> None:
    """End the servers of a run, by the ids that are in its folder."""
    for known in run.glob("*.json"):
        with suppress(ProcessLookupError):
            os.kill(json.loads(known.read_text())["pid"], 9)


def drain_prefect() -> None:
    """Send the logs and events of this process that wait in the background, while the server they are for is there.

    Those of a server that is gone would be tried again for ever, so that the wait has an end.
    """
    from prefect.events.worker import EventsWorker
    from prefect.logging.handlers import APILogWorker

    APILogWorker.drain_all(timeout=_DRAIN_S)
    EventsWorker.drain_all(timeout=_DRAIN_S)


def wait_until(done: Callable[[], bool], seconds: float) -> None:
    """Return as soon as something is so. Raises TimeoutError after so many seconds."""
    deadline = time.monotonic() + seconds
    while not done():
        if time.monotonic() > deadline:
            raise TimeoutError(f"It did not come to that in {seconds:g} s.")
        time.sleep(0.1)


def children_of(pid: int) -> list[int]:
    """The ids of the processes that a process has started."""
    found = (path.read_text().split() for path in Path(f"/proc/{pid}/task").glob("*/children"))
    return [int(child) for children in found for child in children]


def _serve(kind: str, port: int) -> None:
    if kind == "s3":
        from moto.server import main

        main(["--host", "127.0.0.1", "--port", str(port)])
    else:
        import uvicorn

        os.environ |= {"PREFECT_UI_ENABLED": "0", "PREFECT__SERVER_EPHEMERAL": "1", "PREFECT__SERVER_FINAL": "1"}
        factory = "prefect.server.api.server:create_app"
        uvicorn.run(factory, factory=True, lifespan="on", port=port, log_level="critical")


def _end_with(owner: int) -> None:
    with suppress(ProcessLookupError):
        while True:
            os.kill(owner, 0)  # asks only whether it is there
            time.sleep(_LOOK_S)
    os._exit(0)


if __name__ == "__main__":
    threading.Thread(target=_end_with, args=(int(sys.argv[3]),), daemon=True).start()
    _serve(sys.argv[1], int(sys.argv[2]))
