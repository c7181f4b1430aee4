"""What columns mean is written once: the files and the README say the same."""

import re
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from storage.described.columns import COLUMNS, KEPT, Part
from storage.input.columns import ATTENTION_COLUMNS, PREDICTION_COLUMNS, Columns
from storage.locations import Location
from storage.output.layout import Output

README = Path(__file__).resolve().parents[3] / "storage/README.md"


def test_every_column_is_described() -> None:
    assert [column.name for column in COLUMNS["predictions"]] == [
        *PREDICTION_COLUMNS[:2],
        KEPT,
        *PREDICTION_COLUMNS[2:],
    ]
    assert [column.name for column in COLUMNS["attention"]] == [*PREDICTION_COLUMNS[:2], *ATTENTION_COLUMNS]


@pytest.mark.parametrize("part", COLUMNS)
def test_the_readme_says_what_columns_mean(part: Part) -> None:
    _, _, section = README.read_text(encoding="utf-8").partition(f"### {part}\n")
    rows = re.findall(r"^\| (.*) \|$", section.partition("\n#")[0], re.MULTILINE)[1:]
    named = (column.name if column.name == KEPT else f"`{column.name}`" for column in COLUMNS[part])
    expected = [
        f"{name} | {column.type} | {column.null} | {column.meaning}"
        for name, column in zip(named, COLUMNS[part], strict=True)
    ]
    assert rows == expected


def test_files_say_what_their_columns_mean(put: Callable[..., Path], made: Callable[..., Output]) -> None:
    put("a.parquet", x=["a", "b"])
    output = made("top:1", columns=Columns(keep=("x",)))
    places: dict[Part, Location] = {
        "predictions": output.predictions("a.parquet"),
        "attention": output.attention("a.parquet"),
    }
    for part, place in places.items():
        comments = {each.name: each.metadata[b"comment"] for each in pq.read_schema(place.path)}
        described = {column.name: column.comment.encode() for column in COLUMNS[part]}
        described = {"x" if name == KEPT else name: comment for name, comment in described.items()}
        assert comments == described
        assert not any(b"`" in comment for comment in comments.values())
