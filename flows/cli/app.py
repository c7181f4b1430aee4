"""The command line: which commands there are, and the options that all of them share.

Each flow's own signature and docstring make its command, so a flag, its help and its bounds are written once.
Nothing heavy is imported before a command is known.
"""

import importlib.metadata
import sys
from typing import Annotated

from cyclopts import App, Parameter

from flows.cli.session import run_command

_INSPECTION = "flows.cli.inspection"  # without Prefect, so that looking is quick
_MODULES = {
    "demo": "flows.cli.demo",
    "plan": _INSPECTION,
    "verify": _INSPECTION,
    "prune": _INSPECTION,
    "serve": "flows.cli.serve",
}
_FLOWS = frozenset({"retrain", "classify", "backfill", "demo"})

app = App(
    name="attnlstm",
    help="Batch classification of token sequences in Parquet with an attention-LSTM, run as Prefect flows.",
    version=lambda: importlib.metadata.version("attnlstm"),
    default_parameter=Parameter(negative=(), consume_multiple=True),
    result_action="return_value",
    exit_on_error=False,
    suppress_keyboard_interrupt=False,  # flows.cli.session says how to go on
)
for _name, _help in {
    "demo": "Sample real bytes, train on them, classify them; a tour in a few minutes.",
    "sample": "Write labelled fragments of the files on this machine, to try things on.",
    "retrain": "Train a checkpoint on labelled Parquet; it becomes champion if it is shown to be no worse.",
    "classify": "Score every row of a Parquet dataset; rerun to score what is new.",
    "backfill": "Classify a range of partitions, such as dates.",
    "serve": "Do all of this on schedules, with Prefect's page, until interrupted.",
    "plan": "Say what classify would do, and why.",
    "verify": "Check an output against its input, row by row.",
    "prune": "Remove from an output what no input accounts for.",
}.items():
    _module = _MODULES.get(_name, "flows.cli.commands")
    app.command(f"{_module}:{_name}", name=_name, help=_help)

_checkpoints = App(name="checkpoints", help="The checkpoints of a registry.")
for _name, _function, _help in (
    ("list", "list_checkpoints", "List them, oldest first."),
    ("show", "show", "Show one: its figures, its data, the judgement on it."),
    ("promote", "promote", "Make one champion."),
    ("rollback", "rollback", "Make the champion before this one champion again."),
    ("compare", "compare", "Compare two, by their cards or on the same rows."),
    ("prune", "prune", "Remove old ones, and what killed runs left."),
):
    _checkpoints.command(f"flows.cli.checkpoints:{_function}", name=_name, help=_help)
app.command(_checkpoints)


@app.meta.default
def _launch(
    *tokens: Annotated[str, Parameter(show=False, allow_leading_hyphen=True)], verbose: bool = False
) -> int | None:
    """Batch classification of token sequences in Parquet with an attention-LSTM, run as Prefect flows.

    Args:
        verbose: Show Prefect's log as it comes, and the traceback of an error.
    """
    code: int | None = app(tokens)
    return code


def main() -> None:
    """Entry point. Exit codes: 0 done, 1 failed, 2 wrong use, 130 interrupted."""
    words = sys.argv[1:]
    # Before anything is parsed: finding a command imports it, and with it Prefect, which reads its settings then.
    verbose = "--verbose" in words
    with_prefect = bool(_FLOWS.intersection(words)) and not {"-h", "--help"}.intersection(words)
    sys.exit(run_command(lambda: app.meta(words), verbose=verbose, with_prefect=with_prefect))
