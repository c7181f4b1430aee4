"""The command line: which commands there are, the option that all of them share, and what surrounds a command.

Each flow's own signature and docstring make its command, so a flag, its help and its bounds are written once.
Nothing heavy is imported before a command is known. What a command does and prints is not known here; how it ends is:
its exit code and, for an error, the one message.
"""

import importlib.metadata
import io
import logging
import os
import sys
import traceback
from collections.abc import Sequence
from contextlib import nullcontext, redirect_stdout
from typing import Annotated, Literal

from cyclopts import App, CycloptsError, Parameter

from flows.cli import DONE, FAILED, INTERRUPTED, WRONG_USE

# The commands by where their functions are. What they do is said here, so that the list of them imports none.
_COMMANDS = {
    "demo:demo": "Sample real bytes, train on them, classify them; a tour in a few minutes.",
    "commands:sample": "Write labelled fragments of the files on this machine, to try things on.",
    "commands:retrain": "Train a checkpoint on labelled Parquet; it becomes champion if it is shown to be no worse.",
    "commands:classify": "Score every row of a Parquet dataset; rerun to score what is new.",
    "commands:backfill": "Classify a range of partitions, such as dates.",
    "serve:serve": "Do all of this on schedules, with Prefect's page, until interrupted.",
    "outputs:plan": "Say what classify would do, and why.",
    "outputs:verify": "Check an output against its input, row by row.",
    "outputs:contract": "Write what other tools take: a data contract, dbt's sources, views of DuckDB.",
    "outputs:report": "Make a page about an output: what was run, whether all is well, rows to look at.",
    "asking:explain": "Explain one row: its prediction, its tokens shaded by attention, what erasing them does.",
    "asking:errors": "List the rows of an output without a prediction, by the reason why.",
    "asking:tokens": "Say what a class attends to over a whole output, as n-grams of tokens.",
    "outputs:prune": "Remove from an output what no input accounts for.",
    "app:completion": "Print what has a shell complete commands and options.",
}
_CHECKPOINT_COMMANDS = {
    "checkpoints:list_checkpoints": "List them, oldest first.",
    "checkpoints:show": "Show one: its figures, its data, the judgement on it.",
    "checkpoints:add": "Add one from elsewhere: weights as safetensors, or a folder.",
    "checkpoints:export": "Write one for use elsewhere: as ONNX, or as a folder for model hubs.",
    "checkpoints:promote": "Make one champion.",
    "checkpoints:rollback": "Make the champion before this one champion again.",
    "checkpoints:compare": "Compare two, by their cards or on the same rows.",
    "checkpoints:prune": "Remove old ones, and what killed runs left.",
}

app = App(
    name="attnlstm",
    help="Batch classification of token sequences in Parquet with an attention-LSTM, run as Prefect flows.",
    version=lambda: importlib.metadata.version("attnlstm"),
    default_parameter=Parameter(negative=(), consume_multiple=True),
    result_action="return_value",
    exit_on_error=False,
    suppress_keyboard_interrupt=False,  # `main` says how to go on
)
_checkpoints = App(name="checkpoints", help="The checkpoints of a registry.")
for _app, _commands in ((app, _COMMANDS), (_checkpoints, _CHECKPOINT_COMMANDS)):
    for _target, _help in _commands.items():
        _name = _target.partition(":")[2].removesuffix("_checkpoints")
        _app.command(f"flows.cli.{_target}", name=_name, help=_help)
app.command(_checkpoints)


@app.meta.default
def _launch(
    *tokens: Annotated[str, Parameter(show=False, allow_leading_hyphen=True)],
    verbose: bool = False,
    quiet: bool = False,
) -> int | None:
    """Batch classification of token sequences in Parquet with an attention-LSTM, run as Prefect flows.

    Args:
        verbose: Show Prefect's log as it comes, and the traceback of an error.
        quiet: Print errors only; how it went is the exit code.
    """
    code: int | None = app(tokens)
    return code


def completion(shell: Literal["bash", "zsh", "fish", "powershell"]) -> None:
    """Print a script that has a shell complete commands, options and their values.

    Args:
        shell: Which shell it is for.
    """
    print(app.meta.generate_completion(shell=shell, prog_name=app.name[0]))


def main() -> None:
    """Entry point. Exit codes: 0 done, 1 failed, 2 wrong use, 130 interrupted."""
    _speak_utf8()
    sys.exit(_run(sys.argv[1:]))


def _speak_utf8() -> None:
    """Have names of files be UTF-8 whatever the locale says, and never fail for want of a character to print.

    Under LC_ALL=C Python takes names for ASCII, and Arrow takes them for UTF-8: what the one finds the other does not.
    Python's UTF-8 mode (PEP 540) is decided when the process starts, so the process is replaced by one that has it.
    """
    if sys.getfilesystemencoding() != "utf-8":
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _run(words: Sequence[str]) -> int:
    """Run a command line and turn what comes of it into an exit code and, for an error, one message on stderr."""
    verbose, quiet = "--verbose" in words, "--quiet" in words
    # Before a command is imported, and with it Prefect, which reads its settings then.
    _prepare_process(verbose, quiet)
    try:
        # Whatever prints, and with which library: what is no error goes to stdout.
        with open(os.devnull, "w", encoding="utf-8") if quiet else nullcontext(sys.stdout) as out, redirect_stdout(out):
            code: int | None = app.meta(words)
        return code or DONE
    except CycloptsError:
        return WRONG_USE  # it has printed what was wrong
    except KeyboardInterrupt:
        print("Interrupted. Run the same command again to go on.", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        if verbose:
            traceback.print_exception(error)
        print(f"Error: {error_message(error)}", file=sys.stderr)
        return FAILED


def error_message(error: BaseException) -> str:
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


def _prepare_process(verbose: bool, quiet: bool) -> None:
    """Settings that Prefect reads when it is imported, where the user has not set them, and what its log leaves out."""
    level = "INFO" if verbose else "ERROR" if quiet else "WARNING"
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", level)
    if quiet:
        os.environ["TTY_INTERACTIVE"] = "0"  # by which rich draws no bars
    os.environ.setdefault("PREFECT_LOGGING_EXTRA_LOGGERS", "attnlstm")  # such as batches halved on a small GPU
    # After 2, 4, 8 ... s, four minutes in all, so that a run can say how it ended after its server was restarted.
    os.environ.setdefault("PREFECT_CLIENT_MAX_RETRIES", "7")
    os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
    os.environ.setdefault("DO_NOT_TRACK", "1")
    _keep_loopback_from_proxies()
    if not sys.stdout.isatty():
        os.environ.setdefault("COLUMNS", "110")  # rich takes 80 for a pipe, and folds paths
    if not verbose:
        # Tracebacks of failed runs: they still reach the API, and the command prints one line of its own.
        for name in ("prefect.flow_runs", "prefect.task_runs"):
            logging.getLogger(name).propagate = False
        # "Still processing items" where the last events leave after the run has ended.
        logging.getLogger("EventsWorker").setLevel(logging.ERROR)


def _keep_loopback_from_proxies() -> None:
    """A proxy of the environment is for other machines: it would look for the command's server on its own loopback."""
    kept = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    if kept != "*":
        hosts = [host for host in kept.split(",") if host]
        # Both spellings are read, the lower one first.
        both = ",".join(dict.fromkeys([*hosts, "127.0.0.1", "localhost", "::1"]))
        os.environ.update(no_proxy=both, NO_PROXY=both)
