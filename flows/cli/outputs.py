"""The commands that look at an output without scoring it: plan, verify, report, contract, prune, and what they print.

Only prune changes anything. What would be scored, what is wrong and what may go is for storage to say. Knows nothing
about Prefect, so that these commands are quick.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter
from pydantic import Field

from attnlstm.process import num_cores
from flows.cli import DONE, FAILED
from flows.cli.printing import AsJson, Printer, byte_size, duration, printer, progress
from flows.operations.rescore import Checkpoints, Rescored, score_again
from flows.operations.runs import mending_rules
from flows.orchestration.facts import counted
from flows.settings import PlanOptions, ReportOptions, option, takes
from storage.locations import Location, below
from storage.locks import only_run
from storage.output.manifests import ExpectedTime, expected_time
from storage.output.orphans import Removable, find_leftovers, find_orphans, remove
from storage.output.plan import UP_TO_DATE, Mode, OutputPlan, existing_output, plan_output
from storage.output.side_by_side import Problem
from storage.output.verification import VerificationReport, verify_output
from storage.registry.checkpoints import Registry

if TYPE_CHECKING:
    from flows.pages.report import Report

PlanAsJson = Annotated[bool, Parameter(name="--json")]

# In the order in which they are read.
_REASONS = ("missing", "input changed", "with errors", "stale", UP_TO_DATE)


class PlanCommandOptions(PlanOptions):
    """Say what classify would do with the same arguments, and why. Reads footers only; changes nothing.

    Exit code 1 if no file can be read, since classify could do nothing then.
    """

    as_json: PlanAsJson = option(False, "Print JSON, for scripts, with every shard.")


@takes(PlanCommandOptions)
def plan(options: PlanCommandOptions) -> int:
    output = options.open_output(options.output, options.mode)
    stored = Registry.open(options.registry).load(options.checkpoint)
    planned = plan_output(options.source, output)
    reasons = planned.reasons(stored.id, mending=mending_rules(stored, output, options.mode))
    expected = expected_time(output.root, sum(each.shard.num_rows for each in planned.selected(reasons, options.mode)))
    show_plan(
        printer(options.as_json),
        planned,
        reasons,
        find_orphans(planned),
        expected,
        checkpoint=stored.version,
        mode=options.mode,
    )
    return DONE if planned.shards else FAILED


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
    """
    planned = plan_output(source, existing_output(output))
    checkpoints = Checkpoints(Registry.open(registry), checkpoint)
    stamps = planned.stamps()
    if deep:
        for stamp in stamps.values():
            checkpoints.require(stamp)  # said now, rather than after an hour of reading
    vocabularies = checkpoints.vocabularies(stamps.values())
    with progress("rows", planned.num_rows) as bar:
        report = verify_output(
            planned,
            vocabularies=vocabularies,
            threads=num_cores(),
            on_rows=lambda count: bar(advance=count),
        )
    rescored = None
    if deep and not report.problems:
        rescored = score_again(planned, stamps, checkpoints, deep)
    problems = [*report.problems, *(rescored.problems if rescored else ())]
    show_verified(printer(as_json), report, rescored, problems)
    return FAILED if problems else DONE


def prune(source: str, output: str, *, dry_run: bool = False, as_json: AsJson = False) -> int:
    """Remove from the output what no input accounts for: orphans, and leftovers of killed runs.

    Of a slice of the input, only its part of the output is looked at. Files that do not say what they were made from
    are named and left.

    Args:
        source: Parquet file, folder or URI that was scored. With a glob, of inputs that are gone nothing is removed.
        output: Folder or URI of the output.
        dry_run: Say what would be removed, and leave it.
    """
    existing = existing_output(output)
    # Held for a dry run too: the files that a run is just writing look like leftovers.
    with only_run(existing.root, "prune"):
        found = [*find_orphans(plan_output(source, existing)), *find_leftovers(existing)]
        if not dry_run:
            remove(existing, found)
    show_removed(printer(as_json), found, str(existing.root), dry_run=dry_run)
    return DONE


def report(
    output: str,
    *,
    out: str | None = None,
    rows: Annotated[int, Field(ge=0)] = ReportOptions().report_rows,
    registry: str = "registry",
    as_json: AsJson = False,
) -> int:
    """Make a page about all that an output holds, over all of its runs, to be opened in a browser.

    Each run leaves such a page of its own. This one is made of what lies on disk, so it can be made at any time.

    Args:
        output: Folder or URI of the output.
        out: File or URI to write. By default report.html in the output.
        rows: Rows that are shown, with their tokens; 0 for none, as for data that must not leave.
        registry: Folder or URI of the registry with the card of the checkpoint that scored. Without it, what the
            checkpoint was measured on is left out.
    """
    from flows.pages.page import write_page
    from flows.pages.report import report_output

    found = report_output(output, registry, rows)
    place = Location.parse(out if out is not None else below(output, "report.html"))
    num_bytes = write_page(found, place)
    show_report(printer(as_json), found, str(place), num_bytes)
    return DONE


def contract(output: str, *, out: str | None = None, as_json: AsJson = False) -> int:
    """Write what other tools take of an output: an Open Data Contract, dbt's sources.yml, and views.sql for DuckDB.

    Args:
        output: Folder or URI of the output.
        out: Folder or URI to write to. By default `contract` in the output.
    """
    import yaml

    from storage.described.contracts import dbt_sources, open_data_contract
    from storage.described.outputs import describe_output
    from storage.described.views import views_sql

    found = describe_output(output)
    texts = {
        "contract.odcs.yaml": yaml.safe_dump(open_data_contract(found), sort_keys=False, allow_unicode=True),
        "sources.yml": yaml.safe_dump(dbt_sources(found), sort_keys=False, allow_unicode=True),
        "views.sql": views_sql(found) + "\n",
    }
    folder = Location.parse(out if out is not None else below(output, "contract"))
    for name, text in texts.items():
        (folder / name).write_bytes(text.encode())
    to = printer(as_json)
    to.record({"contract": str(folder), "files": list(texts)})
    to.facts(
        {
            "contract": str(folder / "contract.odcs.yaml"),
            "dbt": str(folder / "sources.yml"),
            "DuckDB": str(folder / "views.sql"),
        }
    )
    return DONE


def show_report(to: Printer, found: "Report", place: str, num_bytes: int) -> None:
    """Whether all is well, and where the page is."""
    checks = [asdict(check) for check in found.checks]
    to.record({"report": place, "bytes": num_bytes, "state": found.state, "checks": checks})
    to.say(f"{found.headline}.")
    to.lines([(check.state, check.text) for check in found.checks], rest="checks", kept_in="the page")
    to.facts({"report": f"{place} ({byte_size(num_bytes)})"})


def show_plan(
    to: Printer,
    planned: OutputPlan,
    why: Mapping[str, str],
    orphans: Sequence[Removable],
    expected: ExpectedTime | None,
    *,
    checkpoint: str,
    mode: Mode,
) -> None:
    """What would be scored and why, how large it is, and how long it may take. why: the reason of each shard."""
    source, output, unreadable = planned.source, str(planned.output.root), planned.unreadable
    pending = planned.selected(why, mode)
    shards = [each.shard for each in pending]
    num_rows, token_bytes = sum(shard.num_rows for shard in shards), sum(shard.token_bytes for shard in shards)
    files = {shard.file for shard in shards}
    num_bytes = sum(file.num_bytes for file in source.files if file.relative in files)
    reasons = Counter(why.values())
    notes = [*planned.notes, *planned.misfits()]
    place = str(source.root / source.scope)
    to.record(
        {
            "source": place,
            "output": output,
            "checkpoint": checkpoint,
            "mode": mode,
            "shards": {reason: reasons[reason] for reason in _REASONS} | {"orphaned": len(orphans)},
            "to_score": {
                "shards": len(shards),
                "rows": num_rows,
                "token_bytes": token_bytes,
                "files": len(files),
                "bytes": num_bytes,
            },
            "expected": asdict(expected) if expected else None,
            "pending": [
                {
                    "name": each.shard.name,
                    "reason": each.reason,
                    "rows": each.shard.num_rows,
                    "token_bytes": each.shard.token_bytes,
                }
                for each in pending
            ],
            "orphans": [asdict(orphan) for orphan in orphans],
            "unreadable": [asdict(file) for file in unreadable],
            "passed_over": [asdict(each) for each in source.passed_over],
            "notes": notes,
        }
    )
    facts = {
        "source": place,
        "output": output,
        "checkpoint": checkpoint,
        "shards": ", ".join(f"{reasons[reason]:,} {reason}" for reason in _REASONS if reasons[reason]) or "none",
        "to score": f"{counted(num_rows, 'row')} in {counted(len(shards), 'shard')}, "
        f"{byte_size(token_bytes)} uncompressed, from {counted(len(files), 'file')} of {byte_size(num_bytes)}",
    }
    if reasons["stale"] and mode in ("missing", "errors"):
        facts["to score"] += "; not what is stale, which --mode stale adds"
    if unreadable and planned.shards:
        number = counted(len(unreadable), "file")
        facts["not scored"] = f"{number} that can't be read; classify does the rest, and ends with exit code 1"
    elif unreadable:
        facts["not scored"] = "no file can be read, so classify would do nothing, and end with exit code 1"
    if orphans:
        facts["orphaned"] = f"{counted(len(orphans), 'file')}, which attnlstm prune shows and removes"
    if shards:
        facts["expected"] = "unknown: no run has scored anything here yet"
        if expected:
            speed = f"{expected.tokens_per_second / 1e6:.2f} million tokens a second ({expected.engine})"
            facts["expected"] = f"{duration(expected.seconds)}, if rows are as long as in the last run, at its {speed}"
    to.facts(facts)
    if shards:
        rows = [
            (each.shard.name, each.reason, f"{each.shard.num_rows:,}", byte_size(each.shard.token_bytes))
            for each in pending
        ]
        to.table(("shard", "why", "rows", "uncompressed"), rows, rest="shards")
    to.lines([("unreadable", f"{file.file}: {file.reason}") for file in unreadable], rest="unreadable files")
    to.lines([("passed over", f"{each.name}: {each.reason}") for each in source.passed_over], rest="passed over")
    to.lines([("note", note) for note in notes], rest="notes")


def show_verified(
    to: Printer, report: VerificationReport, rescored: Rescored | None, problems: Sequence[Problem]
) -> None:
    """What is wrong with an output, or that nothing is. problems: of the report, and of rows that were scored again."""
    again = {"rows": rescored.num_rows, "difference": rescored.difference} if rescored else None
    record: dict[str, Any] = {"rows": report.num_rows, "files": report.num_files, "scored_again": again}
    to.record(record | {"problems": [asdict(problem) for problem in problems], "num_more": report.num_more})
    if not problems:
        to.say(f"{counted(report.num_rows, 'row')} in {counted(report.num_files, 'file')} are right.")
    to.lines([("wrong", str(problem)) for problem in problems], rest="problems", num_more=report.num_more)
    if rescored:
        to.say(f"{counted(rescored.num_rows, 'row')} scored again, {rescored.difference:.1g} apart at most.")


def show_removed(to: Printer, found: Sequence[Removable], output: str, *, dry_run: bool) -> None:
    """What was removed from an output, or would be, and what was left."""
    removed = [each for each in found if not each.is_kept]
    left = [asdict(each) for each in found if each.is_kept]
    to.record({"output": output, "dry_run": dry_run, "removed": [asdict(each) for each in removed], "left": left})
    verb = "would remove" if dry_run else "removed"
    for each in found:
        to.say(f"{'left' if each.is_kept else verb}  {each.path} ({each.why})")
    size = byte_size(sum(each.num_bytes for each in removed))
    to.say(f"{verb.capitalize()} {counted(len(removed), 'file')} of {size}." if found else "Nothing to remove.")
