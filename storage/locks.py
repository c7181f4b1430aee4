"""One run at a time on one output, or on one part of it.

A run holds the scope of its source, a folder or file below the output's folders ("" is all of it), and is refused while
another one holds the same, something within it or around it: partitions may be scored side by side.

On a local disk each run has a file in OUTPUT/.locks, which the operating system locks and lets go of when the process
ends, however it ends, so a killed run never blocks the next one. Runs come and go one at a time, under a lock of all.

Object stores have no locks, so there a run holds a lease: OUTPUT/.leases/<random>.json, which it writes again and
again for as long as it is at work. A run first writes its own lease and then lists the folder; if another live one is
in its way, it removes its own and is refused. Since each writes before it lists, and lists show every write that was
completed before (S3, GCS and Azure promise that), two such runs never both go on; starting in the same instant, both
may be refused. A lease that was not renewed for `live_seconds` is of a run that was killed, and is removed. Whether it
was is told from the store's own time stamps only, so clocks need not agree.
"""

import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs
from filelock import FileLock, Timeout

from storage.errors import OutputError
from storage.locations import Location

# A killed run blocks the next one for this long. Several renewals fit in, so that a store that is slow or away for
# half a minute costs no run its lease.
LIVE_SECONDS = 90.0
RENEW_SECONDS = 15.0
# Of LIVE_SECONDS, when a holder that could not renew gives up: before others may take it for dead, with a margin for
# time stamps in whole seconds.
_GIVE_UP = 2 / 3

# Coming and going takes milliseconds.
_COMING_AND_GOING_SECONDS = 60.0

_LOCKS = ".locks"
_LEASES = ".leases"


@dataclass(frozen=True)
class Hold:
    """A run's hold on an output. Small and without state, so that it can travel to any worker of the run.

    lease: the file that is there for as long as the run has its hold, and that the next one removes if it was killed.
    """

    output: Location
    lease: Location | None = None

    def check(self) -> None:
        """To be called before each commit. Raises OutputError if the hold was lost, so that the run must stop.

        A lease is lost if the run was silent for so long that another one may have taken it for dead. A lock on a
        local disk is lost to workers in other processes when the run has ended without them.
        """
        if self.lease is not None and not self.lease.is_file():
            raise OutputError(
                f"This run has lost its hold on {self.output}: it has ended, or the store was not reached for too "
                "long, and another run may be writing there now. Run the same command again to score what is missing."
            )


@contextmanager
def only_run(
    output: Location,
    run: str,
    *,
    scope: str = "",
    live_seconds: float = LIVE_SECONDS,
    renew_seconds: float = RENEW_SECONDS,
) -> Iterator[Hold]:
    """Hold `scope` of `output` for the run named `run`. Raises OutputError, which says who is in the way, if a run is.

    live_seconds, renew_seconds: of leases in object stores, as above; the same for all runs on one output.
    """
    who = {
        "run": run,
        "scope": scope,
        "process": os.getpid(),
        "host": socket.gethostname(),
        "since": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    if output.is_local:
        with _locked(Path(output.path), who) as record:
            yield Hold(output, record)
        return
    with _leased(output, who, live_seconds, renew_seconds) as lease:
        yield Hold(output, lease)


@contextmanager
def alone(output: Location) -> Iterator[None]:
    """For a few milliseconds, no other run comes, goes, or does what it does alone. In object stores, nothing of it."""
    if not output.is_local:
        yield
        return
    locks = Path(output.path) / _LOCKS
    locks.mkdir(parents=True, exist_ok=True)
    with _alone(locks):
        yield


@contextmanager
def _locked(folder: Path, who: dict[str, Any]) -> Iterator[Location]:
    locks = folder / _LOCKS
    locks.mkdir(parents=True, exist_ok=True)
    own = locks / f"{secrets.token_hex(8)}.json"
    lock = FileLock(own.with_suffix(".lock"))
    with _alone(locks):
        for other in sorted(locks.glob("*.json")):
            _refuse_or_remove(other, folder, who["scope"])
        lock.acquire(timeout=0)
        own.write_text(json.dumps(who))
    try:
        yield Location.parse(own)
    finally:
        with _alone(locks):
            own.unlink(missing_ok=True)
            Path(lock.lock_file).unlink(missing_ok=True)
            lock.release()


@contextmanager
def _alone(locks: Path) -> Iterator[None]:
    """Nobody else comes or goes meanwhile."""
    try:
        with FileLock(locks / ".all", timeout=_COMING_AND_GOING_SECONDS):
            yield
    except Timeout:
        raise OutputError(
            f"Another run has been starting or ending in {locks.parent} for {_COMING_AND_GOING_SECONDS:.0f} s. "
            "Run the same command again."
        ) from None


def _refuse_or_remove(other: Path, folder: Path, scope: str) -> None:
    """Raises OutputError if the run of this file lives and is in the way; removes what a killed one left."""
    lock = FileLock(other.with_suffix(".lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        if _overlap(scope, _scope(Location.parse(other))):
            raise OutputError(
                f"Another run is writing to {folder}: {_holder(Location.parse(other))}. Wait until it ends, or write "
                "to another folder."
            ) from None
        return
    other.unlink(missing_ok=True)
    Path(lock.lock_file).unlink(missing_ok=True)
    lock.release()


@contextmanager
def _leased(output: Location, who: dict[str, Any], live_seconds: float, renew_seconds: float) -> Iterator[Location]:
    lease = output / f"{_LEASES}/{secrets.token_hex(8)}.json"
    heartbeat = _Heartbeat(lease, json.dumps(who).encode(), live_seconds, renew_seconds)
    heartbeat.start()
    try:
        _refuse_company(output, lease, live_seconds, who["scope"])
        yield lease
    finally:
        heartbeat.stop()
        with suppress(OSError):  # the store is away: the lease will run out
            lease.delete()


def _refuse_company(output: Location, lease: Location, live_seconds: float, scope: str) -> None:
    """Raises OutputError if a live lease besides `lease` is in the way; removes those that have run out."""
    infos = {info.path: info for info in (output / _LEASES).walk() if info.type == pafs.FileType.File}
    if lease.path not in infos:
        raise OutputError(f"{lease} vanished as soon as it was written. Run the same command again.")
    now = infos.pop(lease.path).mtime_ns
    for path, info in infos.items():
        other = Location(output.filesystem, path)
        age = max(0.0, (now - info.mtime_ns) / 1e9)
        if age >= live_seconds:
            other.delete()
        elif _overlap(scope, _scope(other)):
            raise OutputError(
                f"Another run is writing to {output}: {_holder(other)}, last sign of life {age:.0f} s ago. Wait until "
                f"it ends, or write to another folder. If it was killed, its hold ends {live_seconds:.0f} s after that."
            )


class _Heartbeat:
    """Writes a lease, again and again, from a thread of its own; a process that is killed stops doing so."""

    def __init__(self, lease: Location, content: bytes, live_seconds: float, renew_seconds: float) -> None:
        self._lease = lease
        self._content = content
        self._renew_seconds = renew_seconds
        self._give_up_seconds = live_seconds * _GIVE_UP
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="lease", daemon=True)
        self._written = 0.0

    def start(self) -> None:
        self._written = time.monotonic()
        self._lease.write_bytes(self._content)
        self._thread.start()

    def stop(self) -> None:
        self._ended.set()
        self._thread.join()

    def _beat(self) -> None:
        while not self._ended.wait(self._renew_seconds):
            try:
                if not self._renew():
                    return
            except OSError:
                continue  # the store is away; the next beat tries again, and says if it was away for too long

    def _renew(self) -> bool:
        """False if the lease is lost, and then it is gone."""
        began = time.monotonic()
        if not self._lease.is_file():
            return False
        self._lease.write_bytes(self._content)
        # Another run may have removed the lease before it was written again, and be at work.
        if time.monotonic() - self._written > self._give_up_seconds:
            self._lease.delete()
            return False
        self._written = began
        return True


def _overlap(one: str, other: str) -> bool:
    """Whether one of the two is the other, or something within it."""
    shorter, longer = sorted((one, other), key=len)
    return not shorter or longer == shorter or longer.startswith(f"{shorter}/")


def _scope(location: Location) -> str:
    """What a run holds; all of the output if it has not said."""
    try:
        return str(json.loads(location.read_bytes())["scope"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _holder(location: Location) -> str:
    try:
        holder = json.loads(location.read_bytes())
        return f"run {holder['run']}, process {holder['process']} on {holder['host']}, since {holder['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "it has not said who it is"
