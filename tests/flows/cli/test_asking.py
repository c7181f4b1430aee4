"""The commands that ask an output: what they print, and what scripts get."""

import json
from collections.abc import Callable
from typing import Any

import polars as pl

import storage

Run = Callable[..., Any]
FILE = "date=2026-11-01/part-0.parquet"


def test_errors_are_listed_by_reason_with_file_row_and_id(attnlstm: Run, scored: Any) -> None:
    ended = attnlstm("errors", str(scored.output), "--rows", "1")
    assert (ended.code, ended.out.splitlines()) == (
        0,
        [
            "4 rows: tokens are null",
            f"  {FILE}:0  row-000",
            "  and 3 more",
            "4 rows: no tokens",
            f"  {FILE}:1  row-001",
            "  and 3 more",
        ],
    )
    told = json.loads(attnlstm("errors", str(scored.output), "--json").out)
    assert told["rows"] == 8
    assert [(each["reason"], each["num_rows"], len(each["first"])) for each in told["errors"]] == [
        ("tokens are null", 4, 4),
        ("no tokens", 4, 4),
    ]
    assert told["errors"][1]["first"][0] == {"file": FILE, "row": 1, "id": "row-001"}


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
