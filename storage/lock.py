"""One run at a time on one output.

On a local disk the operating system holds the lock and lets go of it when the process ends, however it ends, so
a killed run never blocks the next one. Object stores have no locks; there each file is put in place whole, and
the stamps in the footers tell files of different makings apart (`storage.pending`).
"""

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

from storage.errors import OutputError
from storage.location import Location

_LOCK = ".lock"
_HOLDER = ".lock-holder.json"


@contextmanager
def only_run(output: Location, run: str) -> Iterator[None]:
    """Hold `output` for the run named `run`. Raises OutputError, which says who holds it, if another run does."""
    if not output.is_local:
        yield
        return
    folder = Path(output.path)
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / _LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise OutputError(
            f"Another run is writing to {output}: {_holder(folder)}. Wait until it ends, or write to another folder."
        ) from None
    try:
        holder = {
            "run": run,
            "process": os.getpid(),
            "host": socket.gethostname(),
            "since": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        (output / _HOLDER).write_bytes(json.dumps(holder).encode())
        yield
    finally:
        (folder / _HOLDER).unlink(missing_ok=True)
        lock.release()


def _holder(folder: Path) -> str:
    try:
        holder = json.loads((folder / _HOLDER).read_text())
        return f"run {holder['run']}, process {holder['process']} on {holder['host']}, since {holder['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "it has not said who it is"
