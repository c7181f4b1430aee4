"""How the commands print: facts, lists that end in time, counts and sizes in words, and JSON.

Knows nothing about what is printed. Everything goes to stdout.
"""

import json
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

out = Console(soft_wrap=True, highlight=False)

# A terminal is for reading; --json has everything.
MOST_LISTED = 20


def print_json(record: dict[str, Any]) -> None:
    """One object, for scripts."""
    print(json.dumps(record, indent=2, ensure_ascii=False))


def print_facts(facts: dict[str, str]) -> None:
    """A line for each name and value."""
    table = Table.grid(padding=(0, 2))
    for name, value in facts.items():
        table.add_row(f"[bold]{name}[/bold]", escape(value))
    out.print(table)


def print_rest(count: int, what: str) -> None:
    """How many of `count` were left out after the first MOST_LISTED; nothing if none were."""
    if count > MOST_LISTED:
        out.print(f"and {count - MOST_LISTED:,} more {what}; --json lists them")


def counted(number: int, noun: str) -> str:
    """Such as "1 file" or "5,714 rows"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def byte_size(number: int) -> str:
    """Such as "3.5 MB"."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if number >= size:
            return f"{number / size:.1f} {unit}"
    return f"{number} bytes"


def duration(seconds: float) -> str:
    """Such as "about 8 s"."""
    if seconds < 60:
        return f"about {max(1, round(seconds))} s"
    return f"about {round(seconds / 60)} min" if seconds < 7200 else f"about {seconds / 3600:.1f} h"
