"""What surrounds a command: the environment that Prefect reads at import, and exit codes."""

import logging
import os
import sys
import traceback
from collections.abc import Callable

from cyclopts import CycloptsError

DONE, FAILED, WRONG_USE, INTERRUPTED = 0, 1, 2, 130

_verbose = False


def run_command(command: Callable[[], int | None], *, verbose: bool, with_prefect: bool) -> int:
    """Run a command and turn what comes of it into an exit code and, for an error, one message on stderr.

    with_prefect: it will run flows, so a server may as well start while the command is imported.
    """
    global _verbose
    _verbose = verbose
    _prepare_environment(verbose)
    try:
        if with_prefect:
            from flows.cli.server import begin_prefect

            begin_prefect()
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
    if _is_unreachable(error):
        from prefect.settings import get_current_settings

        return (
            f"No Prefect server answers at {get_current_settings().api.url}. Start it, or have this command start its "
            "own: prefect config unset PREFECT_API_URL, or PREFECT_API_URL= before the command."
        )
    return f"{type(error).__name__}: {error}\nThis was not foreseen; --verbose shows the traceback."


def _is_unreachable(error: BaseException) -> bool:
    """Whether Prefect's client, or what it is made of, says that there is no server."""
    from httpx import ConnectError

    return isinstance(error, ConnectError) or (
        isinstance(error, RuntimeError) and str(error).startswith("Failed to reach API")
    )


def start_prefect(page_port: int | None = None) -> None:
    """Have a Prefect API to talk to, and keep what its log repeats out of the terminal.

    page_port: if a server has to be started, have Prefect's page on this port.
    """
    from flows.cli.server import await_prefect

    if not _verbose:
        # Tracebacks of failed runs: they still reach the API, and the command prints one line of its own.
        for name in ("prefect.flow_runs", "prefect.task_runs"):
            logging.getLogger(name).propagate = False
        # "Still processing items" where the last events leave after the run has ended.
        logging.getLogger("EventsWorker").setLevel(logging.ERROR)
    await_prefect(page_port)


def _prepare_environment(verbose: bool) -> None:
    """Settings that Prefect reads when it is imported. What the user has set stays."""
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "INFO" if verbose else "WARNING")
    os.environ.setdefault("PREFECT_LOGGING_EXTRA_LOGGERS", "attnlstm")  # such as batches halved on a small GPU
    # After 2, 4, 8 ... s, four minutes in all, so that a run can say how it ended after its server was restarted.
    os.environ.setdefault("PREFECT_CLIENT_MAX_RETRIES", "7")
    os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
    os.environ.setdefault("DO_NOT_TRACK", "1")
    if not sys.stdout.isatty():
        os.environ.setdefault("COLUMNS", "110")  # rich takes 80 for a pipe, and folds paths
