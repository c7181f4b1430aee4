"""Which row `attnlstm explain` explains, and by which checkpoint."""

import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest
from rich.console import Console

import attnlstm as package
import storage
from flows.cli.explain import show_explanation
from flows.cli.printing import Terminal
from flows.operations.explain import Explanation

FILE = "date=2026-11-02/part-0.parquet"


@pytest.mark.parametrize("which", [("--id", "row-112"), ("--row", f"{FILE}:7")], ids=["id", "file and row"])
def test_a_row_of_an_output_is_explained_as_it_was_scored(
    which: tuple[str, str], attnlstm: Callable[..., Any], dataset: Path, scored: Any, trained: Any
) -> None:
    where = (str(dataset), str(scored.output), "--registry", str(trained.registry))
    ended = attnlstm("explain", *where, *which, "--json")
    assert ended.code == 0, ended.err
    found = json.loads(ended.out)
    rows = storage.open_attention(str(scored.output)).collect()
    row = rows.row(by_predicate=pl.col("id") == "row-112", named=True)
    assert found["checkpoint"] == row["checkpoint"] == trained.version
    assert found["prediction"] == row["prediction"]
    assert list(found["probabilities"].values()) == row["probabilities"]
    assert found["weights"] == row["weights"]


def test_a_text_is_explained_from_the_command_line_or_standard_input(
    attnlstm: Callable[..., Any], trained: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = ("explain", "--checkpoint", "champion", "--registry", str(trained.registry))
    given = attnlstm(*said, "0123456789", "--json")
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(b"0123456789")))
    piped = attnlstm(*said, "--json")
    expected = package.load(str(trained.registry)).explain("0123456789")
    assert json.loads(given.out) == json.loads(piped.out) == json.loads(json.dumps(expected.record()))
    page = attnlstm(*said, "<script>alert(1)</script>", "--html")
    assert page.code == 0
    assert "<script>" not in page.out
    assert "Without the" in page.out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--id", "nobody"], "No row of the output has the id nobody"),
        (["--row", f"{FILE}:105"], "has 105 rows, counted from 0; row 105 is none of them"),
        (["--row", "other.parquet:1"], "has no file other.parquet; it has date=2026-11-01/part-0.parquet, "),
        (["--row", FILE], "--row must be FILE:N"),
        (["--row", f"{FILE}:0"], "this row can't be scored: tokens are null"),
        ([], "Say which row"),
        (["--id", "row-112", "--checkpoint", "champion"], "Say which row"),
    ],
)
def test_what_cannot_be_explained_says_why(
    words: list[str], message: str, attnlstm: Callable[..., Any], dataset: Path, scored: Any, trained: Any
) -> None:
    ended = attnlstm("explain", str(dataset), str(scored.output), "--registry", str(trained.registry), *words)
    assert ended.code != 0
    assert message in ended.err


def test_tokens_are_shaded_where_there_are_colours() -> None:
    weights = np.array([0.05, 0.8, 0.05, 0.1], np.float32)
    falls = {"most": (0.6,), "random": (0.1,), "least": (0.0,)}
    found = Explanation("v1", b"abcd", "x", {"x": 0.9, "y": 0.1}, weights, (0.1,), falls)
    for colours in (None, "256"):
        console = Console(file=io.StringIO(), force_terminal=colours is not None, color_system=colours, width=80)  # type: ignore[arg-type]
        show_explanation(Terminal(console), found)
        shown = console.file.getvalue()  # type: ignore[attr-defined]
        plain = re.sub(r"\x1b\[[\d;]*m", "", shown)
        assert "abcd" in plain
        assert ("48;5;" in shown) == (colours is not None)
        assert "Without the token that is most attended" in plain.replace("\n", " ")
        assert "x has a probability of 0.300 instead of 0.900" in plain.replace("\n", " ")
