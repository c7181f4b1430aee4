"""What surrounds a command: the environment that Prefect reads at import, its embedded server, and exit codes."""

import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from cyclopts import CycloptsError

DONE, FAILED, WRONG_USE, INTERRUPTED = 0, 1, 2, 130

# The first start of a server migrates its database, which takes half a minute on a slow disk.
_SERVER_START_SECONDS = 180
_verbose = False


def run_command(command: Callable[[], int | None], *, verbose: bool) -> int:
    """Run a command and turn what comes of it into an exit code and, for an error, one message on stderr."""
    global _verbose
    _verbose = verbose
    _prepare_environment(verbose)
    try:
        return command() or DONE
    except CycloptsError:
        return WRONG_USE  # it has printed what was wrong
    except KeyboardInterrupt:
        print("Interrupted. Run the same command again to go on.", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        if verbose:
            traceback.print_exception(error)
        print(f"Error: {describe(error)}", file=sys.stderr)
        return FAILED


def describe(error: BaseException) -> str:
    """What to tell a user. Errors that were not foreseen say what they are and where to learn more."""
    from storage.errors import StorageError

    if isinstance(error, StorageError | ValueError):
        return str(error)
    if isinstance(error, OSError):
        return f"{error.strerror or error}: {error.filename}" if error.filename else str(error)
    return f"{type(error).__name__}: {error}\nThis was not foreseen; --verbose shows the traceback."


def start_prefect() -> None:
    """Have a Prefect API to talk to: the one that the environment or profile names, or an embedded one.

    The embedded server keeps its records in PREFECT_HOME and ends with this process.
    """
    from prefect.settings import get_current_settings

    if not _verbose:
        # Tracebacks of failed runs: they still reach the API, and the command prints one line of its own.
        for name in ("prefect.flow_runs", "prefect.task_runs"):
            logging.getLogger(name).propagate = False
        # "Still processing items" where the last events leave after the run has ended.
        logging.getLogger("EventsWorker").setLevel(logging.ERROR)
    if get_current_settings().api.url is None:
        from prefect.server.api.server import SubprocessASGIServer

        with _without_interrupts():
            SubprocessASGIServer().start(timeout=_SERVER_START_SECONDS)


def _prepare_environment(verbose: bool) -> None:
    """Settings that Prefect reads when it is imported. What the user has set stays."""
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "INFO" if verbose else "WARNING")
    os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_ENABLED", "true")
    os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", str(_SERVER_START_SECONDS))
    os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
    os.environ.setdefault("DO_NOT_TRACK", "1")
    if not sys.stdout.isatty():
        os.environ.setdefault("COLUMNS", "110")  # rich takes 80 for a pipe, and folds paths


@contextmanager
def _without_interrupts() -> Iterator[None]:
    """Children started here do not get Ctrl-C: the server must outlive the run that it keeps the record of."""
    previous = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)
