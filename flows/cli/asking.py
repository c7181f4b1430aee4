"""The commands that ask an output something: which rows have errors, and what a class attends to.

What is found is for storage to say; here is what is printed of it. Knows nothing about Prefect.
"""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated

from cyclopts import Parameter
from pydantic import Field

from flows.cli import DONE
from flows.cli.printing import AsJson, Printer, printer
from flows.orchestration.facts import counted
from flows.pages.shading import harmless, visible
from storage.analysis.attended import AttendedNgrams, Ngram, attended_ngrams
from storage.locations import without_credentials
from storage.output.plan import existing_output
from storage.output.row_errors import ErrorRows, find_errors


def errors(output: str, *, rows: Annotated[int, Field(ge=0)] = 5, as_json: AsJson = False) -> int:
    """List the rows of an output that have no prediction, by the reason why, with file, row and id.

    What may change it: `classify --mode errors`, with a longer --max-tokens or a checkpoint of a larger vocabulary.

    Args:
        output: Folder or URI of the output.
        rows: Rows that are listed of each error.
    """
    show_errors(printer(as_json), find_errors(existing_output(output), rows), output)
    return DONE


def show_errors(to: Printer, found: Sequence[ErrorRows], output: str) -> None:
    """Errors by how many rows have them, with the first of these rows."""
    num_rows = sum(each.num_rows for each in found)
    to.record({"output": without_credentials(output), "rows": num_rows, "errors": [asdict(each) for each in found]})
    for each in found:
        to.say(f"{counted(each.num_rows, 'row')}: {each.reason}")
        for row in each.first:
            to.say(f"  {row.file}:{row.row}  {harmless(str(row.id))}")
        if each.num_rows > len(each.first):
            to.say(f"  and {each.num_rows - len(each.first):,} more")
    if not found:
        to.say("Every row has a prediction.")


def tokens(
    output: str,
    *,
    name: Annotated[str, Parameter(name="--class")],
    length: Annotated[int, Field(ge=1, le=8)] = 3,
    most: Annotated[int, Field(ge=1)] = 20,
    source: str | None = None,
    as_json: AsJson = False,
) -> int:
    """Say what a class attends to over a whole output: n-grams of tokens, with how much attention they get.

    First come those that get most more than if attention were spread evenly over each row, in all rows that are
    predicted as the class. The tokens are read from the source.

    Args:
        output: Folder or URI of the output.
        name: The class.
        length: Tokens of an n-gram.
        most: N-grams that are listed.
        source: Folder or URI that the input is below, if it is not where the output says any more.
    """
    found = attended_ngrams(output, name, length=length, most=most, source=source)
    show_ngrams(printer(as_json), found, output, name)
    return DONE


def show_ngrams(to: Printer, found: AttendedNgrams, output: str, name: str) -> None:
    """N-grams with their figures, and of what they are not."""
    ngrams = [
        ({"text": _text(each), "hex": _hex(each)} if found.are_bytes else {}) | asdict(each) for each in found.ngrams
    ]
    to.record(
        {
            "output": without_credentials(output),
            "class": name,
            "rows": found.num_rows,
            "ngrams": ngrams,
            "missing": dict(found.missing),
            "attention_let_go": found.let_go,
        }
    )
    to.say(f"{counted(found.num_rows, 'row')} predicted as {harmless(name)}")
    headings = ("n-gram", *(["hex"] if found.are_bytes else []), "count", "mean weight", "times even")
    to.table(headings, [_shown(each, found.are_bytes) for each in found.ngrams])
    if found.let_go:
        to.say(f"There are too many to count: rare ones, with {found.let_go:.1%} of the attention, are left out.")
    to.lines([("missing", f"{file}: {why}") for file, why in found.missing.items()], rest="missing files")


def _shown(ngram: Ngram, are_bytes: bool) -> tuple[str, ...]:
    names = (_text(ngram), _hex(ngram)) if are_bytes else (" ".join(map(str, ngram.tokens)),)
    return (*names, f"{ngram.count:,}", f"{ngram.weight:.4f}", f"{ngram.times_even:.1f}")


def _text(ngram: Ngram) -> str:
    """ASCII as it is read, and a dot for each other byte."""
    return "".join(visible(chr(byte)) if byte < 0x80 else "·" for byte in ngram.tokens)


def _hex(ngram: Ngram) -> str:
    return bytes(ngram.tokens).hex(" ")
