"""Progress of a run: bars in a terminal and a progress artifact in Prefect, fed from the same counts."""

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from types import TracebackType
from typing import Self
from uuid import UUID

import httpx
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

# An update costs some tens of milliseconds, and nobody reads faster.
_ARTIFACT_SECONDS = 2.0


class RunStoppedError(Exception):
    """The run is ending, so its tasks stop at the next piece of work."""


def terminal_bar(*, hidden: bool = False) -> Progress:
    """The bar that all commands and runs draw on stderr. Nothing is drawn unless that is a terminal.

    Nor is it where TTY_INTERACTIVE is 0, which is rich's own word for it, or TERM is dumb.
    """
    console = Console(file=sys.stderr)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=hidden or not (sys.stderr.isatty() and console.is_interactive),
        transient=True,
    )


class RunProgress:
    """Counts work done out of a total, from any thread. Nothing is drawn unless stderr is a terminal.

    Within a run that shows its own progress, it draws nothing, and stops when that one does.
    """

    def __init__(self, what: str, total: int, *, artifact: str, description: str) -> None:
        self._outer = current_progress.get()
        self._total = total
        self._done = 0
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._artifact_key, self._description = artifact, description
        self._artifact: UUID | None = None
        self._artifact_at: float | None = None  # None before the first try
        self._bars = terminal_bar(hidden=self._outer is not None)
        self._bar = self._bars.add_task(what, total=total)

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()
        if kind is None:
            self._update_artifact()

    def advance(self, count: int) -> None:
        """Count work as done. Safe to call from task threads; costs next to nothing.

        Raises RunStoppedError once `stop` was called.
        """
        if self._is_stopping():
            raise RunStoppedError("the run was stopped")
        with self._lock:
            self._done += count
            self._bars.advance(self._bar, count)

    def _is_stopping(self) -> bool:
        return self._stopping.is_set() or (self._outer is not None and self._outer._is_stopping())

    def rest(self, seconds: float) -> None:
        """Wait for something that reports no progress. Raises RunStoppedError as soon as `stop` is called."""
        self._stopping.wait(seconds)
        self.advance(0)

    def set_total(self, total: int) -> None:
        """Say how much there is, where that is known late."""
        self._total = total
        self._bars.update(self._bar, total=total)

    def show(self, description: str) -> None:
        """Say beside the bar what is going on."""
        self._bars.update(self._bar, description=description)

    def stop(self) -> None:
        """Let tasks end at their next piece of work: threads can't be ended from outside."""
        self._stopping.set()

    def tick(self) -> None:
        """Make Prefect's artifact, or bring it up to date if it is time to. Call from the flow's own thread, as soon as
        work has begun that need not wait for it."""
        if self._artifact_at is None:
            self._make_artifact()
        elif time.monotonic() - self._artifact_at > _ARTIFACT_SECONDS:
            self._update_artifact()

    def _make_artifact(self) -> None:
        # Imported late: a command that only draws a bar does without Prefect.
        from prefect.artifacts import create_progress_artifact

        self._artifact_at = time.monotonic()
        with suppress(httpx.HTTPError):  # as below
            self._artifact = create_progress_artifact(  # type: ignore[assignment]
                progress=0.0, key=self._artifact_key, description=self._description
            )

    def _update_artifact(self) -> None:
        from prefect.artifacts import update_progress_artifact

        if self._artifact_at is None:
            self._make_artifact()
        if self._artifact is not None:
            self._artifact_at = time.monotonic()
            # Prefect has tried for minutes. The page is for looking on: the run goes on without.
            with suppress(httpx.HTTPError):
                update_progress_artifact(
                    self._artifact,
                    progress=min(100.0, 100.0 * self._done / max(1, self._total)),
                    description=f"{self._description}: {self._done:,} of {self._total:,}",
                )


# Threads of a task runner inherit it; workers in other processes see None, and report whole shards only.
current_progress: ContextVar[RunProgress | None] = ContextVar("current_progress", default=None)


@contextmanager
def showing(progress: RunProgress) -> Iterator[RunProgress]:
    """Make `progress` the one that tasks of this run report to."""
    token = current_progress.set(progress)
    try:
        with progress:
            yield progress
    finally:
        current_progress.reset(token)
