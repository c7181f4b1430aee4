"""The commands that ask something of rows: which row is explained and by which checkpoint, and what is printed."""

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
from flows.cli.asking import show_explanation
from flows.cli.printing import Terminal
from flows.operations.explain import Explanation

Run = Callable[..., Any]
FILE = "date=2026-11-02/part-0.parquet"


@pytest.mark.parametrize("which", [("--id", "row-112"), ("--row", f"{FILE}:7")], ids=["id", "file and row"])
def test_a_row_of_an_output_is_explained_as_it_was_scored(
    which: tuple[str, str], attnlstm: Run, dataset: Path, scored: Any, trained: Any
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
    attnlstm: Run, trained: Any, monkeypatch: pytest.MonkeyPatch
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
        (["--row", f"{FILE.replace('part', 'prat')}:1"], f"Did you mean '{FILE}'?"),
        (["--row", FILE], "--row must be FILE:N"),
        (["--row", f"{FILE}:0"], "this row can't be scored: tokens are null"),
        ([], "Say which row"),
        (["--id", "row-112", "--checkpoint", "champion"], "Say which row"),
    ],
)
def test_what_cannot_be_explained_says_why(
    words: list[str], message: str, attnlstm: Run, dataset: Path, scored: Any, trained: Any
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


FIRST_FILE = "date=2026-11-01/part-0.parquet"


def test_errors_are_listed_by_reason_with_file_row_and_id(attnlstm: Run, scored: Any) -> None:
    ended = attnlstm("errors", str(scored.output), "--rows", "1")
    assert (ended.code, ended.out.splitlines()) == (
        0,
        [
            "4 rows: tokens are null",
            f"  {FIRST_FILE}:0  row-000",
            "  and 3 more",
            "4 rows: no tokens",
            f"  {FIRST_FILE}:1  row-001",
            "  and 3 more",
        ],
    )
    told = json.loads(attnlstm("errors", str(scored.output), "--json").out)
    assert told["rows"] == 8
    assert [(each["reason"], each["num_rows"], len(each["first"])) for each in told["errors"]] == [
        ("tokens are null", 4, 4),
        ("no tokens", 4, 4),
    ]
    assert told["errors"][1]["first"][0] == {"file": FIRST_FILE, "row": 1, "id": "row-001"}


def test_ngrams_of_a_class_are_shown_as_text_and_hex(attnlstm: Run, scored: Any) -> None:
    asked = ("tokens", str(scored.output), "--class", "digits", "--length", "2", "--most", "4")
    ended, told = attnlstm(*asked), json.loads(attnlstm(*asked, "--json").out)
    num_rows = storage.open_predictions(scored.output).filter(pl.col("prediction") == "digits").collect().height
    assert ended.code == 0
    assert ended.out.startswith(f"{num_rows} rows predicted as digits\n")
    assert (told["class"], told["rows"], told["missing"], told["attention_let_go"]) == ("digits", num_rows, {}, 0)
    assert len(told["ngrams"]) == 4
    for each in told["ngrams"]:
        assert bytes(each["tokens"]).hex(" ") == each["hex"]
        assert each["hex"] in ended.out
    unknown = attnlstm("tokens", str(scored.output), "--class", "digit")
    assert (unknown.code, unknown.err) == (
        1,
        "Error: The output has no class 'digit'; it has digits, high, letters. Did you mean 'digits'?\n",
    )
