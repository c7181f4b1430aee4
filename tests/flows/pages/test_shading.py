"""A row's tokens as they are shown: what they are taken for, how they are shaded, what is left of hostile text."""

import numpy as np
import pytest

from flows.pages.shading import LEVELS, MOST_TOKENS, ShadedTokens, harmless, is_text, shade


def _shown(tokens: ShadedTokens, *, ascii_column: bool = False) -> str:
    lines = [line for stretch in tokens.stretches for line in stretch]
    return "|".join("".join(piece.text for piece in (line.ascii if ascii_column else line.pieces)) for line in lines)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"import os\n", True),
        ("grüße, 東京 🎉\r\n".encode(), True),
        ("grüße".encode()[3:], True),  # cut within a character
        ("東京".encode()[:-1] + b" and so on, for long enough to be one of twenty", True),
        ("abc \u202e def \u200b of a text that marks turn around".encode(), True),
        (bytes(range(256)), False),
        (b"\x7fELF\x02\x01\x01" + bytes(9), False),
        (b"\xff\xfe", False),
    ],
)
def test_bytes_that_read_as_utf8_are_text(content: bytes, expected: bool) -> None:
    assert is_text(content) is expected


def test_text_is_shown_in_one_piece_with_names_for_line_ends_and_what_cannot_be_seen() -> None:
    assert _shown(shade("a\tb\n\u202eté".encode())) == "a→b↵⟨202E⟩té"


def test_other_bytes_are_shown_as_hex_beside_ascii() -> None:
    tokens = shade(b"\x00\x01\xffELF<b>\x80\x9f")

    assert tokens.kind == "hex"
    assert _shown(tokens).split("|") == ["00 01 ff 45 4c 46 3c 62", "3e 80 9f"]
    assert _shown(tokens, ascii_column=True).split("|") == ["···ELF<b", ">··"]
    assert [line.start for line in tokens.stretches[0]] == [0, 8]


def test_ids_of_another_vocabulary_are_numbers() -> None:
    tokens = shade([7, 300, None], np.array([0.1, 0.8, 0.1]))

    assert tokens.kind == "ids"
    assert [(piece.text, piece.level) for piece in tokens.stretches[0][0].pieces] == [("7", 0), ("300", 2), ("null", 0)]
    assert [(each.position, each.token) for each in tokens.most_attended] == [(1, "300"), (0, "7"), (2, "None")]


@pytest.mark.parametrize("level", range(len(LEVELS) + 1))
def test_a_shade_says_how_many_even_shares_a_token_has(level: int) -> None:
    num_tokens = 40
    share = (1.0, *LEVELS)[level] / num_tokens
    weights = np.full(num_tokens, (1 - share) / (num_tokens - 1))
    weights[3] = share

    (line,) = shade(b"x" * num_tokens, weights).stretches[0]

    assert {piece.level for piece in line.pieces} == {0, level}
    assert len(line.pieces) == (3 if level else 1)  # neighbours of one shade are one piece


def test_the_only_token_of_a_row_has_all_of_the_attention() -> None:
    assert shade(b"x", np.array([1.0])).stretches[0][0].pieces[0].level == len(LEVELS)


def test_largest_weights_alone_stand_at_their_positions() -> None:
    tokens = shade(b"abcdefghij", np.array([0.6, 0.2]), np.array([4, 1]), num_scored=10)

    pieces = tokens.stretches[0][0].pieces
    assert [(piece.text, piece.level) for piece in pieces] == [
        ("a", 0), ("b", 2), ("cd", 0), ("e", 3), ("fghij", 0),
    ]  # fmt: skip


def test_without_weights_nothing_is_shaded() -> None:
    tokens = shade(b"abc")

    assert not tokens.is_shaded
    assert tokens.most_attended == ()
    assert [piece.level for piece in tokens.stretches[0][0].pieces] == [0]


@pytest.mark.parametrize("kind", ["text", "hex", "ids"])
def test_of_a_long_row_the_beginning_and_what_is_attended_is_shown_and_the_rest_is_counted(kind: str) -> None:
    num_tokens = 5000
    rows = {"text": b"a" * num_tokens, "hex": b"\x80" * num_tokens, "ids": list(range(num_tokens))}
    weights = np.full(num_tokens, 0.5 / (num_tokens - 1))
    weights[4321] = 0.5

    tokens = shade(rows[kind], weights)  # type: ignore[arg-type]

    assert tokens.kind == kind
    num_shown = num_tokens - sum(tokens.gaps)
    assert len(tokens.gaps) == len(tokens.stretches) + 1
    assert 96 < num_shown < MOST_TOKENS["hex"]
    starts = [stretch[0].start for stretch in tokens.stretches]
    assert starts[0] == 0
    assert any(start <= 4321 < start + 32 for start in starts)


def test_tokens_beyond_the_longest_that_is_scored_are_shown_without_a_share() -> None:
    tokens = shade(b"abcdef", np.full(3, 1 / 3))

    assert (tokens.num_tokens, tokens.num_scored) == (6, 3)
    assert [piece.text for piece in tokens.stretches[0][0].pieces] == ["abcdef"]


def test_a_row_without_tokens_has_nothing_to_show() -> None:
    assert shade(b"").stretches == ()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain, ümläut, 東京", "plain, ümläut, 東京"),
        ("a\x00b\x1b[31m\x7f\n", "a␀b␛[31m␡␊"),
        ("a\u202eb\u2066c\u200bd\ufeff", "a⟨202E⟩b⟨2066⟩c⟨200B⟩d⟨FEFF⟩"),
        ("\ud800\u2028\ue000", "⟨D800⟩⟨2028⟩⟨E000⟩"),
        ("e" + "\u0301" * 4, "e\u0301\u0301⟨0301⟩⟨0301⟩"),
        ("x" * 1_000_000, "x" * 600 + "… (1,000,000 characters)"),
    ],
)
def test_text_of_unknown_origin_is_made_harmless(text: str, expected: str) -> None:
    assert harmless(text) == expected
