"""The commands that look at an output without scoring it: plan, verify and prune.

Reads storage and prints; only prune changes anything. Knows nothing about Prefect, so that these commands are quick.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Annotated, Any, Literal

from cyclopts import Parameter
from pydantic import Field
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress

from flows.cli.planning import judge, show_plan
from flows.cli.printing import MOST_LISTED, byte_size, counted, out, print_json, print_rest
from flows.cli.session import DONE, FAILED
from flows.operations.rescore import Checkpoints, Rescored, read_stamps, score_again
from storage.locations import Location
from storage.locks import only_run
from storage.output.examined import examine, existing_output
from storage.output.findings import Problem
from storage.output.layout import Output, OutputSettings
from storage.output.orphans import Orphan, find_leftovers, find_orphans, remove
from storage.output.pending import Mode
from storage.output.verification import VerificationReport, verify_output
from storage.registry.checkpoints import Registry

AsJson = Annotated[bool, Parameter(name="--json")]


def plan(
    source: str,
    output: str,
    *,
    registry: str = "registry",
    checkpoint: str = "champion",
    mode: Mode = "missing",
    save_attention: Annotated[str, Field(pattern=r"^(full|none|top:[1-9][0-9]*)$")] | None = None,
    keep: list[str] | None = None,
    id_column: str | None = None,
    tokens_column: str | None = None,
    label_column: str | None = None,
    max_tokens: Annotated[int, Field(ge=1)] | None = None,
    long_rows: Literal["truncate", "error"] | None = None,
    shard_rows: Annotated[int, Field(ge=1)] | None = None,
    chunk_bytes: Annotated[int, Field(ge=1)] | None = None,
    as_json: AsJson = False,
) -> int:
    """Say what classify would do with the same arguments, and why. Reads footers only; changes nothing.

    Options that say what the output looks like are those it was made with, if it is there, unless they are given.

    Args:
        source: Parquet file, folder, glob or URI with the token sequences to score.
        output: Folder or URI of the output.
        registry: Folder or URI of the checkpoint registry.
        checkpoint: "champion", a version in the registry, or a folder with config.json and model.safetensors.
        mode: Score what has no output ("missing"), also what another checkpoint scored ("stale"), or "all".
        save_attention: "full", "none", or "top:K".
        keep: Input columns to carry through to the predictions.
        id_column: Column carried through as id.
        tokens_column: Column with the tokens.
        label_column: Column with the true class.
        max_tokens: Longest row that is scored whole, in tokens.
        long_rows: What longer rows get: "truncate" or "error".
        shard_rows: Rows of a large file that one task scores.
        chunk_bytes: Tokens that a worker reads, scores and writes at once, in bytes.
        as_json: Print JSON, for scripts, with every shard.
    """
    place = Location.parse(output)
    recorded = Output.recorded_settings(place)
    kept = recorded.get("keep", []) if keep is None else keep
    given = {
        "save_attention": save_attention,
        "keep": [*kept, *([label_column] if label_column and label_column not in kept else [])],
        "id_column": id_column,
        "tokens_column": tokens_column,
        "max_tokens": max_tokens,
        "long_rows": long_rows,
        "shard_rows": shard_rows,
        "chunk_bytes": chunk_bytes,
    }
    asked = {name: value for name, value in given.items() if value is not None}
    settings = OutputSettings.from_record(recorded | asked)
    stored = Registry.open(registry).load(checkpoint)
    examined = examine(source, Output(place, settings))
    show_plan(examined, judge(examined, stored, mode), stored, mode, as_json)
    return DONE


def verify(
    source: str,
    output: str,
    *,
    registry: str = "registry",
    checkpoint: str | None = None,
    deep: Annotated[int, Field(ge=0)] = 0,
    as_json: AsJson = False,
) -> int:
    """Check that every input row is in the output once, in order, with the right id, counts and sums.

    Exit code 1, and where and what, if not. Reads all of the input and all of the output, and nothing else.

    Args:
        source: Parquet file, folder, glob or URI that was scored.
        output: Folder or URI of the output.
        registry: Folder or URI of the registry with the checkpoints that scored it. Without them, which token ids are
            outside the vocabulary is taken from the errors in the output.
        checkpoint: A folder with the checkpoint that scored it, if it is not in the registry.
        deep: Rows to score again and compare, the same ones each time. Needs the checkpoints.
        as_json: Print JSON, for scripts.
    """
    examined = examine(source, existing_output(output))
    checkpoints = Checkpoints(Registry.open(registry), checkpoint)
    stamps = read_stamps(examined)
    if deep:
        for stamp in stamps.values():
            checkpoints.require(stamp)  # said now, rather than after an hour of reading
    vocabularies = checkpoints.vocabularies(stamps.values())
    with _progress("rows", examined.plan.num_rows) as advance:
        report = verify_output(
            examined.output,
            examined.source,
            examined.plan,
            is_pattern=examined.is_pattern,
            vocabularies=vocabularies,
            on_rows=advance,
        )
    rescored = None
    if deep and not report.problems:
        rescored = score_again(examined, stamps, checkpoints, deep)
    problems = [*report.problems, *(rescored.problems if rescored else ())]
    _show_verdict(report, rescored, problems, as_json)
    return FAILED if problems else DONE


def prune(source: str, output: str, *, dry_run: bool = False, as_json: AsJson = False) -> int:
    """Remove from the output what no input accounts for: orphans, and leftovers of killed runs.

    Of a slice of the input, only its part of the output is looked at. Files that do not say what they were made from
    are named and left.

    Args:
        source: Parquet file, folder or URI that was scored. With a glob, of inputs that are gone nothing is removed.
        output: Folder or URI of the output.
        dry_run: Say what would be removed, and leave it.
        as_json: Print JSON, for scripts.
    """
    existing = existing_output(output)
    # Held for a dry run too: the files that a run is just writing look like leftovers.
    with only_run(existing.root, "prune"):
        examined = examine(source, existing)
        orphans = find_orphans(existing, examined.source, examined.plan, is_pattern=examined.is_pattern)
        found = [*orphans, *find_leftovers(existing)]
        if not dry_run:
            remove(existing, found)
    _show_removed(found, existing, dry_run, as_json)
    return DONE


@contextmanager
def _progress(what: str, total: int) -> Iterator[Any]:
    with Progress(console=Console(stderr=True), disable=not sys.stderr.isatty(), transient=True) as bars:
        bar = bars.add_task(what, total=total)
        yield lambda count: bars.advance(bar, count)


def _show_verdict(
    report: VerificationReport, rescored: Rescored | None, problems: list[Problem], as_json: bool
) -> None:
    if as_json:
        again = {"rows": rescored.num_rows, "difference": rescored.difference} if rescored else None
        listed = [asdict(problem) for problem in problems]
        record = {"rows": report.num_rows, "files": report.num_files, "scored_again": again}
        print_json(record | {"problems": listed, "num_more": report.num_more})
        return
    if not problems:
        out.print(f"{counted(report.num_rows, 'row')} in {counted(report.num_files, 'file')} are right.")
    for problem in problems[:MOST_LISTED]:
        out.print(f"[red]wrong[/red]  {escape(str(problem))}")
    print_rest(len(problems) + report.num_more, "problems")
    if rescored:
        out.print(f"{counted(rescored.num_rows, 'row')} scored again, {rescored.difference:.1g} apart at most.")


def _show_removed(found: list[Orphan], output: Output, dry_run: bool, as_json: bool) -> None:
    removed = [asdict(each) for each in found if each.removable]
    left = [asdict(each) for each in found if not each.removable]
    if as_json:
        print_json({"output": str(output.root), "dry_run": dry_run, "removed": removed, "left": left})
        return
    verb = "would remove" if dry_run else "removed"
    for each in found:
        out.print(f"{verb if each.removable else 'left'}  {escape(f'{each.path} ({each.why})')}")
    size = byte_size(sum(each.num_bytes for each in found if each.removable))
    out.print(f"{verb.capitalize()} {counted(len(removed), 'file')} of {size}." if found else "Nothing to remove.")
