"""How the commands print: the one place that decides how a result is shown, as text or as JSON.

A command hands each of its values to a `Printer`: facts, tables, lists and sentences for people, a record for
scripts. Which of them are printed depends on the printer. Knows nothing about what is printed.
"""

import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import zip_longest
from textwrap import wrap
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table
from rich.text import Text

if TYPE_CHECKING:
    from flows.pages.shading import Piece, ShadedTokens

AsJson = Annotated[bool, Parameter(name="--json", help="Print JSON, for scripts.")]

# A terminal is for reading; the record has everything.
MOST_LISTED = 20

# A path or a URI, which is to be copied whole.
_PLACE = re.compile(r"([a-z0-9]+:/|~)?/")
_NARROWEST = 20

# Of tokens, by how much they are attended to. The letters have colours too, so that dark and light terminals show them.
_SHADES = (
    "",
    "black on color(189)",
    "black on color(147)",
    "black on color(105)",
    "white on color(63)",
    "bold white on color(57)",
)

# Marks of lines that tell of something bad. They are red where there are colours.
_BAD = {"failed", "unreadable", "wrong", "bad"}


class Printer:
    """What a command can hand over. Each method prints its value or, where it is not for this printer, nothing."""

    def record(self, record: Any) -> None:
        """The whole result as one JSON value, for scripts."""

    def say(self, text: str) -> None:
        """A sentence."""

    def complain(self, text: str) -> None:
        """A sentence about something that failed; it goes to stderr."""

    def facts(self, facts: Mapping[str, str]) -> None:
        """A line for each name and text."""

    def table(self, headings: Sequence[str], rows: Sequence[Sequence[str]], *, rest: str = "") -> None:
        """A row for each of `rows`. With `rest`, such as "shards", no more than MOST_LISTED, and how many are left."""

    def lines(self, lines: Sequence[tuple[str, str]], *, rest: str, num_more: int = 0, kept_in: str = "--json") -> None:
        """A mark and a text for each line, no more than MOST_LISTED, and how many are left.

        rest: what the lines are about, such as "problems". num_more: how many there are beside `lines`.
        kept_in: where all of them are listed.
        """

    def tokens(self, tokens: "ShadedTokens") -> None:
        """A row's tokens, shaded by attention where there are colours."""


class Terminal(Printer):
    """Prints for people. Everything but complaints goes to stdout."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(soft_wrap=True, highlight=False)
        self._errors = Console(stderr=True, soft_wrap=True, highlight=False)

    def say(self, text: str) -> None:
        # What is laid out already, such as commands to be copied below each other, stays as it is.
        is_sentence = "\n" not in text and not text.startswith(" ")
        self._console.print(escape(self._folded(text, 0) if is_sentence else text))

    def complain(self, text: str) -> None:
        self._errors.print(escape(text))

    def facts(self, facts: Mapping[str, str]) -> None:
        width = max(map(len, facts), default=0)
        for name, text in facts.items():  # no table, which would fold paths and pad lines with blanks
            self._console.print(f"[bold]{escape(name.ljust(width))}[/bold]  {escape(self._folded(text, width + 2))}")

    def table(self, headings: Sequence[str], rows: Sequence[Sequence[str]], *, rest: str = "") -> None:
        # Where a line is too short for a path, the path goes on below instead of being cut.
        table = Table(*(Column(escape(heading), overflow="fold") for heading in headings), box=None)
        for row in rows[:MOST_LISTED] if rest else rows:
            table.add_row(*map(escape, row))
        self._console.print(table)
        if rest:
            self._say_rest(len(rows), rest, "--json")

    def lines(self, lines: Sequence[tuple[str, str]], *, rest: str, num_more: int = 0, kept_in: str = "--json") -> None:
        for mark, text in lines[:MOST_LISTED]:
            shown = f"[red]{mark}[/red]" if mark in _BAD else mark
            self._console.print(f"{shown}  {escape(self._folded(text, len(mark) + 2))}")
        self._say_rest(len(lines) + num_more, rest, kept_in)

    def tokens(self, tokens: "ShadedTokens") -> None:
        def shaded(pieces: Sequence["Piece"], between: str) -> Text:
            return Text(between).join(Text(piece.text, _SHADES[piece.level]) for piece in pieces)

        for gap, lines in zip_longest(tokens.gaps, tokens.stretches, fillvalue=()):
            if gap:
                self._console.print(f"[dim]... {gap:,} more tokens ...[/dim]")
            for line in lines or ():
                shown = shaded(line.pieces, " " if tokens.kind != "text" else "")
                if tokens.kind == "hex":
                    shown = Text(f"{line.start:04x}  ", "dim") + shown + Text("  ") + shaded(line.ascii, "")
                self._console.print(shown)

    def _folded(self, text: str, indent: int) -> str:
        """In a terminal, the lines of a text below each other, folded between words; a place stays as it is."""
        if not self._console.is_terminal or _PLACE.match(text):
            return text
        width = max(_NARROWEST, self._console.width - indent)
        lines = wrap(text, width, break_long_words=False, break_on_hyphens=False)
        return f"\n{' ' * indent}".join(lines)

    def _say_rest(self, count: int, rest: str, kept_in: str) -> None:
        if count > MOST_LISTED:
            self._console.print(f"and {count - MOST_LISTED:,} more {rest}; {kept_in} lists them")


class Json(Printer):
    """Prints for scripts: records, and nothing else."""

    def record(self, record: Any) -> None:
        # Where characters can't be printed as they are, they are escaped as JSON has it.
        is_unicode = (sys.stdout.encoding or "").lower().startswith("utf")
        print(json.dumps(record, indent=2, ensure_ascii=not is_unicode))

    def complain(self, text: str) -> None:
        Terminal().complain(text)


def printer(as_json: bool = False) -> Printer:
    """The printer that a command's --json asks for."""
    return Json() if as_json else Terminal()


@contextmanager
def progress(what: str, total: int) -> Iterator[Callable[..., None]]:
    """A bar on stderr while the block runs, if that is a terminal.

    The value moves it: by so much with `advance=`, to where it is with `completed=`.
    """
    from flows.orchestration.progress import terminal_bar

    with terminal_bar() as bars:
        yield partial(bars.update, bars.add_task(what, total=total))


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
