"""What a part of the benchmarks found: one table for people, and every figure behind it for programs."""

from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any

from machine import describe_machine


@dataclass(frozen=True)
class Findings:
    """title: what was measured. header, rows: the table, as text. notes: what the table does not say.

    figures: plain data, ready for JSON.
    """

    title: str
    header: list[str]
    rows: list[list[str]]
    notes: list[str] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)

    def record(self) -> dict[str, Any]:
        """Ready for JSON, with when and on what it was measured."""
        return asdict(self) | {"measured": f"{datetime.now(UTC):%Y-%m-%d}", "machine": describe_machine()}


def markdown(record: dict[str, Any]) -> str:
    """A record's title, table and notes as Markdown."""
    machine = record["machine"]
    # Older records do not have them.
    instructions = f"{machine['instructions']}, " if "instructions" in machine else ""
    lines = [
        f"## {record['title']}",
        "",
        f"| {' | '.join(record['header'])} |",
        f"|{'|'.join(['---', *['---:'] * (len(record['header']) - 1)])}|",
        *(f"| {' | '.join(row)} |" for row in record["rows"]),
        "",
        *(f"- {note}" for note in record["notes"]),
        f"- {record['measured']}, {machine['processor']}, {instructions}{machine['cores']} cores",
    ]
    return "\n".join(lines) + "\n"
