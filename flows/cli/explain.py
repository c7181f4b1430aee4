"""The command that explains one row: of an output, or a text that is given.

Which row and which checkpoint is decided here; what is said of it is for `flows.operations.explain`.
"""

import sys
from dataclasses import replace
from typing import Annotated

from cyclopts import Parameter

from flows.cli import DONE
from flows.cli.printing import AsJson, Printer, printer
from flows.operations.explain import Explanation, find_id, find_row
from flows.operations.model import Model, load
from flows.operations.rescore import Checkpoints
from flows.pages.page import explanation_html
from flows.pages.shading import shade
from storage.errors import OutputError
from storage.output.plan import existing_output, plan_output
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
    if checkpoint is not None and id is None and row is None and len(words) < 2:
        tokens = words[0].encode() if words else sys.stdin.buffer.read()
        found = load(registry, checkpoint).explain(tokens)
    elif checkpoint is None and len(words) == 2 and (id is None) != (row is None):
        found = _of_output(*words, id, row, registry)
    else:
        raise ValueError(_USE)
    if html:
        print(explanation_html(found))
    else:
        show_explanation(printer(as_json), found)
    return DONE


def _of_output(source: str, output: str, row_id: str | None, row: str | None, registry: str) -> Explanation:
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
