"""The commands that ask something of rows: why one is taken for what, which have errors, what a class attends to.

Which row and which checkpoint is decided here; what is found is for `flows.operations.explain` and storage to say. Owns
what is printed of it. Knows nothing about Prefect.
"""

import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Annotated

from cyclopts import Parameter
from pydantic import Field

from flows.cli import DONE
from flows.cli.printing import AsJson, Printer, printer
from flows.operations.explain import Explanation, find_id, find_row
from flows.operations.rescore import Checkpoints
from flows.orchestration.facts import counted
from flows.pages.shading import harmless, shade, visible
from storage.analysis.attended import AttendedNgrams, Ngram, attended_ngrams
from storage.errors import OutputError
from storage.locations import without_credentials
from storage.output.plan import existing_output, plan_output
from storage.output.row_errors import ErrorRows, find_errors
from storage.picking import pick_rows
from storage.registry.checkpoints import Registry

_USE = (
    "Say which row: SOURCE OUTPUT with --id ID or --row FILE:N, or --checkpoint NAME with a text, or with one on "
    "standard input."
)


def explain(
    *words: str,
    id: Annotated[str | None, Parameter(name="--id")] = None,
    row: str | None = None,
    checkpoint: str | None = None,
    registry: str = "registry",
    as_json: AsJson = False,
    html: bool = False,
) -> int:
    """Explain one row: what it is taken for, its tokens shaded by attention, and what comes of erasing those.

    Either a row of an output, `SOURCE OUTPUT --id ID` or `SOURCE OUTPUT --row FILE:N`, by the checkpoint that scored
    it; or a text, `--checkpoint champion "some text"`, or standard input where no text is given.

    Args:
        words: Source and output of the row, or the text.
        id: The row's id.
        row: The row's file below the source and its position there, from 0: date=2026-11-01/part-0.parquet:7.
        checkpoint: Version or alias of the checkpoint that is to explain a text.
        registry: Folder or URI of the registry with the checkpoints.
        html: Print a piece of HTML instead.
    """
    from flows.operations.model import load

    if checkpoint is not None and id is None and row is None and len(words) < 2:
        tokens = words[0].encode() if words else sys.stdin.buffer.read()
        found = load(registry, checkpoint).explain(tokens)
    elif checkpoint is None and len(words) == 2 and (id is None) != (row is None):
        found = _of_output(*words, id, row, registry)
    else:
        raise ValueError(_USE)
    if html:
        from flows.pages.page import explanation_html

        print(explanation_html(found))
    else:
        show_explanation(printer(as_json), found)
    return DONE


def _of_output(source: str, output: str, row_id: str | None, row: str | None, registry: str) -> Explanation:
    from flows.operations.model import Model

    plan = plan_output(source, existing_output(output))
    if row_id is not None:
        shard, position = find_id(plan, row_id)
    else:
        file, _, number = (row or "").rpartition(":")
        if not file or not number.isdecimal():
            raise ValueError(f"--row must be FILE:N, such as date=2026-11-01/part-0.parquet:7, not {row!r}")
        shard, position = find_row(plan, file, int(number))
    stamp = plan.stamps().get(shard.name)
    if stamp is None:
        raise OutputError(f"{shard.name} is not in {output} yet. Run classify first.")
    settings = plan.output.settings
    place = plan.source.root / shard.file
    table = pick_rows(place, [shard.first_row + position], [settings.columns.tokens])
    stored = Checkpoints(Registry.open(registry), None).require(stamp)
    found = Model.of(stored, max_tokens=settings.max_tokens).explain(table.column(0))
    made = pick_rows(plan.output.predictions(shard.name), [position], ["prediction"])
    is_withheld = settings.abstain_below is not None and made.column(0).null_count == 1
    return replace(found, withheld=str(settings.abstain_below)) if is_withheld else found


def show_explanation(to: Printer, found: Explanation) -> None:
    """What a row is taken for, and its tokens, shaded."""
    shown = shade(found.tokens, found.weights)
    to.record(found.record())
    to.facts(
        {
            "prediction": found.said(),
            "likeliest": ", ".join(f"{name} {share:.1%}" for name, share in found.likeliest()),
            "attended": ", ".join(
                f"{each.token} at {each.position} ({each.weight:.1%})" for each in shown.most_attended
            ),
            "checkpoint": found.version,
        }
    )
    to.tokens(shown)
    to.say(found.sentence())


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
