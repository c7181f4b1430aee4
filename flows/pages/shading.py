"""One row's tokens, shaded by attention: what a report, `explain` and a notebook show of a row.

Owns how tokens are shown (bytes as text where they are text, else as hex beside ASCII, other vocabularies as numbers),
what a shade means, which stretches of a long row are shown, and how text of unknown origin is made harmless to show.
Knows nothing about HTML.
"""

import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

import numpy as np
import numpy.typing as npt

LEVELS = (1.25, 2.0, 4.0, 8.0, 16.0)
"""How many times its even share of the attention (one part in as many as there are tokens) a token has from each shade
on. So a shade means the same in every row, and a row whose tokens count alike is not shaded."""

HEX_WIDTH = 8
"""Bytes on a line: with their text they fit on a phone."""

_HEAD = 96
_NUM_PEAKS, _AROUND = 8, 12
_MOST_NAMED = 3
_NOT_TEXT = 0.05  # share of bytes that no text has, above which bytes are no text
_LINE_ENDS = {"\n": "↵", "\r": "␍", "\t": "→"}

Kind = Literal["text", "hex", "ids"]

MOST_TOKENS: dict[Kind, int] = {"text": 1024, "hex": 256, "ids": 512}
"""Tokens of a row that are shown, which bounds a page; of longer rows the beginning and what is attended."""


@dataclass(frozen=True)
class Piece:
    """Neighbouring tokens of one shade. level: 0 (none) to len(LEVELS)."""

    text: str
    level: int


@dataclass(frozen=True)
class Line:
    """Tokens in a line of their own, or a stretch. start: position of the first. ascii: beside hex, else empty."""

    start: int
    pieces: tuple[Piece, ...]
    ascii: tuple[Piece, ...] = ()


@dataclass(frozen=True)
class Attended:
    """One of the most attended tokens. weight: its share of the row's attention."""

    position: int
    token: str
    weight: float


@dataclass(frozen=True)
class ShadedTokens:
    """A row's tokens as they are shown. stretches: lines without a gap; gaps: tokens left out before each, and at last.

    is_shaded: whether there are weights. num_scored: tokens that have one; the others were cut off.
    """

    kind: Kind
    num_tokens: int
    num_scored: int
    is_shaded: bool
    stretches: tuple[tuple[Line, ...], ...]
    gaps: tuple[int, ...]
    most_attended: tuple[Attended, ...]


def shade(
    tokens: bytes | Sequence[int | None],
    weights: npt.NDArray[np.floating] | None = None,
    positions: npt.NDArray[np.integer] | None = None,
    *,
    num_scored: int | None = None,
) -> ShadedTokens:
    """How a row is shown.

    tokens: bytes, or ids of another vocabulary. weights: float (n,), of the first n tokens or, with positions (n,), of
    those there; None where none are saved. num_scored: tokens that were scored, if not as many as there are weights.
    """
    of_token = np.zeros(len(tokens))
    if weights is not None:
        places = np.arange(len(weights)) if positions is None else positions
        inside = places < len(tokens)  # a source that is not what was scored is shown, and not failed over
        of_token[places[inside]] = weights[inside]
        num_scored = num_scored or (len(weights) if positions is None else len(tokens))
    num_scored = min(num_scored or len(tokens), len(tokens))
    kind: Kind = "ids"
    if isinstance(tokens, bytes):
        kind = "text" if is_text(tokens) else "hex"
    levels = np.searchsorted(LEVELS, of_token * max(1, num_scored), side="right")
    # A row of one token has all of the attention there is.
    if num_scored == 1 and weights is not None:
        levels[:1] = len(LEVELS)
    spans = _spans(kind, of_token)
    edges = [0, *(edge for span in spans for edge in span), len(tokens)]
    return ShadedTokens(
        kind=kind,
        num_tokens=len(tokens),
        num_scored=num_scored,
        is_shaded=weights is not None,
        stretches=tuple(_lines(kind, tokens, levels, start, end) for start, end in spans),
        gaps=tuple(edges[i + 1] - edges[i] for i in range(0, len(edges), 2)),
        most_attended=tuple(
            Attended(int(place), _name(tokens, int(place)), float(of_token[place]))
            for place in np.argsort(-of_token, kind="stable")[:_MOST_NAMED]
            if of_token[place] > 0
        ),
    )


def is_text(content: bytes) -> bool:
    """Whether bytes read as UTF-8 text. A piece of a text may begin and end within a character."""
    head = content[: MOST_TOKENS["text"]]
    start = next((i for i in range(min(3, len(head))) if head[i] & 0xC0 != 0x80), 0)
    wrong = sum(
        char == "\ufffd" or (unicodedata.category(char) in ("Cc", "Cn") and char not in _LINE_ENDS)
        for char, size in _characters(head[start:])
        for _ in range(size)
    )
    return wrong <= _NOT_TEXT * len(head)


def harmless(text: str, most: int = 600) -> str:
    """Text of unknown origin, to be read and to do nothing: cut short, and what can't be seen or moves others is named.

    Control characters become their pictures; direction marks, zero-width characters, lone surrogates and the like their
    numbers; and of marks that stack on a letter two are left. HTML is escaped elsewhere, as all text is.
    """
    shown, marks = [], 0
    for char in text[:most]:
        marks = marks + 1 if unicodedata.combining(char) else 0
        shown.append(visible(char) if marks <= 2 else f"⟨{ord(char):04X}⟩")
    more = f"… ({len(text):,} characters)" if len(text) > most else ""
    return "".join(shown) + more


def visible(char: str) -> str:
    """A character, or what stands for one that can't be seen."""
    code = ord(char)
    if code < 0x20:
        return chr(0x2400 + code)
    if code == 0x7F:
        return "␡"
    if unicodedata.category(char) in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"):
        return f"⟨{code:04X}⟩"
    return char


def _characters(content: bytes) -> Iterator[tuple[str, int]]:
    """The characters of UTF-8 and how many bytes each has; U+FFFD for each byte that is of none."""
    i = 0
    while i < len(content):
        for size in range(1, 5):
            try:
                char = content[i : i + size].decode()
            except UnicodeDecodeError:
                continue
            if char:
                break
        else:
            char, size = "\ufffd", 1
        yield char, size
        i += size


def _spans(kind: Kind, weights: npt.NDArray[np.float64]) -> list[tuple[int, int]]:
    """The stretches that are shown, in order: the whole row, or its beginning and where it is attended."""
    num_tokens, width = len(weights), HEX_WIDTH if kind == "hex" else 1
    if num_tokens <= MOST_TOKENS[kind]:
        return [(0, num_tokens)] if num_tokens else []
    shown = np.zeros(num_tokens, bool)
    shown[:_HEAD] = True
    for peak in np.argsort(-weights, kind="stable")[:_NUM_PEAKS]:
        if weights[peak] > 0:
            shown[max(0, peak - _AROUND) // width * width : -(-(peak + _AROUND) // width) * width] = True
    edges = np.flatnonzero(np.diff(shown, prepend=False, append=False))
    return [(int(start), int(end)) for start, end in edges.reshape(-1, 2)]


def _lines(
    kind: Kind, tokens: bytes | Sequence[int | None], levels: npt.NDArray[np.integer], start: int, end: int
) -> tuple[Line, ...]:
    if kind == "hex":
        content = bytes(tokens)  # type: ignore[arg-type]  # hex is of bytes only
        return tuple(
            _hex_line(content, levels, first, min(first + HEX_WIDTH, end)) for first in range(start, end, HEX_WIDTH)
        )
    if kind == "text":
        content, place, shown = bytes(tokens), start, []  # type: ignore[arg-type]
        for char, size in _characters(content[start:end]):
            shown.append((_LINE_ENDS.get(char) or visible(char), int(levels[place : place + size].max())))
            place += size
        return (Line(start, _merge(shown, "")),)
    ids = (
        ("null" if token is None else str(token), int(level))
        for token, level in zip(tokens[start:end], levels[start:end], strict=True)
    )
    return (Line(start, _merge(ids, " ")),)


def _hex_line(content: bytes, levels: npt.NDArray[np.integer], start: int, end: int) -> Line:
    part, shades = content[start:end], levels[start:end].tolist()
    pairs = [(f"{byte:02x}", level) for byte, level in zip(part, shades, strict=True)]
    chars = [(chr(byte) if 0x20 <= byte < 0x7F else "·", level) for byte, level in zip(part, shades, strict=True)]
    return Line(start, _merge(pairs, " "), _merge(chars, ""))


def _merge(shown: Iterable[tuple[str, int]], between: str) -> tuple[Piece, ...]:
    return tuple(
        Piece(between.join(text for text, _ in group), level) for level, group in groupby(shown, lambda each: each[1])
    )


def _name(tokens: bytes | Sequence[int | None], place: int) -> str:
    token = tokens[place]
    if not isinstance(tokens, bytes) or not isinstance(token, int):
        return f"{token}"
    return f"{chr(token)!r}" if 0x20 <= token < 0x7F or chr(token) in _LINE_ENDS else f"0x{token:02x}"
